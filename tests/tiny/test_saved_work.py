"""What the engine runs once instead of often: shared beginnings of rows, and the tokens before a neuron speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import RoseLoRAHparams, read_roselora
from roseedit.roselora.engine import train_independent, train_joint
from roseedit.roselora.neurons import bank, before, joint, looks
from roseedit.roselora.neurons.looks import Place, look_at
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.objective import build_rows
from roseedit.roselora.trainer import Trained, frozen

Tiny = Callable[..., LoadedModel]
REQUESTS = [
    EditRequest("The Tower is in the city of", "Rome", subject="Tower"),
    EditRequest("Oslo lies in", "the Alps", subject="Oslo"),
]
PLAIN = ("llama", "gpt2")  # what their neurons write is added as it is


def settings(**changes: Any) -> RoseLoRAHparams:
    """The settings of these tests."""
    own = {"layers": [1], "subject_layers": [1], "lr": 0.2, "steps": 12, "rewrites": 3, "pool": 1.0}
    return read_roselora({**own, "train_dtype": "weights", **changes})


@pytest.fixture(params=[*PLAIN, "gemma3"])
def loaded(request: pytest.FixtureRequest, tiny: Tiny) -> LoadedModel:
    return tiny(request.param)


def no(*_: Any) -> bool:
    """Found not to work."""
    return False


@pytest.mark.parametrize(("arithmetic", "near"), [("weights", 1e-4), ("bfloat16", 5e-2)])
def test_a_look_at_trees_is_a_look_at_rows(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, arithmetic: str, near: float
) -> None:
    rows = [row for n, request in enumerate(REQUESTS) for row in build_rows(loaded, request, n, n, settings())]
    place = Place.of(loaded, find_neurons(loaded, 1), replay=True)
    tokens: list[int] = []
    real = looks.run_body
    monkeypatch.setattr(
        looks, "run_body", lambda model, ids, *a, **k: tokens.append(ids.numel()) or real(model, ids, *a, **k)
    )
    with frozen(loaded.model):
        trees = look_at(loaded, rows, place, 4, 512, arithmetic)
        shared, tokens = sum(tokens), tokens.clear() or tokens
        monkeypatch.setattr(looks, "has_trees", no)
        monkeypatch.setattr(looks, "remembered", lambda _m, _k, _p, look: look())
        whole = look_at(loaded, rows, place, 4, 512, arithmetic)
    assert shared < 0.85 * sum(tokens)
    for one, other in ((trees.inputs, whole.inputs), (trees.activations, whole.activations)):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=near, atol=near)
    assert trees.sizes == pytest.approx(whole.sizes, rel=near)


def test_rows_longer_than_a_sliding_window_run_whole(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("llama")
    rows = build_rows(loaded, REQUESTS[0], 0, 0, settings())
    longest = max(len(row.ids) for row in rows)
    asked: list[LoadedModel] = []
    monkeypatch.setattr(looks, "has_trees", lambda model: asked.append(model) or True)
    with frozen(loaded.model):
        for window, times in ((longest - 1, 0), (longest, 1), (longest, 1)):  # found out once
            monkeypatch.setattr(loaded.model.config, "sliding_window", window, raising=False)
            look_at(loaded, rows, Place.of(loaded, find_neurons(loaded, 1), replay=True), 4, 512)
            assert len(asked) == times


def both(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, fit: Callable[[], Trained]) -> tuple[Trained, Trained]:
    """Trained with the first tokens run once, and without; the gates of random models would speak at all of them."""
    found: list[int] = []
    real = bank.before_speech

    def seen(*args: Any) -> Any:
        pasts = real(*args)
        found.append(sum(past.length for past in pasts))
        return pasts

    def quiet(*args: Any) -> Any:
        return {i: torch.cat([torch.zeros_like(said[:3]), said[3:]]) for i, said in speech(*args).items()}

    speech = bank.NeuronBank._speech
    monkeypatch.setattr(bank.NeuronBank, "_speech", quiet)
    monkeypatch.setattr(bank, "before_speech", seen)
    once = fit()
    assert bool(sum(found)) == (loaded.name in PLAIN)
    monkeypatch.setattr(before, "remembered", no)
    whole = fit()
    assert found[-1] == 0
    return once, whole


@pytest.mark.parametrize("many", [False, True])
def test_columns_are_those_of_whole_rows(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, many: bool) -> None:
    monkeypatch.setattr(joint, "FEW", 1)
    path = find_neurons(loaded, 1).down.module_name

    def fit() -> Trained:
        if many:
            return train_joint(loaded, REQUESTS, settings(many_at="subject"))
        return train_independent(loaded, REQUESTS[:1], settings())[0]

    once, whole = both(loaded, monkeypatch, fit)
    assert once.steps == whole.steps
    assert once.probability == pytest.approx(whole.probability, abs=0.05)
    a, b = once.factors[path].b, whole.factors[path].b
    assert float((a - b).norm() / b.norm()) < 0.02  # Adam makes much of differences in tiny gradients


def test_whole_rows_are_run_where_memory_is_short(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("llama")
    monkeypatch.setattr(before, "free_memory", lambda _: 1000)
    monkeypatch.setattr(before, "pasts_of", lambda *_: pytest.fail("it went on"))
    train_independent(loaded, REQUESTS[:1], settings(steps=2))
