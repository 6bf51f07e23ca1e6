"""What an entry of the ledger is, how it is hashed, and the tables it lies in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

FORMAT = 1
APPLICATION = 0x526F7365  # "Rose", SQLite's application id
GENESIS = "0" * 64
ACTIONS = ("applied", "reverted", "rejected", "consolidated", "mended")

SCHEMA = (
    """
    CREATE TABLE entries (
        seq INTEGER PRIMARY KEY, parent TEXT NOT NULL, at TEXT NOT NULL, call TEXT NOT NULL, action TEXT NOT NULL,
        edit_id TEXT, detail TEXT NOT NULL, requests TEXT, hparams TEXT, seed INTEGER, versions TEXT, model_name TEXT,
        fingerprint TEXT, norm REAL, density REAL, report TEXT, metrics TEXT, blob TEXT, hash TEXT NOT NULL UNIQUE
    )""",
    "CREATE TABLE quarantine (seq INTEGER NOT NULL, at TEXT NOT NULL, reason TEXT NOT NULL, row TEXT NOT NULL)",
    """
    CREATE TRIGGER no_update BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries of the ledger are never changed'); END""",
    """
    CREATE TRIGGER no_delete BEFORE DELETE ON entries
    WHEN NOT EXISTS (SELECT 1 FROM quarantine WHERE quarantine.seq = OLD.seq)
    BEGIN SELECT RAISE(ABORT, 'entries of the ledger are never deleted'); END""",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {FORMAT}",
)


@dataclass(frozen=True)
class Entry:
    """One line of the chain: something that was done, once. Texts are JSON where the name is plural or says so.

    Attributes:
        seq: 1, 2, 3, ... without gaps.
        parent: Hash of the entry before.
        at: When, UTC.
        call: Entries of one call share it; they came in one transaction.
        action: One of `ACTIONS`.
        edit_id: Which edit; None for a note about the ledger itself.
        detail: JSON: why, what it replaces or consolidates, the health figures.
        requests: JSON: what was asked. This and the fields below are set where an edit is entered for the first time.
        hparams: JSON: the settings.
        seed: The seed in them.
        versions: JSON: of roseedit, torch, transformers and Python.
        model_name: What the user called the model.
        fingerprint: Of the base.
        norm: Frobenius norm of the change.
        density: Share of the adapted matrices that it touches.
        report: JSON: figures of its making.
        metrics: JSON: how well it worked, or null.
        blob: SHA-256 of its files.
        hash: Over all of the above.
    """

    seq: int
    parent: str
    at: str
    call: str
    action: str
    edit_id: str | None
    detail: str
    requests: str | None = None
    hparams: str | None = None
    seed: int | None = None
    versions: str | None = None
    model_name: str | None = None
    fingerprint: str | None = None
    norm: float | None = None
    density: float | None = None
    report: str | None = None
    metrics: str | None = None
    blob: str | None = None
    hash: str = ""

    @property
    def details(self) -> dict[str, Any]:
        """`detail`, decoded."""
        found: dict[str, Any] = json.loads(self.detail)
        return found

    @property
    def is_record(self) -> bool:
        """True where the edit itself is entered."""
        return self.blob is not None


COLUMNS = tuple(f.name for f in fields(Entry))
INSERT = f"INSERT INTO entries ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
SELECT = f"SELECT {', '.join(COLUMNS)} FROM entries ORDER BY seq"


def entry_hash(entry: Entry) -> str:
    """Hash of everything in an entry beside the hash itself.

    Args:
        entry: The entry.

    Returns:
        64 hex digits.
    """
    return hash_of_row(row_of(entry))


def hash_of_row(row: Sequence[Any]) -> str:
    """As `entry_hash`, of a row as the table holds it, whatever types it holds.

    Args:
        row: In the order of `COLUMNS`.

    Returns:
        64 hex digits.
    """
    named = [[name, v] for name, v in zip(COLUMNS, row, strict=True) if name != "hash"]
    return hashlib.sha256(json.dumps(named, ensure_ascii=False, default=repr).encode()).hexdigest()


def row_of(entry: Entry) -> tuple[Any, ...]:
    """The entry as a row of the table."""
    return tuple(getattr(entry, name) for name in COLUMNS)


def as_json(values: Any) -> str:
    """Plain JSON in a fixed order; NaN and infinity become null, for JSON has no word for them.

    Args:
        values: Mappings, sequences, numbers, texts.

    Returns:
        One line.
    """
    return json.dumps(_plain(values), sort_keys=True, ensure_ascii=False, allow_nan=False)


def _plain(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {str(k): _plain(v) for k, v in values.items()}
    if isinstance(values, (list, tuple)):
        return [_plain(v) for v in values]
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    return values if values is None or isinstance(values, (str, int, bool)) else str(values)
