"""An encoder with a classification head, run through a router."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roseedit.hadskip.encoder.gates import pooled
from roseedit.hadskip.encoder.load import LoadedEncoder
from roseedit.hadskip.encoder.routing import AllLayers, Router, routed


@dataclass(frozen=True)
class Output:
    """What one pass gave.

    Attributes:
        logits: (rows, classes), float32.
        run: (rows, layers), 1 for layers that ran; carries the gates' gradients in training.
        pooled: (rows, layers, hidden), the pooled states after each layer; None unless asked for.
    """

    logits: Tensor
    run: Tensor
    pooled: Tensor | None


def zero_linear(d_in: int, d_out: int) -> nn.Linear:
    """A linear map of zeros: no random start to seed, and the first gradient sets its direction.

    Args:
        d_in: Length of its input.
        d_out: Length of its output.

    Returns:
        The map.
    """
    made: nn.Linear = nn.utils.skip_init(nn.Linear, d_in, d_out)
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    return made


class EncoderClassifier(nn.Module):
    """Encoder, dropout and one linear map on the pooled last state.

    Dropout inside the encoder stays off, in training too: passes then depend on no global random state, and teacher
    and student see the same function.

    Args:
        loaded: The encoder.
        n_classes: How many classes.
        pooling: `"first"` or `"mean"`.
        dropout: Of the pooled state, in training.
    """

    def __init__(self, loaded: LoadedEncoder, n_classes: int, pooling: str = "first", dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder: nn.Module = loaded.model
        self.parts, self.tokenizer, self.name = loaded.parts, loaded.tokenizer, loaded.name
        self.pooling, self.dropout, self.n_classes = pooling, dropout, n_classes
        self.head = zero_linear(loaded.parts.hidden_size, n_classes)

    def forward(
        self,
        batch: Mapping[str, Tensor],
        router: Router | None = None,
        *,
        mix: bool = False,
        keep: bool = False,
        generator: torch.Generator | None = None,
    ) -> Output:
        """One pass.

        Args:
            batch: `input_ids`, `attention_mask` and whatever else the tokenizer gave, each (rows, tokens).
            router: Decides what runs; None for all.
            mix: See `routing`; True in training.
            keep: Give the pooled states after each layer.
            generator: Source of the head's dropout; None for none.

        Returns:
            What it gave.
        """
        mask = batch["attention_mask"]
        with routed(self.encoder, self.parts, router or AllLayers(), mask, mix=mix, keep_states=keep) as trace:
            state = self.encoder(**batch).last_hidden_state
        last = pooled(state, mask, self.pooling)
        kept = torch.stack([pooled(x, mask, self.pooling) for x in trace.states], 1) if keep else None
        return Output(self._logits(last, generator), trace.run, kept)

    def _logits(self, last: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is not None and self.dropout:
            kept = torch.rand(last.shape, generator=generator).to(last.device) >= self.dropout
            last = last * kept / (1 - self.dropout)
        return self.head(last).float()
