"""Does an edit survive its export? What the model says to the edit prompts, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from roseedit.edits.edit import Edit
from roseedit.edits.live import live_edits
from roseedit.evaluation.generation import generate
from roseedit.evaluation.metrics import bootstrap_interval, exact_match, mean_by_edit
from roseedit.models.load import LoadedModel


@dataclass(frozen=True)
class Survival:
    """Generated exact match at a natural stop, on every request's prompt, of two models.

    Attributes:
        before: Per request, with the edits live in memory.
        after: Per request, of what was exported.
        owner: Per request the number of its edit.
        prompts: Per request its prompt.
    """

    before: tuple[bool, ...]
    after: tuple[bool, ...]
    owner: tuple[int, ...]
    prompts: tuple[str, ...]

    @property
    def lost(self) -> tuple[str, ...]:
        """Prompts that were answered as wanted by the live edits and are not by the export."""
        return tuple(prompt for prompt, b, a in zip(self.prompts, self.before, self.after, strict=True) if b and not a)

    def as_mapping(self) -> dict[str, Any]:
        """Means over edits with bootstrap intervals, and what was lost."""
        return {
            "reliability_live": _figure(self.before, self.owner),
            "reliability_exported": _figure(self.after, self.owner),
            "requests": len(self.prompts),
            "lost": list(self.lost),
        }


def survival(loaded: LoadedModel, exported: LoadedModel, edits: Sequence[Edit]) -> Survival:
    """Ask both models.

    Args:
        loaded: The base; the edits are put on it for as long as it is asked.
        exported: What was exported, loaded anew.
        edits: The edits.

    Returns:
        Their answers, right or wrong.
    """
    owner = tuple(i for i, edit in enumerate(edits) for _ in edit.requests)
    with live_edits(loaded.model).only([edit.delta for edit in edits]):
        before = _answers(loaded, edits)
    prompts = tuple(r.prompt for edit in edits for r in edit.requests)
    return Survival(before, _answers(exported, edits), owner, prompts)


def _answers(loaded: LoadedModel, edits: Sequence[Edit]) -> tuple[bool, ...]:
    requests = [r for edit in edits for r in edit.requests]
    said = generate(loaded, [r.prompt for r in requests])
    return tuple(exact_match(text, r.accepted) for text, r in zip(said, requests, strict=True))


def _figure(hits: Sequence[bool], owner: Sequence[int]) -> dict[str, float]:
    means = mean_by_edit([float(hit) for hit in hits], list(owner))
    low, high = bootstrap_interval(means)
    return {"mean": sum(means) / len(means), "low": low, "high": high, "n": len(means)}
