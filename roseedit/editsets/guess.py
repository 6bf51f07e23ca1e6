"""Guessing which edit set's schema a file is in, by the keys of its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from roseedit.editsets.fields import Record

_ENOUGH = 200  # records to look at; dialects differ record by record in optional keys only


def _has(*keys: str) -> Callable[[Record], bool]:
    return lambda record: all(key in record for key in keys)


def _grouped(record: Record) -> bool:
    return any(isinstance(record.get(key), dict) for key in ("portability", "locality"))


# in order: the first test that holds decides, so the more special form stands before the more general one
_TESTS: tuple[tuple[str, Callable[[Record], bool]], ...] = (
    ("mquake", lambda r: isinstance(r.get("requested_rewrite"), list)),
    ("counterfact", lambda r: isinstance(r.get("requested_rewrite"), dict) or _has("paraphrase_prompts", "prompt")(r)),
    ("zsre", _has("src", "alt")),
    ("wikibio", _has("text", "labels", "concept")),
    ("qaedit", _has("prompt", "target", "subject")),
    ("wikibigedit", _has("update", "ans")),
    ("counterfact-flat", _has("prompt", "target_new", "ground_truth", "locality_prompt")),
    ("wikibigedit", _has("prompt", "target_new", "locality_prompt")),
    ("zsre-knowedit", lambda r: _has("target_new", "rephrase_prompt")(r) and _grouped(r)),
    ("wikidata-counterfact", lambda r: _has("target_new", "ground_truth")(r) and _grouped(r)),
    ("wikidata-recent", lambda r: _has("target_new")(r) and _grouped(r)),
)


def guess_editset(records: Sequence[object]) -> tuple[str | None, float]:
    """Guess the edit set that a file belongs to.

    Args:
        records: Raw records; what is no object counts against every guess.

    Returns:
        The name of the likeliest edit set, or None when no record is of a known form, and the share of the records
        looked at that are of its form.
    """
    looked = records[:_ENOUGH]
    votes = Counter(_form(record) for record in looked)
    votes.pop(None, None)
    if not votes:
        return None, 0.0
    name, count = votes.most_common(1)[0]
    return name, count / len(looked)


def _form(record: object) -> str | None:
    if not isinstance(record, dict):
        return None
    return next((name for name, holds in _TESTS if holds(record)), None)
