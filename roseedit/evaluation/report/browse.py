"""Each edit of a run with what the model said before and after, for the page's browser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from roseedit.evaluation.report.record import RunRecord
from roseedit.evaluation.rows import SAID

if TYPE_CHECKING:
    import pandas

MOST = 1000
VERDICT = {"locality": "unchanged"}  # what decides whether a probe is as it should be; elsewhere an exact match


def edits_of(run: RunRecord, most: int = MOST) -> dict[str, Any]:
    """The edits of a run as plain JSON values.

    Args:
        run: The run.
        most: Only this many from the front, so that the page stays small.

    Returns:
        `total`, and `edits` with their probes.
    """
    stage = run.summary["stage"]
    shown = run.requests[:most]
    rows = run.rows[(run.rows["stage"] == stage) & run.rows["edit"].isin([r["key"] for r in shown])]
    probes = _probes(rows)
    return {"total": len(run.requests), "edits": [_edit(request, probes.get(request["key"], [])) for request in shown]}


def _edit(request: Mapping[str, Any], probes: list[dict[str, Any]]) -> dict[str, Any]:
    edit = {"id": request["key"], "source": request.get("source"), "subject": request.get("subject")}
    edit |= {"prompt": request["prompt"], "new": request["target_new"], "old": request.get("target_true")}
    return edit | {"probes": probes}


def _probes(rows: pandas.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Per edit its probes, each with its texts, its verdict (None where it cannot be told) and, on locality, the KL."""
    values: dict[tuple[str, int], dict[str, float]] = {}
    out: dict[str, list[dict[str, Any]]] = {}
    for edit, probe, metric, after in rows[["edit", "probe", "metric", "after"]].itertuples(index=False):
        if probe >= 0 and metric in ("exact_match", "unchanged", "kl"):
            values.setdefault((edit, probe), {})[metric] = after
    names = ["edit", "probe", "kind", "group", "prompt", "expected", "before_text", "after_text"]
    for edit, probe, kind, group, prompt, expected, before, after in rows.loc[rows["metric"] == SAID, names].itertuples(
        index=False
    ):
        found = values.get((edit, probe), {})
        verdict = found.get(VERDICT.get(kind, "exact_match"))
        line: dict[str, Any] = {"kind": kind, "group": group, "prompt": prompt, "before": before, "after": after}
        line["expected"] = expected if isinstance(expected, str) else None
        line["ok"] = None if verdict is None else verdict == 1
        if "kl" in found:
            line["kl"] = round(found["kl"], 4)
        out.setdefault(edit, []).append(line)
    return out


def for_script(value: Any) -> str:
    """JSON that may stand inside a `<script>` element, whatever the texts in it contain."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
