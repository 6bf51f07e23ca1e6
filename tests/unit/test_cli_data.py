"""`roseedit data`: what is listed, shown and found wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from roseedit.cli.app import app
from roseedit.editsets import DATA_VARIABLE, find, names
from roseedit.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
ZSRE: dict[str, Any] = {
    "subject": "Oslo", "src": "Where is Oslo?", "pred": "Norway", "rephrase": "Oslo is where?", "alt": "Peru",
    "answers": ["Norway"], "loc": "nq question: how many", "loc_ans": "two", "cond": "",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)


def run(*arguments: str, code: int = 0) -> str:
    """What `roseedit data ARGUMENTS` prints."""
    done = CliRunner().invoke(app, ["data", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def _file(folder: Path, *records: Any) -> str:
    path = folder / "mine.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


def test_list_counts_the_samples() -> None:
    lines = json.loads(run("list", "--json"))
    samples = {line["name"]: line["records"] for line in lines if line["where"] == "sample"}
    assert list(samples) == list(names())
    for name, count in samples.items():
        assert count == len(json.loads((ROOT / "data" / find(name).sample).read_text(encoding="utf-8")))
    assert any(line["where"] == "hub" and "zjunlp/KnowEdit@6d218881e6" in line["file"] for line in lines)


def test_list_says_what_is_there_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    (tmp_path / "zsre").mkdir()
    (tmp_path / "zsre" / "zsre_mend_eval_3k.json").write_text(json.dumps([ZSRE] * 1234), encoding="utf-8")
    (tmp_path / "zsre" / "zsre_mend_train_1k.json").write_text("nothing", encoding="utf-8")
    found = {f"{x['name']}:{x['split']}": x for x in json.loads(run("list", "--json"))}
    assert (found["zsre:eval"]["where"], found["zsre:eval"]["records"]) == ("data folder", 1234)
    assert found["zsre:train"]["where"] == "unreadable"
    assert found["zsre:portability"]["where"] == found["mquake:hard"]["where"] == "missing"
    text = run("list")
    assert "1,234" in text and "missing" in text and "questions, one rewording" in text


def test_show_draws_every_part_of_a_record() -> None:
    text = " ".join(run("show", "wikidata-counterfact", "--n", "1").split())
    parts = ("15 records: 15 loaded, 0 refused", "subject: Eiffel Tower", "rephrase", "(was Paris)", "Rome | Roma")
    for part in (*parts, "locality: Relation_Specificity (2)", "portability: Subject_Aliasing (1)"):
        assert part in text
    assert "wikidata-counterfact:0" in text and "wikidata-counterfact:1" not in text


def test_show_as_json_and_from_a_place() -> None:
    (first, second) = json.loads(run("show", "zsre", "--start", "3", "--n", "2", "--json"))
    assert (first["source"], second["source"]) == ("zsre:3", "zsre:4")
    assert first["portability"][0]["group"] == "one_hop"


def test_show_refuses_what_is_not_there(tmp_path: Path) -> None:
    for arguments, words in (
        (("show", "zsre", "--start", "99"), "got --start 99; allowed: 0 to 13"),
        (("show", "zsra"), "Did you mean 'zsre'"),
        (("show", "zsre", "--file", str(tmp_path / "no.json")), "a readable file"),
        (("show", "qaedit", "--hub"), "a split with a known place on the Hub"),
    ):
        done = CliRunner().invoke(app, ["data", *arguments])
        assert isinstance(done.exception, DataError) and words in str(done.exception)


def test_check_counts_refuses_and_finds_contradictions(tmp_path: Path) -> None:
    records = [
        ZSRE,
        {**ZSRE, "alt": "Norway"},
        {**ZSRE, "alt": "Chile"},
        {**ZSRE, "src": "In which land is Oslo?"},
        5,
        ZSRE,
    ]
    path = _file(tmp_path, *records)
    report = json.loads(run("check", path, "--json"))
    assert (report["set"], report["guessed_from"]) == ("zsre", pytest.approx(5 / 6))
    assert (report["records"], report["loaded"], report["edits"]) == (6, 4, 4)
    assert [r["index"] for r in report["refused"]] == [1, 4]
    (found,) = report["contradictions"]
    assert found == {
        "prompt": "Where is Oslo?", "edits": ["zsre:0", "zsre:2", "zsre:5"], "targets": ["Peru", "Chile", "Peru"],
    }  # fmt: skip
    assert report["repeats"] == [["zsre:0", "zsre:5"]]
    assert report["probes"] == {"rephrase": {"edits": 4, "probes": 4}, "locality: nq": {"edits": 4, "probes": 4}}
    text = run("check", path, "--strict", code=1)
    assert "2 refused" in text and "(records 1)" in text and "1 contradictory prompts" in text


def test_check_passes_a_clean_file(tmp_path: Path) -> None:
    text = run("check", _file(tmp_path, ZSRE), "--strict")
    assert "none refused" in text and "1 records: 1 loaded" in text
    assert "guessed" not in run("check", _file(tmp_path, ZSRE), "--set", "zsre")


def test_check_of_everything_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [r["records"] for r in json.loads(run("check", "--json"))] == [16, 6, 14, 5, 5, 15, 4, 2, 5, 5]
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    (tmp_path / "zsre").mkdir()
    (tmp_path / "zsre" / "zsre_mend_eval_3k.json").write_text(json.dumps([ZSRE, 5, {**ZSRE, "alt": "Norway"}]), "utf-8")
    (report,) = json.loads(run("check", "--json"))
    assert (report["name"], report["records"], report["loaded"]) == ("zsre:eval", 3, 1)
    text = run("check")
    assert "zsre:eval" in text and "2 refused" in text and "1 x got the number 5" in text
    run("check", "--strict", code=1)
    assert isinstance(CliRunner().invoke(app, ["data", "check", "--set", "zsre"]).exception, DataError)


def test_check_says_when_it_cannot_guess(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data", "check", _file(tmp_path, {"question": "?"})])
    assert isinstance(done.exception, DataError) and "Name the schema with --set" in str(done.exception)


def test_no_torch_is_loaded_to_look_at_data() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom roseedit.cli.app import app\n"
        "done = CliRunner().invoke(app, ['data', 'check', 'data/mquake_sample.json'])\n"
        "print(done.exit_code, 'torch' in sys.modules, 'datasets' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "0 False False"
