"""Edits made apart that take the same neurons: said when both become live, and only then."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from roseedit.editor import Editor
from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.edits.shared import sharing
from roseedit.models.load import LoadedModel

Tiny = Callable[..., LoadedModel]
# of four neurons that are free two are taken at least, so that two edits made apart meet
SETTINGS: dict[str, Any] = {"layers": [2], "steps": 3, "rewrites": 1, "train_dtype": "weights", "most_neurons": 2}
FACTS = {"Tower": ("The Tower is in the city of", "Rome"), "Oslo": ("Oslo lies in", "the Alps")}


@pytest.fixture
def editor(tiny: Tiny) -> Editor:
    loaded = tiny("llama")
    pool = 3 / loaded.model.config.intermediate_size
    made = Editor.from_pretrained(loaded.model, loaded.tokenizer, {**SETTINGS, "pool": pool})
    made.show_progress = False
    return made


def apart(editor: Editor) -> list[Any]:
    """Two edits, each made on the bare model."""
    prompts, targets = zip(*FACTS.values(), strict=True)
    result = editor.edit(list(prompts), list(targets), subjects=list(FACTS), mode="independent", evaluate=False)
    return list(result.edits)


def test_edits_that_share_neurons_are_told_of(editor: Editor, caplog: pytest.LogCaptureFixture) -> None:
    one, other = apart(editor)
    with caplog.at_level(logging.WARNING):
        editor.apply(one)
        assert not caplog.records
        editor.apply(other)
    (record,) = caplog.records
    assert one.edit_id in record.getMessage()
    assert "jointly" in record.getMessage()
    assert sharing(other, [one]) == {one.edit_id: len(one.delta.own_columns & other.delta.own_columns)}


def test_nothing_is_said_when_the_other_is_gone(editor: Editor, caplog: pytest.LogCaptureFixture) -> None:
    one, other = apart(editor)
    with caplog.at_level(logging.WARNING):
        editor.apply(one)
        editor.revert(one)
        editor.apply(other)
    assert not caplog.records


def test_columns_of_outer_products_with_one_entry_count() -> None:
    a = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0], [0.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    matrix = MatrixDelta("w", 3, 2, False, SparseVectors.of(a), SparseVectors.of(torch.ones(4, 2)))
    assert Delta((matrix,)).own_columns == {("w", 1), ("w", 2)}
