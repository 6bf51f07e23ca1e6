"""Reading a finished run from its directory."""

from __future__ import annotations

from pathlib import Path

from roseedit.edits.edit import request_as_mapping
from roseedit.errors import RunError, refusal
from roseedit.evaluation.report.record import RunRecord
from roseedit.runs.files import Layout, read_json
from roseedit.runs.finish import joined, missing_units, ordered, pieces
from roseedit.runs.start import reopened


def read_run(folder: str | Path) -> RunRecord:
    """Read a run.

    Args:
        folder: Its directory.

    Returns:
        Everything it has written.

    Raises:
        RunError: No such directory, or the run is not complete.
    """
    layout = Layout(folder)
    if not layout.identity.is_file():
        message = refusal(f"{str(folder)!r}, which holds no run", "a directory of `roseedit evaluate`", "Check it.")
        raise RunError(message)
    run = reopened(layout)
    missing = missing_units(layout, len(run.units))
    if missing or not layout.summary.is_file():
        message = refusal(
            f"the run {str(folder)!r}, of which {len(missing)} of {len(run.units)} units are missing",
            "a complete run",
            "Run the same `roseedit evaluate` again; it goes on where it stopped.",
        )
        raise RunError(message)
    rows = ordered(joined(pieces(layout, range(len(run.units)))).to_pandas(), run.keys)
    requests = tuple({"key": item.key, **request_as_mapping(item.request)} for item in run.items)
    cost = read_json(layout.cost) if layout.cost.is_file() else {}
    name = Path(folder).resolve().name
    return RunRecord(name, run.identity, read_json(layout.summary), cost, rows, requests)
