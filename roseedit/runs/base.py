"""What the unedited model makes of a unit's questions: computed once, kept in a cache, checked before it is used again.

The cache's key holds everything the scores depend on: the bytes of the model, the very questions and their order (hence
the batches), how answers are decoded, device, precision, threads and package versions. So runs of several methods over
one set share it, and nothing else can. Next-token distributions are too large to keep and are computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from roseedit.edits.live import live_edits
from roseedit.evaluation.looks import Look, look, with_following
from roseedit.evaluation.prompts import Generated
from roseedit.evaluation.scoring import PairScore
from roseedit.evaluation.table import Question
from roseedit.models.load import LoadedModel
from roseedit.runs.files import as_json, write_atomic

PARTS = ("said", "reference", "old", "easyedit")
logger = logging.getLogger(__name__)


@contextmanager
def unedited(loaded: LoadedModel) -> Iterator[None]:
    """Show the base model for the length of a block, whatever is live; afterwards every byte is as it was.

    Args:
        loaded: The model.

    Yields:
        Nothing.
    """
    live = live_edits(loaded.model)
    names = {m.weight_name for delta in live.deltas for m in delta.matrices}
    originals = {name: live.pristine(name) for name in sorted(names)}
    kept = {name: loaded.model.get_parameter(name).detach().clone() for name in originals}
    with torch.no_grad():
        try:
            for name, original in originals.items():
                loaded.model.get_parameter(name).copy_(original)
            yield
        finally:
            for name, current in kept.items():
                loaded.model.get_parameter(name).copy_(current)


class BaseScores:
    """Readings of the unedited model.

    Args:
        loaded: The model; edits may be live on it.
        identity: Content of `run.json`.
        folder: The cache.
    """

    def __init__(self, loaded: LoadedModel, identity: Mapping[str, Any], folder: Path) -> None:
        self.loaded = loaded
        self.folder = folder
        parts = ("format", "base", "decode", "versions")
        self.where = {name: identity[name] for name in parts} | {"threads": identity["plan"]["threads"]}

    def of(self, asked: Sequence[Question]) -> list[Look]:
        """What the unedited model makes of some questions.

        Args:
            asked: The questions.

        Returns:
            One reading per question.
        """
        found = self.kept(asked)
        with unedited(self.loaded):
            return with_following(self.loaded, asked, found)

    def kept(self, asked: Sequence[Question]) -> list[Look]:
        """As `of`, without next-token distributions.

        Args:
            asked: The questions.

        Returns:
            One look per question.
        """
        key = as_json({**self.where, "questions": [asdict(q) for q in asked]})
        path = self.folder / f"{hashlib.sha256(key).hexdigest()}.json"
        found = _read(path, len(asked))
        if found is None:
            with unedited(self.loaded):
                found = [replace(seen, following=None) for seen in look(self.loaded, asked)]
            write_atomic(path, _packed(found))
        return found


def _packed(found: Sequence[Look]) -> bytes:
    """The readings with a checksum; numbers keep every digit through JSON."""
    rows = [{name: _plain(getattr(r, name)) for name in PARTS} for r in found]
    return as_json({"sha256": _digest(rows), "rows": rows})


def _digest(rows: Any) -> str:
    return hashlib.sha256(as_json(rows)).hexdigest()


def _plain(value: Generated | PairScore | None) -> Any:
    return None if value is None else asdict(value)


def _read(path: Path, n: int) -> list[Look] | None:
    """Kept readings, or None where there are none that can be trusted."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = values["rows"]
        if values["sha256"] != _digest(rows) or len(rows) != n:
            raise ValueError("checksum")
        return [_look(row) for row in rows]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("base scores in %s are damaged (%s) and are computed anew", path, error)
        return None


def _look(row: Mapping[str, Any]) -> Look:
    pairs = {name: _pair(row[name]) for name in PARTS[1:]}
    return Look(said=Generated(**row["said"]), following=None, **pairs)


def _pair(values: Mapping[str, Any] | None) -> PairScore | None:
    if values is None:
        return None
    return PairScore(tuple(values["target"]), tuple(values["logprobs"]), tuple(values["argmax"]))
