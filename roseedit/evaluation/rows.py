"""The long form of a measurement: one row per edit, probe and metric, before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from roseedit.evaluation.easyedit import easyedit_accuracy, easyedit_locality
from roseedit.evaluation.looks import Look, RunQuestion
from roseedit.evaluation.metrics import (
    contains_answer,
    exact_match,
    exact_match_every,
    kl_divergence,
    prefix_agreement,
    starts_with_answer,
    unchanged,
)
from roseedit.evaluation.preference import magnitude, prefers, target_perplexity
from roseedit.evaluation.prompts import Generated

if TYPE_CHECKING:
    import pandas
    import pyarrow

SAID = "said"  # the pseudo-metric whose row carries the generated texts
Values = tuple[float | None, float | None]
_ANSWERED: dict[str, Callable[[Generated, Sequence[str]], bool]] = {
    "exact_match": exact_match,
    "starts_with": starts_with_answer,
    "contains": contains_answer,
}


def schema() -> pyarrow.Schema:
    """Columns of a file of rows."""
    import pyarrow as pa

    types = [("edit", pa.string()), ("stage", pa.string()), ("live", pa.int32()), ("probe", pa.int32())]
    types += [(name, pa.string()) for name in ("kind", "group", "prompt", "expected", "metric")]
    types += [("before", pa.float64()), ("after", pa.float64())]
    types += [("before_text", pa.string()), ("after_text", pa.string())]
    return pa.schema(types)


def long_rows(
    keys: Sequence[str],
    asked: Sequence[RunQuestion],
    before: Sequence[Look],
    after: Sequence[Look],
    *,
    stage: str,
    live: int,
) -> list[dict[str, object]]:
    """Measure every question.

    Args:
        keys: Names of the edits; `keys[q.request]` is the edit of question q.
        asked: The questions, edit after edit.
        before: The unedited model.
        after: The edited one.
        stage: When it was looked at: `"alone"`, `"right_after"`, `"checkpoint"` or `"end"`.
        live: How many edits a row's model carried.

    Returns:
        Rows in the order of `asked`, as dictionaries with the columns of `schema`.
    """
    out: list[dict[str, object]] = []
    numbers: dict[int, int] = {}
    for q, b, a in zip(asked, before, after, strict=True):
        n = numbers[q.request] = numbers.get(q.request, -1) + 1
        place = {"edit": keys[q.request], "stage": stage, "live": live, "probe": n, "kind": q.kind, "group": q.group}
        place |= {"prompt": q.prompt, "expected": q.accepted[0] if q.accepted else None}
        texts = {"before_text": _said(b), "after_text": _said(a)}
        out.append({**place, "metric": SAID, "before": None, "after": None, **texts})
        nothing = {"before_text": None, "after_text": None}
        for metric, (x, y) in probe_metrics(q, b, a).items():
            out.append({**place, "metric": metric, "before": x, "after": y, **nothing})
    return out


def _said(reading: Look) -> str:
    """What was generated; a continuation that did not stop by itself ends in three dots."""
    return reading.said.text.strip() + ("" if reading.said.natural else " …")


def probe_metrics(q: RunQuestion, b: Look, a: Look) -> dict[str, Values]:
    """All metrics that one question allows.

    Args:
        q: The question.
        b: What the unedited model made of it.
        a: What the edited one did.

    Returns:
        Per metric its value before and after; None where it is not defined.
    """
    out: dict[str, Values] = {}
    if q.accepted:
        for name, hit in _ANSWERED.items():
            out[name] = float(hit(b.said, q.accepted)), float(hit(a.said, q.accepted))
    if len(q.answers) > 1:
        out["exact_match_every"] = (
            float(exact_match_every(b.said, q.answers)),
            float(exact_match_every(a.said, q.answers)),
        )
    elif q.accepted:
        out["exact_match_every"] = out["exact_match"]
    if b.reference and a.reference:
        out["p_answer"] = math.exp(b.reference.logprob), math.exp(a.reference.logprob)
        out["target_ppl"] = target_perplexity(b.reference), target_perplexity(a.reference)
    if b.easyedit and a.easyedit:
        out["easyedit_accuracy"] = easyedit_accuracy(b.easyedit), easyedit_accuracy(a.easyedit)
    if b.old and a.old and b.reference and a.reference:
        out["p_other"] = math.exp(b.old.logprob), math.exp(a.old.logprob)
        out["prefers"] = float(prefers(b.reference, b.old)), float(prefers(a.reference, a.old))
        out["magnitude"] = magnitude(b.reference, b.old), magnitude(a.reference, a.old)
    if q.kind == "locality":
        out |= _local(b, a)
    return out


def _local(b: Look, a: Look) -> dict[str, Values]:
    out: dict[str, Values] = {"unchanged": (1.0, float(unchanged(b.said, a.said)))}
    out["prefix_agreement"] = (1.0, prefix_agreement(b.said, a.said))
    if b.easyedit and a.easyedit:
        out["easyedit_locality"] = (
            easyedit_locality(b.easyedit, b.easyedit),
            easyedit_locality(b.easyedit, a.easyedit),
        )
    if b.following is not None and a.following is not None:
        out["kl"] = (0.0, float(kl_divergence(b.following, a.following)))
    return out


def rows_to_parquet(rows: Iterable[dict[str, object]]) -> bytes:
    """Rows as the bytes of a parquet file; equal rows give equal bytes.

    Args:
        rows: From `long_rows`.

    Returns:
        The file.
    """
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema()), buffer, compression="zstd")
    return buffer.getvalue()


def as_frame(rows: Iterable[dict[str, object]]) -> pandas.DataFrame:
    """Rows as a table.

    Args:
        rows: From `long_rows`.

    Returns:
        The columns of `schema`.
    """
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=schema()).to_pandas()
