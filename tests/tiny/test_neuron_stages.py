"""Rows through the lower layers, some layers at a time: nothing but memory is saved by it."""

from __future__ import annotations

import gc
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

from roseedit.models.load import LoadedModel
from roseedit.models.lowp import Bfloat16Products
from roseedit.models.replay import capture_activations
from roseedit.roselora.neurons import stages
from roseedit.roselora.neurons.looks import Place, look_at
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.neurons.remembered import remembered
from roseedit.roselora.objective import Row

ROWS = [(3, 1, 4, 1, 5), (9, 2), (6, 5, 3, 5, 8, 9, 7, 9), (3, 2, 3)]


@pytest.mark.parametrize(("until", "n"), [(30, 4), (3, 4), (1, 4), (5, 1), (28, 3)])
def test_stages_cover_every_layer_once(until: int, n: int) -> None:
    found = stages.bounds(until, n)
    assert [layer for first, end in found for layer in range(first, end)] == list(range(until))
    assert len(found) == min(until, n)


def test_streams_come_back_as_they_were_written() -> None:
    streams = stages.Streams([2, 3, 1], 4, torch.bfloat16, torch.device("cpu"))
    stored = torch.randn(2, 3, 4).bfloat16()
    streams.write([2, 1], stored)
    assert torch.equal(streams.rows[2], stored[0, :1])
    assert torch.equal(streams.padded([2, 1], 5)[1], torch.cat([stored[1], torch.zeros(2, 4).bfloat16()]))
    assert not streams.padded([2, 1], 5)[0, 1:].any()


def _seen(model: LoadedModel, until: int, arithmetic: str, *, replay: bool = True, again: bool = False) -> list[Tensor]:
    out = [torch.empty(0)] * len(ROWS)

    def visit(batch: list[int], ids: Tensor, mask: Tensor, _sight: Any) -> None:
        stored = capture_activations(model.model, model.anatomy, until, ids, mask)
        for place, i in enumerate(batch):
            out[i] = stored[place, : len(ROWS[i])].clone()

    stages.through(model, ROWS, until, 16, arithmetic, visit, replay=replay, again=again)
    return out


def test_stages_change_nothing(frozen_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    until = frozen_model.anatomy.n_layers - 1
    assert until > 1
    staged = _seen(frozen_model, until, "bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "replaying", None)  # would fail if it were called
        at_once = _seen(frozen_model, until, "bfloat16", replay=False)
    assert all(torch.equal(a, b) for a, b in zip(staged, at_once, strict=True))
    exact = _seen(frozen_model, until, "weights")
    assert not all(torch.equal(a, b) for a, b in zip(exact, staged, strict=True))
    assert all(float((a - b).norm()) < 0.1 * float(a.norm()) for a, b in zip(exact, staged, strict=True))


def test_copies_of_one_stage_at_a_time_and_never_of_the_head(
    frozen_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    made: WeakSet[Bfloat16Products] = WeakSet()
    own = Bfloat16Products.__init__

    def watched(self: Bfloat16Products, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        made.add(self)
        gc.collect()
        alive.append(len(made))
        assert frozen_model.model.get_output_embeddings() not in [module for module, _ in self.forwards]

    monkeypatch.setattr(Bfloat16Products, "__init__", watched)
    place = Place.of(frozen_model, find_neurons(frozen_model, frozen_model.anatomy.n_layers - 1), replay=True)
    look_at(frozen_model, [Row(0, 0, ids, (0,), (1,), 1.0) for ids in ROWS], place, 3, 16, "bfloat16")
    assert len(alive) == min(stages.STAGES, frozen_model.anatomy.n_layers)
    assert max(alive) == 1


@pytest.mark.parametrize("arithmetic", ["weights", "bfloat16"])
def test_rows_that_come_again_run_one_layer_until_a_lower_weight_is_written(
    frozen_model: LoadedModel, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    until, layers = (
        frozen_model.anatomy.n_layers - 1,
        frozen_model.model.get_submodule(frozen_model.anatomy.layers_name),
    )
    runs: list[tuple[int, int]] = []
    own = stages._Run.stage
    monkeypatch.setattr(stages._Run, "stage", lambda run, part, *rest: (runs.append(part), own(run, part, *rest)))

    def write(layer: int) -> list[Tensor]:
        runs.clear()
        next(layers[layer].parameters()).add_(0.01)
        seen = _seen(frozen_model, until, arithmetic, again=True)
        fresh = list(runs)
        assert all(torch.equal(a, b) for a, b in zip(seen, _seen(frozen_model, until, arithmetic), strict=True))
        return fresh

    with torch.no_grad():
        assert len(write(until)) > 1
        assert write(until) == write(until - 1) == [(until - 1, until)]
        assert len(write(until - 2)) > 1


def test_a_weight_put_in_place_of_another_is_not_taken_for_it(frozen_model: LoadedModel) -> None:
    model, found = frozen_model.model, iter(range(9))
    layer = model.get_submodule(frozen_model.anatomy.projections[0].module_name)
    seen = set()
    for _ in range(4):
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        gc.collect()
        seen.add(remembered(model, "x", model.parameters(), lambda: next(found)))
    assert seen == {0, 1, 2, 3}
    assert remembered(model, "x", model.parameters(), lambda: next(found)) == 3
