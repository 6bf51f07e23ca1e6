"""What a search leaves behind: a table of its trials, the best settings as YAML, a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from roseedit.hparams import Hparams, as_mapping
from roseedit.runs.files import write_atomic
from roseedit.tuning.trial import PARTS

FIGURES = ("value", "low", "high", *PARTS, "edits")


def write_report(folder: Path, study: Any, settings: Callable[[Mapping[str, Any]], Hparams]) -> None:
    """Write everything anew, as it stands.

    Args:
        folder: Where.
        study: An Optuna study.
        settings: Makes settings of a trial's parameters.
    """
    lines = [_line(trial) for trial in study.trials if trial.state.name != "RUNNING" and trial.params]
    write_atomic(folder / "trials.csv", _csv(lines).encode())
    write_atomic(folder / "trials.md", _markdown(lines).encode())
    done = [t for t in study.trials if t.state.name == "COMPLETE"]
    if done:
        best = max(done, key=lambda t: t.value)
        write_atomic(folder / "best.yaml", _best(best, len(lines), settings(best.params)).encode())
        write_atomic(folder / "search.png", _plot(lines))


def _line(trial: Any) -> dict[str, Any]:
    own = trial.user_attrs
    value = trial.value if trial.value is not None else own.get("value_at_pruning")
    figures = {name: own.get(name) for name in FIGURES if name != "value"}
    said = {"refused": own["refused"]} if "refused" in own else {}
    return {"trial": trial.number, "state": trial.state.name.lower(), "value": value, **figures, **trial.params, **said}


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for line in lines for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Best first; pruned trials stand with what their first edits came to."""
    ordered = sorted(lines, key=lambda line: (line["state"] != "complete", -(line["value"] or 0.0)))
    names = list(dict.fromkeys(name for line in ordered for name in line))
    rows = [[_cell(line.get(name)) for name in names] for line in ordered]
    head = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", "\\n")


def _best(trial: Any, trials: int, hparams: Hparams) -> str:
    """Settings that differ from the method's own defaults, headed by what they came to."""
    plain, usual = as_mapping(hparams), as_mapping(type(hparams)())
    kept = {k: v for k, v in plain.items() if k in ("method", "model") or v != usual.get(k)}
    own = trial.user_attrs
    parts = ", ".join(f"{name} {own[name]:.2f}" for name in PARTS if name in own)
    head = f"# Trial {trial.number} of {trials}: {trial.value:.3f} ({own['low']:.2f} - {own['high']:.2f}) on"
    head += f" {own['edits']} edits; {parts}.\n"
    return head + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _plot(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """The value trial by trial, and what reliability was paid with in locality."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(drawing)
    left, right = drawing.subplots(1, 2)
    whole = [line for line in lines if line["state"] == "complete"]
    cut = [line for line in lines if line["state"] == "pruned" and line["value"] is not None]
    left.plot(
        [line["trial"] for line in cut], [line["value"] for line in cut], "x", color="0.6", label="given up early"
    )
    left.plot([line["trial"] for line in whole], [line["value"] for line in whole], "o", label="all edits")
    best = [max(line["value"] for line in whole[: i + 1]) for i in range(len(whole))]
    left.step([line["trial"] for line in whole], best, where="post", label="best so far")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set(xlabel="trial", ylabel="harmonic mean", ylim=(0, 1))
    left.legend()
    both = [line for line in whole if line.get("locality") is not None]
    places = [[line[name] for line in both] for name in ("locality", "reliability")]
    dots = right.scatter(*places, c=[line["value"] for line in both], vmin=0, vmax=1)
    right.set(xlabel="locality (token agreement)", ylabel="reliability", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    drawing.colorbar(dots, label="harmonic mean")
    out = io.BytesIO()
    drawing.savefig(out, format="png", dpi=100)
    return out.getvalue()
