"""Whatever moment a process dies at, every edit is wholly there or absent, and nothing reported is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ledger_world import calls, leave, open_editor
from torch import nn

from roseedit.edits import storage
from roseedit.edits.ledger import Ledger
from roseedit.models.load import LoadedModel

Tiny = Callable[..., LoadedModel]
Digest = Callable[[nn.Module], str]
KILLS = int(os.environ.get("ROSEEDIT_KILLS", "10"))  # the long form: ROSEEDIT_KILLS=200
CALLS = 9

Call = Callable[[Any], Any]
State = tuple[frozenset[str], str]


class Fault(Exception):
    """Raised on purpose."""


class Boundaries:
    """Counts the boundaries of the file layer and does something at number `at`."""

    def __init__(self, at: int = -1, act: Callable[[], None] | None = None) -> None:
        self.n, self.at, self.act, self.seen = 0, at, act, []

    def __call__(self, what: str, path: Path) -> None:
        self.seen.append((what, path))
        self.n += 1
        if self.n - 1 == self.at and self.act:
            self.act()


def fail() -> None:
    raise Fault


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Reference:
    """The same calls undisturbed: the ledger before each, and which edits are live, with the model's digest, after."""

    def __init__(self, loaded: LoadedModel, folder: Path, digest: Digest, seed: int, n: int) -> None:
        self.loaded, self.digest, self.folder = loaded, digest, folder
        self.calls: list[Call] = [lambda editor: None, *calls(seed, n)]  # the first only opens a new ledger
        self.states: list[State] = []
        for i, call in enumerate(self.calls):
            if i:
                shutil.copytree(folder / f"{i - 1}", folder / f"{i}")
            editor = open_editor(loaded, folder / f"{i}")
            if not i:
                self.states.append(self.state(editor))
            call(editor)
            self.states.append(self.state(editor))
            leave(editor)

    def before(self, i: int, folder: Path) -> Path:
        """A copy of the ledger as it was before call i."""
        if i:
            shutil.copytree(self.folder / f"{i - 1}", folder)
        return folder

    def boundaries(self, i: int, folder: Path) -> list[tuple[str, Path]]:
        """Every boundary that call i passes, opening included."""
        seen = Boundaries()
        with storage.watched(seen):
            editor = open_editor(self.loaded, self.before(i, folder))
            self.calls[i](editor)
        leave(editor)
        return seen.seen

    def state(self, editor: Any) -> State:
        return frozenset(e.edit_id for e in editor.edits), self.digest(self.loaded.model)

    def check(self, folder: Path, *allowed: State) -> None:
        """After a crash: what was reported is there, the call in flight wholly or not at all, and all is sound."""
        if not folder.exists():
            assert allowed[0] == self.states[0]
            return
        with Ledger(folder, write=True) as ledger:  # makes the tables where the crash came before them
            report = ledger.verify()
            assert report.ok, report.faults
        editor = open_editor(self.loaded, folder)
        try:
            assert self.state(editor) in allowed
            editor.ledger.gc()
            assert editor.ledger.verify().unreferenced == ()
        finally:
            leave(editor)


@pytest.fixture(scope="module")
def loaded(tiny: Tiny) -> LoadedModel:
    """One model for all; every test gives it back as it was."""
    torch.set_num_threads(1)
    return tiny("llama")


@pytest.fixture(scope="module")
def reference(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory, digest: Digest) -> Reference:
    """Nine calls, one of each kind among them."""
    return Reference(loaded, tmp_path_factory.mktemp("reference") / "edits", digest, seed=1, n=CALLS)


def test_a_failure_at_every_boundary_leaves_model_and_ledger_in_step(reference: Reference, tmp_path: Path) -> None:
    passed = 0
    for i, call in enumerate(reference.calls):
        allowed = reference.states[i : i + 2]
        total = len(reference.boundaries(i, tmp_path / f"count {i}"))
        for n in range(total):
            folder, editor = reference.before(i, tmp_path / f"{i} {n}"), None
            with storage.watched(Boundaries(n, fail)), pytest.raises(Fault):
                editor = open_editor(reference.loaded, folder)
                call(editor)
            if editor is not None:  # the very process goes on, with a model that is what the ledger says
                assert reference.state(editor) in allowed, (i, n)
                assert {e.edit_id for e in editor.edits} == {s.edit_id for s in editor.ledger.live}
                leave(editor)
            reference.check(folder, *allowed)
            shutil.rmtree(folder, ignore_errors=True)
        passed += total
    assert passed > 150


def child_runs(reference: Reference, folder: Path, chosen: list[Call], watch: Boundaries | None) -> tuple[int, int]:
    """A process of its own makes calls and reports each through a pipe: its id, and the pipe's other end."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            with storage.watched(watch or Boundaries()):
                editor = open_editor(reference.loaded, folder)
                for call in chosen:
                    call(editor)
                    os.write(write, b".")
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    return child, read


def reported(child: int, read: int) -> tuple[int, int]:
    """How many calls a child reported, and its exit status."""
    with os.fdopen(read, "rb") as pipe:
        done = len(pipe.read())
    _, status = os.waitpid(child, 0)
    return done, status


def test_kill_9_at_every_boundary(reference: Reference, tmp_path: Path) -> None:
    every = 1 if KILLS >= 200 else 5
    for i, call in enumerate(reference.calls):
        total = len(reference.boundaries(i, tmp_path / f"count {i}"))
        for n in range(i % every, total, every):
            folder = reference.before(i, tmp_path / f"{i} {n}")
            done, status = reported(*child_runs(reference, folder, [call], Boundaries(n, die)))
            assert os.WTERMSIG(status) == signal.SIGKILL, (i, n)
            reference.check(folder, *reference.states[i + done : i + 2])
            shutil.rmtree(folder, ignore_errors=True)


def test_kill_9_at_random_moments(loaded: LoadedModel, tmp_path: Path, digest: Digest) -> None:
    rng = random.Random(7)
    reference = Reference(loaded, tmp_path / "reference", digest, seed=2, n=30)
    todo = reference.calls[1:]
    started = time.perf_counter()
    assert reported(*child_runs(reference, tmp_path / "whole", todo, None)) == (len(todo), 0)
    whole = time.perf_counter() - started
    killed = []
    for i in range(KILLS):
        folder = tmp_path / str(i)
        child, read = child_runs(reference, folder, todo, None)
        time.sleep(rng.uniform(0, whole))
        os.kill(child, signal.SIGKILL)
        done, status = reported(child, read)
        reference.check(folder, *reference.states[done + 1 : done + 3])
        killed.append(os.WIFSIGNALED(status))
        shutil.rmtree(folder, ignore_errors=True)
    assert sum(killed) >= KILLS // 2  # some are done before they can be killed


def test_files_are_on_the_disk_before_the_entry_that_names_them(reference: Reference, tmp_path: Path) -> None:
    entered = 0
    for i in range(len(reference.calls)):
        blobs = tmp_path / str(i) / "blobs"
        seen = reference.boundaries(i, tmp_path / str(i))
        for at, (what, path) in enumerate(seen):
            if what != "before rename" or path.parent != blobs or path.name.startswith(storage.TEMPORARY):
                continue
            entered += 1
            written = [p for w, p in seen[:at] if w == "before write"][-2:]
            flushed = [p for w, p in seen[:at] if w == "after fsync"]
            assert all(p in flushed for p in written)
            then = [w for w, p in seen[at:] if w == "before commit" or (w == "after fsync" and p == blobs)]
            assert then[:2] != [] and then[0] == "after fsync"  # the folder's name lasts before the entry does
            assert "before commit" in then
    assert entered >= 6
