"""The ledger's SQLite file: opened safely, read whole, written one transaction at a time."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roseedit.edits import storage
from roseedit.edits.ledger.schema import APPLICATION, FORMAT, INSERT, SCHEMA, SELECT, Entry, row_of
from roseedit.errors import LedgerError, refusal

BUSY_SECONDS = 10.0  # a reader may hold the file for an instant, e.g. while it tidies the log up


class Database:
    """One connection.

    Args:
        path: The file.
        write: Open for writing; makes the file if it is not there.

    Raises:
        LedgerError: No such file, not a ledger, of a newer format, or damaged.
    """

    def __init__(self, path: Path, *, write: bool) -> None:
        self.path = path
        if not write and not path.is_file():
            got = f"{str(path.parent)!r}, which holds no ledger"
            raise LedgerError(refusal(got, "the folder of a ledger", "Check the path; an Editor makes new ledgers."))
        with self._named():
            self._db = _connect(path, write)
            try:
                self._check(write)
            except BaseException:
                self._db.close()
                raise

    def rows(self) -> list[tuple[Any, ...]]:
        """All entries as they lie there, by number."""
        with self._named():
            return self._db.execute(SELECT).fetchall()

    def head(self) -> tuple[int, str]:
        """Number and hash of the last entry; (0, "") in an empty ledger."""
        with self._named():
            found = self._db.execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return found or (0, "")

    def quarantined(self) -> list[tuple[int, str, str, str]]:
        """Rows that were set aside: number, when, why, and the row as JSON."""
        with self._named():
            return self._db.execute("SELECT seq, at, reason, row FROM quarantine ORDER BY at, seq").fetchall()

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries; all of them, durably, or none."""
        with self._named(), storage.transaction(self._db, self.path):
            self._insert(entries)

    def set_aside(self, rows: Sequence[tuple[int, str, str, str]], note: Sequence[Entry]) -> None:
        """Move rows into the quarantine and enter a note of it."""
        with self._named(), storage.transaction(self._db, self.path):
            for row in rows:
                storage.execute(self._db, self.path, "INSERT INTO quarantine VALUES (?, ?, ?, ?)", row)
            storage.execute(self._db, self.path, "DELETE FROM entries WHERE seq >= ?", (rows[0][0],))
            self._insert(note)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _insert(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            storage.execute(self._db, self.path, INSERT, row_of(entry))

    def _check(self, write: bool) -> None:
        found, empty = _pragma(self._db, "user_version"), _pragma(self._db, "application_id") == 0
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if write and empty and found == 0 and tables == 0:
            _make(self._db, self.path)
        elif empty or _pragma(self._db, "application_id") != APPLICATION:
            got = f"{str(self.path)!r}, an SQLite file of something else"
            raise LedgerError(refusal(got, "a ledger of roseedit", "Check the path."))
        elif found != FORMAT:
            raise LedgerError(refusal(f"ledger format {found}", f"{FORMAT}", "Use the version that wrote it."))

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            got = f"{str(self.path)!r}, which SQLite cannot use ({error})"
            raise LedgerError(
                refusal(got, "a readable ledger", "Restore it from a backup, or free the disk.")
            ) from error


def _connect(path: Path, write: bool) -> sqlite3.Connection:
    mode = "rwc" if write else "rw" if os.access(path.parent, os.W_OK) and os.access(path, os.W_OK) else "ro"
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    # The Editor's owner sees to it that threads take turns; SQLite itself is built to be used from several.
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
    if write:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    else:
        db.execute("PRAGMA query_only = 1")
    return db


def _make(db: sqlite3.Connection, path: Path) -> None:
    with storage.transaction(db, path):
        for statement in SCHEMA:
            storage.execute(db, path, statement)
    storage.sync_folder(path.parent)


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])
