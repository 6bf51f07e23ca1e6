"""Figures as text: the table of one run, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ARROWS = {"up": " ↑", "down": " ↓", "": ""}
SECTIONS = {
    "headline": "Headline",
    "beside": "Beside it",
    "legacy": "As other harnesses compute it, for comparison only",
    "edit": "The edits",
}
HEAD = (
    "| figure | before | after | 95 % interval | n | probes | missing |\n"
    "| --- | ---: | ---: | :---: | ---: | ---: | ---: |"
)


def number(value: float | None) -> str:
    """Three decimals for scores, fewer for large values, a dash for none."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.2g}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value + 0.0:.3f}".replace("-0.000", "0.000")


def interval(side: Mapping[str, Any]) -> str:
    """`0.812 - 0.901`, or a dash."""
    if side["low"] is None or side["high"] is None:
        return "-"
    return f"{number(side['low'])} - {number(side['high'])}"


def escaped(text: str) -> str:
    """Text for a Markdown cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def missing(line: Mapping[str, Any]) -> str:
    """How many edits and, where some could not be scored, probes are missing."""
    probes = f" (+{line['missing_probes']} probes)" if line["missing_probes"] else ""
    return f"{line['missing_edits']}{probes}"


def run_table(identity: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The table of one run.

    Args:
        identity: Content of its `run.json`.
        summary: Its summary.

    Returns:
        Markdown, the same for equal input.
    """
    return "\n".join(_blocks(identity, summary)) + "\n"


def _blocks(identity: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    hparams, data, counts = identity["hparams"], identity["data"], summary["counts"]
    yield f"# {hparams['method']} on {hparams['model']}, {data['name']}, {identity['mode']}\n"
    yield (
        f"{counts['edits']} edits ({counts['rejected']} records left out, {counts['failed']} edits could not be made); "
        f"scored {_when(summary['stage'])}. Means inside each edit first, then over edits; intervals by bootstrap over "
        "edits. Missing: edits without a probe of that kind."
    )
    for name, title in SECTIONS.items():
        lines = [line for line in summary["figures"] if line["section"] == name]
        if lines:
            yield f"\n## {title}\n\n{HEAD}"
            yield from (_row(line) for line in lines)
    if "right_after" in summary:
        yield "\n## What is left at the end\n\n| figure | right after the edit | at the end |\n| --- | ---: | ---: |"
        yield from _left(summary)
    if "ability" in summary:
        yield "\n## General ability\n\n| task | before | after | change | 95 % interval | n |"
        yield "| --- | ---: | ---: | ---: | :---: | ---: |"
        for x in summary["ability"]:
            figures = " | ".join(number(x[key]) for key in ("before", "after", "change"))
            yield f"| {escaped(x['task'])}, {x['metric']} | {figures} | {interval(x)} | {x['n']} |"
    yield "\n## Left out\n" if summary["rejected"] else ""
    yield from (f"- {escaped(r['reason'])}" for r in summary["rejected"])
    yield "\n## Taken with something left out\n" if summary["notes"] else ""
    yield from (f"- {escaped(r['reason'])}" for r in summary["notes"])
    yield f"\n{_origin(identity)}"


def _when(stage: str) -> str:
    return {"alone": "each edit alone on the base model", "end": "with all edits live"}[stage]


def _row(line: Mapping[str, Any]) -> str:
    before, after = line["before"], line["after"]
    probes = "-" if line["probes"] is None else str(line["probes"])
    cells = [escaped(line["label"]) + ARROWS[line["direction"]], number(before["mean"]), number(after["mean"])]
    return "| " + " | ".join([*cells, interval(after), str(after["n"]), probes, missing(line)]) + " |"


def _left(summary: Mapping[str, Any]) -> Iterator[str]:
    end = {line["name"]: line for line in summary["figures"]}
    for line in summary["right_after"]:
        if line["section"] == "headline" and line["name"] in end:
            label = escaped(line["label"]) + ARROWS[line["direction"]]
            yield f"| {label} | {number(line['after']['mean'])} | {number(end[line['name']]['after']['mean'])} |"


def _origin(identity: Mapping[str, Any]) -> str:
    base, data, decode = identity["base"], identity["data"], identity["decode"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(identity["versions"].items()))
    return (
        f"Base {base['fingerprint'][:12]} ({base['dtype']}, {base['device']}); data SHA-256 {data['sha256'][:12]}; "
        f"seed {identity['seed']}; greedy, at most {decode['max_new_tokens']} new tokens; "
        f"{identity['plan']['threads']} threads; {versions}."
    )
