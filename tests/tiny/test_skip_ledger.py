"""The command line on a model with a ledger of edits: gates are fitted on it, distil its answers, and serve it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ledger_world import fact, open_editor
from typer.testing import CliRunner

from roseedit.cli.app import app
from roseedit.errors import LedgerError, StaleProfilesError
from roseedit.hadskip.files import load_profiles
from roseedit.models.load import LoadedModel

N = 8
SETTINGS = """
method: HadSkip
tokens: 12
sequences: 12
held_out: 8
judged: 6
solve_sequences: 8
span_sequences: 8
rank: 4
gate_steps: 2
gate_tokens: 12
healing_steps: 2
rows: 4
"""


@pytest.fixture
def world(
    tiny: Callable[..., LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Callable[..., LoadedModel]]:
    """A folder with a ledger of two edits, settings and a text; `load_model` gives a fresh tiny model."""

    def fresh(*_: object, **__: object) -> LoadedModel:
        return tiny("llama", num_hidden_layers=N)

    monkeypatch.setattr("roseedit.models.load.load_model", fresh)
    monkeypatch.setattr("roseedit.making.load_model", fresh)
    with open_editor(fresh(), tmp_path / "edits") as editor:
        editor.edit([fact(1), fact(2), fact(3)], mode="sequential", evaluate=False)
        editor.revert()
    words = ["The", " Tower", " is", " in", " the", " city", " of", " Rome", " Paris", "."]
    order = torch.randint(len(words), (1200,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "text.txt").write_text("".join(words[int(i)] for i in order))
    (tmp_path / "skip.yaml").write_text(SETTINGS)
    return tmp_path, fresh


def fit(folder: Path, out: str, *options: str, budget: float = 0.75) -> None:
    settings = ["--hparams", str(folder / "skip.yaml"), "--text", str(folder / "text.txt"), "--budget", str(budget)]
    done = CliRunner().invoke(app, ["skip", "fit", "--model", "llama", *settings, "--out", str(folder / out), *options])
    assert done.exit_code == 0, done.exception


def test_gates_of_a_ledger(world: tuple[Path, Callable[..., LoadedModel]]) -> None:
    folder, _ = world
    ledger = ["--ledger", str(folder / "edits")]
    fit(folder, "gates", *ledger)
    profiles = load_profiles(folder / "gates")
    assert len(profiles.made_by["edits"]) == 2  # the third was reverted
    assert profiles.made_by["command"].endswith(" --ledger edits")
    assert {0, 1, 2, N - 1} <= set(profiles.protected)  # its edits sit in layers 1 and 2

    ask = ["generate", "--model", "llama", "--prompt", "The Tower is in", "--gates", str(folder / "gates"), "--json"]
    ask += ["--contract", "bounded", "--budget", "0.9", "--max-new-tokens", "2"]
    said = CliRunner().invoke(app, [*ask, *ledger])
    assert said.exit_code == 0, said.exception
    (record,) = json.loads(said.stdout)
    assert {0, 1, 2, N - 1} <= set(record["layers_run"])
    assert len(record["layers_run"]) < N

    without = CliRunner().invoke(app, ask)
    assert isinstance(without.exception, StaleProfilesError)
    assert "with 0 edits live" in str(without.exception)
    assert "with 2 edits live. Fit anew: roseedit skip fit --model" in str(without.exception)


def test_answers_to_the_edits_are_distilled(world: tuple[Path, Callable[..., LoadedModel]]) -> None:
    """The same fit with and without the edits' prompts differs in what the healing learnt, not only in the weights."""
    from roseedit.edits.book import Book
    from roseedit.edits.ledger import Ledger
    from roseedit.hadskip.material import material
    from roseedit.hadskip.settings import HadSkipHparams

    folder, fresh = world
    loaded = fresh()
    with Ledger(folder / "edits") as known:
        book = Book(loaded, known)
    small = {"tokens": 40, "sequences": 8, "held_out": 2, "text": str(folder / "text.txt")}
    found = material(loaded, HadSkipHparams().replaced(**small), list(book.edits.values()))
    said = [loaded.tokenizer.decode(row) for row in found.train]
    assert sum("The colour of stone" in text for text in said) == 4
    assert not any("The colour of stone" in loaded.tokenizer.decode(row) for row in found.held_out)


def test_the_edits_of_a_ledger_come_before_those_in_folders(world: tuple[Path, Callable[..., LoadedModel]]) -> None:
    folder, fresh = world
    with open_editor(fresh(), None) as editor:
        editor.edit(fact(9), evaluate=False)
        editor.save(editor.edits[0].edit_id, folder / "one")
        own = editor.edits[0].edit_id
    fit(folder, "gates", "--ledger", str(folder / "edits"), "--edit", str(folder / "one"))
    made = load_profiles(folder / "gates").made_by
    assert len(made["edits"]) == 3
    assert made["edits"][-1] == own
    assert made["command"].endswith(" --ledger edits --edit one")


def test_a_missing_ledger_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roseedit.models.load.load_model", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("roseedit.making.load_model", lambda *_, **__: pytest.fail("loaded"))
    for command in (["skip", "fit", "--out", str(tmp_path / "g")], ["generate", "--prompt", "A b"]):
        done = CliRunner().invoke(app, [*command, "--ledger", str(tmp_path / "no-such")])
        assert isinstance(done.exception, LedgerError), command
        assert not (tmp_path / "no-such").exists()
