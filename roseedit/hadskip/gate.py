"""The gates: one per layer, asked once per sequence, and the choice of a profile that follows from them.

    p   = features of what enters layer e (the first that may be skipped), pooled over the prompt      [entry_features]
    s_l = w_l . (P p - m) + a_l                                            P, m fixed: principal directions, mean
    q_l = sigmoid((s_l + n_l) / tau),  n_l ~ Logistic(0, 1) in training, 0 at inference
    h_l = 1[q_l > 1/2],  g_l = h_l + q_l - sg(q_l)                         value 0 or 1, gradient of q_l

At inference a sequence gets the profile that agrees best with its gates, the M that maximises
sum over M of c_l (s_l - theta), with c_l the layers' costs. One number theta moves all choices towards cheaper
profiles; it is calibrated on held-out text so that the mean cost equals the budget. There is no noise at inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from roseedit.errors import SkipError, refusal
from roseedit.hadskip.choosing import PromptBatch
from roseedit.hadskip.profile import SLACK, SkipProfiles
from roseedit.models.load import LoadedModel


def entry_features(states: Tensor, mask: Tensor) -> Tensor:
    """What the gates see of a prompt: the normalised mean of its normalised states, and its last state, normalised.

    States are normalised before they are averaged too: some tokens carry states a hundred times larger than others.

    Args:
        states: (rows, tokens, hidden), what enters the layer.
        mask: (rows, tokens), 1 for real tokens, right-padded.

    Returns:
        (rows, 2 * hidden), float32.
    """
    weights = mask.to(states.device).float()
    unit = _rms_norm(states.float())
    mean = (unit * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    last = unit[torch.arange(len(unit), device=unit.device), weights.sum(1).long() - 1]
    return torch.cat((_rms_norm(mean), last), -1)


def _rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Gates(nn.Module):
    """Gates of the layers that may be skipped.

    Args:
        layers: These layers.
        mean: (features,), the mean of the features.
        directions: (components, features), scaled so that each component has about unit variance.
        open_bias: Start of every a_l: open.

    Attributes:
        weight: (layers, components), w_l.
        bias: (layers,), a_l.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, layers: Sequence[int], mean: Tensor, directions: Tensor, open_bias: float = 3.0) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.weight = nn.Parameter(torch.zeros(len(self.layers), len(directions)))
        self.bias = nn.Parameter(torch.full((len(self.layers),), float(open_bias)))
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)

    @classmethod
    def for_features(cls, layers: Sequence[int], features: Tensor, components: int, open_bias: float = 3.0) -> Gates:
        """Gates on the principal directions of a sample: a few hundred sequences do not carry a thousand weights.

        Args:
            layers: The layers that may be skipped.
            features: (sequences, features), of training sequences.
            components: How many directions; at most the number of sequences less one.
            open_bias: Start of every a_l.

        Returns:
            The gates, all open, blind to their input.
        """
        mean = features.mean(0)
        _, values, directions = torch.linalg.svd(features - mean, full_matrices=False)
        kept = max(1, min(components, len(features) - 1))
        scale = len(features) ** 0.5 / values[:kept].clamp(min=1e-6)
        return cls(layers, mean, directions[:kept] * scale[:, None], open_bias)

    def components(self, features: Tensor) -> Tensor:
        """The gates' input.

        Args:
            features: (rows, features).

        Returns:
            (rows, components).
        """
        return (features - self.mean) @ self.directions.T

    def forward(self, features: Tensor) -> Tensor:
        """Scores s_l; positive is open.

        Args:
            features: (rows, features).

        Returns:
            (rows, layers).
        """
        return self.components(features) @ self.weight.T + self.bias


