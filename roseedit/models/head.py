"""A model's top on the positions asked for; its head, backward, on those alone that have a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from roseedit.models.anatomy import Anatomy
from roseedit.models.lowp import Bfloat16Product, low_product


@contextmanager
def head_at(model: Any, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Inside the block, `model(...).logits` is (1, positions, vocabulary) for the positions given.

    Args:
        model: The model.
        rows: (positions,) row of each wanted position.
        columns: (positions,) token index of each wanted position.

    Yields:
        Nothing.
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][rows, columns].unsqueeze(0),))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def headless(model: Any) -> Iterator[None]:
    """Inside the block the head hands on what it is given.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    head: nn.Module = model.get_output_embeddings()
    own = head.__dict__.get("forward")
    try:
        head.forward = lambda x: x
        yield
    finally:
        if own is None:
            head.__dict__.pop("forward", None)
        else:
            head.forward = own


@contextmanager
def thrifty_head(model: Any) -> Iterator[None]:
    """Inside the block, positions whose logits get no gradient cost the frozen head nothing in the backward pass.

    A head multiplies by the whole vocabulary, and training mostly asks for answers of which all tokens but one or two
    are learned. The gradients are the same. A head that is trained, quantised or stood in for stays as it is.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    head = model.get_output_embeddings()
    stand_in = head.__dict__.get("forward")
    weights = frozen_head(model)
    try:
        if weights:
            head.forward = lambda x: _FrozenLinear.apply(x, *weights)  # type: ignore[no-untyped-call]
        yield
    finally:
        if weights and stand_in:
            head.forward = stand_in
        elif weights:
            head.__dict__.pop("forward", None)


def frozen_head(model: Any) -> tuple[Tensor, Tensor | None] | None:
    """What a head multiplies by and adds.

    Args:
        model: The model.

    Returns:
        (vocabulary, hidden), narrower where narrower products stand in, and (vocabulary,) or None. None in all for a
        head that is trained, quantised, or stood in for by something else.
    """
    head = model.get_output_embeddings()
    stand_in = head.__dict__.get("forward")
    low = stand_in if isinstance(stand_in, Bfloat16Product) else None
    if type(head) is not nn.Linear or (stand_in is not None and low is None) or head.weight.requires_grad:
        return None
    return (head.weight if low is None else low.weight), head.bias


@contextmanager
def last_mlp_at(model: Any, anatomy: Anatomy, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Inside the block the last layer's MLP runs on the positions given only; the head must be asked for no others.

    Nothing above it mixes positions, so what it would say of the others is never read. Models whose MLP is no module of
    its own (OPT) run all of it, and so does one that somebody listens to, as an edit of that layer does.

    Args:
        model: The model.
        anatomy: Its parts.
        rows: (positions,) row of each wanted position.
        columns: (positions,) token index of each wanted position.

    Yields:
        Nothing.
    """
    module = find_last_mlp(model, anatomy)
    if module is None or _attended(module):
        yield
        return
    whole = module.forward

    def narrowed(x: Tensor) -> Tensor:
        # Each position once, however often it is asked for: a repeated one would hand its gradient on repeatedly.
        row, column = torch.stack([rows, columns]).unique(dim=1)
        out = torch.zeros_like(x)
        out[row, column] = whole(x[row, column][None])[0]
        return out

    try:
        module.forward = narrowed
        yield
    finally:
        module.__dict__.pop("forward", None)


def find_last_mlp(model: Any, anatomy: Anatomy) -> nn.Module | None:
    """The module around the last layer's MLP projections and nothing else.

    Args:
        model: The model.
        anatomy: Its parts.

    Returns:
        The module; None where there is none.
    """
    last = [p for p in anatomy.projections if p.layer == anatomy.n_layers - 1]
    parents = {p.module_name.rpartition(".")[0] for p in last if p.role.startswith("mlp.")}
    if len(parents) != 1:
        return None
    (parent,) = parents
    own_layer = f"{anatomy.layers_name}.{anatomy.n_layers - 1}"
    alone = not any(p.module_name.startswith(f"{parent}.") for p in last if not p.role.startswith("mlp."))
    return model.get_submodule(parent) if alone and parent.startswith(f"{own_layer}.") else None


def _attended(module: nn.Module) -> bool:
    return any(_listened_to(m) for m in module.modules())


def _listened_to(module: nn.Module) -> bool:
    stand_in = module.__dict__.get("forward")
    changed = stand_in is not None and not isinstance(stand_in, Bfloat16Product)
    return changed or bool(module._forward_hooks or module._forward_pre_hooks)


class _FrozenLinear(torch.autograd.Function):
    """A product with a weight that may be narrower than what goes in and comes out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return low_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        (gradient,) = gradients
        flat = gradient.reshape(-1, gradient.shape[-1])
        wanted = flat.any(-1).nonzero()[:, 0]
        out = flat.new_zeros(len(flat), weight.shape[1])
        out[wanted] = (flat[wanted].to(weight.dtype) @ weight).to(flat.dtype)
        return out.view(*gradient.shape[:-1], -1), None, None
