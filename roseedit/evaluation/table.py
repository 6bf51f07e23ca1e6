"""The before/after table of a set of requests: one row per probe.

`readings` looks at a model once; `compare` puts two such looks side by side. What is read: what the model generates,
the probability of the new and the old answer on the prompt and its rephrases, and on locality probes the whole
next-token distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from roseedit.evaluation.metrics import exact_match, kl_divergence, starts_with_answer, token_agreement, unchanged
from roseedit.evaluation.prompts import Generated, RowEdits
from roseedit.evaluation.reading import read
from roseedit.evaluation.scoring import PairScore
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest

if TYPE_CHECKING:
    import pandas

ASKED = ("prompt", "rephrase")


@dataclass(frozen=True)
class Question:
    """One row of the table.

    Attributes:
        request: Which request.
        kind: `"prompt"`, `"rephrase"`, `"locality"` or `"portability"`.
        group: Name of the probe's group; the kind itself where there is none.
        prompt: What the model is asked.
        accepted: Accepted answers, the reference first; empty for a locality probe without answer.
        old: The old answer, where known, on prompt and rephrase.
    """

    request: int
    kind: str
    group: str
    prompt: str
    accepted: tuple[str, ...]
    old: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a model made of one question.

    Attributes:
        said: What it generated.
        reference: Teacher-forced score of the first accepted answer, if there is one.
        old: The same of the old answer, if there is one.
        following: (vocabulary,) next-token log-probabilities; locality only.
    """

    said: Generated
    reference: PairScore | None
    old: PairScore | None
    following: Tensor | None


def questions(requests: Sequence[EditRequest]) -> list[Question]:
    """All rows of the table, request after request.

    Args:
        requests: The requests.

    Returns:
        Prompt, rephrases, locality and portability probes of each.
    """
    out = []
    for i, r in enumerate(requests):
        out.append(Question(i, "prompt", "prompt", r.prompt, r.accepted, r.target_true))
        out += [Question(i, "rephrase", "rephrase", text, r.accepted, r.target_true) for text in r.rephrase]
        out += [Question(i, "locality", p.group, p.prompt, p.aliases) for p in r.locality]
        out += [Question(i, "portability", p.group, p.prompt, p.aliases) for p in r.portability]
    return out


def readings(
    loaded: LoadedModel, asked: Sequence[Question], *, edits: RowEdits | None = None, own_edit: bool = False
) -> list[Reading]:
    """Look at a model once.

    Args:
        loaded: The model as it stands.
        asked: The questions.
        edits: A bank of edits, where rows are to carry one.
        own_edit: True lets each row carry the edit of its own request; False leaves all rows as the model stands.

    Returns:
        One reading per question.
    """
    rows = [q.request for q in asked] if own_edit else None
    answers = [(q.accepted[0] if q.accepted else None, q.old) for q in asked]
    wanted = [q.kind == "locality" for q in asked]
    found = read(loaded, [q.prompt for q in asked], answers, following=wanted, edits=edits, rows=rows)
    return [Reading(r.said, r.answers[0], r.answers[1], r.following) for r in found]


def compare(asked: Sequence[Question], before: Sequence[Reading], after: Sequence[Reading]) -> pandas.DataFrame:
    """Two looks side by side.

    Args:
        asked: The questions.
        before: The unedited model.
        after: The edited one.

    Returns:
        One row per question: `request`, `kind`, `group`, `prompt`, `expected`, `before`, `after` (generated texts),
        `before_stop`, `after_stop`, `before_ok`, `after_ok` (exact match at a natural stop; for locality `after_ok` is
        "answer unchanged"), `before_starts`, `after_starts`, `p_new_before`, `p_new_after`, `p_old_before`,
        `p_old_after` (probability of the whole answer), `token_accuracy_before`, `token_accuracy_after`,
        `token_agreement` and `kl` (nats, locality only).
    """
    import pandas as pd

    columns = zip(asked, before, after, strict=True)
    return pd.DataFrame([_line(q, b, a) for q, b, a in columns])


def _line(q: Question, b: Reading, a: Reading) -> dict[str, object]:
    local = q.kind == "locality"
    line: dict[str, object] = {"request": q.request, "kind": q.kind, "group": q.group, "prompt": q.prompt}
    line["expected"] = q.accepted[0] if q.accepted else None
    for name, reading in (("before", b), ("after", a)):
        line |= {name: reading.said.text.strip(), f"{name}_stop": reading.said.stop}
        line[f"{name}_ok"] = exact_match(reading.said, q.accepted) if q.accepted else None
        line[f"{name}_starts"] = starts_with_answer(reading.said, q.accepted) if q.accepted else None
        line[f"p_new_{name}"] = _probability(reading.reference)
        line[f"p_old_{name}"] = _probability(reading.old)
        line[f"token_accuracy_{name}"] = reading.reference.token_accuracy if reading.reference else None
    if local:
        line["before_ok"], line["after_ok"] = True, unchanged(b.said, a.said)
        pair = (b.reference, a.reference) if b.reference and a.reference else None
        line["token_agreement"] = token_agreement(*pair) if pair else None
        line["kl"] = float(kl_divergence(_known(b.following), _known(a.following)))
    else:
        line |= {"token_agreement": None, "kl": None}
    return line


def _known(logprobs: Tensor | None) -> Tensor:
    return torch.empty(0) if logprobs is None else logprobs


def _probability(scored: PairScore | None) -> float | None:
    return None if scored is None else float(torch.tensor(scored.logprob, dtype=torch.float64).exp())
