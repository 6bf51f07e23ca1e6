"""The top of a model on chosen positions: same logits and gradients as the whole, for less work."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

from roseedit.models.head import find_last_mlp, head_at, last_mlp_at, thrifty_head
from roseedit.models.load import LoadedModel
from roseedit.models.lowp import Bfloat16Products, usual_rows
from roseedit.models.replay import run_body

ROWS, COLUMNS = torch.tensor([0, 2, 2, 2]), torch.tensor([3, 1, 4, 4])  # one is asked for twice


def logits(loaded: LoadedModel, *, narrow: bool) -> Tensor:
    ids = torch.arange(15).reshape(3, 5) + 3
    with ExitStack() as stack:
        stack.enter_context(head_at(loaded.model, ROWS, COLUMNS))
        if narrow:
            stack.enter_context(last_mlp_at(loaded.model, loaded.anatomy, ROWS, COLUMNS))
            stack.enter_context(thrifty_head(loaded.model))
        return run_body(loaded.model, ids, torch.ones_like(ids))[0]


def inner_gradient(loaded: LoadedModel, *, narrow: bool, weights: Tensor) -> Tensor:
    """Gradient of a weighted loss with respect to what the lowest layer's first projection gives out."""
    kept: list[Tensor] = []

    def keep(_module: object, _args: object, out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_(True))
        return kept[0]

    module = loaded.model.get_submodule(loaded.anatomy.projections[0].module_name)
    handle = module.register_forward_hook(keep)
    try:
        nll = torch.nn.functional.cross_entropy(
            logits(loaded, narrow=narrow), torch.tensor([5, 6, 7, 8]), reduction="none"
        )
        (nll * weights).sum().backward()
    finally:
        handle.remove()
    assert kept[0].grad is not None
    return kept[0].grad


def test_chosen_positions_say_the_same(frozen_model: LoadedModel) -> None:
    torch.testing.assert_close(logits(frozen_model, narrow=True), logits(frozen_model, narrow=False))


@pytest.mark.parametrize("weights", [(1.0, 0.0, 2.0, 1.0), (0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0)])
def test_gradients_are_the_same(frozen_model: LoadedModel, weights: tuple[float, ...]) -> None:
    given = torch.tensor(weights)
    own = inner_gradient(frozen_model, narrow=True, weights=given)
    torch.testing.assert_close(own, inner_gradient(frozen_model, narrow=False, weights=given))


def test_narrow_products_are_spared_alike(frozen_model: LoadedModel) -> None:
    """With bfloat16 products the head and the last MLP run on as few positions as with the weights' own."""
    given, anatomy = torch.tensor([1.0, 0.0, 2.0, 1.0]), frozen_model.anatomy
    products = Bfloat16Products(frozen_model.model, anatomy, range(anatomy.n_layers))
    stand_ins = [m.__dict__.get("forward") for m in frozen_model.model.modules()]
    with products.active():
        whole = inner_gradient(frozen_model, narrow=False, weights=given)
        own = inner_gradient(frozen_model, narrow=True, weights=given)
        inside = [m for m in frozen_model.model.modules() if "forward" in m.__dict__]
        size = _rows_into_last_mlp(frozen_model)
    torch.testing.assert_close(own, whole, rtol=0.02, atol=0.02 * float(whole.abs().max()))
    assert len(inside) == len(products.forwards)
    assert stand_ins == [m.__dict__.get("forward") for m in frozen_model.model.modules()]
    assert size == usual_rows(15 if find_last_mlp(frozen_model.model, anatomy) is None else 3)


def _rows_into_last_mlp(loaded: LoadedModel) -> int:
    """How many positions the last layer's last projection was given, told by what it multiplies."""
    last = [p for p in loaded.anatomy.projections if p.layer == loaded.anatomy.n_layers - 1][-1]
    product = loaded.model.get_submodule(last.module_name).forward
    weight = product.weight
    seen: list[int] = []

    class Watched(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.nn.functional.linear:
                seen.append(args[0].numel() // args[0].shape[-1])
            return super().__torch_function__(func, types, args, kwargs or {})

    product.weight = weight.as_subclass(Watched)
    try:
        logits(loaded, narrow=True)
    finally:
        product.weight = weight
    return seen[0]  # what it gives is watched too, and so is whatever multiplies that


def test_nothing_outlives_the_block(frozen_model: LoadedModel) -> None:
    logits(frozen_model, narrow=True)
    assert not [name for name, m in frozen_model.model.named_modules() if "forward" in m.__dict__]
    with pytest.raises(ZeroDivisionError), last_mlp_at(frozen_model.model, frozen_model.anatomy, ROWS, COLUMNS):
        raise ZeroDivisionError
    assert not [name for name, m in frozen_model.model.named_modules() if "forward" in m.__dict__]


def test_a_module_somebody_listens_to_runs_whole(frozen_model: LoadedModel) -> None:
    last = [p for p in frozen_model.anatomy.projections if p.layer == frozen_model.anatomy.n_layers - 1][-1]
    seen: list[Tensor] = []
    module = frozen_model.model.get_submodule(last.module_name)
    handle = module.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    try:
        logits(frozen_model, narrow=True)
    finally:
        handle.remove()
    assert seen[0].numel() == 15 * last.d_in


def test_positions_without_gradient_cost_the_head_nothing(frozen_model: LoadedModel) -> None:
    head = frozen_model.model.get_output_embeddings()
    x = torch.randn(1, 4, head.weight.shape[1], requires_grad=True)
    with thrifty_head(frozen_model.model):
        out = head(x)
    out[0, 2].sum().backward()
    assert x.grad is not None
    assert (x.grad[0, [0, 1, 3]] == 0).all()
    torch.testing.assert_close(x.grad[0, 2], head.weight.sum(0))


def test_the_last_mlp_is_found(any_model: LoadedModel) -> None:
    module = find_last_mlp(any_model.model, any_model.anatomy)
    kind = any_model.model.config.model_type
    assert (module is None) == (kind == "opt"), kind  # OPT's two matrices lie in the layer itself
