"""What a crash or a tamperer may have left: found, named, and set aside only when asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from roseedit.edits.ledger.blobs import Blobs
from roseedit.edits.ledger.chain import Fault, linked, walk
from roseedit.edits.ledger.database import Database
from roseedit.edits.ledger.schema import COLUMNS, Entry, as_json
from roseedit.edits.storage import TEMPORARY
from roseedit.errors import LedgerError, refusal

EDIT_RECORD = "edit.json"


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        entries: Entries that can be trusted.
        head: Hash of the last of them.
        faults: All that is wrong; empty in a sound ledger.
        broken: Entries from the first fault of the chain on; they count for nothing until somebody looks into it.
        unreferenced: Folders of files without an entry; harmless, `gc` removes them. Where entries were changed or
            set aside, only such as were never finished.
    """

    entries: int
    head: str
    faults: tuple[Fault, ...]
    broken: int
    unreferenced: tuple[Path, ...]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.faults


def inspect(db: Database, blobs: Blobs, head: str | None = None) -> Report:
    """Walk the chain and all files.

    Args:
        db: The database.
        blobs: The edits' files.
        head: A hash noted earlier that must still be in the chain.

    Returns:
        What was found.
    """
    rows = db.rows()
    entries, _, fault = walk(rows)
    faults = [fault] if fault else []
    faults += [Fault(e.seq, what, breaks=False) for e in entries for what in _file_faults(e, blobs)]
    if head and not any(e.hash.startswith(head) for e in entries):
        faults.append(Fault(0, f"the noted head {head[:12]} is not in the chain: newer entries were cut or changed"))
    left = blobs.unreferenced({str(row[COLUMNS.index("blob")]) for row in rows})
    if fault or db.quarantined():  # whose files these are cannot be told from entries that were changed: keep them
        left = [path for path in left if path.name.startswith(TEMPORARY)]
    last = entries[-1].hash if entries else ""
    return Report(len(entries), last, tuple(faults), len(rows) - len(entries), tuple(left))


def _file_faults(entry: Entry, blobs: Blobs) -> list[str]:
    if entry.blob is None:
        return []
    what = blobs.fault(entry.blob)
    if what:
        return [what]
    try:
        record = json.loads((blobs.path(entry.blob) / EDIT_RECORD).read_text(encoding="utf-8"))
        pairs = {name: (record[name], getattr(entry, name)) for name in ("edit_id", "fingerprint", "model_name")}
        pairs |= {n: (as_json(record[n]), getattr(entry, n)) for n in ("requests", "hparams", "report")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"its files cannot be read ({error!r})"]
    return [f"its {name} differs from that in its files" for name, (a, b) in pairs.items() if a != b]


def set_aside(db: Database, now: str) -> int:
    """Move the entries from the first fault on into the quarantine table.

    Args:
        db: The database.
        now: The time, for the notes.

    Returns:
        How many were moved.

    Raises:
        LedgerError: The chain is whole.
    """
    rows = db.rows()
    entries, _, fault = walk(rows)
    if fault is None:
        raise LedgerError(refusal("a ledger whose chain is whole", "a broken one", "There is nothing to set aside."))
    tail = rows[len(entries) :]
    at = COLUMNS.index("seq")
    moved = [(row[at], now, str(fault), json.dumps(list(row), ensure_ascii=False, default=repr)) for row in tail]
    detail = as_json({"set_aside": len(tail), "why": str(fault), "hashes": [str(row[-1]) for row in tail]})
    note = Entry(0, "", now, str(len(entries) + 1), "mended", None, detail)
    db.set_aside(moved, linked([note], entries[-1] if entries else None))
    return len(tail)
