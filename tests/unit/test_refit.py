"""Pruning with a refit: the support is the mask's, the answers to known inputs are the old ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from roseedit.errors import HparamsError
from roseedit.roselora.config import read_roselora
from roseedit.roselora.refit import refitted
from roseedit.roselora.sparsity import top_k_mask


def case(n: int, edits: int = 3, rank: int = 2, d: int = 40, keep: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    a = torch.randn(edits, rank, d, generator=generator)
    inputs = torch.randn(edits, n, d, generator=generator)
    return a, top_k_mask(a.abs(), keep, -1), inputs


@pytest.mark.parametrize("n", [5, 15])
def test_answers_to_few_inputs_are_given_back(n: int) -> None:
    a, mask, inputs = case(n)
    after = refitted(a, mask, inputs, 1e-6)
    torch.testing.assert_close(inputs @ after.mT, inputs @ a.mT, atol=1e-3, rtol=1e-3)
    assert not after[~mask].any()


@pytest.mark.parametrize("n", [5, 19, 21, 100])
def test_it_is_the_ridge_solution(n: int) -> None:
    a, mask, inputs = case(n)
    after = refitted(a, mask, inputs, 0.1)
    for edit in range(len(a)):
        for row in range(a.shape[1]):
            own = inputs[edit][:, mask[edit, row]].double()
            lost = inputs[edit].double() @ (a[edit, row] * ~mask[edit, row]).double()
            level = 0.1 * own.square().sum() / n
            gram = own.T @ own + level * torch.eye(own.shape[1]).double()
            step = torch.linalg.solve(gram, own.T @ lost)
            torch.testing.assert_close(
                after[edit, row, mask[edit, row]], (a[edit, row, mask[edit, row]] + step).float(), atol=1e-4, rtol=1e-4
            )


def test_many_inputs_are_answered_better_than_by_cutting_alone() -> None:
    a, mask, inputs = case(200)
    wanted = inputs @ a.mT
    cut, after = (inputs @ (a * mask).mT - wanted).norm(), (inputs @ refitted(a, mask, inputs, 0.01).mT - wanted).norm()
    assert after < 0.97 * cut


def test_rows_do_not_depend_on_neighbours_or_filling() -> None:
    a, mask, inputs = case(12)
    inputs[1, 7:] = 0
    together = refitted(a, mask, inputs, 0.1)
    assert torch.equal(together[1:2], refitted(a[1:2], mask[1:2], inputs[1:2, :7], 0.1))


def test_without_inputs_it_only_cuts() -> None:
    a, mask, inputs = case(4)
    assert torch.equal(refitted(a, mask, torch.zeros_like(inputs), 0.1), a * mask)


def test_the_authors_rule_leaves_rows_of_unequal_length() -> None:
    with pytest.raises(HparamsError, match=r"got refit 0.01 with tie_rule threshold; allowed: top_k"):
        read_roselora({"model": "smollm2-135m", "tie_rule": "threshold", "refit": 0.01})
    assert read_roselora({"model": "smollm2-135m", "paper": True}).refit == 0
