"""Figures against hand-computed ones, the comparison, and the page in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from toys import Toy

from roseedit.cli.app import app
from roseedit.errors import RunError
from roseedit.evaluation.report import plots
from roseedit.evaluation.report.browse import for_script
from roseedit.evaluation.report.compare import as_csv, as_markdown, comparison, differences
from roseedit.evaluation.report.page import page
from roseedit.evaluation.report.record import RunRecord
from roseedit.evaluation.rows import schema
from roseedit.evaluation.summary import summarise_run
from roseedit.runs import read_run

KEYS = ["a", "b", "c"]


def row(edit: str, kind: str, group: str, metric: str, after: float, before: float = 0.0, **more: Any) -> dict:
    """One row of the long form."""
    line = dict.fromkeys(schema().names)
    line |= {"edit": edit, "stage": "alone", "live": 1, "probe": 0, "kind": kind, "group": group, "metric": metric}
    return line | {"before": before, "after": after, "prompt": f"{edit} {kind}", **more}


def figures(rows: list[dict]) -> dict[str, dict[str, Any]]:
    """Figures of a summary by name."""
    return {line["name"]: line for line in summarise_run(pd.DataFrame(rows), KEYS)["figures"]}


def test_means_are_taken_inside_each_edit_first() -> None:
    rows = [row("a", "rephrase", "rephrase", "exact_match", v) for v in (1.0, 1.0, 1.0, 1.0)]
    rows += [row("b", "rephrase", "rephrase", "exact_match", 0.0)]
    found = figures(rows)["generality"]
    assert found["after"]["mean"] == 0.5
    assert (found["after"]["n"], found["probes"], found["missing_edits"], found["missing_probes"]) == (2, 5, 1, 0)


def test_what_is_missing_is_counted_and_not_averaged() -> None:
    rows = [row("a", "prompt", "prompt", "easyedit_accuracy", float("nan"), float("nan"))]
    rows += [row("b", "prompt", "prompt", "easyedit_accuracy", 0.5)]
    found = figures(rows)["easyedit_rewrite"]
    assert found["after"]["mean"] == 0.5
    assert (found["after"]["n"], found["missing_edits"], found["missing_probes"]) == (1, 2, 1)


def test_groups_stand_behind_their_figure() -> None:
    rows = [row("a", "portability", "hop", "exact_match", 1.0), row("a", "portability", "alias", "exact_match", 0.0)]
    found = figures(rows)
    assert list(found) == ["portability", "portability:alias", "portability:hop"]
    assert [line["after"]["mean"] for line in found.values()] == [0.5, 0.0, 1.0]


def test_counterfact_s_is_the_harmonic_mean() -> None:
    rows = [row("a", "prompt", "prompt", "prefers", 1.0), row("a", "rephrase", "rephrase", "prefers", 0.5)]
    rows += [row("a", "locality", "neighborhood", "prefers", 0.25)]
    assert figures(rows)["s"]["after"]["mean"] == pytest.approx(3 / (1 + 2 + 4))


def test_a_locality_question_that_all_edits_share_has_no_interval() -> None:
    rows = [row(e, "locality", "nq", "unchanged", v, prompt="same") for e, v in zip(KEYS, (1, 0, 1), strict=True)]
    found = figures(rows)["locality"]["after"]
    assert found["mean"] == pytest.approx(2 / 3)
    assert (found["low"], found["high"]) == (None, None)


@pytest.fixture(scope="module")
def sequence(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sequence") / "run"
    assert toy.run(out, 9, mode="sequential", checkpoints=2)
    return out


def test_a_sequence_is_scored_right_after_at_checkpoints_and_at_the_end(sequence: Path) -> None:
    record = read_run(sequence)
    rows = record.rows[(record.rows["metric"] == "exact_match") & (record.rows["kind"] == "prompt")]
    looks = rows.groupby(["stage", "live"]).size().to_dict()
    assert looks == {("checkpoint", 3): 3, ("checkpoint", 6): 6, ("end", 9): 9} | {
        ("right_after", n): 1 for n in range(1, 10)
    }
    curves = record.summary["curves"]
    assert [p["x"] for p in curves["retention"]] == [3, 6, 9]
    end = rows[rows["stage"] == "end"]["after"].mean()
    assert curves["retention"][-1]["mean"] == pytest.approx(end)
    made = record.rows[(record.rows["kind"] == "edit") & (record.rows["metric"] == "made")]
    assert len(made) == 9


def test_the_end_of_a_sequence_is_what_an_editor_with_the_same_edits_says(toy: Toy, sequence: Path) -> None:
    """Independently of the runner: load the saved edits into a fresh editor and ask it."""
    from roseedit.editor import Editor
    from roseedit.methods import read_hparams

    editor = Editor.from_hparams(read_hparams(toy.settings), show_progress=False)
    for folder in sorted((sequence / "edits").iterdir()):
        editor.load(folder)
    rows = read_run(sequence).rows
    said = rows[(rows["stage"] == "end") & (rows["kind"] == "prompt") & (rows["metric"] == "said")]
    for prompt, text in zip(said["prompt"], said["after_text"], strict=True):
        assert editor.generate(prompt) == text.removesuffix(" …")


def test_a_joint_run(toy: Toy, tmp_path: Path) -> None:
    assert toy.run(tmp_path / "run", 6, mode="joint")
    record = read_run(tmp_path / "run")
    assert record.summary["stage"] == "end"
    assert set(record.rows["live"]) == {6}
    first = (tmp_path / "run" / "table.md").read_bytes()
    for path in (tmp_path / "run" / "units").iterdir():
        path.unlink()
    assert toy.run(tmp_path / "run", 6, mode="joint")
    assert (tmp_path / "run" / "table.md").read_bytes() == first


def test_of_several_edits_of_one_prompt_the_last_stays(toy: Toy, tmp_path: Path) -> None:
    from dataclasses import replace

    from toys import data_of

    from roseedit.methods import read_hparams
    from roseedit.runs import Data, RunOptions, evaluate

    requests = data_of(3).requests
    again = replace(requests[0], target_new="the city", source="toy:again")
    options = RunOptions(mode="joint", threads=1, cache=toy.cache, show_progress=False)
    evaluate(read_hparams(toy.settings), Data("toy", "0" * 64, (*requests, again)), tmp_path / "run", options)
    record = read_run(tmp_path / "run")
    assert [r["source"] for r in record.requests] == ["toy:1", "toy:2", "toy:again"]
    assert record.summary["rejected"] == [{"reason": "toy:0: toy:again asks the same prompt later on"}]


def record_of(name: str, reliability: float, kl: float, **identity: Any) -> RunRecord:
    """A run with two figures."""

    def line(figure: str, direction: str, mean: float) -> dict[str, Any]:
        side = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 5}
        own = {"name": figure, "label": f"{figure} | x", "section": "headline", "direction": direction}
        return own | {"before": {**side, "mean": 0.0}, "after": side}

    summary = {
        "figures": [line("reliability", "up", reliability), line("kl", "down", kl)],
        "stage": "alone",
        "notes": [],
    }
    known = {"hparams": {"method": "M"}, "base": {}, "data": {"name": "d"}, "mode": "independent", "limit": None}
    return RunRecord(name, {**known, "decode": {}, "versions": {}, **identity}, summary, {}, pd.DataFrame(), ())


def test_the_best_of_several_is_marked_by_direction() -> None:
    runs = [record_of("x", 0.9, 0.5), record_of("y", 0.8, 0.2), record_of("z", 0.9, 0.4)]
    best = {line.name: [cell.best for cell in line.cells if cell] for line in comparison(runs)}
    assert best == {"reliability": [True, False, True], "kl": [False, True, False]}
    text = as_markdown(runs)
    assert "| reliability \\| x ↑ | **0.900** (0.800 - 1.000), n 5 | 0.800" in text
    assert "| kl \\| x ↓ |" in text
    rows = list(csv.DictReader(io.StringIO(as_csv(runs))))
    firsts = [(r["run"], r["figure"], r["best"]) for r in rows[:2]]
    assert firsts == [
        ("x", "reliability", "1"),
        ("y", "reliability", "0"),
    ]


def test_where_all_are_equal_none_is_best() -> None:
    runs = [record_of("x", 0.9, 0.5), record_of("y", 0.9, 0.5)]
    assert not any(cell.best for line in comparison(runs) for cell in line.cells if cell)


def test_runs_that_cannot_be_compared_say_so() -> None:
    runs = [record_of("x", 0.9, 0.5), record_of("y", 0.9, 0.5, mode="joint")]
    assert differences(runs) == ["The runs differ in mode (x: independent, y: joint)."]


def test_a_run_that_is_not_complete(toy: Toy, tmp_path: Path) -> None:
    assert not toy.run(tmp_path / "run", shard=(0, 2))
    with pytest.raises(RunError, match=r"of which \d of 3 units are missing"):
        read_run(tmp_path / "run")


class Links(HTMLParser):
    """Everything a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]


