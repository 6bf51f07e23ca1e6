"""Several runs side by side: one line per figure, one column per run, the best in bold."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roseedit.evaluation.report.record import RunRecord
from roseedit.evaluation.report.text import ARROWS, SECTIONS, escaped, interval, number

TIE = 1e-12
ALIKE = ("base", "data", "mode", "limit", "decode", "versions")


@dataclass(frozen=True)
class Cell:
    """One figure of one run.

    Attributes:
        side: `mean`, `low`, `high`, `n` after the edit.
        before: The mean before.
        best: No other run is better.
    """

    side: Mapping[str, Any]
    before: float | None
    best: bool


@dataclass(frozen=True)
class Line:
    """One figure of all runs.

    Attributes:
        name: Its stable name.
        label: What a reader sees.
        section: Where it belongs.
        direction: Which way is better.
        cells: Per run; None where it has no such figure.
    """

    name: str
    label: str
    section: str
    direction: str
    cells: tuple[Cell | None, ...]


def comparison(runs: Sequence[RunRecord]) -> list[Line]:
    """Put runs side by side.

    Args:
        runs: The runs.

    Returns:
        All figures that any of them has, section by section.
    """
    found = [{line["name"]: line for line in run.summary["figures"]} for run in runs]
    known: dict[str, Mapping[str, Any]] = {}
    for lines in found:
        known |= {name: line for name, line in lines.items() if name not in known}
    first = {name: n for n, name in enumerate(_in_order(found))}
    ordered = sorted(known.values(), key=lambda line: (list(SECTIONS).index(line["section"]), first[line["name"]]))
    return [_line(line, [lines.get(line["name"]) for lines in found]) for line in ordered]


def _in_order(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """All names such that the groups of a figure stay behind it, whichever run has them."""
    names: list[str] = []
    for lines in found:
        at = 0
        for name in lines:
            at = names.index(name) + 1 if name in names else at
            if name not in names:
                names.insert(at, name)
                at += 1
    return names


def _line(like: Mapping[str, Any], lines: Sequence[Mapping[str, Any] | None]) -> Line:
    direction = str(like["direction"])
    sides = [None if line is None else line["after"] for line in lines]
    means = [s["mean"] for s in sides if s is not None and s["mean"] is not None]
    top = _top(means, direction) if max(means, default=0) - min(means, default=0) > TIE else None
    cells: list[Cell | None] = []
    for side, line in zip(sides, lines, strict=True):
        if side is None or line is None:
            cells.append(None)
            continue
        best = top is not None and side["mean"] is not None and abs(side["mean"] - top) <= TIE
        cells.append(Cell(side, line["before"]["mean"], best))
    return Line(like["name"], like["label"], like["section"], direction, tuple(cells))


def _top(means: Sequence[float], direction: str) -> float | None:
    if not means or not direction:
        return None
    return max(means) if direction == "up" else min(means)


def differences(runs: Sequence[RunRecord]) -> list[str]:
    """Warnings about what makes the runs of a table incomparable.

    Args:
        runs: The runs.

    Returns:
        One sentence per part of their identity that is not the same in all of them.
    """
    out = []
    for part in ALIKE:
        values = [_brief(run.identity[part]) for run in runs]
        if len(set(values)) > 1:
            named = ", ".join(f"{run.name}: {value}" for run, value in zip(runs, values, strict=True))
            out.append(f"The runs differ in {part} ({named}).")
    return out


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{k}={str(v)[:12]}" for k, v in sorted(value.items()))
    return str(value)


def names_of(runs: Sequence[RunRecord]) -> list[str]:
    """What to call the columns: the method, with the directory's name where that alone would not tell them apart."""
    methods = [run.method for run in runs]
    return [f"{m} ({run.name})" if methods.count(m) > 1 else m for m, run in zip(methods, runs, strict=True)]


def as_markdown(runs: Sequence[RunRecord]) -> str:
    """The comparison as Markdown.

    Args:
        runs: The runs.

    Returns:
        One table per section, and warnings.
    """
    names = names_of(runs)
    out = []
    for section, title in SECTIONS.items():
        lines = [line for line in comparison(runs) if line.section == section]
        if lines:
            head = " | ".join(["figure", *map(escaped, names)])
            out += [f"## {title}\n", f"| {head} |", f"| --- |{' ---: |' * len(runs)}"]
            out += [
                f"| {escaped(x.label)}{ARROWS[x.direction]} | {' | '.join(map(cell_text, x.cells))} |" for x in lines
            ]
            out.append("")
    out.append("Mean after the edit, 95 % bootstrap interval over edits, n edits; best in bold.")
    out += [f"\n**Note.** {text}" for text in differences(runs)]
    return "\n".join(out) + "\n"


def _cells(line: Line) -> str:
    return " | ".join(map(cell_text, line.cells))


def cell_text(cell: Cell | None) -> str:
    """`**0.950** (0.900 - 0.990), n 100`."""
    if cell is None or cell.side["mean"] is None:
        return "-"
    mean = number(cell.side["mean"])
    shown = f"**{mean}**" if cell.best else mean
    known = "" if cell.side["low"] is None else f" ({interval(cell.side)})"
    return f"{shown}{known}, n {cell.side['n']}"


def as_csv(runs: Sequence[RunRecord]) -> str:
    """The comparison as CSV, one row per run and figure, numbers in full.

    Args:
        runs: The runs.

    Returns:
        The text, with a header line.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "method", "section", "figure", "direction", "before", "mean", "low", "high", "n", "best"])
    for line in comparison(runs):
        for run, cell in zip(runs, line.cells, strict=True):
            if cell is not None:
                side = [cell.side[key] for key in ("mean", "low", "high", "n")]
                place = [run.name, run.method, line.section, line.name, line.direction]
                writer.writerow([*place, cell.before, *side, int(cell.best)])
    return out.getvalue()
