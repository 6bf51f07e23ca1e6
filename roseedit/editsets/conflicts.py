"""Edits that contradict one another, within one set or across several. Published sets contain them; callers decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roseedit.requests import EditRequest


@dataclass(frozen=True)
class Contradiction:
    """One prompt that is to get several answers.

    Attributes:
        prompt: The prompt, as its first request spells it.
        indices: Positions of all requests with this prompt.
        targets: Their new targets, in the same order.
    """

    prompt: str
    indices: tuple[int, ...]
    targets: tuple[str, ...]


def contradictions(requests: Sequence[EditRequest]) -> list[Contradiction]:
    """List the requests that ask for different answers to one prompt (letter case and outer blanks aside).

    Args:
        requests: Requests of one set, or of several joined.

    Returns:
        One entry per prompt, in order of first appearance.
    """
    by_prompt = _group(requests)
    return [
        Contradiction(requests[where[0]].prompt, tuple(where), tuple(requests[i].target_new for i in where))
        for where in by_prompt.values()
        if len({_key(requests[i].target_new) for i in where}) > 1
    ]


def repeats(requests: Sequence[EditRequest]) -> list[tuple[int, ...]]:
    """List the requests that ask for the same answer to the same prompt.

    Args:
        requests: Requests of one set, or of several joined.

    Returns:
        Positions of the equal ones, group by group.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault((_key(request.prompt), _key(request.target_new)), []).append(i)
    return [tuple(where) for where in groups.values() if len(where) > 1]


def without_contradictions(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Keep the first request of every contradiction, so that all can be applied to one model and be scored.

    Args:
        requests: The requests.

    Returns:
        Those that do not contradict an earlier one.
    """
    late = {
        i
        for found in contradictions(requests)
        for i, target in zip(found.indices, found.targets, strict=True)
        if _key(target) != _key(found.targets[0])
    }
    return [request for i, request in enumerate(requests) if i not in late]


def _group(requests: Sequence[EditRequest]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(_key(request.prompt), []).append(i)
    return groups


def _key(text: str) -> str:
    return text.strip().casefold()
