"""Many rows through the lower layers, some layers at a time.

bfloat16 copies of all layers below a high one take a third of a small model's memory. All rows go through the lowest
few layers first, then all through the next few: copies of a few layers are enough, each is made once, and what enters
the next few is kept in one piece of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from roseedit.models.encoding import pad_right, plan_batches
from roseedit.models.load import LoadedModel
from roseedit.models.lowp import products_are_low, products_in
from roseedit.models.replay import capture_activations, replaying

STAGES = 4  # what is kept between them costs less than a quarter of the copies
Visit = Callable[[list[int], Tensor, Tensor], None]


class Streams:
    """What enters a layer, of rows of unequal length, in one piece of memory.

    Args:
        lengths: Tokens per row.
        width: Of the stream.
        dtype: Of the stream.
        device: Where it is kept.
    """

    def __init__(self, lengths: Sequence[int], width: int, dtype: torch.dtype, device: torch.device) -> None:
        whole = torch.empty(sum(lengths), width, dtype=dtype, device=device)
        self.rows = whole.split(list(lengths))

    def padded(self, batch: Sequence[int], tokens: int) -> Tensor:
        """Some rows, (rows, tokens, width), zeros behind the short ones."""
        some = self.rows[batch[0]]
        out = some.new_zeros(len(batch), tokens, some.shape[-1])
        for place, i in enumerate(batch):
            out[place, : len(self.rows[i])] = self.rows[i]
        return out

    def write(self, batch: Sequence[int], stored: Tensor) -> None:
        """Take over (rows, tokens, width), without what stands behind the short ones."""
        for place, i in enumerate(batch):
            self.rows[i].copy_(stored[place, : len(self.rows[i])])


def bounds(until: int, stages: int) -> list[tuple[int, int]]:
    """The first layer of each stage, and the first that it leaves out.

    Args:
        until: Layers in all.
        stages: At most so many stages.

    Returns:
        Pairs that follow each other from 0 to `until`.
    """
    ends = [until * (i + 1) // stages for i in range(stages)]
    return [(first, end) for first, end in zip([0, *ends], ends, strict=False) if first < end]


@torch.no_grad()
def through(  # noqa: PLR0917 - two call sites
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    until: int,
    tokens: int,
    arithmetic: str,
    visit: Visit,
    *,
    replay: bool = True,
) -> None:
    """Run rows up to a layer, in passes.

    Args:
        loaded: The model, frozen.
        rows: Token ids.
        until: First layer that is not run.
        tokens: Most tokens in one pass.
        arithmetic: As of `products_in`.
        visit: Called for each pass of the last stage with the indices of its rows, their ids and mask; runs the pass,
            its layers below the stage replayed, and keeps what it wants of it.
        replay: False runs every row through all layers at once.
    """
    lengths = [len(row) for row in rows]
    staged = bounds(until, STAGES if replay and products_are_low(loaded, arithmetic) else 1)
    between = lengths if len(staged) > 1 else []
    streams = Streams(between, loaded.anatomy.hidden_size, loaded.model.dtype, loaded.device)
    last = len(staged) - 1
    for i, layers in enumerate(staged):
        _stage(loaded, rows, layers, streams, tokens, arithmetic, visit if i == last else None)


def _stage(  # noqa: PLR0917 - one call site
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    layers: tuple[int, int],
    streams: Streams,
    tokens: int,
    arithmetic: str,
    visit: Visit | None,
) -> None:
    """All rows through the layers of one stage; a function of its own, so that its copies are gone before the next."""
    first, end = layers
    products = products_in(loaded, arithmetic, first, end)
    for batch in plan_batches([len(row) for row in rows], tokens):
        ids, mask = pad_right([rows[i] for i in batch], loaded.pad_id, loaded.device)
        start = replaying(loaded.model, loaded.anatomy, first, streams.padded(batch, ids.shape[1])) if first else None
        with products(), start or nullcontext():
            if visit:
                visit(batch, ids, mask)
            else:
                streams.write(batch, capture_activations(loaded.model, loaded.anatomy, end, ids, mask))
