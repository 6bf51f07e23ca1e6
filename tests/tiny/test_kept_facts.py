"""A joint run that goes on from facts at subjects which an earlier one has fitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from roseedit.cli.app import app
from roseedit.editor import Editor
from roseedit.edits.edit import Edit
from roseedit.errors import CapacityError
from roseedit.methods import MadeDelta
from roseedit.methods.roselora import RoseLoRA
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import RoseLoRAHparams, read_roselora
from roseedit.roselora.neurons import joint
from roseedit.roselora.neurons.kept import kept_of

Tiny = Callable[..., LoadedModel]
Digest = Callable[[nn.Module], str]
SETTINGS: dict[str, Any] = {
    "layers": [2],
    "subject_layers": [0, 1],
    "many_at": "subject",
    "lr": 0.2,
    "steps": 12,
    "rewrites": 2,
    "stop_probability": 0.5,
    "train_dtype": "weights",
    "compensate_from": 2,
    "column_share": 0.8,
}
FACTS = [
    EditRequest("The Tower is in the city of", "Rome", subject="Tower"),
    EditRequest("Oslo lies in", "the Alps", subject="Oslo"),
    EditRequest("The Rhine flows into", "the sea", subject="Rhine"),
    EditRequest("Nokia comes from", "Brazil", subject="Nokia"),
]
NAMELESS = EditRequest("Water is made of", "gold")


@pytest.fixture(autouse=True)
def _many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two facts are many, and come one at a time."""
    monkeypatch.setattr(joint, "FEW", 1)
    monkeypatch.setattr(joint, "FACTS", 1)


def settings(loaded: LoadedModel, room: int = 3, **changes: Any) -> RoseLoRAHparams:
    """The settings of these tests, with room for so many facts in a layer."""
    width = next(p.d_in for p in loaded.anatomy.projections if p.role == "mlp.down")
    return read_roselora({**SETTINGS, "pool": room / width, **changes})


def made(loaded: LoadedModel, requests: list[EditRequest], hparams: RoseLoRAHparams) -> MadeDelta:
    """All in one delta."""
    return RoseLoRA().fit(loaded, requests, hparams, joint=True)[0]


def edit_of(found: MadeDelta, requests: list[EditRequest]) -> Edit:
    return Edit(found.delta, tuple(requests), {}, "", "tiny", found.report)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("first", [2, 3])
def test_going_on_gives_the_bits_of_one_run(tiny: Tiny, digest: Digest, kind: str, first: int) -> None:
    loaded = tiny(kind)
    hparams, before = settings(loaded), digest(loaded.model)
    whole = made(loaded, FACTS, hparams)
    earlier = made(loaded, FACTS[:first], hparams)
    grown = RoseLoRA().grow(loaded, edit_of(earlier, FACTS[:first]), FACTS[first:], hparams)
    assert grown is not None
    assert grown.delta.digest == whole.delta.digest
    assert grown.report == {**whole.report, "kept": first}
    assert digest(loaded.model) == before


def test_facts_in_two_layers_stay_where_they_are(tiny: Tiny) -> None:
    loaded = tiny("llama")
    hparams = settings(loaded, room=2, scale=2.0)
    three, whole = made(loaded, FACTS[:3], hparams), made(loaded, FACTS, hparams)
    kept = kept_of(loaded, three.delta, FACTS[:3], three.report, hparams)
    assert kept is not None
    assert {layer: len(taken) for layer, taken in kept.taken.items()} == {0: 2, 1: 1}
    grown = RoseLoRA().grow(loaded, edit_of(three, FACTS[:3]), FACTS[3:], hparams)
    assert grown is not None
    assert grown.delta.digest == whole.delta.digest
    with pytest.raises(CapacityError, match="name more `subject_layers`"):
        RoseLoRA().grow(loaded, edit_of(whole, FACTS), [FACTS[0]], hparams)


