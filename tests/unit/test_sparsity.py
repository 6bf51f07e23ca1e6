"""Pruning masks and the bound on the product's density."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roseedit.roselora.sparsity import density, density_bound, kept_count, threshold_mask, top_k_mask, touched

SEEDS = st.integers(0, 2**31)
KEEPS = st.floats(0.01, 1.0)
SIZES = st.integers(1, 40)


def random(seed: int, *shape: int) -> torch.Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("n", "keep", "count"), [(4096, 0.05, 205), (10, 0.01, 1), (10, 1.0, 10), (3, 0.5, 2), (1, 0.2, 1)]
)
def test_kept_count(n: int, keep: float, count: int) -> None:
    assert kept_count(n, keep) == count


@settings(deadline=None)
@given(seed=SEEDS, r=st.integers(1, 5), d_in=SIZES, d_out=SIZES, keep=KEEPS)
def test_each_row_of_a_and_column_of_b_keeps_its_count(seed: int, r: int, d_in: int, d_out: int, keep: float) -> None:
    a = top_k_mask(random(seed, r, d_in), keep, -1)
    b = top_k_mask(random(seed + 1, d_out, r), keep, -2)
    assert a.sum(-1).tolist() == [max(1, round(keep * d_in))] * r
    assert b.sum(-2).tolist() == [max(1, round(keep * d_out))] * r


@settings(deadline=None)
@given(seed=SEEDS, n=SIZES, keep=KEEPS)
def test_the_most_important_are_kept(seed: int, n: int, keep: float) -> None:
    row = random(seed, 1, n).abs()
    mask = top_k_mask(row, keep, -1)
    if not mask.all():
        assert row[mask].min() >= row[~mask].max()


@settings(deadline=None)
@given(seed=SEEDS, r=st.integers(1, 4), d_in=SIZES, d_out=SIZES, keep=KEEPS, whole=st.booleans())
def test_the_product_is_never_denser_than_the_bound(
    seed: int, r: int, d_in: int, d_out: int, keep: float, whole: bool
) -> None:
    rule = threshold_mask if whole else top_k_mask
    a, b = random(seed, r, d_in), random(seed + 1, d_out, r)
    a, b = a * rule(a.abs(), keep, -1), b * rule(b.abs(), keep, -2)
    product = b.double() @ a.double()
    real = int((product != 0).sum()) / product.numel()
    assert real <= float(density_bound(a, b)) + 1e-6
    assert real <= float(density(a, b)) + 1e-6
    assert not bool((product != 0)[~touched(a, b)].any())


def test_the_bound_of_the_reference_table() -> None:
    a, b = torch.zeros(8, 400), torch.zeros(200, 8)
    a[:, :20], b[:10] = 1.0, 1.0  # keep 0.05 in both
    assert float(density_bound(a, b)) == pytest.approx(8 * 0.05**2)
    assert float(density(a, b)) == pytest.approx(0.05**2)  # all rectangles coincide


def test_a_budget_on_the_whole_factor_would_guarantee_nothing() -> None:
    a, b = torch.zeros(4, 10), torch.zeros(6, 4)
    a[0], b[:, 0] = 1.0, 1.0  # each factor three quarters zero, the product full
    assert float(density_bound(a, b)) == 1.0
    assert float(density(a, b)) == 1.0


def test_the_bound_is_at_most_one() -> None:
    assert float(density_bound(torch.ones(3, 4), torch.ones(5, 3))) == 1.0


@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("n", [5, 64, 1000])  # short and long rows take different sorts
def test_ties_go_to_the_lower_index(dim: int, n: int) -> None:
    shape = (3, n) if dim == -1 else (n, 3)
    mask = top_k_mask(torch.ones(shape), 0.4, dim)
    k = round(0.4 * n)
    lines = mask if dim == -1 else mask.T
    assert lines[:, :k].all()
    assert not lines[:, k:].any()


def test_a_tie_at_the_border_goes_to_the_lower_index() -> None:
    mask = top_k_mask(torch.tensor([[1.0, 5.0, 1.0, 1.0, 0.0]]), 0.6, -1)
    assert mask.tolist() == [[True, True, True, False, False]]


def test_the_threshold_rule_keeps_ties_and_cuts_strictly_below() -> None:
    # n 5, keep 0.4: k = int(5 * 0.6) = 3, the third smallest is 2; both entries of 2 survive
    mask = threshold_mask(torch.tensor([[1.0, 2.0, 2.0, 3.0, 0.0]]), 0.4, -1)
    assert mask.tolist() == [[False, True, True, True, False]]


def test_the_threshold_rule_cuts_nothing_when_all_are_equal() -> None:
    assert threshold_mask(torch.zeros(4, 9), 0.1, -1).all()


def test_the_threshold_rule_cuts_nothing_when_k_is_zero() -> None:
    assert threshold_mask(random(0, 2, 10), 0.95, -1).all()


def test_the_threshold_rule_keeps_what_the_authors_code_keeps() -> None:
    assert int(threshold_mask(random(0, 1, 4096), 0.05, -1).sum()) == 206  # reference, section 3


@settings(deadline=None)
@given(seed=SEEDS, n=SIZES, r=st.integers(1, 4), keep=KEEPS)
def test_the_threshold_rule_keeps_the_stated_count_per_column(seed: int, n: int, r: int, keep: float) -> None:
    k = int(n * (1.0 - keep))
    kept = threshold_mask(random(seed, n, r), keep, -2).sum(-2).tolist()
    assert kept == [n - k + 1 if k else n] * r


@settings(deadline=None)
@given(seed=SEEDS, n_edits=st.integers(1, 5), keep=KEEPS)
def test_a_bank_of_pairs_equals_each_pair_alone(seed: int, n_edits: int, keep: float) -> None:
    a, b = random(seed, n_edits, 3, 11), random(seed + 1, n_edits, 7, 3)
    for rule in (top_k_mask, threshold_mask):
        masks_a, masks_b = rule(a, keep, -1), rule(b, keep, -2)
        for e in range(n_edits):
            assert torch.equal(masks_a[e], rule(a[e], keep, -1))
            assert torch.equal(masks_b[e], rule(b[e], keep, -2))
    a, b = a * masks_a, b * masks_b
    for e in range(n_edits):
        assert torch.equal(density_bound(a, b)[e], density_bound(a[e], b[e]))
        assert torch.equal(density(a, b)[e], density(a[e], b[e]))
        assert torch.equal(touched(a, b)[e], touched(a[e], b[e]))
