"""Quality and speed over executed cost, one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roseedit.errors import SkipError, refusal

PANELS = (
    ("perplexity_ratio", "perplexity, times the full model's"),
    ("kl", "KL per token"),
    ("agreement", "agreement"),
)


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the results of `Bench.run` for one or several budgets.

    Args:
        results: The results.
        path: Where the PNG goes.

    Raises:
        SkipError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SkipError(refusal("a plot without matplotlib", "it", "pip install 'roseedit[plots]'.")) from error
    figure = Figure(figsize=(15, 3.8), layout="constrained")
    axes = figure.subplots(1, 4)
    lines = [line for result in results for line in result["lines"]]
    for axis, (name, label) in zip(axes, PANELS, strict=False):
        for contender in dict.fromkeys(line["name"] for line in lines):
            own = sorted(((ln["cost"], ln[name]) for ln in lines if ln["name"] == contender), key=_first)
            costs, means = [c for c, _ in own], [f["mean"] for _, f in own]
            around = [[f["mean"] - f["low"] for _, f in own], [f["high"] - f["mean"] for _, f in own]]
            axis.errorbar(costs, means, yerr=around, marker="o", capsize=2, label=contender)
        axis.set(xlabel="executed cost", ylabel=label)
        if name == "perplexity_ratio":
            axis.set_yscale("log")
            axis.legend(fontsize="small")
    gates = sorted((ln for ln in lines if ln["name"] == "gates" and "speed_batch_1" in ln), key=lambda ln: ln["cost"])
    for what in ("limit", "decode", "prefill"):
        axes[3].plot([g["cost"] for g in gates], [g["speed_batch_1"][what] for g in gates], marker="o", label=what)
    axes[3].set(xlabel="executed cost", ylabel="speed-up, batch 1")
    axes[3].legend(fontsize="small")
    figure.savefig(path, dpi=130)


def _first(pair: tuple[float, Any]) -> float:
    return pair[0]
