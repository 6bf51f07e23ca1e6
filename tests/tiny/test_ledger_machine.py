"""Any series of calls on overlapping edits: the weights are always those of a dictionary that does its own sums."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ledger_world import DictionaryModel, fact, leave, open_editor, weights_of

from roseedit.edits.files import load_edit
from roseedit.errors import LedgerError, RequestError
from roseedit.models.load import LoadedModel

STEPS, RUNS = 50, 36
MEMORY = Path("/dev/shm")  # a flush costs nothing there; what is on a disk after a crash is another test's business
taken = {"steps": 0}
PICK = st.floats(0, 1, exclude_max=True)


class Machine(RuleBasedStateMachine):
    """An editor on a ledger beside a plain account of what must be."""

    tiny: Callable[..., LoadedModel]  # the fixture of that name; hypothesis makes these objects without arguments

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.loaded = type(self).tiny("llama")
        self.editor = open_editor(self.loaded, self.root / "edits")
        self.dictionary = DictionaryModel(self.loaded)
        self.live: list[str] = []
        self.off: list[str] = []  # reverted, oldest first
        self.members: dict[str, list[str]] = {}
        self.saved: dict[str, Path] = {}
        self.facts = 0
        self.edits: dict[str, Any] = {}

    @initialize()
    def first(self) -> None:
        """Start with two edits, so that most rules apply."""
        self.make()
        self.make()

    def note(self, edits: Any) -> None:
        for edit in edits:
            self.dictionary.learn(edit)
            self.edits[edit.edit_id] = edit
            self.live.append(edit.edit_id)

    @rule()
    def make(self) -> None:
        """A new fact."""
        self.facts += 1
        self.note(self.editor.edit(fact(self.facts), evaluate=False).edits)

    @rule()
    def sequence(self) -> None:
        """Two at once."""
        self.facts += 2
        facts = [fact(self.facts - 1), fact(self.facts)]
        self.note(self.editor.edit(facts, mode="sequential", evaluate=False).edits)

    @precondition(lambda self: self.live)
    @rule(pick=PICK)
    def revert(self, pick: float) -> None:
        """Any live edit; a consolidation brings its members back."""
        edit_id = self.live[int(pick * len(self.live))]
        self.editor.revert(edit_id)
        self.live.remove(edit_id)
        self.off.append(edit_id)
        self.live += self.members.get(edit_id, [])

    def can_be_live(self, edit_id: str) -> bool:
        return all(m in self.live for m in self.members.get(edit_id, []))

    def put_back(self, edit_id: str) -> None:
        self.off.remove(edit_id)
        for member in self.members.get(edit_id, []):
            self.live.remove(member)
        self.live.append(edit_id)

    @precondition(lambda self: self.off)
    @rule()
    def redo(self) -> None:
        """What was reverted last."""
        edit_id = self.off[-1]
        if self.can_be_live(edit_id):
            assert self.editor.redo().edit_id == edit_id
            self.put_back(edit_id)
        else:
            self.refused(self.editor.redo)

    @precondition(lambda self: self.off)
    @rule(pick=PICK, by_id=st.booleans())
    def apply(self, pick: float, by_id: bool) -> None:
        """Any reverted edit, by its id or as the object that revert returned."""
        edit_id = self.off[int(pick * len(self.off))]
        call = (lambda: self.editor.redo(edit_id)) if by_id else (lambda: self.editor.apply(self.edits[edit_id]))
        if self.can_be_live(edit_id):
            call()
            self.put_back(edit_id)
        else:
            self.refused(call)

    def refused(self, call: Any) -> None:
        try:
            call()
        except (LedgerError, RequestError):
            return
        raise AssertionError("this had to be refused")

    @precondition(lambda self: len(self.live) >= 2)
    @rule()
    def consolidate(self) -> None:
        """All live edits into one."""
        old = list(self.live)
        edit = self.editor.consolidate().edits[0]
        if edit.edit_id in self.members:  # the same union again, after a revert
            self.off.remove(edit.edit_id)
        self.members[edit.edit_id] = old
        self.live = []
        self.note([edit])

    @precondition(lambda self: self.live)
    @rule(pick=PICK)
    def save(self, pick: float) -> None:
        """A live edit's files, as a folder of the user's."""
        edit_id = self.live[int(pick * len(self.live))]
        if edit_id not in self.saved:
            self.saved[edit_id] = self.editor.save(edit_id, self.root / f"saved-{edit_id}")
        assert load_edit(self.saved[edit_id], self.loaded).edit_id == edit_id

    @precondition(lambda self: any(e in self.off for e in self.saved))
    @rule()
    def load(self) -> None:
        """A saved edit that was reverted, from its folder."""
        edit_id = next(e for e in self.saved if e in self.off)
        if self.can_be_live(edit_id):
            self.editor.load(self.saved[edit_id])
            self.put_back(edit_id)
        else:
            self.refused(lambda: self.editor.load(self.saved[edit_id]))

    @precondition(lambda self: self.live)
    @rule()
    def trial(self) -> None:
        """Something that leaves no trace."""
        before = self.editor.ledger.head
        with self.editor.trial(fact(10_000), evaluate=False):
            assert weights_of(self.loaded) != self.dictionary.weights(self.live)
        assert self.editor.ledger.head == before

    @rule()
    def reopen(self) -> None:
        """Another process would see the same: the model fresh, the ledger from the disk."""
        leave(self.editor)
        self.editor = open_editor(self.loaded, self.root / "edits")

    @invariant()
    def agree(self) -> None:
        """Weights, live edits and the chain."""
        taken["steps"] += 1
        assert weights_of(self.loaded) == self.dictionary.weights(self.live)
        assert sorted(e.edit_id for e in self.editor.edits) == sorted(self.live)
        assert self.editor.ledger.fault is None

    def teardown(self) -> None:
        report = self.editor.ledger.verify()
        leave(self.editor)
        assert report.ok, report.faults
        assert weights_of(self.loaded) == self.dictionary.weights([])
        shutil.rmtree(self.root)


def test_weights_are_those_of_the_dictionary(tiny: Callable[..., LoadedModel]) -> None:
    Machine.tiny = staticmethod(tiny)
    torch.set_num_threads(1)
    taken["steps"] = 0
    run = settings(
        max_examples=RUNS,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    Machine.TestCase.settings = run
    Machine.TestCase().runTest()
    assert taken["steps"] > 1000
