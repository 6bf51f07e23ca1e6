"""One look at all training rows: what enters the edited layer's MLP, and what is to enter the replay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.models.load import LoadedModel
from roseedit.models.lowp import products_are_low
from roseedit.models.replay import captured, layers_off, run_body
from roseedit.models.trees import SIZE, Sight, grown, has_trees, sliding_window
from roseedit.roselora.neurons.mlp import Neurons, check_said
from roseedit.roselora.neurons.remembered import remembered
from roseedit.roselora.neurons.stages import Streams, through
from roseedit.roselora.objective import Row

ADDED = 0.05  # of the push; weights may be bfloat16


@dataclass
class Look:
    """What is known of the rows before training.

    Attributes:
        inputs: Per row (tokens, d_in) into the MLP; of anchors their last tokens, of sightings the last one.
        activations: Per row (tokens, hidden) into the first replayed layer; empty for what is not trained on.
        sizes: Per row that is trained on the root mean square of the stream that the neurons write to.
    """

    inputs: Sequence[Tensor]
    activations: Sequence[Tensor]
    sizes: list[float]


def _counted(row: Row, last: int) -> int:
    """How many last tokens of a row are looked at."""
    if row.labels:
        return len(row.ids)
    return min(last, len(row.ids)) if row.columns else 1


@dataclass(frozen=True)
class Place:
    """Where an edit of neurons writes and where its training starts.

    Attributes:
        neurons: The layer's neurons.
        plain: What they write is simply added to the stream.
        start: First layer that training runs: 0, theirs, or the one above.
    """

    neurons: Neurons
    plain: bool
    start: int

    @classmethod
    def of(cls, loaded: LoadedModel, neurons: Neurons, *, replay: bool) -> Place:
        """Look where training can start; `replay` False asks for all layers."""
        plain = adds_plainly(loaded, neurons)
        behind = plain and neurons.layer + 1 < loaded.anatomy.n_layers
        return cls(neurons, plain, neurons.layer + behind if replay else 0)


@torch.no_grad()
def look_at(  # noqa: PLR0917 - two call sites
    loaded: LoadedModel,
    rows: Sequence[Row],
    place: Place,
    last: int,
    tokens: int,
    arithmetic: str = "weights",
    *,
    again: bool = False,
) -> Look:
    """Run the rows up to the edited layer, once.

    Args:
        loaded: The model, frozen.
        rows: Training rows.
        place: The edited layer.
        last: How many last tokens of an anchor count.
        tokens: Most tokens in one pass.
        arithmetic: As of `products_in`. With bfloat16 products the inputs are kept in bfloat16 too, which loses nothing
            that those would have told.
        again: As of `through`.

    Returns:
        The look.

    Raises:
        AnatomyError: The MLP does not work as `neurons` says.
    """
    low, hidden, like = products_are_low(loaded, arithmetic), loaded.anatomy.hidden_size, loaded.model.dtype
    counted = [_counted(row, last) for row in rows]
    inputs = Streams(counted, place.neurons.opens.d_in, torch.bfloat16 if low else torch.float32, loaded.device)
    kept = Streams([len(row.ids) if row.labels and row.turns else 0 for row in rows], hidden, like, loaded.device)
    look, checked = Look(inputs.rows, kept.rows, [0.0] * len(rows)), False
    short = max(len(row.ids) for row in rows) <= sliding_window(loaded)
    plain = not short or not remembered(loaded.model, "trees", (), lambda: has_trees(loaded))
    trees = grown([row.ids for row in rows], 0 if plain else SIZE)

    def visit(batch: list[int], ids: Tensor, mask: Tensor, sight: Sight | None) -> None:
        nonlocal checked
        seen = _Seen(*(t.reshape(*ids.shape, -1) for t in _watched(loaded, place, ids, mask, sight)))
        if not checked:
            check_said(place.neurons, loaded.model, seen.x[mask.bool()], seen.inner[mask.bool()])
            checked = True
        for at, i, path in ((at, i, [*path]) for at, n in enumerate(batch) for i, path in trees[n].paths.items()):
            look.inputs[i].copy_(seen.x[at, path[len(path) - counted[i] :]])
            if rows[i].labels and rows[i].turns:
                look.activations[i].copy_(seen.stored[at, path])
                # Many models have one token, the first, with a stream a hundred times as large: not the measure.
                look.sizes[i] = float(seen.stream[at, path[1:]].float().square().mean().sqrt())

    ids = [tree.ids for tree in trees]
    shared = () if plain else trees
    upto, replay = place.neurons.layer + 1, place.start > 0
    through(loaded, ids, upto, tokens, arithmetic, visit, replay=replay, again=again, trees=shared)
    return look


@dataclass(frozen=True)
class _Seen:
    """(rows, tokens, ...) into the MLP, into `mlp.down`, into layer `start`, and the stream that is written to."""

    x: Tensor
    inner: Tensor
    stored: Tensor
    stream: Tensor


def _watched(loaded: LoadedModel, place: Place, ids: Tensor, mask: Tensor, sight: Sight | None) -> list[Tensor]:
    """One pass as in `_Seen`; layers above the watched ones do nothing."""
    model, anatomy, neurons = loaded.model, loaded.anatomy, place.neurons
    with ExitStack() as stack:
        lists = [
            stack.enter_context(inputs_of(model, neurons.opens.module_name)),
            stack.enter_context(inputs_of(model, neurons.down.module_name)),
            stack.enter_context(captured(model, anatomy, place.start)),
            stack.enter_context(
                captured(model, anatomy, neurons.layer) if place.plain else _outputs(model, neurons.down.module_name)
            ),
        ]
        stack.enter_context(layers_off(model, anatomy, neurons.layer + 1))
        run_body(model, ids, mask, head=False, sight=sight)
    return [seen[0] for seen in lists]


@contextmanager
def inputs_of(model: Any, path: str) -> Iterator[list[Tensor]]:
    """Collect what enters a module in every forward pass of the block.

    Args:
        model: The model.
        path: The module.

    Yields:
        A list that receives one tensor per pass.
    """
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _outputs(model: Any, path: str) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, __, out: seen.append(out))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def adds_plainly(loaded: LoadedModel, neurons: Neurons) -> bool:
    """Whether what `mlp.down` gives is simply added to what leaves its layer, with no norm or scale between.

    Args:
        loaded: The model.
        neurons: A layer's neurons.

    Returns:
        True when it is.
    """
    ids = torch.zeros(1, 2, dtype=torch.long, device=loaded.device)
    before = _behind(loaded, neurons, ids, 0.0)
    step = float(before.square().mean().sqrt())
    moved = _behind(loaded, neurons, ids, step) - before
    return bool(((moved - step).abs() < ADDED * step).all())


def _behind(loaded: LoadedModel, neurons: Neurons, ids: Tensor, push: float) -> Tensor:
    """What leaves the layer when every output of `mlp.down` is `push` larger."""
    model, anatomy, seen = loaded.model, loaded.anatomy, []
    down = model.get_submodule(neurons.down.module_name).register_forward_hook(lambda _, __, out: out + push)
    layer = model.get_submodule(anatomy.layers_name)[neurons.layer]
    out = layer.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    try:
        with layers_off(model, anatomy, neurons.layer + 1):
            run_body(model, ids, torch.ones_like(ids), head=False)
    finally:
        down.remove()
        out.remove()
    return seen[0].float()
