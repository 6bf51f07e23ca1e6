"""Run a model from layer l up, from stored activations.

The model's own `forward` is used throughout, so masks, rotary tables, windows and soft caps are its own business: the
layers below l only hand their input on, and the stored activation enters at layer l. Likewise the head sees only the
positions that are asked for. Nothing here outlives its `with` block, whatever is raised inside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from roseedit.models.anatomy import Anatomy
from roseedit.models.head import head_at, headless

if TYPE_CHECKING:
    from roseedit.models.past import PastCache
    from roseedit.models.trees import Sight


def positions_from_mask(attention_mask: Tensor) -> Tensor:
    """Explicit position ids for right-padded rows.

    Args:
        attention_mask: (rows, tokens) of 0 and 1.

    Returns:
        (rows, tokens): 0, 1, 2, ... over the real tokens.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


@contextmanager
def captured(model: Any, anatomy: Anatomy, layer: int) -> Iterator[list[Tensor]]:
    """Collect what enters decoder layer `layer` in every forward pass of the block.

    Args:
        model: The model.
        anatomy: Its parts.
        layer: Index of the layer.

    Yields:
        A list that receives one (rows, tokens, hidden) tensor per pass.
    """
    seen: list[Tensor] = []
    module = model.get_submodule(anatomy.layers_name)[layer]
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(hidden_of(args, kwargs)), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a layer's forward.

    Args:
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        (rows, tokens, hidden).
    """
    return args[0] if args else kwargs["hidden_states"]


@contextmanager
def replaying(model: Any, anatomy: Anatomy, layer: int, activations: Tensor) -> Iterator[None]:
    """Inside the block, `model(...)` starts at decoder layer `layer` from `activations`.

    Args:
        model: The model. Its call must get the same ids, mask and positions as when the activations were captured.
        anatomy: Its parts.
        layer: First layer that runs; 0 runs all.
        activations: (rows, tokens, hidden), what entered that layer.

    Yields:
        Nothing.
    """
    layers: Any = model.get_submodule(anatomy.layers_name)
    skipped = list(layers[:layer])
    as_tuple = anatomy.layer_returns_tuple
    hand_on = [_PassThrough(as_tuple, activations if i == layer - 1 else None) for i in range(layer)]
    try:
        for module, stand_in in zip(skipped, hand_on, strict=True):
            module.forward = stand_in
        yield
    finally:
        for module in skipped:
            module.__dict__.pop("forward", None)


class _PassThrough:
    """Stands in for a layer's forward: returns its input, or the stored activation."""

    def __init__(self, as_tuple: bool, activation: Tensor | None = None) -> None:
        self.as_tuple = as_tuple
        self.activation = activation

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        hidden = hidden_of(args, kwargs) if self.activation is None else self.activation
        return (hidden, None) if self.as_tuple else hidden


@torch.no_grad()
def capture_activations(  # noqa: PLR0917 - as in `run_body`
    model: Any,
    anatomy: Anatomy,
    layer: int,
    input_ids: Tensor,
    attention_mask: Tensor,
    sight: Sight | None = None,
) -> Tensor:
    """What enters decoder layer `layer` for a right-padded batch.

    Args:
        model: The model, in evaluation mode.
        anatomy: Its parts.
        layer: Index of the layer.
        input_ids: (rows, tokens).
        attention_mask: (rows, tokens).
        sight: As of `run_body`.

    Returns:
        (rows, tokens, hidden).
    """
    with captured(model, anatomy, layer) as seen, layers_off(model, anatomy, layer):
        run_body(model, input_ids, attention_mask, head=False, sight=sight)
    return seen[0]


@contextmanager
def layers_off(model: Any, anatomy: Anatomy, start: int) -> Iterator[None]:
    """Inside the block the decoder layers from `start` up hand their input on.

    Args:
        model: The model.
        anatomy: Its parts.
        start: First layer that does nothing.

    Yields:
        Nothing.
    """
    layers = list(model.get_submodule(anatomy.layers_name))[start:]
    try:
        for module in layers:
            module.forward = _PassThrough(anatomy.layer_returns_tuple)
        yield
    finally:
        for module in layers:
            module.__dict__.pop("forward", None)


def run_body(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    head: bool = True,
    past: PastCache | None = None,
    sight: Sight | None = None,
) -> Tensor:
    """One forward pass, positions explicit.

    Args:
        model: The model.
        input_ids: (rows, tokens), right-padded.
        attention_mask: (rows, tokens).
        head: False leaves the head out, for callers that want no logits.
        past: What stands before the tokens, whose keys and values are known.
        sight: What each token sees, where that is not all before it in its row.

    Returns:
        Logits, (rows, tokens, vocabulary) or as `head_at` says; nothing of use without the head.
    """
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    inputs["position_ids"] = positions_from_mask(attention_mask)
    if sight is not None:
        inputs |= {"attention_mask": sight.mask, "position_ids": sight.positions}
    if past is not None:
        inputs |= {"use_cache": True, "past_key_values": past}
        inputs["attention_mask"] = torch.cat([past.mask(input_ids.device), attention_mask], 1)
        inputs["position_ids"] = inputs["position_ids"] + past.lengths.to(input_ids.device)[:, None]
    if head:
        return model(**inputs).logits
    zero = torch.zeros(1, dtype=torch.long, device=input_ids.device)
    with head_at(model, zero, zero), headless(model):
        return model(**inputs).logits
