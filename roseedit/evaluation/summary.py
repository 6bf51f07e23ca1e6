"""From the long form of a run to its figures: each with its interval, what it rests on and what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from roseedit.evaluation.aggregate import summarise, summarise_median
from roseedit.evaluation.curves import CurvePoint, forgetting_curve, retention_curve
from roseedit.evaluation.preference import harmonic_mean

if TYPE_CHECKING:
    import pandas

FINAL = ("end", "alone")  # stages that a table is about; the first one present
UP, DOWN, PLAIN = "up", "down", ""


@dataclass(frozen=True)
class Figure:
    """One line of a table.

    Attributes:
        name: Stable name, used in files.
        label: What a reader sees.
        section: `"headline"`, `"beside"`, `"legacy"` or `"edit"`.
        kind: Probes it looks at.
        metric: Metric of the long form.
        direction: Which way is better.
        split: True adds a line per group.
        median: True takes medians over edits.
        group: The only group it looks at, if not all.
    """

    name: str
    label: str
    section: str
    kind: str
    metric: str
    direction: str = UP
    split: bool = False
    median: bool = False
    group: str | None = None


_H, _B, _L, _E = "headline", "beside", "legacy", "edit"
FIGURES = (
    Figure("reliability", "reliability (generated)", _H, "prompt", "exact_match"),
    Figure("generality", "generality (generated)", _H, "rephrase", "exact_match"),
    Figure("portability", "portability (generated)", _H, "portability", "exact_match", split=True),
    Figure("locality", "locality (answer unchanged)", _H, "locality", "unchanged", split=True),
    Figure("kl", "locality KL, nats", _H, "locality", "kl", DOWN, split=True),
    Figure("reliability_starts", "reliability, starts with the answer", _B, "prompt", "starts_with"),
    Figure("reliability_contains", "reliability, contains the answer", _B, "prompt", "contains"),
    Figure("generality_starts", "generality, starts with the answer", _B, "rephrase", "starts_with"),
    Figure("portability_starts", "portability, starts with an answer", _B, "portability", "starts_with"),
    Figure("portability_every", "portability, every answer named", _B, "portability", "exact_match_every"),
    Figure("locality_prefix", "locality, shared leading words", _B, "locality", "prefix_agreement"),
    Figure("locality_correct", "locality, right answer (generated)", _B, "locality", "exact_match"),
    Figure("locality_starts", "locality, starts with the right answer", _B, "locality", "starts_with"),
    Figure("target_ppl", "perplexity of the new answer, median", _B, "prompt", "target_ppl", DOWN, median=True),
    Figure("easyedit_rewrite", "EasyEdit rewrite_acc (teacher forced)", _L, "prompt", "easyedit_accuracy"),
    Figure("easyedit_rephrase", "EasyEdit rephrase_acc (teacher forced)", _L, "rephrase", "easyedit_accuracy"),
    Figure("easyedit_portability", "EasyEdit portability (teacher forced)", _L, "portability", "easyedit_accuracy"),
    Figure("easyedit_locality", "EasyEdit locality (teacher forced)", _L, "locality", "easyedit_locality"),
    Figure("es", "CounterFact ES", _L, "prompt", "prefers"),
    Figure("ps", "CounterFact PS", _L, "rephrase", "prefers"),
    Figure("ns", "CounterFact NS", _L, "locality", "prefers"),
    Figure("em", "CounterFact efficacy magnitude", _L, "prompt", "magnitude"),
    Figure("made", "edits that could be made", _E, "edit", "made"),
    Figure("converged", "edits that reached their goal", _E, "edit", "converged"),
    Figure("steps", "training steps", _E, "edit", "steps", PLAIN),
    Figure("density", "share of the adapted matrices touched", _E, "edit", "density", PLAIN),
    Figure("norm", "Frobenius norm of the change", _E, "edit", "norm", PLAIN),
)


def summarise_run(
    rows: pandas.DataFrame,
    keys: Sequence[str],
    *,
    rejected: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[Mapping[str, Any]] = (),
    ability: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Sum a run up.

    Args:
        rows: The long form, all stages.
        keys: Names of the edits, in the data's order.
        rejected: Records that were left out, with reasons.
        notes: What was left out of records that were taken.
        ability: General ability before and after, where it was measured.

    Returns:
        Plain JSON values: `counts`, `figures` of the final stage, for sequences `right_after` and `curves`, `ability`.
    """
    stages = set(rows["stage"])
    final = next(stage for stage in FINAL if stage in stages)
    last = rows[(rows["stage"] == final) | (rows["kind"] == "edit")]
    out: dict[str, Any] = {"stage": final, "figures": _figures(last, keys), "rejected": [dict(r) for r in rejected]}
    out["notes"] = [dict(note) for note in notes]
    out["counts"] = {"edits": len(keys), "rejected": len(rejected), "failed": _failed(rows)}
    if "right_after" in stages:
        out["right_after"] = _figures(rows[rows["stage"] == "right_after"], keys)
        out["curves"] = _curves(rows, keys)
    if ability is not None:
        out["ability"] = [dict(change) for change in ability]
    return out


