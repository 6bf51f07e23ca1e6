"""Which layers to drop together: the cheapest spans by dynamic programming, and nested sets that end in them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roseedit.hadskip.healing import Step, left_over
from roseedit.hadskip.spans import best_spans, order_of_dropping, span_costs, total_cost

INFINITE = float("inf")


def table(n: int, seed: int, gaps: tuple[int, ...] = ()) -> torch.Tensor:
    """Costs of all spans of n positions, none across a gap before one of `gaps`."""
    costs = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)).triu()
    costs[torch.ones(n, n).tril(-1).bool()] = INFINITE
    for gap in gaps:
        costs[:gap, gap:] = INFINITE
    return costs


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 8), seed=st.integers(0, 10_000), gap=st.integers(1, 7), data=st.data())
def test_the_dropped_set_is_the_cheapest_of_all(n: int, seed: int, gap: int, data: st.DataObject) -> None:
    costs = table(n, seed, (min(gap, n - 1),))
    drop = data.draw(st.integers(1, n))
    found = best_spans(costs, drop)
    best = min(total_cost(costs, gone) for gone in itertools.combinations(range(n), drop))
    assert len(found) == drop
    assert total_cost(costs, found) == pytest.approx(best)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 8), seed=st.integers(0, 10_000), data=st.data())
def test_the_order_ends_in_the_best_set(n: int, seed: int, data: st.DataObject) -> None:
    costs, drop = table(n, seed), data.draw(st.integers(1, n))
    order = order_of_dropping(costs, [10 + i for i in range(n)], drop)
    assert sorted(i - 10 for i in order) == list(best_spans(costs, drop))


def test_a_span_costs_at_least_its_dearest_layer() -> None:
    errors = torch.tensor([[0.1, 0.12, 0.13], [INFINITE, 0.1, 0.12], [INFINITE, INFINITE, 0.1]])
    costs = span_costs(errors, torch.tensor([0.2, 1.5, 0.3]))
    assert costs[0, 0] == pytest.approx(0.2)
    assert costs[2, 2] == pytest.approx(0.3)
    assert costs[0, 2] == pytest.approx(1.5)  # not 0.3 / 0.1 * 0.13
    assert costs[1, 0] == INFINITE
    assert best_spans(costs, 2) == (0, 2)


@pytest.mark.parametrize("kind", ["none", "scale", "lora"])
def test_what_is_left_over_is_what_the_healing_leaves(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 12, generator=generator)
    y = x + 0.3 * x @ torch.randn(12, 12, generator=generator) + 0.1 * torch.randn(400, 12, generator=generator)
    weights = 1 / y.pow(2).sum(-1, keepdim=True)
    error = y - Step.fitted(x, y, kind, 4)(x)
    wanted = float((weights * error * error).sum() / len(x))
    assert left_over(x, y, kind, 4) == pytest.approx(wanted, rel=0.03)
    if kind == "lora":
        assert left_over(x, y, kind, 12) < left_over(x, y, kind, 4)
