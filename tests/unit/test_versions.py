"""Versions: equal when a parameter's bits are equal again, different when they are not."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from roseedit.edits import touched
from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.edits.live import live_edits
from roseedit.edits.versions import version, writing
from roseedit.errors import DeltaError
from roseedit.roselora.neurons.remembered import remembered

NAME = "weight"


@pytest.fixture(params=[0, touched.SMALL], ids=["listed", "whole"], autouse=True)
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both ways to keep touched entries."""
    monkeypatch.setattr(touched, "SMALL", request.param)
    yield


def a_delta(seed: int) -> Delta:
    """One row of eight entries, sparse on both sides."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for _ in range(2):
        side = torch.zeros(1, 8)
        side[0, torch.randperm(8, generator=generator)[:3]] = torch.randn(3, generator=generator)
        sides.append(SparseVectors.of(side))
    return Delta((MatrixDelta(NAME, 8, 8, False, *sides),))


def test_an_edit_taken_off_brings_the_version_back() -> None:
    model = nn.Linear(8, 8, bias=False)
    before, bits = version(model.weight), model.weight.detach().clone()
    for _ in range(2):
        a_delta(1).apply(model)
        assert version(model.weight) != before
        live_edits(model).revert(live_edits(model).deltas[0])
        assert torch.equal(model.weight, bits)
        assert version(model.weight) == before


def test_what_was_found_holds_again() -> None:
    model, looks = nn.Linear(8, 8, bias=False), []

    def look() -> int:
        looks.append(len(looks))
        return looks[-1]

    def found() -> int:
        return remembered(model, "x", [model.weight], look)

    delta = a_delta(2)
    assert found() == 0
    delta.apply(model)
    delta.revert(model)
    assert found() == 0
    delta.apply(model)
    assert found() == 1
    delta.revert(model)
    assert found() == 2  # only the last find is kept


@pytest.mark.parametrize("when", ["while live", "after"])
def test_what_somebody_else_writes_counts(when: str) -> None:
    model, delta = nn.Linear(8, 8, bias=False), a_delta(3)
    before = version(model.weight)
    delta.apply(model)
    if when == "after":
        delta.revert(model)
    untouched = (live_edits(model).pristine(NAME) == model.weight).nonzero()[0]
    with torch.no_grad():
        model.weight[tuple(untouched)] += 1
    if when == "while live":
        delta.revert(model)
    assert version(model.weight) != before
    changed = version(model.weight)
    delta.apply(model)
    delta.revert(model)
    assert version(model.weight) == changed


def test_a_write_that_fails_counts() -> None:
    weight = nn.Linear(8, 8, bias=False).weight
    before = version(weight)
    with pytest.raises(DeltaError), writing(weight):
        weight.detach().add_(1)
        raise DeltaError("halfway")
    assert version(weight) != before


def test_a_model_made_in_inference_mode_is_edited_too() -> None:
    with torch.inference_mode():
        model, delta = nn.Linear(8, 8, bias=False), a_delta(4)
        bits = model.weight.clone()
        delta.apply(model)
        assert not torch.equal(model.weight, bits)
        delta.revert(model)
        assert torch.equal(model.weight, bits)


def test_equal_versions_mean_equal_bits() -> None:
    model, order = nn.Linear(8, 8, bias=False), random.Random(0)
    live, seen = live_edits(model), {}
    deltas = [a_delta(seed) for seed in range(4)]
    on: list[Delta] = []
    for _ in range(120):
        held = seen.setdefault(version(model.weight), model.weight.detach().clone())
        assert torch.equal(held, model.weight)
        if order.random() < 0.1:
            with torch.no_grad():
                free = (live.pristine(NAME) == model.weight).nonzero()
                model.weight[tuple(free[0])] += 0 if on else 1  # while an edit is live, a write that changes nothing
        if on and order.random() < 0.5:
            delta = on.pop(order.randrange(len(on)))
            live.revert(delta)
        else:
            delta = next((d for d in deltas if all(d is not o for o in on)), None)
            if delta is not None:
                live.apply(delta)
                on.append(delta)
    assert len(seen) > 20
