"""A run on the real model: shards and an interruption leave no trace, and the figures are those of the rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roseedit.editor import Editor
from roseedit.editsets import load_editset
from roseedit.runs import RunOptions, data_of, evaluate, read_run
from roseedit.runs.files import Layout

pytestmark = pytest.mark.real
FILES = ("table.md", "summary.json", "run.json")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("editor")
def test_shards_and_a_lost_unit_leave_no_trace(shared_editor: Editor, tmp_path: Path) -> None:
    hparams = shared_editor.hparams.replaced(layers=[23], steps=16, rewrites=0, after_text=0, anchor_echoes=0)
    sample = ROOT / "data" / "zsre_sample.json"
    data = data_of(load_editset("zsre", sample, limit=2), 2)
    options = {"unit": 1, "threads": 1, "cache": tmp_path / "cache", "show_progress": False}
    assert evaluate(hparams, data, tmp_path / "whole", RunOptions(**options))
    assert not evaluate(hparams, data, tmp_path / "shards", RunOptions(**options, shard=(1, 2)))
    assert evaluate(hparams, data, tmp_path / "shards", RunOptions(**options, shard=(0, 2)))
    Layout(tmp_path / "shards").unit(0).unlink()
    assert evaluate(hparams, data, tmp_path / "shards", RunOptions(**options))
    whole, shards = read_run(tmp_path / "whole"), read_run(tmp_path / "shards")
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "shards" / name).read_bytes()
    assert whole.rows.equals(shards.rows)
    rows = whole.rows[(whole.rows["kind"] == "prompt") & (whole.rows["metric"] == "exact_match")]
    reliability = next(f for f in whole.summary["figures"] if f["name"] == "reliability")
    assert reliability["after"]["mean"] == rows["after"].mean()
    assert reliability["before"]["mean"] == rows["before"].mean()
    assert json.loads((tmp_path / "whole" / "cost.json").read_text())["edits"] == 2
