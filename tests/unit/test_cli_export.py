"""`roseedit edits export|diff|map` with bad input: one line, exit code 2, nothing written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from golden import golden_delta

from roseedit import cli
from roseedit.edits.edit import Edit
from roseedit.edits.files import BLOB, save_edit
from roseedit.requests import EditRequest

BASE = ":".join(["a" * 32, "b" * 32, "c" * 32])


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A saved edit."""
    edit = Edit(golden_delta(), (EditRequest("the tower is in", "rome"),), {}, BASE, "no-such-model")
    return str(save_edit(edit, tmp_path / "edit"))


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["roseedit", "edits", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


BAD: dict[str, tuple[list[str], str]] = {
    "unknown form": (["export", "EDIT", "--to", "pefd", "--out", "OUT"], "Did you mean 'peft'"),
    "an option of another form": (
        ["export", "EDIT", "--to", "peft", "--dtype", "float16", "--out", "OUT"],
        "dtype with the form 'peft'",
    ),
    "no such folder": (["export", "nothing", "--to", "peft", "--out", "OUT"], "which is no folder"),
    "a folder in use": (["export", "EDIT", "--to", "peft", "--out", "EDIT"], "which is in use"),
    "a model that is not there": (
        ["export", "EDIT", "--to", "merged", "--model", "no/such.gguf", "--out", "OUT"],
        "no/such.gguf",
    ),
    "the same edit twice": (["export", "EDIT", "EDIT", "--to", "peft", "--base", "m", "--out", "OUT"], "twice"),
    "no form": (["export", "EDIT", "--out", "OUT"], "--to"),
    "one edit to compare": (["diff", "EDIT"], "Missing argument"),
    "a picture of a wrong kind": (["map", "EDIT", "--out", "OUT.gif"], ".png, .svg, .pdf"),
    "an unknown measure": (["map", "EDIT", "--show", "shares", "--out", "OUT.png"], "Did you mean 'share'"),
    "too few layers": (["map", "EDIT", "--layers", "1", "--out", "OUT.png"], "an edit in layer 1"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: str, tmp_path: Path, name: str
) -> None:
    words, said = BAD[name]
    words = [word.replace("EDIT", folder).replace("OUT", str(tmp_path / "out")) for word in words]
    assert run(monkeypatch, *words) == 2
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 1, captured.err
    assert said in lines[0]
    assert [p.name for p in tmp_path.iterdir()] == ["edit"]


def test_damage_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: str) -> None:
    path = Path(folder) / BLOB
    path.write_bytes(path.read_bytes()[:-1])
    assert run(monkeypatch, "diff", folder, folder) == 2
    assert "bytes that were saved" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["export", "diff", "map"])
def test_help_has_examples(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert run(monkeypatch, command, "--help") == 0
    text = capfd.readouterr().out
    assert "Examples" in text
    assert f"roseedit edits {command} my-edit" in text


def test_a_map_is_drawn(monkeypatch: pytest.MonkeyPatch, folder: str, tmp_path: Path) -> None:
    assert run(monkeypatch, "map", folder, "--layers", "3", "--out", str(tmp_path / "map.svg")) == 0
    assert (tmp_path / "map.svg").read_text().count("mlp.down_proj") >= 1
