"""Joint and sequential runs: edits that stay live, saved one by one, so that a run goes on by putting them back."""

from __future__ import annotations

import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from roseedit.editor import Editor
from roseedit.edits.files import load_edit
from roseedit.edits.storage import sync_folder
from roseedit.errors import DeltaError
from roseedit.evaluation.looks import Look, look, run_questions, with_following
from roseedit.evaluation.rows import long_rows, rows_to_parquet
from roseedit.evaluation.table import Question
from roseedit.methods import MadeDelta
from roseedit.runs.base import BaseScores, unedited
from roseedit.runs.cost import Meter
from roseedit.runs.files import Layout, as_json, write_atomic
from roseedit.runs.start import Run
from roseedit.runs.units import Item
from roseedit.runs.work import Done, report_rows

Progress = Callable[[float], None]


class ChainRunner:
    """Makes the edits of a joint or sequential run on one model and measures them while they are live.

    Args:
        editor: The editor; nothing live on it.
        run: The open run; its edits are made in order, and each unit is scored in one go at the end.
        cache: Folder of the base scores.
    """

    def __init__(self, editor: Editor, run: Run, cache: Path) -> None:
        self.editor, self.items, self.units, self.layout = editor, run.items, run.units, run.layout
        self.mode = str(run.identity["mode"])
        self.base = BaseScores(editor.loaded, run.identity, cache)
        self.unit_of = {i: n for n, unit in enumerate(run.units) for i in unit}
        self._unit_looks: dict[int, dict[int, list[Look]]] = {}
        self.marks = checkpoint_marks(len(run.items), int(run.identity["checkpoints"]))

    @property
    def complete(self) -> bool:
        """Every step and checkpoint has its rows."""
        steps = [0] if self.mode == "joint" else range(len(self.items))
        paths = [*map(self.layout.step, steps), *map(self.layout.checkpoint, self.marks)]
        return all(path.exists() for path in paths)

    def run(self, progress: Progress) -> None:
        """Do whatever is missing; afterwards all edits are live.

        Args:
            progress: Called with the number of edits just made or put back.
        """
        if self.mode == "joint":
            self._joint(progress)
        else:
            self._sequence(progress)
        for number, unit in enumerate(self.units):
            path = self.layout.unit(number)
            if not path.exists():
                self._keep(path, self._measure(unit, "end", len(self.items)))

    def _joint(self, progress: Progress) -> None:
        folder = self.layout.edit(0)
        path = self.layout.step(0)
        meter = Meter(len(self.items), 0)
        if not folder.exists():
            with meter.of("edit_s"):
                result = self.editor.edit([i.request for i in self.items], mode="joint", evaluate=False)
            self._save(result.edit_id, folder)
        else:
            self.editor.load(folder)
        progress(len(self.items))
        if not path.exists():
            report = load_edit(folder).report
            rows = report_rows("joint", MadeDelta(self.editor.edits[0].delta, report), "end", len(self.items))
            self._keep(path, Done(rows_to_parquet(rows), meter.figures()))

    def _sequence(self, progress: Progress) -> None:
        for number, item in enumerate(self.items):
            folder, path = self.layout.edit(number), self.layout.step(number)
            meter = Meter(1, len(run_questions([item.request])))
            failed = self._failed(number)
            if folder.exists():
                self.editor.load(folder)
            elif not failed.exists():
                with meter.of("edit_s"):
                    self._make(item, folder, failed)
            if not path.exists():
                self._keep(path, self._right_after(number, item, meter))
            live = number + 1
            if live in self.marks and not self.layout.checkpoint(live).exists():
                self._keep(self.layout.checkpoint(live), self._measure(range(live), "checkpoint", live, prompts=True))
            progress(1)

    def _failed(self, number: int) -> Path:
        return self.layout.edit(number).with_suffix(".failed")

    def _make(self, item: Item, folder: Path, failed: Path) -> None:
        """A step that cannot be made leaves the model as it was; that is written down and counted."""
        try:
            result = self.editor.edit(item.request, mode="sequential", evaluate=False)
        except DeltaError as error:
            write_atomic(failed, as_json({"reason": str(error)}))
            return
        self._save(result.edit_id, folder)

    def _save(self, edit_id: str, folder: Path) -> None:
        """Both files beside, then one rename: the folder is there whole or not at all."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(".*.tmp"):
            shutil.rmtree(left)
        beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        self.editor.save(edit_id, beside)
        sync_folder(beside)
        beside.rename(folder)
        sync_folder(folder.parent)

    def _right_after(self, number: int, item: Item, meter: Meter) -> Done:
        asked = run_questions([item.request])
        with meter.of("base_s"):
            before = self._before([number], asked)
        with meter.of("score_s"):
            after = look(self.editor.loaded, asked)
        live = number + 1
        rows = long_rows([item.key], asked, before, after, stage="right_after", live=live)
        edit = None if self._failed(number).exists() else self.editor.edits[-1]
        made = MadeDelta(edit.delta, edit.report) if edit else None
        rows += report_rows(item.key, made, "right_after", live)
        return Done(rows_to_parquet(rows), meter.figures())

    def _measure(self, which: Sequence[int], stage: str, live: int, *, prompts: bool = False) -> Done:
        """Look at some edits while `live` are live; `prompts` asks the edit prompts only."""
        items = [self.items[i] for i in which]
        asked = run_questions([item.request for item in items])
        asked = [q for q in asked if q.kind == "prompt"] if prompts else asked
        meter = Meter(0, len(asked))
        with meter.of("base_s"):
            before = self._before(which, asked)
        with meter.of("score_s"):
            after = look(self.editor.loaded, asked)
        rows = long_rows([item.key for item in items], asked, before, after, stage=stage, live=live)
        return Done(rows_to_parquet(rows), meter.figures())

    def _before(self, which: Sequence[int], asked: Sequence[Question]) -> list[Look]:
        """The base model's looks, taken unit by unit once, however often an edit is looked at.

        An edit's questions begin with its prompt, so asking fewer of them takes from the front.
        """
        numbers = Counter(q.request for q in asked)
        found = [x for place, i in enumerate(which) for x in self._base_of(i)[: numbers[place]]]
        with unedited(self.editor.loaded):
            return with_following(self.editor.loaded, asked, found)

    def _base_of(self, i: int) -> list[Look]:
        number = self.unit_of[i]
        if number not in self._unit_looks:
            unit = self.units[number]
            asked = run_questions([self.items[j].request for j in unit])
            by_item: dict[int, list[Look]] = {j: [] for j in unit}
            for q, seen in zip(asked, self.base.kept(asked), strict=True):
                by_item[unit[q.request]].append(seen)
            self._unit_looks[number] = by_item
        return self._unit_looks[number][i]

    def _keep(self, path: Path, done: Done) -> None:
        keep(self.layout, path, done)


def keep(layout: Layout, path: Path, done: Done) -> None:
    """Write what a finished piece of work has brought; the rows last, for they mark it as finished.

    Args:
        layout: The run's directory.
        path: Where the rows belong.
        done: Rows and cost.
    """
    write_atomic(layout.cost_of(path), as_json(done.cost))
    write_atomic(path, done.rows)


def checkpoint_marks(n: int, count: int) -> tuple[int, ...]:
    """After how many edits a sequence is looked at as a whole.

    Args:
        n: Its length.
        count: How many looks before the end.

    Returns:
        Rising numbers below `n`, evenly spaced.
    """
    return tuple(sorted({round(n * k / (count + 1)) for k in range(1, count + 1)} - {0, n}))