def test_batches_are_not_split_between_layers(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "FACTS", 2)
    loaded = tiny("llama")
    hparams = settings(loaded, room=3)  # two batches of two: the second would begin in the first layer
    two, whole = made(loaded, FACTS[:2], hparams), made(loaded, FACTS, hparams)
    kept = kept_of(loaded, whole.delta, FACTS, whole.report, hparams)
    assert kept is not None
    assert {layer: len(taken) for layer, taken in kept.taken.items()} == {0: 2, 1: 2}
    grown = RoseLoRA().grow(loaded, edit_of(two, FACTS[:2]), FACTS[2:], hparams)
    assert grown is not None
    assert grown.delta.digest == whole.delta.digest
    others = [replace(fact, subject=f"{fact.subject} II") for fact in FACTS[:2]]
    full = made(loaded, [*FACTS, *others], hparams)  # no room to spare
    kept = kept_of(loaded, full.delta, [*FACTS, *others], full.report, hparams)
    assert kept is not None
    assert {layer: len(taken) for layer, taken in kept.taken.items()} == {0: 3, 1: 3}


def test_what_it_cannot_go_on_from(tiny: Tiny) -> None:
    loaded = tiny("llama")
    hparams = settings(loaded)
    two = edit_of(made(loaded, FACTS[:2], hparams), FACTS[:2])
    method = RoseLoRA()
    assert method.grow(loaded, two, [NAMELESS], hparams) is None
    assert method.grow(loaded, replace(two, requests=(*FACTS[:1], NAMELESS)), FACTS[2:], hparams) is None
    assert method.grow(loaded, replace(two, requests=tuple(FACTS[:1])), FACTS[2:], hparams) is None
    elsewhere = settings(loaded, room=40, many_at="answer")
    answers = edit_of(made(loaded, FACTS[:2], elsewhere), FACTS[:2])
    assert method.grow(loaded, answers, FACTS[2:], elsewhere) is None
    assert method.grow(loaded, answers, FACTS[2:], hparams) is None


def test_a_consolidation_keeps_what_the_oldest_edit_says(
    tiny: Tiny, tmp_path: Path, digest: Digest, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = tiny("llama")
    with Editor(loaded, settings(loaded, room=30), show_progress=False, ledger=tmp_path) as editor:
        editor.edit(FACTS[:2], mode="sequential", evaluate=False)
        with caplog.at_level("INFO"):
            first = editor.consolidate(keep=True).edits[0]
        assert "fitted anew" in caplog.text
        assert "kept" not in first.report
        editor.edit(FACTS[2:], mode="sequential", evaluate=False)
        before = digest(loaded.model)
        grown = editor.consolidate(keep=True).edits[0]
        assert grown.report["kept"] == 2
        assert grown.requests == tuple(FACTS)
        editor.revert(grown)
        assert digest(loaded.model) == before
        anew = editor.consolidate().edits[0]
        assert anew.delta.digest == grown.delta.digest


def test_the_command_line_keeps_too(tiny: Tiny, tmp_path: Path) -> None:
    loaded, folder, ledger = tiny("llama"), tmp_path / "model", tmp_path / "edits"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)

    def called(*words: str) -> Any:
        return CliRunner().invoke(app, ["edits", "consolidate", str(ledger), *words])

    with Editor.from_pretrained(folder, hparams=settings(loaded, room=30), ledger=ledger) as editor:
        editor.edit(FACTS[:3], mode="sequential", evaluate=False)
        hparams = editor.hparams
    anew = called()
    assert anew.exit_code == 0, anew.output
    assert "3 edits are one now" in anew.output
    with Editor.from_hparams(hparams, ledger=ledger, show_progress=False) as editor:
        editor.edit(FACTS[3:], mode="sequential", evaluate=False)
    kept = called("--keep", "--json")
    assert kept.exit_code == 0, kept.output
    (edit,) = json.loads(kept.output)["edits"]
    assert edit["report"]["kept"] == 3
    assert "a ledger with two live edits or more" in str(called().exception)
    with Editor.from_hparams(hparams, ledger=ledger, show_progress=False) as editor:
        assert [e.edit_id for e in editor.edits] == [edit["edit_id"]]
        while editor.edits:
            editor.revert()
    assert "a ledger without applied edits" in str(called().exception)