def straight_through(scores: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Hard gates with the gradient of soft ones.

    Args:
        scores: s_l, any shape.
        temperature: tau.
        generator: Source of the logistic noise; None for no noise.

    Returns:
        0 or 1 in the shape of `scores`; the gradient is that of sigmoid((s + n) / tau).
    """
    noisy = scores
    if generator is not None:
        u = torch.rand(scores.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(scores.device)
        noisy = scores + torch.log(u) - torch.log1p(-u)
    soft = torch.sigmoid(noisy / temperature)
    return (soft > 0.5).float() + (soft - soft.detach())  # the bracket is exactly 0: values are exactly 0 or 1


def profile_values(scores: Tensor, members: Tensor, costs: Tensor, theta: float) -> Tensor:
    """How well each profile suits each sequence.

    Args:
        scores: (rows, layers), s_l.
        members: (profiles, layers) of 0 and 1: which of these layers a profile executes.
        costs: (layers,), cost shares.
        theta: The threshold.

    Returns:
        (rows, profiles); the largest wins.
    """
    return ((scores - theta) * costs) @ members.T


class GateChooser:
    """Picks a profile per sequence by its gates.

    Args:
        profiles: Profiles with gate parameters, as `fit` makes them.

    Raises:
        SkipError: The parameters do not fit.
    """

    def __init__(self, profiles: SkipProfiles) -> None:
        self.profiles = profiles
        settings, tensors = profiles.gate_settings, profiles.gates
        try:
            self.looks_at: int = int(settings["looks_at"])
            layers = [int(i) for i in settings["layers"]]
            self.curve = [(float(theta), float(cost)) for theta, cost in settings["curve"]]
            self.gates = Gates(layers, tensors["mean"].float(), tensors["directions"].float())
            state = {name: tensors[name].float() for name in ("weight", "bias", "mean", "directions")}
            self.gates.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            message = refusal(f"gate parameters that do not fit ({error})", "those that `skip fit` wrote", "Fit anew.")
            raise SkipError(message) from error
        self.members = membership(profiles, layers)
        self.costs = torch.tensor([float(c) for c in settings["costs"]])

    @property
    def n_bytes(self) -> int:
        """Bytes of parameters that one choice reads."""
        return sum(t.numel() * t.element_size() for t in self.gates.state_dict().values())

    def theta_for(self, budget: float | None) -> float:
        """The threshold at which the mean cost on held-out text met a budget.

        Args:
            budget: Mean cost share; None for the one that the gates were fitted for.

        Returns:
            theta: the smallest of the calibration curve that keeps to the budget.

        Raises:
            BudgetError: Even the cheapest profile costs more.
        """
        wanted = float(self.profiles.gate_settings["budget"]) if budget is None else budget
        if budget is not None:
            self.profiles.within(budget)
        keeping = [theta for theta, cost in self.curve if cost <= wanted + SLACK]
        return min(keeping) if keeping else max(theta for theta, _ in self.curve)

    @torch.no_grad()
    def choose(self, loaded: LoadedModel, prompts: PromptBatch, budget: float | None) -> Sequence[int]:
        """Pick.

        Args:
            loaded: The model; not looked at.
            prompts: The prompts, with states.
            budget: Mean cost share to keep to.

        Returns:
            Index of a profile per row.

        Raises:
            SkipError: No states were given.
            BudgetError: Even the cheapest profile costs more.
        """
        if prompts.states is None:
            raise SkipError(refusal("prompts without states", f"what enters layer {self.looks_at}", "Pass them."))
        scores = self.scores(prompts.states, prompts.mask)
        values = profile_values(scores, self.members, self.costs, self.theta_for(budget))
        return [int(i) for i in values.argmax(1)]

    def scores(self, states: Tensor, mask: Tensor) -> Tensor:
        """Scores of all gates.

        Args:
            states: (rows, tokens, hidden), what enters layer `looks_at`.
            mask: (rows, tokens).

        Returns:
            (rows, layers), on the CPU.
        """
        return self.gates(entry_features(states, mask).cpu())


def membership(profiles: SkipProfiles, layers: Sequence[int]) -> Tensor:
    """Which of some layers each profile executes.

    Args:
        profiles: The profiles.
        layers: The layers.

    Returns:
        (profiles, layers) of 0 and 1.
    """
    return torch.tensor([[float(i in p.layers) for i in layers] for p in profiles.profiles])


def make_chooser(profiles: SkipProfiles) -> GateChooser:
    """The chooser of profiles that carry gates.

    Args:
        profiles: The profiles.

    Returns:
        A chooser.

    Raises:
        SkipError: They carry none, or the parameters do not fit.
    """
    return GateChooser(profiles)


def gate_record(gates: Gates) -> Mapping[str, Any]:
    """What `SkipProfiles.gates` must hold for `GateChooser`.

    Args:
        gates: The gates.

    Returns:
        Tensors by name.
    """
    return {name: tensor.detach().clone() for name, tensor in gates.state_dict().items()}
