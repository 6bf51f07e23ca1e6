"""A search begins where it is told, goes on after a kill as if nothing had been, and refuses a folder not its own."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from toys import Toy, data_of

from roseedit.errors import RoseEditError, RunError
from roseedit.hparams import read_yaml
from roseedit.methods import read_hparams
from roseedit.runs import read_run
from roseedit.runs.work import UnitWorker
from roseedit.tuning import Tuned, TuneOptions, tune

pytest.importorskip("optuna")
EDITS = 4


def search(toy: Toy, out: Path, trials: int, *, first: int = EDITS, n: int = EDITS, **settings: Any) -> Tuned:
    """FT-M on the toy; with `first` at all edits nothing is given up early."""
    start = {"method": "FT-M", "model": str(toy.model), "layers": [2], "lr": 5e-3, "steps": 6, **settings}
    options = TuneOptions(trials=trials, first=first, cache=toy.cache, show_progress=False)
    return tune(read_hparams(start), data_of(n), out, options)


def lines(out: Path) -> list[dict[str, str]]:
    """The table of trials, without the numbers that a kill shifts."""
    with (out / "trials.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in line.items() if k != "trial"} for line in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted search."""
    out = tmp_path_factory.mktemp("tune") / "search"
    search(toy, out, 3)
    return out


def test_a_search_begins_at_the_settings_and_leaves_the_best(toy: Toy, whole: Path) -> None:
    found = search(toy, whole, 3)  # nothing left to do
    rows = lines(whole)
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert (float(rows[0]["lr"]), rows[0]["steps"], rows[0]["norm_constraint"]) == (5e-3, "6", "none")
    assert float(rows[0]["depth.middle"]) == pytest.approx(2 / 3)
    assert len({row["lr"] for row in rows}) == 3
    values = [float(row["value"]) for row in rows]
    assert found.value == max(values)
    best = read_hparams(read_yaml(whole / "best.yaml"), "best.yaml")
    assert best == found.hparams
    assert (whole / "search.png").read_bytes().startswith(b"\x89PNG")
    assert f"{max(values):.3f}" in (whole / "best.yaml").read_text(encoding="utf-8").splitlines()[0]
    for row in rows:
        assert 0.01 <= float(row["value"]) <= 1
        assert row["edits"] == str(EDITS)


def test_the_value_is_that_of_a_run_with_the_same_settings(toy: Toy, whole: Path, tmp_path: Path) -> None:
    from roseedit.evaluation.overall import by_edit, overall
    from roseedit.runs import RunOptions, evaluate
    from roseedit.tuning.trial import FLOOR, PARTS

    found = search(toy, whole, 3)
    options = RunOptions(unit=EDITS, threads=1, cache=toy.cache, show_progress=False)
    evaluate(found.hparams, data_of(EDITS), tmp_path / "run", options)
    run = read_run(tmp_path / "run")
    values = by_edit(run.rows, [str(r["key"]) for r in run.requests])
    assert overall([values[name] for name in PARTS], floor=FLOOR).mean == pytest.approx(found.value, abs=1e-6)


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(
    toy: Toy, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, calls = UnitWorker.do, iter(range(100))

    def killed(self: UnitWorker, *args: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return work(self, *args)

    monkeypatch.setattr(UnitWorker, "do", killed)
    with pytest.raises(KeyboardInterrupt):
        search(toy, tmp_path / "search", 3)
    monkeypatch.undo()
    assert len(lines(tmp_path / "search")) == 1
    search(toy, tmp_path / "search", 3)
    again = [line for line in lines(tmp_path / "search") if line["state"] != "fail"]
    assert again == lines(whole)


def test_hopeless_trials_are_given_up_early(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="without a single whole trial"):
        search(toy, tmp_path / "search", 1, first=1, steps=1, lr=1e-4)
    assert [(line["state"], line["edits"]) for line in lines(tmp_path / "search")] == [("pruned", "1")]


def test_settings_that_cannot_be_used_are_counted_and_passed_over(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: UnitWorker, *args: Any) -> Any:
        raise RoseEditError("a gradient that is not finite")

    monkeypatch.setattr(UnitWorker, "do", refuse)
    with pytest.raises(RunError, match="without a single whole trial"):
        search(toy, tmp_path / "search", 2)
    assert [line["refused"] for line in lines(tmp_path / "search")] == ["a gradient that is not finite"] * 2


def test_the_folder_of_another_search_is_refused(toy: Toy, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the folder of another search: data differ"):
        search(toy, whole, 3, n=5)
    with pytest.raises(RunError, match="start differ"):
        search(toy, whole, 3, steps=7)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="which holds other things"):
        search(toy, tmp_path, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_in_context_edits_are_measured_by_a_run_and_refused_where_they_would_stay(toy: Toy, tmp_path: Path) -> None:
    toy = Toy(toy.model, toy.cache, {"method": "InContext", "model": str(toy.model)})
    assert toy.run(tmp_path / "run", 3)
    rows = read_run(tmp_path / "run").rows
    changed = rows[rows["metric"] == "p_answer"]
    assert not any(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(changed["before"], changed["after"], strict=True))
    with pytest.raises(RoseEditError, match="changes no weights"):
        toy.run(tmp_path / "joint", 3, mode="joint")
    assert not (tmp_path / "joint").exists()
