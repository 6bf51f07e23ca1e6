"""One trial: the edits of the tuning slice made and measured with some settings, the first few before the others."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roseedit.evaluation.overall import by_edit, overall
from roseedit.hparams import Hparams
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.runs.identity import FORMAT, base_of, decode_settings, settled, versions
from roseedit.runs.units import Item, items_of
from roseedit.runs.work import UnitWorker

PARTS = ("reliability", "generality", "locality", "portability_gain")
FLOOR = 0.01  # of each part: below it nothing is told apart, and one part at 0 does not hide the others
GoOn = Callable[["Score"], bool]


@dataclass(frozen=True)
class Score:
    """What some edits came to.

    Attributes:
        value: Harmonic mean of the parts, each at least `FLOOR`.
        parts: Means over edits; parts that the data cannot tell are left out.
        edits: How many edits.
        low: 2.5 % quantile of `value` over edits.
        high: 97.5 % quantile.
    """

    value: float
    parts: dict[str, float]
    edits: int
    low: float
    high: float


class Slice:
    """The edits that a search looks at, with what the unedited model says to their questions.

    Args:
        loaded: The model.
        requests: The edits.
        first: How many of them are looked at before a trial is given up or goes on.
        threads: Processor threads, part of the base scores' identity.
        cache: Folder of base scores.
    """

    def __init__(
        self, loaded: LoadedModel, requests: Sequence[EditRequest], first: int, threads: int, cache: Path
    ) -> None:
        self.loaded, self.cache = loaded, cache
        self.items: list[Item] = items_of(requests)
        numbers = list(range(len(self.items)))
        self.portions = [part for part in (numbers[:first], numbers[first:]) if part]
        self.identity: dict[str, Any] = {"format": FORMAT, "base": base_of(loaded), "decode": decode_settings()}
        self.identity |= {"versions": versions(), "plan": {"threads": threads}}

    def run(self, hparams: Hparams, go_on: GoOn) -> Score:
        """Try some settings.

        Args:
            hparams: The settings.
            go_on: Asked after the first portion whether the others are worth it.

        Returns:
            The score of all edits that were looked at.
        """
        import pandas as pd

        own = settled(hparams, max(map(len, self.portions)))
        worker = UnitWorker(self.loaded, own, self.items, self.identity, self.cache)
        tables: list[Any] = []
        keys: list[str] = []
        for number, portion in enumerate(self.portions):
            tables.append(pd.read_parquet(io.BytesIO(worker.do(portion).rows)))
            keys += [self.items[i].key for i in portion]
            score = _score(pd.concat(tables), keys)
            if number + 1 < len(self.portions) and not go_on(score):
                break
        return score


def _score(rows: Any, keys: Sequence[str]) -> Score:
    values = by_edit(rows, keys)
    parts = [values[name] for name in PARTS]
    found = overall(parts, floor=FLOOR)
    known = {name: [v for v in part if v == v] for name, part in zip(PARTS, parts, strict=True)}  # noqa: PLR0124 - NaN
    means = {name: sum(part) / len(part) for name, part in known.items() if part}
    return Score(found.mean, means, len(keys), found.low, found.high)
