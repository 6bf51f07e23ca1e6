"""When does a request contradict a live edit?

The rule, in full. Two requests contradict each other when they ask for *different answers* (no accepted spelling in
common, case and punctuation aside) to *the same question*. It is the same question when

1. the prompts are the same words, case, punctuation and articles aside; or
2. the subject is the same and so is the relation: with the subject taken out, the content words of both prompts (all
   but the function words listed below, and numbers included) pair up one to one, in any order, each pair being equal
   or spelled nearly alike (difflib ratio of at least 0.85; numbers must be equal). Where only one request names its
   subject, the other is taken to be about it if its prompt holds it. Between two statements the subject must stand on
   the same side of the content words ("the mother of X" is not "X is the mother of"), and if both end in a preposition
   it must be the same ("was born in" is not "was born on"); a question may turn both round.
   Prompts that hold nothing but function words are the same when nine in ten of these agree in order.

Other wordings of a relation ("was born in" and "hails from") are not recognised; nothing here asks a model.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from roseedit.requests import EditRequest

ALIKE = 0.85
SAME_FUNCTION_WORDS = 0.9
PREPOSITIONS = frozenset(("of", "in", "on", "at", "to", "for", "from", "by", "with", "as", "into"))
ARTICLES = frozenset(("a", "an", "the"))
FUNCTION_WORDS = (
    PREPOSITIONS
    | ARTICLES
    | {"and", "or", "is", "are", "was", "were", "be", "been", "being", "has", "have", "had", "do", "does", "did", "it"}
    | {"its", "this", "that", "these", "those", "which", "what", "who", "whom", "whose", "where", "when", "how", "s"}
    | {"there"}
)
QUESTIONS = ("who", "whom", "whose", "what", "which", "where", "when", "how", "in which", "in what", "on what")
SLOT = "\x00"


@dataclass(frozen=True)
class Asked:
    """What the rule looks at in a request.

    Attributes:
        prompt: The prompt.
        subject: Its subject, if named.
        answers: Accepted answers, new answer first.
    """

    prompt: str
    subject: str | None
    answers: tuple[str, ...]

    @classmethod
    def of(cls, request: EditRequest | Mapping[str, Any]) -> Asked:
        """Of a request, or of one as the ledger holds it."""
        if isinstance(request, EditRequest):
            return cls(request.prompt, request.subject, request.accepted)
        answers = (request["target_new"], *request.get("target_aliases", ()))
        return cls(request["prompt"], request.get("subject"), answers)

    @cached_property
    def normal(self) -> tuple[str, str, frozenset[str]]:
        """Prompt, subject and answers, case, punctuation and articles aside."""
        return _normal(self.prompt), _normal(self.subject or ""), frozenset(_normal(a) for a in self.answers)


@lru_cache(maxsize=16384)
def asked_in(requests: str) -> tuple[Asked, ...]:
    """What a record of the ledger asked.

    Args:
        requests: Its `requests`, JSON.

    Returns:
        One per request.
    """
    return tuple(Asked.of(r) for r in json.loads(requests))


def contradict(one: Asked, other: Asked) -> bool:
    """Whether two requests ask for different answers to the same question; see the rule above.

    Args:
        one: A request.
        other: Another.

    Returns:
        True when they do.
    """
    return not one.normal[2] & other.normal[2] and same_question(one, other)


def same_question(one: Asked, other: Asked) -> bool:
    """The second half of the rule.

    Args:
        one: A request.
        other: Another.

    Returns:
        True when both ask the same.
    """
    if one.normal[0] == other.normal[0]:
        return True
    subject = one.subject or other.subject
    if subject is None or (one.subject and other.subject and one.normal[1] != other.normal[1]):
        return False
    templates = [_template(asked.prompt, asked.subject or subject) for asked in (one, other)]
    if any(SLOT not in t for t in templates):
        return False
    contents = [[w for w in t if w not in FUNCTION_WORDS and w != SLOT] for t in templates]
    if not contents[0] and not contents[1]:
        plain = [[w for w in t if w not in ARTICLES] for t in templates]
        return difflib.SequenceMatcher(None, plain[0], plain[1], autojunk=False).ratio() >= SAME_FUNCTION_WORDS
    if not _pair_up(*contents):
        return False
    return _is_question(one.prompt) or _is_question(other.prompt) or _same_form(*templates)


def _words(text: str) -> list[str]:
    return re.findall(rf"[^\W_]+|{SLOT}", text.casefold())


def _normal(text: str) -> str:
    return " ".join(w for w in _words(text) if w not in ARTICLES)


def _template(prompt: str, subject: str) -> list[str]:
    """The prompt's words with the subject's put into one slot."""
    pattern = re.compile(rf"(?<!\w){re.escape(subject.strip())}(?!\w)", re.IGNORECASE)
    return _words(pattern.sub(f" {SLOT} ", prompt, count=1))


def _pair_up(some: list[str], others: list[str]) -> bool:
    """One to one, greedily: equal words first, then the nearest spellings."""
    left = list(others)
    unmatched = []
    for word in some:
        if word in left:
            left.remove(word)
        else:
            unmatched.append(word)
    if len(unmatched) != len(left):
        return False
    for word in unmatched:
        near = max(left, key=lambda w: _likeness(word, w))
        if _likeness(word, near) < ALIKE:
            return False
        left.remove(near)
    return True


def _likeness(a: str, b: str) -> float:
    if any(c.isdigit() for c in a + b):
        return float(a == b)
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


def _same_form(one: list[str], other: list[str]) -> bool:
    """Two statements: the subject on one side, and no two different prepositions at the end."""
    first = [next(i for i, w in enumerate(t) if w not in FUNCTION_WORDS and w != SLOT) for t in (one, other)]
    ends = {t[-1] for t in (one, other)}
    if len(ends) == 2 and ends <= PREPOSITIONS:
        return False
    return (one.index(SLOT) < first[0]) == (other.index(SLOT) < first[1])


def _is_question(prompt: str) -> bool:
    text = prompt.strip().casefold()
    return text.endswith("?") or any(text.startswith(f"{word} ") for word in QUESTIONS)
