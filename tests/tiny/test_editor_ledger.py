"""An Editor on a ledger: opened to the same weights, contradictions, consolidation, the health check, failures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ledger_world import fact, leave, open_editor
from torch import nn

from roseedit.editor import Editor
from roseedit.edits import health
from roseedit.edits.health import HealthGate, perplexity, repeated_share
from roseedit.edits.ledger import Ledger
from roseedit.errors import (
    ConflictError,
    DeltaError,
    HparamsError,
    LedgerBusyError,
    LedgerError,
    RejectedError,
    RequestError,
)
from roseedit.hparams import HealthLimits, as_mapping
from roseedit.methods import read_hparams
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest

Tiny = Callable[..., LoadedModel]
Digest = Callable[[nn.Module], str]


@pytest.fixture
def loaded(tiny: Tiny) -> LoadedModel:
    """A fresh model."""
    return tiny("llama")


def states(editor: Editor) -> dict[str, str]:
    assert editor.ledger is not None
    return {edit_id: s.state for edit_id, s in editor.ledger.states.items()}


def test_a_ledger_is_opened_to_the_same_weights(
    loaded: LoadedModel, tiny: Tiny, tmp_path: Path, digest: Digest
) -> None:
    base = digest(loaded.model)
    with open_editor(loaded, tmp_path / "edits") as editor:
        editor.edit([fact(1), fact(2), fact(3)], mode="sequential", evaluate=False)
        editor.edit([fact(4), fact(5)], evaluate=False)
        editor.revert(editor.edits[1].edit_id)
        ids, weights = [e.edit_id for e in editor.edits], digest(loaded.model)
    fresh = tiny("llama")
    assert digest(fresh.model) == base
    with open_editor(fresh, tmp_path / "edits") as again:
        assert [e.edit_id for e in again.edits] == ids
        assert digest(fresh.model) == weights
        while again.edits:
            again.revert()
        assert digest(fresh.model) == base


def test_scores_are_entered(loaded: LoadedModel, tmp_path: Path) -> None:
    with open_editor(loaded, tmp_path / "edits") as editor:
        facts = [EditRequest("A b c", "d", locality=()), fact(2)]
        result = editor.edit(facts, mode="sequential")
        assert editor.ledger is not None and result.metrics is not None
        for i, edit in enumerate(result.edits):
            rows = result.metrics[result.metrics.request == i]
            entered = editor.ledger.find(edit.edit_id).record.metrics
            assert entered == f'{{"reliability": {{"n": 1, "rate": {float(rows.after_ok.iloc[0])}}}}}'


def test_another_model_and_a_second_editor_are_refused(
    loaded: LoadedModel, tiny: Tiny, tmp_path: Path, digest: Digest
) -> None:
    other = tiny("llama")
    with torch.no_grad():
        other.model.get_parameter("model.layers.2.mlp.down_proj.weight")[0, 0] += 1
    before = digest(other.model)
    with open_editor(loaded, tmp_path / "edits") as editor:
        editor.edit(fact(1), evaluate=False)
        with pytest.raises(LedgerBusyError, match=r"this one"):
            open_editor(other, tmp_path / "edits")
    with pytest.raises(DeltaError, match="is not the base of edit"):
        open_editor(other, tmp_path / "edits")
    assert digest(other.model) == before
    with open_editor(tiny("llama"), tmp_path / "edits") as again:  # the lock was let go
        assert len(again.edits) == 1


def test_a_busy_ledger_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with Ledger(tmp_path / "edits", write=True), pytest.raises(LedgerBusyError):
        Editor.from_hparams({"model": "no/such.gguf"}, ledger=tmp_path / "edits")
    with pytest.raises(ValueError, match=r"no/such\.gguf"):
        Editor.from_hparams({"model": "no/such.gguf"}, ledger=tmp_path / "edits")
    Ledger(tmp_path / "edits", write=True).close()


def test_contradictions_are_refused_or_replace(loaded: LoadedModel, tmp_path: Path, digest: Digest) -> None:
    editor = open_editor(loaded, tmp_path / "edits")
    old = editor.edit(fact(1), evaluate=False).edits[0]
    before = digest(loaded.model)
    new = EditRequest("What colour is stone number 1?", "grey", subject="stone number 1")
    same = EditRequest(fact(1).prompt, "grey", subject="stone number 1")
    for request in (new, same):
        with pytest.raises(ConflictError, match=rf"contradicts the live edit {old.edit_id}"):
            editor.edit(request, evaluate=False)
    assert digest(loaded.model) == before
    with pytest.raises(ConflictError, match="do not contradict each other"):
        editor.edit([fact(7), EditRequest("What colour is stone number 7?", "x", subject="stone number 7")])
    result = editor.edit(new, evaluate=False, replace=True)
    assert result.replaced == (old.edit_id,)
    assert states(editor) == {old.edit_id: "reverted", result.edit_id: "applied"}
    with pytest.raises(ConflictError):
        editor.redo()
    editor.redo(replace=True)
    assert states(editor) == {old.edit_id: "applied", result.edit_id: "reverted"}
    assert digest(loaded.model) == before
    leave(editor)


def test_a_trial_leaves_no_trace_even_when_it_replaces(loaded: LoadedModel, tmp_path: Path, digest: Digest) -> None:
    editor = open_editor(loaded, tmp_path / "edits")
    editor.edit(fact(1), evaluate=False)
    before, head = digest(loaded.model), editor.ledger.head if editor.ledger else ""
    with editor.trial(fact(1, "grey"), evaluate=False, replace=True) as result:
        assert [e.edit_id for e in editor.edits] == [result.edit_id]
        kept = editor.edit(fact(2), evaluate=False)
        editor.revert(kept.edit_id)
    assert digest(loaded.model) == before
    assert editor.ledger is not None
    assert [e.action for e in editor.ledger.entries] == ["applied", "applied", "reverted"]
    assert editor.ledger.entries[0].hash == head
    leave(editor)


def test_without_a_ledger_nobody_looks_for_contradictions_unless_asked(loaded: LoadedModel) -> None:
    editor = open_editor(loaded, None)
    editor.edit(fact(1), evaluate=False)
    editor.edit(fact(1, "grey"), evaluate=False)
    result = editor.edit(fact(1, "blue"), evaluate=False, replace=True)
    assert len(result.replaced) == 2
    assert [e.edit_id for e in editor.edits] == [result.edit_id]
    editor.revert()
    assert editor.redo().edit_id == result.edit_id
    with pytest.raises(RequestError, match="nothing reverted"):
        editor.redo()
    with pytest.raises(RequestError, match="consolidate without a ledger"):
        editor.consolidate()


def test_consolidation_and_its_revert(loaded: LoadedModel, tmp_path: Path, digest: Digest) -> None:
    editor = open_editor(loaded, tmp_path / "edits")
    with pytest.raises(RequestError, match="consolidate with 0 live edits"):
        editor.consolidate()
    editor.edit([fact(1), fact(2)], mode="sequential", evaluate=False)
    editor.edit([fact(3), fact(4)], evaluate=False)
    before, ids = digest(loaded.model), [e.edit_id for e in editor.edits]
    result = editor.consolidate(evaluate=True)
    assert result.metrics is not None and len(result.metrics) == 4
    assert result.edits[0].requests == (fact(1), fact(2), fact(3), fact(4))
    assert list(states(editor).values()) == [*["consolidated"] * 3, "applied"]
    assert digest(loaded.model) != before
    with pytest.raises(LedgerError, match="lives on in edit"):
        editor.redo(ids[0])
    with pytest.raises(ConflictError, match="which holds 3 other facts too"):
        editor.edit(fact(1, "grey"), replace=True)
    editor.revert(result.edit_id)
    assert digest(loaded.model) == before
    assert [e.edit_id for e in editor.edits] == ids
    leave(editor)


def test_a_failing_fit_leaves_the_old_edits(
    loaded: LoadedModel, tmp_path: Path, digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = open_editor(loaded, tmp_path / "edits")
    editor.edit([fact(1), fact(2)], mode="sequential", evaluate=False)
    before, head = digest(loaded.model), editor.ledger.head if editor.ledger else ""

    def fit(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(editor._method, "fit", fit)
    for call in (editor.consolidate, lambda: editor.edit(fact(1, "grey"), replace=True, evaluate=False)):
        with pytest.raises(MemoryError):
            call()
        assert digest(loaded.model) == before
        assert len(editor.edits) == 2
    assert editor.ledger is not None and editor.ledger.head == head
    leave(editor)


# --- health -----------------------------------------------------------------------------------------------------------


def test_a_destructive_edit_is_taken_off_and_entered_with_its_figures(
    loaded: LoadedModel, tmp_path: Path, digest: Digest
) -> None:
    limits = {
        "perplexity": 1e9,
        "norm": 0.5,
        "repetition": 1.0,
        "new_tokens": 8,
    }  # of a random model only the norm tells
    editor = open_editor(loaded, tmp_path / "edits", size=0.01, health=limits)
    kept = editor.edit(fact(1), evaluate=False)
    assert 0 < kept.health["norm"] < 0.5
    before = digest(loaded.model)
    editor.hparams = editor.hparams.replaced(size=100.0)
    with pytest.raises(RejectedError, match=r"a change of .* of its norm \(limit 0\.5\).*allowed: ") as caught:
        editor.edit([fact(2), fact(3)], mode="sequential", evaluate=False)
    assert digest(loaded.model) == before
    assert [e.edit_id for e in editor.edits] == [kept.edit_id]
    rejected = [e.edit_id for e in caught.value.edits]
    assert states(editor) == {kept.edit_id: "applied", **dict.fromkeys(rejected, "rejected")}
    assert editor.ledger is not None
    entered = editor.ledger.find(rejected[0]).changed.details["health"]
    assert entered == caught.value.figures
    assert entered["norm"] > 0.5
    assert entered["limits"]["norm"] == 0.5
    with pytest.raises(RejectedError):  # still as bad
        editor.apply(caught.value.edits[0])
    assert digest(loaded.model) == before
    assert editor.ledger.verify().ok
    leave(editor)
    tolerant = open_editor(loaded, tmp_path / "edits", health={**limits, "norm": 1e9})
    tolerant.apply(caught.value.edits[0])
    assert states(tolerant)[rejected[0]] == "applied"
    leave(tolerant)
    careless = open_editor(loaded, tmp_path / "edits")
    with pytest.raises(LedgerError, match="rejected by the health check"):
        careless.apply(caught.value.edits[1])
    leave(careless)


def test_a_consolidation_that_does_harm_gives_the_old_edits_back(
    loaded: LoadedModel, tmp_path: Path, digest: Digest
) -> None:
    editor = open_editor(loaded, tmp_path / "edits", size=0.01, health={"new_tokens": 0})
    editor.edit([fact(1), fact(2)], mode="sequential", evaluate=False)
    before = digest(loaded.model)
    editor.hparams = editor.hparams.replaced(size=100.0)
    with pytest.raises(RejectedError):
        editor.consolidate()
    assert digest(loaded.model) == before
    assert list(states(editor).values()) == ["applied", "applied", "rejected"]
    leave(editor)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"perplexity": 1.0}, "perplexity"),
        ({"norm": 1e-6}, r"a change of model\.layers\.\d\.mlp\.down_proj\.weight by"),
    ],
)
def test_each_limit_by_itself(loaded: LoadedModel, digest: Digest, limits: dict[str, float], said: str) -> None:
    wide = {"perplexity": 1e9, "norm": 1e9, "repetition": 1.0, "new_tokens": 4}
    editor = open_editor(loaded, None, size=5.0, health={**wide, **limits})
    before = digest(loaded.model)
    with pytest.raises(RejectedError, match=f"got an edit with {said}"):
        editor.edit(fact(1), evaluate=False)
    assert digest(loaded.model) == before
    assert editor.edits == ()


def test_repetition_has_its_limit(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, digest: Digest) -> None:
    shares = iter((0.1, 0.5))
    monkeypatch.setattr(HealthGate, "_repetition", lambda self: next(shares))
    editor = open_editor(loaded, None, size=0.01, health={"perplexity": 1e9, "norm": 1e9, "repetition": 0.25})
    with pytest.raises(RejectedError, match=r"repeated phrases that rose by 0\.4 \(limit 0\.25\)"):
        editor.edit(fact(1), evaluate=False)


def test_repeated_share() -> None:
    assert repeated_share([1, 2, 3]) == 0.0
    assert repeated_share(list(range(50))) == 0.0
    assert repeated_share([1, 2] * 10) == pytest.approx(15 / 17)


def test_perplexity_is_that_of_the_plain_model(loaded: LoadedModel) -> None:
    ids = loaded.tokenizer("The harbour was quiet when the ferry came in.")["input_ids"]
    with torch.no_grad():
        loss = loaded.model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert perplexity(loaded, ids) == pytest.approx(float(loss.exp()), rel=1e-4)


def test_the_base_is_measured_without_the_live_edits(loaded: LoadedModel, tmp_path: Path, digest: Digest) -> None:
    editor = open_editor(loaded, tmp_path / "edits", size=5.0)
    gate = HealthGate(loaded, HealthLimits(new_tokens=0))
    gate.prepare()
    clean = gate._base
    editor.edit(fact(1), evaluate=False)
    live = digest(loaded.model)
    later = HealthGate(loaded, HealthLimits(new_tokens=0))
    later.prepare()
    assert later._base == clean
    assert digest(loaded.model) == live
    leave(editor)


def test_the_health_section_is_read_strictly(tmp_path: Path) -> None:
    assert read_hparams({"health": True}).health == HealthLimits()
    assert read_hparams({"health": {"norm": "1e-1"}}).health == HealthLimits(norm=0.1)
    for off in (False, None):
        settings = read_hparams({"health": off})
        assert settings.health is None
        assert "health" not in as_mapping(settings)
    back = read_hparams({"health": {"perplexity": 3}})
    assert read_hparams(as_mapping(back)) == back
    for bad, said in (({"nrm": 1}, "Did you mean 'norm'"), ({"perplexity": 0.5}, "at least 1.0"), (3, "a mapping")):
        with pytest.raises(HparamsError, match=said):
            read_hparams({"health": bad})


def test_the_calibration_text_ships_and_may_be_another(loaded: LoadedModel, tmp_path: Path) -> None:
    shipped = health._calibration_ids(loaded, HealthLimits())
    words = loaded.tokenizer.decode(shipped).split()
    assert 300 < len(words) < 600
    own = tmp_path / "own.txt"
    own.write_text("A b c d e f g", encoding="utf-8")
    assert len(health._calibration_ids(loaded, HealthLimits(text=str(own)))) == 12
    own.write_text("", encoding="utf-8")
    for text in (str(own), str(tmp_path / "none.txt")):
        with pytest.raises(HparamsError, match=r"calibration text .*; allowed: "):
            HealthGate(loaded, HealthLimits(text=text))