def test_the_page_loads_nothing_and_repeats(whole: Path, sequence: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [read_run(whole), read_run(sequence)]
    text = page(runs)
    assert text == page(runs)
    links = Links()
    links.feed(text)
    assert all(link.startswith(("#", "data:")) for link in links.found)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_nothing_to_draw_leaves_no_heading(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("trade_off", "by_group", "forgetting"):
        monkeypatch.setattr(plots, name, lambda *_: "")
    assert 'id="plots"' not in page([read_run(whole)])


def test_texts_cannot_break_out_of_the_page() -> None:
    nasty = {"text": "</script><script>alert(1)</script><!-- \u2028 &amp;"}
    packed = for_script(nasty)
    assert not set(packed) & set("<>&\u2028")
    assert json.loads(packed) == nasty


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.timeout(120)
def test_the_page_in_a_browser(whole: Path, sequence: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    path.write_text(page([read_run(whole), read_run(sequence)]), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = ["chromium", *options, "--enable-logging=stderr", "--virtual-time-budget=4000", "--dump-dom", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert "8 of 8 edits" in done.stdout
    assert done.stdout.count("<details") >= 8 + 2
    assert "CONSOLE" not in done.stderr


def test_the_commands(whole: Path, sequence: Path, tmp_path: Path, final: Callable[[Path], Any]) -> None:
    pytest.importorskip("matplotlib")
    from typer.testing import CliRunner

    before = final(whole)
    arguments = [str(whole), str(sequence)]
    extra = ["--markdown", str(tmp_path / "t.md"), "--csv", str(tmp_path / "t.csv")]
    done = CliRunner().invoke(app, ["compare", *arguments, *extra], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "reliability (generated)" in done.output  # the arrow may stand in the next line
    assert "The runs differ in" in done.output
    assert (tmp_path / "t.md").read_text(encoding="utf-8").startswith("## Headline")
    assert len((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()) > 20
    done = CliRunner().invoke(app, ["report", *arguments, "--html", str(tmp_path / "r.html"), "--browse", "3"])
    assert done.exit_code == 0, done.output
    assert "Only the first 3 edits" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert final(whole) == before
