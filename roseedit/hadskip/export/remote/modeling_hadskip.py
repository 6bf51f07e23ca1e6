"""A causal language model that skips layers: gates look at the prompt once and pick which layers run.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    model.generate(**tokenizer("...", return_tensors="pt"))     # within the budget that the gates were fitted for
    model.set_budget(0.8)                                        # another one
    model.set_profile("full")                                    # all layers, always; None: the gates again

One choice per call and for all that is generated from it: the layers that run are fixed with the first pass over the
prompt and remembered by its cache. Rows of one batch that would choose differently get the costliest of their choices.
Written by roseedit, which is not needed to run this file.
"""

import torch
from torch import nn
from transformers import PreTrainedModel as Base


class HadSkip(nn.Module):
    """Gates, profiles and healing, as the configuration and the checkpoint hold them."""

    def __init__(self, record):
        super().__init__()
        self.record = record
        self.profiles = record["profiles"]
        for name, (shape, dtype) in record["tensors"].items():
            self.register_buffer(name, torch.zeros(shape, dtype=getattr(torch, dtype)))
        self.budget, self.fixed = record["budget"], None

    def theta(self):
        keeping = [theta for theta, cost in self.record["curve"] if cost <= self.budget + 1e-6]
        return min(keeping) if keeping else max(theta for theta, _ in self.record["curve"])

    def choose(self, states, mask):
        """Which profile suits what enters the first gated layer, (rows, tokens, hidden)."""
        states = states.float()
        unit = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)
        weights = torch.ones(states.shape[:2]) if mask is None else mask[:, -states.shape[1] :].float()
        weights = weights.to(states.device)
        mean = (unit * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        mean = mean * torch.rsqrt(mean.pow(2).mean(-1, keepdim=True) + 1e-6)
        places = torch.arange(states.shape[1], device=states.device)
        last = unit[torch.arange(len(unit), device=unit.device), (weights * (places + 1)).argmax(1)]
        seen = (torch.cat((mean, last), -1) - self.mean.float()) @ self.directions.float().T
        scores = seen @ self.weight.float().T + self.bias.float()
        values = ((scores - self.theta()) * self.costs.float()) @ self.members.float().T
        return max(values.argmax(1).tolist(), key=lambda i: self.profiles[i]["cost"])

    def heal(self, x, profile, layer):
        """What a skipped layer hands on: s * x + B A x, as far as it has any."""
        key = self.profiles[profile]["healing"]
        out = x
        if f"{key}_scale_{layer}" in self._buffers:
            out = x * self._buffers[f"{key}_scale_{layer}"].to(x)
        if f"{key}_a_{layer}" in self._buffers:
            a, b = self._buffers[f"{key}_a_{layer}"], self._buffers[f"{key}_b_{layer}"]
            out = out + x @ a.to(x).mT @ b.to(x).mT
        return out


class _Gated:
    """A decoder layer's forward, or what stands in for it."""

    def __init__(self, owner, layer, own):
        self.owner, self.layer, self.own = owner, layer, own

    def __call__(self, *args, **kwargs):
        owner, skip = self.owner, self.owner.hadskip
        x = args[0] if args else kwargs["hidden_states"]
        if self.layer == skip.record["looks_at"] and owner.chosen == "asks":
            owner.chosen = skip.choose(x, owner.prompt_mask)
        if not isinstance(owner.chosen, int) or self.layer in skip.profiles[owner.chosen]["layers"]:
            return self.own(*args, **kwargs)
        out = skip.heal(x, owner.chosen, self.layer)
        return (out, None) if skip.record["layer_returns_tuple"] else out


class HadSkipForCausalLM(Base):
    """The model with gated layers. `chosen` is the profile of the pass that runs: an index, "asks", or None for all."""

    def __init__(self, config):
        super().__init__(config)
        self.hadskip = HadSkip(config.hadskip)
        self.chosen, self.prompt_mask = None, None
        for i, layer in enumerate(self.get_submodule(config.hadskip["layers_name"])):
            layer.forward = _Gated(self, i, layer.forward)

    def set_budget(self, budget):
        """Mean share of layer cost that may run, on text like that of the calibration."""
        least = min(p["cost"] for p in self.hadskip.profiles)
        if not least - 1e-6 <= budget <= 1:
            raise ValueError(f"got budget {budget}; allowed: from {least:.3f} to 1")
        self.hadskip.budget = budget

    def set_profile(self, name):
        """Always this profile; "full" for all layers; None to let the gates choose again."""
        names = [p["name"] for p in self.hadskip.profiles]
        if name not in (None, "full", *names):
            raise ValueError(f"got profile {name!r}; allowed: None, full, {', '.join(names)}")
        self.hadskip.fixed = name if name in (None, "full") else names.index(name)

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, **kwargs):
        fixed = self.hadskip.fixed
        self.chosen = "asks" if fixed is None else None if fixed == "full" else fixed
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            self.chosen = getattr(past_key_values, "hadskip_profile", self.chosen)
        self.prompt_mask = attention_mask
        try:
            out = super().forward(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
            )
            cache = getattr(out, "past_key_values", None)
            if cache is not None:
                cache.hadskip_profile = self.chosen
            return out
        finally:
            self.chosen, self.prompt_mask = None, None
