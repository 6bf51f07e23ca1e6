"""The norm constraint on factors."""

from __future__ import annotations

import pytest
import torch

from roseedit.roselora.norms import constrain, initial_scale


def test_the_unit_is_the_bound_of_the_uniform_start() -> None:
    assert initial_scale(4096) == pytest.approx(0.015625)


def test_none_changes_nothing() -> None:
    factor = torch.tensor([[5.0, -7.0]])
    assert constrain(factor, "none", 1e-3, 1.0) == 0.0
    assert factor.tolist() == [[5.0, -7.0]]


def test_entry_clamps_in_place_and_tells_the_share_of_nonzeros_cut() -> None:
    factor = torch.tensor([[0.5, -4.0, 0.0, 2.0]])
    share = constrain(factor, "entry", limit=2.0, unit=0.5)
    assert factor.tolist() == [[0.5, -1.0, 0.0, 1.0]]
    assert share == pytest.approx(2 / 3)


def test_entry_on_an_empty_factor() -> None:
    assert constrain(torch.zeros(2, 3), "entry", 1.0, 1.0) == 0.0


def test_frobenius_shrinks_to_the_limit_per_entry() -> None:
    factor = torch.tensor([[3.0, 4.0], [0.0, 0.0]])  # norm 5, largest allowed 1 * sqrt(4) = 2
    share = constrain(factor, "frobenius", limit=2.0, unit=0.5)
    assert share == 1.0
    assert torch.allclose(factor, torch.tensor([[1.2, 1.6], [0.0, 0.0]]))


def test_frobenius_leaves_small_and_empty_factors_alone() -> None:
    for factor in (torch.full((2, 2), 0.25), torch.zeros(2, 2)):
        before = factor.clone()
        assert constrain(factor, "frobenius", 1.0, 1.0) == 0.0
        assert torch.equal(factor, before)


def test_frobenius_treats_each_edit_of_a_bank_alone() -> None:
    bank = torch.stack([torch.full((2, 3), 4.0), torch.full((2, 3), 0.5)])
    assert constrain(bank, "frobenius", 1.0, 1.0) == 0.5
    assert torch.allclose(bank[0], torch.ones(2, 3))
    assert torch.equal(bank[1], torch.full((2, 3), 0.5))


@pytest.mark.parametrize("kind", ["entry", "frobenius"])
def test_pruned_entries_stay_zero(kind: str) -> None:
    factor = torch.tensor([[9.0, 0.0, -9.0]])
    constrain(factor, kind, 0.1, 1.0)
    assert factor[0, 1] == 0.0
    assert factor[0, 0] == -factor[0, 2] > 0
