"""Many rows through the lower layers, some layers at a time.

bfloat16 copies of all layers below a high one take a third of a small model's memory. All rows go through the lowest
few layers first, then all through the next few: copies of a few layers are enough, each is made once, and what enters
the next few is kept in one piece of memory.

What is asked for every edit - ordinary text, well-known facts - is kept in front of the last layer of all: edits write
to that layer and above it, so that the next one has one layer to run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from roseedit.models.encoding import pad_right, plan_batches
from roseedit.models.load import LoadedModel
from roseedit.models.lowp import products_are_low, products_in
from roseedit.models.replay import capture_activations, replaying
from roseedit.models.trees import Sight, Tree, sight_of
from roseedit.roselora.neurons.remembered import below, remembered

STAGES = 4  # what is kept between them costs less than a quarter of the copies
Visit = Callable[[list[int], Tensor, Tensor, Sight | None], None]


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
    again: bool = False,
    trees: Sequence[Tree] = (),
) -> None:
    """Run rows up to a layer, in passes.

    Args:
        loaded: The model, frozen.
        rows: Token ids; of the trees, where there are any.
        until: First layer that is not run.
        tokens: Most tokens in one pass.
        arithmetic: As of `products_in`.
        visit: Called for each pass of the last stage with the indices of its rows, their ids, mask and sight; runs the
            pass, its layers below the stage replayed, and keeps what it wants of it.
        replay: False runs every row through all layers at once.
        again: These rows will come again: what enters the last layer is remembered.
        trees: What the rows are, where they are trees.
    """
    run = _Run(loaded, rows, tokens, arithmetic, trees)
    few = STAGES if products_are_low(loaded, arithmetic) else 1
    if not replay or until == 1:
        run.stage((0, until), run.streams(0), visit)
    elif not again:
        *lower, last = bounds(until, few)
        run.stage(last, run.lower(lower), visit)
    else:
        key = until, tokens, arithmetic, tuple(map(tuple, rows)), tuple(tree.parents for tree in trees)
        lower = bounds(until - 1, few)
        entering = remembered(loaded.model, key, below(loaded, until - 1), lambda: run.lower(lower))
        run.stage((until - 1, until), entering, visit)


@dataclass(frozen=True)
class _Run:
    """Rows on their way up; arguments as of `through`."""

    loaded: LoadedModel
    rows: Sequence[Sequence[int]]
    tokens: int
    arithmetic: str
    trees: Sequence[Tree]

    def streams(self, first: int) -> Streams:
        """Room for what enters a layer; of the lowest nothing is kept."""
        lengths = [len(row) for row in self.rows] if first else []
        return Streams(lengths, self.loaded.anatomy.hidden_size, self.loaded.model.dtype, self.loaded.device)

    def lower(self, stages: Sequence[tuple[int, int]]) -> Streams:
        """What enters the layer behind some stages, written over what entered each."""
        streams = self.streams(len(stages))
        for layers in stages:
            self.stage(layers, streams, None)
        return streams

    def stage(self, layers: tuple[int, int], streams: Streams, visit: Visit | None) -> None:
        """All rows through one stage; a function of its own, so that its copies are gone before the next."""
        first, end = layers
        loaded = self.loaded
        products = products_in(loaded, self.arithmetic, first, end)
        for batch in plan_batches([len(row) for row in self.rows], self.tokens):
            ids, mask = pad_right([self.rows[i] for i in batch], loaded.pad_id, loaded.device)
            own = [self.trees[i] for i in batch] if self.trees else []
            sight = sight_of(own, ids.shape[1], loaded.model.dtype, loaded.device) if own else None
            start = (
                replaying(loaded.model, loaded.anatomy, first, streams.padded(batch, ids.shape[1])) if first else None
            )
            with products(), start or nullcontext():
                if visit:
                    visit(batch, ids, mask, sight)
                else:
                    streams.write(batch, capture_activations(loaded.model, loaded.anatomy, end, ids, mask, sight))
