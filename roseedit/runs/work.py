"""One unit of independent edits: made side by side, measured side by side, each row on its own edit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roseedit.edits.bank import bank_of
from roseedit.edits.delta import Delta
from roseedit.errors import DeltaError
from roseedit.evaluation.looks import in_contexts, look, run_questions
from roseedit.evaluation.rows import long_rows, rows_to_parquet
from roseedit.hparams import Hparams
from roseedit.methods import MadeDelta, find_method
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.runs.base import BaseScores
from roseedit.runs.cost import Meter
from roseedit.runs.units import Item

Progress = Callable[[float], None]
FITTING = 0.6  # rough share of an edit's time that goes into making it; only the progress bar looks at it
REPORTED = ("steps", "density", "density_bound", "norm", "values")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """A finished piece of work.

    Attributes:
        rows: The bytes of its parquet file.
        cost: Seconds and memory; kept apart, for they differ from run to run.
    """

    rows: bytes
    cost: Mapping[str, Any]


class UnitWorker:
    """A model with a method, which does one unit after another.

    Args:
        loaded: The model; unedited, and left so.
        hparams: Settings of the method.
        items: All edits of the run.
        identity: Content of `run.json`.
        cache: Folder of the base scores.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        hparams: Hparams,
        items: Sequence[Item],
        identity: Mapping[str, Any],
        cache: Path,
    ) -> None:
        self.loaded, self.hparams, self.items = loaded, hparams, items
        self.base = BaseScores(loaded, identity, cache)
        self.method = find_method(hparams.method)

    def do(self, unit: Sequence[int], progress: Progress | None = None) -> Done:
        """Make and measure the edits of a unit.

        Args:
            unit: Their positions among the items.
            progress: Called with the number of edits just done, in fractions.

        Returns:
            Rows and cost.
        """
        tell = progress or (lambda _share: None)
        items = [self.items[i] for i in unit]
        requests = [item.request for item in items]
        asked = run_questions(requests)
        meter = Meter(len(items), len(asked))
        with meter.of("base_s"):
            before = self.base.of(asked)
        with meter.of("edit_s"):
            made = self._make(requests, lambda share: tell(FITTING * share))
        with meter.of("score_s"):
            bank = bank_of(self.loaded, [m.delta if m else Delta(()) for m in made])
            posed = in_contexts(asked, [m.context if m else "" for m in made])
            after = look(self.loaded, posed, edits=bank, own_edit=True)
        rows = long_rows([item.key for item in items], asked, before, after, stage="alone", live=1)
        rows += [row for item, m in zip(items, made, strict=True) for row in report_rows(item.key, m, "alone", 1)]
        tell((1 - FITTING) * len(items))
        return Done(rows_to_parquet(rows), meter.figures())

    def _make(self, requests: Sequence[EditRequest], tell: Progress) -> list[MadeDelta | None]:
        """All side by side; where one of them cannot be made, each alone, so that it takes no other down with it."""
        try:
            return list(self.method.fit(self.loaded, requests, self.hparams, joint=False, progress=tell))
        except DeltaError:
            return [self._make_alone(request) for request in requests]

    def _make_alone(self, request: EditRequest) -> MadeDelta | None:
        started = time.perf_counter()
        try:
            return self.method.fit(self.loaded, [request], self.hparams, joint=False)[0]
        except DeltaError as error:
            logger.warning("%s failed after %.1f s: %s", request.source, time.perf_counter() - started, error)
            return None


def report_rows(key: str, made: MadeDelta | None, stage: str, live: int) -> list[dict[str, object]]:
    """What the method reports of an edit, in the long form; a failed edit has only `made` = 0.

    Args:
        key: The edit.
        made: What the method gave, None where it failed.
        stage: As in `long_rows`.
        live: As in `long_rows`.

    Returns:
        Rows of kind `"edit"`.
    """
    report = made.report if made else {}
    values = {"made": float(made is not None)}
    values |= {name: float(report[name]) for name in REPORTED if report.get(name) is not None}
    if "converged" in report:
        values["converged"] = float(report["converged"])
    place = {"edit": key, "stage": stage, "live": live, "probe": -1, "kind": "edit", "group": "edit", "prompt": None}
    nothing = {"expected": None, "before": None, "before_text": None, "after_text": None}
    return [{**place, **nothing, "metric": name, "after": value} for name, value in values.items()]