def _failed(rows: pandas.DataFrame) -> int:
    made = rows[rows["metric"] == "made"]
    return int((made["after"] == 0).sum())


def _figures(rows: pandas.DataFrame, keys: Sequence[str]) -> list[dict[str, Any]]:
    out = [line for figure in FIGURES for line in _lines(figure, rows, keys)]
    found = {line["name"]: line for line in out}
    if {"es", "ps", "ns"} <= set(found):
        means = {side: [found[n][side]["mean"] for n in ("es", "ps", "ns")] for side in ("before", "after")}
        at = out.index(found["ns"]) + 1
        out.insert(at, _harmonic(means, found["es"]))
    return out


def _harmonic(means: Mapping[str, Sequence[float | None]], like: Mapping[str, Any]) -> dict[str, Any]:
    """S has no interval: it is a function of three means, not a mean over edits."""
    line: dict[str, Any] = {"name": "s", "label": "CounterFact S (harmonic mean)", "section": _L, "direction": UP}
    for side, values in means.items():
        s = harmonic_mean([math.nan if v is None else v for v in values])
        line[side] = {**like[side], "mean": _finite(s), "low": None, "high": None}
    return line | {"group": None, "probes": None, "missing_edits": like["missing_edits"], "missing_probes": None}


def _lines(figure: Figure, rows: pandas.DataFrame, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    own = rows[(rows["kind"] == figure.kind) & (rows["metric"] == figure.metric)]
    if figure.group is not None:
        own = own[own["group"] == figure.group]
    if own.empty:
        return
    yield _line(figure, own, keys, None)
    groups = sorted(own["group"].unique())
    if figure.split and groups != [figure.kind]:
        for group in groups:
            yield _line(figure, own[own["group"] == group], keys, group)


def _line(figure: Figure, own: pandas.DataFrame, keys: Sequence[str], group: str | None) -> dict[str, Any]:
    name = figure.name if group is None else f"{figure.name}:{group}"
    label = figure.label if group is None else f"- {group}"
    line: dict[str, Any] = {"name": name, "label": label, "section": figure.section, "group": group}
    line |= {"direction": figure.direction, "probes": len(own)}
    edits, shared = own["edit"].tolist(), _clusters(figure, own)
    for side in ("before", "after"):
        values = own[side].tolist()
        if figure.median:
            m = summarise_median(values, edits)
            line[side] = _side(m.median, m.low, m.high, m.n)
            line |= {"missing_edits": len(keys) - m.n, "missing_probes": sum(map(_absent, values))}
        else:
            everyone = keys if set(edits) <= set(keys) else set(edits)
            s = summarise(values, edits, all_edits=everyone, clusters=shared)
            line[side] = _side(s.mean, *_known(s.low, s.high, shared), s.n)
            line |= {"missing_edits": s.missing_edits, "missing_probes": s.missing_probes}
    return line


def _absent(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _clusters(figure: Figure, own: pandas.DataFrame) -> list[str] | None:
    """Edits that ask one and the same locality question are not independent: resample the questions then."""
    if figure.kind != "locality":
        return None
    first = own.drop_duplicates("edit")["prompt"]
    return own["prompt"].tolist() if first.duplicated().any() else None


def _known(low: float, high: float, clusters: Sequence[str] | None) -> tuple[float, float]:
    """Resampling a single question tells nothing: no interval then."""
    return (math.nan, math.nan) if clusters is not None and len(set(clusters)) < 2 else (low, high)


def _side(mean: float, low: float, high: float, n: int) -> dict[str, Any]:
    return {"mean": _finite(mean), "low": _finite(low), "high": _finite(high), "n": n}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _curves(rows: pandas.DataFrame, keys: Sequence[str]) -> dict[str, Any]:
    """Reliability along a sequence: of all edits so far at each look, and of each edit right after it was made."""
    own = rows[(rows["kind"] == "prompt") & (rows["metric"] == "exact_match")]
    place = {key: n for n, key in enumerate(keys)}
    looks = own[own["stage"].isin(["checkpoint", "end"])]
    made = sorted(int(live) for live in looks["live"].unique())
    scores = torch.full((len(made), len(keys)), math.nan, dtype=torch.float64)
    for k, live in enumerate(made):
        at = looks[looks["live"] == live]
        scores[k, [place[e] for e in at["edit"]]] = torch.tensor(at["after"].tolist(), dtype=torch.float64)
    fresh = torch.full((len(keys),), math.nan, dtype=torch.float64)
    after = own[own["stage"] == "right_after"]
    fresh[[place[e] for e in after["edit"]]] = torch.tensor(after["after"].tolist(), dtype=torch.float64)
    reported = torch.full_like(scores, math.nan)
    for k, live in enumerate(made):
        reported[k, :live] = fresh[:live]
    return {
        "retention": _points(retention_curve(scores, made)),
        "right_after": _points(retention_curve(reported, made)),
        "forgetting": _points(forgetting_curve(scores, made)),
    }


def _points(points: Sequence[CurvePoint]) -> list[dict[str, Any]]:
    return [{k: _finite(v) if isinstance(v, float) else v for k, v in asdict(p).items()} for p in points]
