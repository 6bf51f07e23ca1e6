"""An edit as an object: what was asked, what was changed, with which settings, on which base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from roseedit.edits.delta import Delta
from roseedit.requests import EditRequest, Probe

if TYPE_CHECKING:
    from roseedit.edits.ledger.conflicts import Asked


@dataclass(frozen=True)
class Edit:
    """One edit.

    Attributes:
        delta: What it does to the weights.
        requests: What was asked; one, or all requests of a joint edit.
        hparams: The settings, by name, with `method`.
        fingerprint: Of the base model it was made for.
        model_name: What the user called that model.
        report: Figures of its making: steps, smallest target probability, whether it converged, density and bound.
        scores: What was measured of it when it was made, where it was measured (see `evaluation.table.scores`).
    """

    delta: Delta
    requests: tuple[EditRequest, ...]
    hparams: Mapping[str, Any]
    fingerprint: str
    model_name: str
    report: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def edit_id(self) -> str:
        """Twelve hex digits that depend on the requests, the settings, the base and the change itself."""
        asked = [request.request_id for request in self.requests]
        text = json.dumps([asked, dict(self.hparams), self.fingerprint, self.delta.digest], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def asked(self) -> tuple[Asked, ...]:
        """What it asked, as the rule on conflicts looks at it."""
        from roseedit.edits.ledger.conflicts import Asked

        return tuple(Asked.of(request) for request in self.requests)

    def __str__(self) -> str:
        first = self.requests[0]
        more = f" and {len(self.requests) - 1} more" if len(self.requests) > 1 else ""
        return f"{self.edit_id}: {first.prompt!r} -> {first.target_new!r}{more}"


def request_as_mapping(request: EditRequest) -> dict[str, Any]:
    """A request as plain JSON values.

    Args:
        request: The request.

    Returns:
        Its fields; empty ones left out.
    """
    return {name: v for name, v in asdict(request).items() if v not in (None, (), [])}


def request_from_mapping(values: Mapping[str, Any]) -> EditRequest:
    """The inverse of `request_as_mapping`.

    Args:
        values: Its result, after a trip through JSON.

    Returns:
        The request.

    Raises:
        TypeError: A field that a request does not have.
    """
    plain = dict(values)
    for name in ("locality", "portability"):
        plain[name] = tuple(_probe(p) for p in plain.get(name, ()))
    for name in ("rephrase", "target_aliases"):
        plain[name] = tuple(plain.get(name, ()))
    return EditRequest(**plain)


def _probe(values: Mapping[str, Any]) -> Probe:
    answers = tuple(tuple(aliases) for aliases in values.get("answers", ()))
    return Probe(values["group"], values["prompt"], answers)
