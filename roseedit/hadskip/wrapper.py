"""A stand-in for a transformers model whose `generate()` skips layers: takes a stock `GenerationConfig`.

What it cannot do (beams, several sequences per prompt, scores, ...) is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from roseedit.errors import SkipError, refusal
from roseedit.hadskip.decode import Decoder
from roseedit.hadskip.response import Contract, DecodeSettings, Response
from roseedit.hadskip.sampling import Picker

Refused = Callable[[Any], bool]

# Settings of a GenerationConfig that change what comes out and that this loop does not do: name -> when it is refused.
REFUSED: dict[str, Refused] = {
    "num_beams": lambda v: v not in (None, 1),
    "num_return_sequences": lambda v: v not in (None, 1),
    "penalty_alpha": bool,
    "dola_layers": bool,
    "assistant_early_exit": bool,
    "prompt_lookup_num_tokens": bool,
    "guidance_scale": lambda v: v not in (None, 1.0),
    "constraints": bool,
    "force_words_ids": bool,
    "max_time": bool,
    "output_scores": bool,
    "output_logits": bool,
    "output_attentions": bool,
    "output_hidden_states": bool,
    "cache_implementation": lambda v: v not in (None, "dynamic"),
    "watermarking_config": bool,
    "token_healing": bool,
    "use_mtp": bool,
    "prefill_chunk_size": bool,
    "assistant_model": lambda v: v is not None,
    "logits_processor": bool,
    "stopping_criteria": bool,
    "prefix_allowed_tokens_fn": lambda v: v is not None,
    "inputs_embeds": lambda v: v is not None,
    "past_key_values": lambda v: v is not None,
    "custom_generate": bool,
    "forced_eos_token_id": lambda v: v is not None,
    "synced_gpus": bool,
}
FORWARD_ONLY = ("use_cache", "tokenizer", "cache_position", "position_ids", "token_type_ids")


class SkippingModel:
    """Looks like the model it wraps; its `generate` decodes through HadSkip.

    Args:
        decoder: The decoder.
        contract: `"full"`, `"bounded"` or `"lossless"`.
        budget: Most layer cost that a profile may have.
        seed: Of the noise in sampling.
    """

    def __init__(
        self, decoder: Decoder, contract: Contract = "lossless", budget: float | None = None, seed: int = 0
    ) -> None:
        DecodeSettings(contract, budget)
        self.decoder = decoder
        self.contract: Contract = contract
        self.budget = budget
        self.seed = seed
        self.responses: list[Response] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["decoder"].loaded.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A forward pass of the whole model."""
        return self.decoder.loaded.model(*args, **kwargs)

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        streamer: Any = None,
        **options: Any,
    ) -> Any:
        """As `GenerationMixin.generate`, within its limits; `responses` tells afterwards what ran.

        Args:
            inputs: (rows, tokens), padded on either side.
            generation_config: A `GenerationConfig`; left out: the model's own.
            input_ids: The same as `inputs`, under its other name.
            attention_mask: (rows, tokens), 1 for real tokens; left out: all are real.
            streamer: A transformers streamer, for a single row.
            **options: Settings that override the configuration.

        Returns:
            (rows, tokens) ids, prompts included, filled up with the pad id; with `return_dict_in_generate` in an
            object that has them as `sequences`.

        Raises:
            SkipError: Something is asked that this loop does not do.
        """
        ids = input_ids if inputs is None else inputs
        if ids is None or ids.dim() != 2:
            raise SkipError(refusal("no ids of shape (rows, tokens)", "inputs or input_ids", "Encode the prompts."))
        config = self._config(generation_config, options)
        rows = _rows_of(ids, attention_mask)
        settings = DecodeSettings(self.contract, self.budget, _new_tokens(config, ids.shape[1]), _stops(config))
        picker = Picker(self.decoder.loaded.model, config, self.seed)
        ends = self._ends(config)
        if streamer is None:
            self.responses = self.decoder.generate_ids(rows, settings, picker=picker, ends=ends)
        else:
            self.responses = self._streamed(rows, settings, picker, ends, streamer)
        out = _filled(ids, [response.tokens for response in self.responses], self._pad(config))
        return self._as_output(out) if config.return_dict_in_generate else out

    def _config(self, given: Any, options: dict[str, Any]) -> Any:
        """The stock merge: call over configuration over the model's own over transformers' defaults."""
        model = self.decoder.loaded.model
        config, rest = model._prepare_generation_config(given, **options)
        unknown = sorted(n for n, v in rest.items() if v is not None and n not in (*FORWARD_ONLY, *REFUSED))
        if unknown:
            message = refusal(f"{', '.join(unknown)} in generate()", "settings of a GenerationConfig", "Leave it out.")
            raise SkipError(message)
        for name, refused in REFUSED.items():
            value = rest[name] if rest.get(name) is not None else getattr(config, name, None)
            if refused(value):
                message = refusal(f"{name}={value!r}", "its default", "Use the model's own generate() for that.")
                raise SkipError(message)
        model._prepare_special_tokens(config, True, device=model.device)
        return config

    def _ends(self, config: Any) -> frozenset[int]:
        ends = config.eos_token_id
        if ends is None:
            return frozenset()
        return frozenset(ends if isinstance(ends, (list, tuple)) else [int(ends)])

    def _pad(self, config: Any) -> int:
        return self.decoder.loaded.pad_id if config.pad_token_id is None else int(config.pad_token_id)

    def _streamed(
        self, rows: list[list[int]], settings: DecodeSettings, picker: Picker, ends: frozenset[int], streamer: Any
    ) -> list[Response]:
        if len(rows) != 1:
            raise SkipError(refusal(f"a streamer for {len(rows)} rows", "one row", "Use Decoder.stream for several."))
        streamer.put(torch.tensor(rows[0]))
        given, out = 0, []
        for row in self.decoder.stream_ids(rows, settings, picker, ends):
            said = row.pick.ids[row.pick.n_prompt :]
            for token in said[given:]:
                streamer.put(torch.tensor([token]))
            given = len(said)
            out = [row.response] if row.response else []
        streamer.end()
        return out

    def _as_output(self, sequences: Tensor) -> Any:
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        kind: Any = GenerateDecoderOnlyOutput
        return kind(sequences=sequences)


def _new_tokens(config: Any, longest: int) -> int:
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens)
    most = 20 + longest if config.max_length is None else int(config.max_length)
    if most <= longest:
        message = refusal(f"max_length {most} with a prompt of {longest} tokens", "more", "Set max_new_tokens.")
        raise SkipError(message)
    return most - longest


def _stops(config: Any) -> tuple[str, ...]:
    stops = getattr(config, "stop_strings", None) or ()
    return (stops,) if isinstance(stops, str) else tuple(stops)


def _rows_of(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """The real ids of each row, whichever side is padded."""
    if mask is None:
        return [[int(i) for i in row] for row in ids.tolist()]
    pairs = zip(ids.tolist(), mask.tolist(), strict=True)
    return [[i for i, real in zip(row, own, strict=True) if real] for row, own in pairs]


def _filled(ids: Tensor, said: Sequence[Sequence[int]], pad: int) -> Tensor:
    width = max(len(tokens) for tokens in said)
    new = torch.full((len(said), width), pad, dtype=ids.dtype, device=ids.device)
    for i, tokens in enumerate(said):
        new[i, : len(tokens)] = torch.tensor(tokens, dtype=ids.dtype)
    return torch.cat([ids, new], 1)
