"""An edit whose column has grown past its aim, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from roseedit.editor import Editor
from roseedit.requests import EditRequest
from roseedit.roselora.config import read_roselora
from roseedit.roselora.engine import train_independent
from roseedit.roselora.neurons import bank, trainer
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.trainer import Trained

pytestmark = pytest.mark.real
REQUESTS = [
    EditRequest("The Eiffel Tower is located in the city of", "Rome", subject="Eiffel Tower"),
    EditRequest("The capital of Norway is", "Lima", subject="Norway"),
]
WILD = 3.0  # thirty times what ships


FEW = {"rewrites": 1, "rewordings": 0, "after_text": 0, "anchor_known": 0, "anchor_echoes": 0, "steps": 40}
SETTINGS = read_roselora({"layers": [27], "gate_threshold": 0.4, "lr": WILD, **FEW})


def made(editor: Editor, requests: Sequence[EditRequest]) -> list[Trained]:
    """Edits from few rows, with steps that throw a column far past its aim."""
    return train_independent(editor.loaded, requests, SETTINGS)


def size(editor: Editor, trained: Trained) -> float:
    """The largest change of an entry of a column."""
    down = find_neurons(editor.loaded, 27).down.module_name
    return float((trained.factors[down].b @ trained.factors[down].a).abs().max())


def started_anew(monkeypatch: pytest.MonkeyPatch, *, tries: int) -> None:
    """After one step each edit has got nowhere, and after another, until it has had its tries."""
    for name, value in (("RETRY", 1), ("NOWHERE", 1.0), ("SMALLER", 0.1 / WILD), ("TRIES", tries)):
        monkeypatch.setattr(trainer, name, value)


def test_an_edit_that_got_nowhere_starts_anew_with_smaller_steps(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "RETRY", 99)
    far = [size(editor, trained) for trained in made(editor, REQUESTS)]
    started_anew(monkeypatch, tries=2)
    again = made(editor, REQUESTS)
    assert all(trained.converged and trained.steps > 1 for trained in again)
    assert all(size(editor, trained) < before / 3 for trained, before in zip(again, far, strict=True))
    (alone,) = made(editor, REQUESTS[1:])
    assert alone.steps == again[1].steps  # who else is edited beside it does not matter


def test_the_last_try_is_on_the_requests_own_prompt_alone(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    wordings: list[list[int]] = []

    class Watched(trainer.ColumnTrainer):
        def _backward(self, chosen: Sequence[int]) -> None:
            wordings.append([sum(self.store.rows[i].request == n for i in chosen) for n in range(len(REQUESTS))])
            super()._backward(chosen)

    monkeypatch.setattr(bank, "ColumnTrainer", Watched)
    started_anew(monkeypatch, tries=3)
    third = made(editor, REQUESTS)
    assert wordings[:2] == [[2, 2]] * 2
    assert all(max(asked) == 1 for asked in wordings[2:])
    assert all(trained.converged and trained.steps > 2 for trained in third)
