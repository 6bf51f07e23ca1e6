"""Importance: the moving average of |w * dL/dw|, and that what is pruned never returns."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roseedit.roselora.importance import update_importance
from roseedit.roselora.schedule import keep_at
from roseedit.roselora.sparsity import top_k_mask


def test_two_steps_by_hand() -> None:
    weight, grad = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[3.0, 0.5, -4.0]])
    first = update_importance(None, weight, grad, beta=0.8)
    assert torch.equal(first, torch.tensor([[3.0, 1.0, 2.0]]))  # the first value is stored raw
    weight, grad = torch.tensor([[0.0, -1.0, 2.0]]), torch.tensor([[9.0, 5.0, 0.5]])
    second = update_importance(first, weight, grad, beta=0.8)
    # 0.8 * 3 + 0.2 * 0, 0.8 * 1 + 0.2 * 5, 0.8 * 2 + 0.2 * 1
    assert torch.allclose(second, torch.tensor([[2.4, 1.8, 1.8]]))


def test_the_old_average_is_not_written() -> None:
    first = torch.ones(2, 2)
    update_importance(first, torch.ones(2, 2), torch.ones(2, 2) * 3, beta=0.5)
    assert torch.equal(first, torch.ones(2, 2))


def test_half_precision_weights_are_scored_in_float32() -> None:
    weight, grad = torch.full((1, 1), 1e-6, dtype=torch.float16), torch.full((1, 1), 1e-6, dtype=torch.float16)
    value = update_importance(None, weight, grad, beta=0.8)
    assert value.dtype == torch.float32
    assert float(value) > 0  # the product would be 0 in half precision


def test_no_gradient_flows_through_it() -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    assert not update_importance(None, weight, torch.ones(2, 2), beta=0.8).requires_grad


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), dim=st.sampled_from([-1, -2]), keep=st.floats(0.05, 0.5), beta=st.floats(0.1, 0.95))
def test_pruned_entries_never_return(seed: int, dim: int, keep: float, beta: float) -> None:
    """The paper's order of steps: score, move every entry (pruned ones too), prune."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 12, 10, generator=draw)
    importance, support = None, torch.ones_like(weight, dtype=torch.bool)
    for step in range(25):
        grad = torch.randn(weight.shape, generator=draw)
        importance = update_importance(importance, weight, grad, beta)
        weight = weight - 0.1 * torch.randn(weight.shape, generator=draw)
        budget = keep_at(step + 1, keep, 3, 20)
        if budget < 1:
            weight = weight * top_k_mask(importance, budget, dim)
        assert not bool((weight != 0)[~support].any()), step
        support = weight != 0
