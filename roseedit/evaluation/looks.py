"""What a run reads off a model: the table's readings and, beside them, EasyEdit's encoding of the same pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from roseedit.evaluation.easyedit import easyedit_scores
from roseedit.evaluation.prompts import RowEdits
from roseedit.evaluation.scoring import PairScore, next_token
from roseedit.evaluation.table import Question, Reading, questions, readings
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest

NEIGHBOURS = "neighborhood"


@dataclass(frozen=True)
class RunQuestion(Question):
    """A question that still knows which alias belongs to which answer.

    Attributes:
        answers: One tuple of aliases per answer.
    """

    answers: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Look(Reading):
    """A reading with one more score.

    Attributes:
        easyedit: The reference answer scored with EasyEdit's boundary, if there is an answer.
    """

    easyedit: PairScore | None = None


def run_questions(requests: Sequence[EditRequest]) -> list[RunQuestion]:
    """All questions of a run. Neighbours are also asked for the new answer, which they must not prefer (NS).

    Args:
        requests: The requests.

    Returns:
        As `table.questions`; on neighbours `old` is the request's new target.
    """
    answers = [own for r in requests for own in _answers(r)]
    out = []
    for q, own in zip(questions(requests), answers, strict=True):
        other = requests[q.request].target_new if _is_neighbour(q) else q.old
        out.append(RunQuestion(q.request, q.kind, q.group, q.prompt, q.accepted, other, own))
    return out


def _answers(r: EditRequest) -> list[tuple[tuple[str, ...], ...]]:
    """Alias lists in the order of `table.questions`."""
    asked = [(r.accepted,)] * (1 + len(r.rephrase))
    return [*asked, *(p.answers for p in (*r.locality, *r.portability))]


def _is_neighbour(q: Question) -> bool:
    return q.kind == "locality" and q.group == NEIGHBOURS and bool(q.accepted)


def look(
    loaded: LoadedModel, asked: Sequence[Question], *, edits: RowEdits | None = None, own_edit: bool = False
) -> list[Look]:
    """Look at a model once.

    Args:
        loaded: The model as it stands.
        asked: The questions.
        edits: A bank of edits, where rows are to carry one.
        own_edit: True lets each row carry the edit of its own request.

    Returns:
        One look per question.
    """
    found = readings(loaded, asked, edits=edits, own_edit=own_edit)
    where = [i for i, q in enumerate(asked) if q.accepted]
    pairs = [(asked[i].prompt, asked[i].accepted[0]) for i in where]
    rows = [asked[i].request for i in where] if own_edit else None
    scored = easyedit_scores(loaded, pairs, known=[found[i].reference for i in where], edits=edits, rows=rows)
    theirs: list[PairScore | None] = [None] * len(asked)
    for i, result in zip(where, scored, strict=True):
        theirs[i] = result
    return [Look(r.said, r.reference, r.old, r.following, e) for r, e in zip(found, theirs, strict=True)]


def in_contexts(asked: Sequence[RunQuestion], contexts: Sequence[str]) -> list[RunQuestion]:
    """The questions as they are asked when each edit has a text of its own before its prompts.

    Args:
        asked: The questions.
        contexts: Per edit its text, possibly empty.

    Returns:
        The same questions with longer prompts.
    """
    return [replace(q, prompt=contexts[q.request] + q.prompt) for q in asked]


def with_following(loaded: LoadedModel, asked: Sequence[Question], found: Sequence[Look]) -> list[Look]:
    """Fill in the next-token distributions, which are too large to be kept on a disk.

    Args:
        loaded: The model as it stands.
        asked: The questions.
        found: Looks at the same model without distributions.

    Returns:
        The same looks, with distributions for locality probes.
    """
    out = list(found)
    where = [i for i, q in enumerate(asked) if q.kind == "locality"]
    for i, row in zip(where, next_token(loaded, [asked[i].prompt for i in where]), strict=True):
        out[i] = replace(out[i], following=row)
    return out
