"""Inputs of a matrix: kept as they came, or as rows with the same second moment."""

from __future__ import annotations

import pytest
import torch

from roseedit.roselora.inputs import ROOM, Inputs, root_of

D = 12


def batches(n: int) -> list[torch.Tensor]:
    return [torch.randn(5, D, generator=torch.Generator().manual_seed(i)) for i in range(n)]


def test_few_inputs_come_back_in_their_order() -> None:
    own, given = Inputs(), batches(3)
    for place in (2, 0, 1):
        own.add(place, given[place])
    assert torch.equal(own.keys(), torch.cat(given))


@pytest.mark.parametrize("n", [ROOM * D // 5 + 1, 40])
def test_many_inputs_keep_their_second_moment_in_little_room(n: int) -> None:
    own, given = Inputs(), batches(n)
    for place, x in enumerate(given):
        own.add(place, x)
    every = torch.cat(given)
    assert len(own.keys()) == D
    assert own.waiting == sum(len(x) for _, x in own.rows) <= ROOM * D
    torch.testing.assert_close(own.keys().T @ own.keys(), every.T @ every, atol=1e-3, rtol=1e-4)
    maps = torch.randn(3, D)
    torch.testing.assert_close(
        (own.keys() @ maps.T).square().sum(0), (every @ maps.T).square().sum(0), rtol=1e-4, atol=0
    )


def test_the_root_is_orthogonal_and_strongest_first() -> None:
    x = torch.cat(batches(4))
    root = root_of(x.T @ x, 5)
    gram = root @ root.T
    assert root.shape == (5, D)
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-3, rtol=0)
    assert (gram.diagonal().diff() <= 0).all()
