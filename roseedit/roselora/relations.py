"""Other ways to ask for what a prompt asks, where it asks for a common relation.

A request names its relation in one wording only. Where that wording is of a relation in `relations.yaml`, the others
are asked for too, so that the edit is about the relation and not about the sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

TABLE = "relations.yaml"


@dataclass(frozen=True)
class Relation:
    """One relation.

    Attributes:
        said: What the phrases that ask for it look like; the subject is cut out before.
        wordings: Prompts for `str.format` with `s`, the subject; the answer comes next.
    """

    said: re.Pattern[str]
    wordings: tuple[str, ...]


@cache
def relations() -> tuple[Relation, ...]:
    """The table, narrow relations before wide ones."""
    rows = yaml.safe_load(resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8"))
    return tuple(Relation(re.compile("|".join(row["said"])), tuple(row["wordings"])) for row in rows)


def other_wordings(said: str) -> tuple[str, ...]:
    """Wordings of all relations that a prompt has no words of, but for those that ask for its own as well.

    Args:
        said: The prompt without its subject.

    Returns:
        Templates with `{s}` for the subject.
    """
    text, own = _plain(said), known_wordings(said)
    others = [w for relation in relations() if not relation.said.search(text) for w in relation.wordings]
    return tuple(wording for wording in others if wording not in own)


def known_wordings(said: str) -> tuple[str, ...]:
    """Wordings of the relation that a prompt asks for.

    Args:
        said: The prompt without its subject.

    Returns:
        Templates with `{s}` for the subject; none when no relation is recognised.
    """
    text = _plain(said)
    return next((relation.wordings for relation in relations() if relation.said.search(text)), ())


def _plain(said: str) -> str:
    return " ".join(said.casefold().split())
