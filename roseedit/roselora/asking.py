"""What a prompt asks for: the words of its relation, and whether it is a question."""

from __future__ import annotations

import re

from roseedit.requests import EditRequest

_LEAD = re.compile(r"^(the )?(names? of )?(the )?", re.IGNORECASE)
_TAIL = re.compile(r"\b(is|are|was|were|be|of|in|the|by|as|to|from|with|which|that)$", re.IGNORECASE)

# Of questions.
_ASKS = re.compile(
    r"^((in|at|on|to|for|from|by|of|with) )?(what|which|who|whom|whose|where|when|how)('s)?\b", re.IGNORECASE
)
_AHEAD = re.compile(r"^(is|are|was|were|did|does|do|has|have|had|the|a|an)\b", re.IGNORECASE)
_HELPERS = re.compile(r"\b(?:is|are|was|were|did|does|do|has|have|had|that|where|when|would|can)\b", re.IGNORECASE)
_VAGUE = re.compile(
    r"(place|location|city|town|state|country|year|date|day|time|person|company|business)", re.IGNORECASE
)
_BEHIND = re.compile(
    r"('s names?|\b(for|at|on|with|who|whom|what|which|called|named|is|are|was|were|of))$", re.IGNORECASE
)


def is_question(prompt: str) -> bool:
    """Whether the answer stands behind a question mark."""
    return prompt.rstrip().endswith("?")


def relation_words(request: EditRequest) -> str:
    """The words of a prompt that ask for the relation: what is left without subject, lead-in and trailing verb.

    Args:
        request: The request; its subject is cut out.

    Returns:
        A few words, possibly none.
    """
    text = " ".join(re.findall(r"[\w'-]+", request.prompt.replace(request.subject or "\0", " ")))
    if is_question(request.prompt):
        return _asked_words(text)
    return _trimmed(_LEAD.sub("", text), _TAIL)


def _asked_words(text: str) -> str:
    """What a question without its subject asks for: "What is the date of death for" -> "date of death"."""
    text, asks_first = _ASKS.subn("", re.sub(r"(^| )'s\b", " ", text).strip())
    if asks_first:
        # "which constellation is _ part of": the noun tells; "in what city was _ born": the verb does.
        noun, *rest = _HELPERS.split(_trimmed(text, _AHEAD), maxsplit=1)
        noun = noun.strip()
        text = " ".join([noun, *" ".join(rest).split()]) if _VAGUE.fullmatch(noun) else noun
    return _trimmed(_trimmed(_LEAD.sub("", text), _BEHIND), _TAIL)


def _trimmed(text: str, edge: re.Pattern[str]) -> str:
    """Without what stands at an edge, however often."""
    while (shorter := edge.sub("", text).strip()) != text:
        text = shorter
    return text
