"""General ability of the model with all edits live, beside the base model's, over the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from roseedit.evaluation.ability import ability_change, measure_ability
from roseedit.models.load import LoadedModel
from roseedit.progress import bar
from roseedit.runs.base import unedited
from roseedit.runs.files import Layout, as_json, write_atomic


def write_ability(
    loaded: LoadedModel, layout: Layout, tasks: Sequence[str], limit: int | None, *, show_progress: bool
) -> None:
    """Measure both models and write what changed.

    Args:
        loaded: The model with all edits live.
        layout: The run's directory.
        tasks: Names for `measure_ability`.
        limit: Items per multiple-choice task.
        show_progress: Draw a bar on a terminal.
    """
    with bar(2 * len(tasks), "ability", show_progress) as progress:
        with unedited(loaded):
            before = [_one(loaded, task, limit, progress) for task in tasks]
        after = [_one(loaded, task, limit, progress) for task in tasks]
    changes = ability_change([row for rows in before for row in rows], [row for rows in after for row in rows])
    lines = [{k: _finite(v) for k, v in asdict(change).items()} for change in changes]
    write_atomic(layout.ability, as_json({"changes": lines}))


def _one(loaded: LoadedModel, task: str, limit: int | None, progress: Any) -> Any:
    rows = measure_ability(loaded, [task], limit)
    progress(1)
    return rows


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
