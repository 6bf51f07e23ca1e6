"""Evaluation runs: edits made and measured in units, resumable, on one process or many.

This is the room above both methods and evaluation: a method never evaluates, an evaluator never edits, and what ties
the two together is here.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roseedit.evaluation.report.record import RunRecord
    from roseedit.runs.options import Data, RunOptions, data_of
    from roseedit.runs.reading import read_run
    from roseedit.runs.run import evaluate

_WHERE = {
    "Data": "runs.options",
    "RunOptions": "runs.options",
    "RunRecord": "evaluation.report.record",
    "data_of": "runs.options",
    "evaluate": "runs.run",
    "read_run": "runs.reading",
}
__all__ = ["Data", "RunOptions", "RunRecord", "data_of", "evaluate", "read_run"]


def __getattr__(name: str) -> Any:
    """Names are imported on first use: reading a finished run needs no model code."""
    if name not in _WHERE:
        raise AttributeError(f"module 'roseedit.runs' has no attribute {name!r}")
    return getattr(importlib.import_module(f"roseedit.{_WHERE[name]}"), name)
