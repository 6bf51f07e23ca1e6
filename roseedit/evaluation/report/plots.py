"""The plots of a page, as SVG that takes on the page's colours and font.

matplotlib draws; ink is drawn in one marker colour, which becomes the page's own `currentColor`, so that the plots read
on a light and on a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from roseedit.errors import RunError, refusal
from roseedit.evaluation.report.compare import names_of
from roseedit.evaluation.report.record import RunRecord

INK = "#010203"
COLOURS = ("#2a6fdb", "#d9622b", "#2f9e63", "#a24bc4", "#b58900", "#d33682", "#5f7d95", "#7a5230")
MARKS = "osD^vPX*"
Draw = Callable[[Any], None]


def drawn(draw: Draw, label: str, size: tuple[float, float] = (5.2, 3.6)) -> str:
    """One plot.

    Args:
        draw: Fills the axes it is given.
        label: What a reader who cannot see it is told.
        size: In inches; the page scales it.

    Returns:
        An `<svg>` element; equal input gives equal text.

    Raises:
        RunError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        message = refusal("a page without the package matplotlib", "matplotlib", "pip install 'roseedit[plots]'")
        raise RunError(message) from error
    ink: Any = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), INK)
    with mpl.rc_context({"svg.hashsalt": "roseedit", "svg.fonttype": "none", "font.size": 10, **ink}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=INK, alpha=0.12, linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(out.getvalue(), label)


def _for_page(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    return svg.replace(INK, "currentColor")


def trade_off(runs: Sequence[RunRecord]) -> str | None:
    """Reliability against locality, with intervals: up and to the right is better.

    Args:
        runs: The runs.

    Returns:
        The plot, or None where no run has both.
    """
    points = [
        (name, _after(run, "locality"), _after(run, "reliability"))
        for name, run in zip(names_of(runs), runs, strict=True)
    ]
    known = [(name, x, y) for name, x, y in points if x and y]
    if not known:
        return None

    def draw(axes: Any) -> None:
        for n, (name, x, y) in enumerate(known):
            look = {"color": COLOURS[n % len(COLOURS)], "fmt": MARKS[n % len(MARKS)], "capsize": 3, "label": name}
            axes.errorbar(x["mean"], y["mean"], xerr=_bars(x), yerr=_bars(y), markersize=7, **look)
        _unit(axes, "locality: share of answers unchanged", "reliability: share of edits said")
        axes.set_xlim(-0.02, 1.02)
        axes.legend(frameon=False, loc="best")

    return drawn(draw, "Reliability against locality")


def by_group(runs: Sequence[RunRecord], figure: str = "portability") -> str | None:
    """A figure split by group, a bar per run.

    Args:
        runs: The runs.
        figure: Name of the figure.

    Returns:
        The plot, or None where no run has groups.
    """
    groups = sorted({n.partition(":")[2] for run in runs for n in _figures(run) if n.startswith(f"{figure}:")})
    if not groups:
        return None

    def draw(axes: Any) -> None:
        width = 0.8 / len(runs)
        for n, (name, run) in enumerate(zip(names_of(runs), runs, strict=True)):
            found = [(g, _after(run, f"{figure}:{group}")) for g, group in enumerate(groups)]
            for g, side in found:
                if side:
                    place = g + (n - (len(runs) - 1) / 2) * width
                    axes.barh(place, side["mean"], width * 0.9, color=COLOURS[n % len(COLOURS)], alpha=0.85)
                    axes.errorbar(side["mean"], place, xerr=_bars(side), color=INK, capsize=2, linewidth=1)
            axes.barh(0, 0, color=COLOURS[n % len(COLOURS)], label=name)
        axes.set_yticks(range(len(groups)), [group.replace("_", " ") for group in groups])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.02)
        axes.set_xlabel("share of answers unchanged" if figure == "locality" else "share of prompts answered right")
        if len(runs) > 1:
            axes.legend(frameon=False, loc="best")

    return drawn(draw, f"{figure} by group", (5.2, 1.3 + 0.42 * len(groups) * max(1, 0.6 * len(runs))))


def forgetting(runs: Sequence[RunRecord]) -> str | None:
    """Reliability along sequences: of all edits so far, beside what was read right after each edit.

    Args:
        runs: The runs.

    Returns:
        The plot, or None where no run is a sequence.
    """
    known = [
        (n, name, run)
        for n, (name, run) in enumerate(zip(names_of(runs), runs, strict=True))
        if "curves" in run.summary
    ]
    if not known:
        return None

    def draw(axes: Any) -> None:
        for n, name, run in known:
            colour = COLOURS[n % len(COLOURS)]
            for curve, style, what in (("retention", "-", "all edits so far"), ("right_after", ":", "right after")):
                points = [p for p in run.summary["curves"][curve] if p["mean"] is not None]
                x, y = [p["x"] for p in points], [p["mean"] for p in points]
                axes.plot(x, y, style, color=colour, marker="o", markersize=4, label=f"{name}, {what}")
                if curve == "retention":
                    axes.fill_between(
                        x,
                        [p["low"] for p in points],
                        [p["high"] for p in points],
                        color=colour,
                        alpha=0.15,
                        linewidth=0,
                    )
        _unit(axes, "edits made so far", "reliability: share of edits said")
        axes.set_xlim(left=0)
        axes.legend(frameon=False, loc="best")

    return drawn(draw, "Reliability as a sequence of edits grows")


def _unit(axes: Any, x: str, y: str) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _figures(run: RunRecord) -> dict[str, Mapping[str, Any]]:
    return {line["name"]: line["after"] for line in run.summary["figures"]}


def _after(run: RunRecord, name: str) -> Mapping[str, Any] | None:
    side = _figures(run).get(name)
    return side if side and side["mean"] is not None else None


def _bars(side: Mapping[str, Any]) -> list[list[float]] | None:
    if side["low"] is None or side["high"] is None:
        return None
    return [[max(0.0, side["mean"] - side["low"])], [max(0.0, side["high"] - side["mean"])]]
