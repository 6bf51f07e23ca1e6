"""A run that is stopped anywhere ends with the bytes of one that was not."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import Toy, environment

from roseedit.errors import RunError
from roseedit.runs import work
from roseedit.runs.files import Layout

Final = Callable[[Path], dict[str, bytes]]


def test_the_same_call_again_changes_nothing(toy: Toy, whole: Path, final: Final) -> None:
    before = final(whole)
    stamps = {p: p.stat().st_mtime_ns for p in (whole / "units").iterdir()}
    assert toy.run(whole)
    assert final(whole) == before
    assert {p: p.stat().st_mtime_ns for p in (whole / "units").iterdir()} == stamps


@pytest.mark.parametrize(("mode", "most"), [("independent", 3), ("sequential", 2)])
def test_killed_at_random_moments(toy: Toy, tmp_path: Path, final: Final, mode: str, most: int) -> None:
    """The short form of `benchmarks/kill_a_run.py`."""
    assert toy.run(tmp_path / "whole", 8, mode=mode, checkpoints=2)
    dice = random.Random(mode)
    out, kills = tmp_path / "killed", 0
    for _ in range(most):
        shutil.rmtree(toy.cache, ignore_errors=True)
        process = subprocess.Popen(toy.command(out, 8, "local", mode), env=environment())
        _wait_for_start(out, process)
        time.sleep(dice.uniform(0.0, 0.5))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        if kills == most:
            subprocess.run(toy.command(out, 8, "local", mode), env=environment(), check=True, timeout=120)
            break
    assert kills
    assert final(out) == final(tmp_path / "whole")
    assert not list(out.rglob("*.tmp"))


def _written(path: Path) -> float | None:
    """When a file was last written; None for folders and for temporary files that are gone by now."""
    try:
        return path.stat().st_mtime if path.is_file() else None
    except FileNotFoundError:
        return None


def _wait_for_start(out: Path, process: subprocess.Popen[bytes]) -> None:
    """Imports take longer than the run: count from the moment that the directory is open."""
    started = time.time()
    layout = Layout(out)
    while process.poll() is None and time.time() - started < 60:
        lately = [when for p in out.rglob("*") if (when := _written(p))] if out.exists() else []
        if layout.identity.exists() and (max(lately, default=0.0) > started or time.time() - started > 8):
            return
        time.sleep(0.02)


def test_a_failure_between_any_two_writes(
    toy: Toy, whole: Path, final: Final, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th atomic write fails, for every n until a run gets through."""
    from roseedit.runs import chain, files

    real = files.write_atomic
    left = [0]

    def failing(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("no space left on device")
        real(path, data)

    out = tmp_path / "run"
    modules = [chain, files]
    from roseedit.runs import base, cost, finish, identity

    for module in (*modules, base, cost, finish, identity):
        monkeypatch.setattr(module, "write_atomic", failing)
    failures = 0
    for n in range(60):
        left[0] = n % 5
        try:
            assert toy.run(out, cache=tmp_path / "cache")
            break
        except OSError:
            failures += 1
    assert failures >= 3
    assert final(out) == final(whole)


def test_an_edit_that_cannot_be_made_is_counted_and_takes_no_other_down(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roseedit.errors import DeltaError
    from roseedit.runs import read_run

    real = work.find_method

    class Broken:
        def __init__(self, name: str) -> None:
            self.method = real(name)

        def fit(self, loaded, requests, hparams, **options):
            if any(r.subject == "Cork" for r in requests):
                raise DeltaError("got NaN; allowed: numbers. Lower lr.")
            return self.method.fit(loaded, requests, hparams, **options)

    monkeypatch.setattr(work, "find_method", Broken)
    assert toy.run(tmp_path / "run")
    record = read_run(tmp_path / "run")
    assert record.summary["counts"] == {"edits": 8, "rejected": 1, "failed": 1}
    rows = record.rows[(record.rows["metric"] == "p_answer") & (record.rows["kind"] == "prompt")]
    same = rows["before"] == rows["after"]
    assert same.sum() == 1


REFUSED = {
    "another limit": ({"n": 7}, "data.edits is 8 there and 7 here"),
    "another seed": ({"seed": 5}, "seed is 0 there and 5 here"),
    "another unit": ({"unit": 4}, "plan.unit is 3 there and 4 here"),
    "another mode": ({"mode": "sequential"}, "mode is 'independent' there and 'sequential' here"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_directory_of_another_configuration(toy: Toy, whole: Path, final: Final, name: str) -> None:
    changes, said = REFUSED[name]
    before = final(whole)
    with pytest.raises(RunError, match="directory of another run") as caught:
        toy.run(whole, **changes)
    assert said in str(caught.value)
    assert final(whole) == before


def test_another_model_under_the_same_name(toy: Toy, whole: Path, tmp_path: Path) -> None:
    """What counts is the bytes of the weights."""
    import torch
    from transformers import AutoModelForCausalLM

    kept = tmp_path / "kept"
    shutil.copytree(toy.model, kept)
    try:
        model = AutoModelForCausalLM.from_pretrained(toy.model)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] += 0.5
        model.save_pretrained(toy.model)
        with pytest.raises(RunError, match=r"base\.fingerprint is"):
            toy.run(whole)
    finally:
        shutil.rmtree(toy.model)
        shutil.copytree(kept, toy.model)


def test_a_directory_with_other_things_in_it(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other things"):
        toy.run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_changed_requests_are_noticed(toy: Toy, whole: Path, tmp_path: Path) -> None:
    from roseedit.runs import read_run

    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    text = (copy / "requests.json").read_text(encoding="utf-8")
    (copy / "requests.json").write_text(text.replace("Rome", "Nice", 1), encoding="utf-8")
    with pytest.raises(RunError, match="which was changed"):
        read_run(copy)


def test_base_scores_are_shared_and_a_damaged_file_is_computed_anew(
    toy: Toy, whole: Path, final: Final, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roseedit.runs import base

    cache = tmp_path / "cache"
    assert toy.run(tmp_path / "a", cache=cache)
    files = sorted(cache.glob("*.json"))
    looks = []
    real = base.look
    monkeypatch.setattr(base, "look", lambda *args, **kw: looks.append(1) or real(*args, **kw))
    assert toy.run(tmp_path / "b", cache=cache)
    assert not looks
    files[0].write_text(files[0].read_text().replace('"text": "', '"text": "x', 1))
    assert toy.run(tmp_path / "c", cache=cache)
    assert len(looks) == 1
    assert final(tmp_path / "a") == final(tmp_path / "b") == final(tmp_path / "c") == final(whole)
