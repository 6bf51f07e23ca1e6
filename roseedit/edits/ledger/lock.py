"""One writer at a time, and its name for the one who comes second."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from roseedit.errors import LedgerBusyError, refusal


class WriterLock:
    """Held from opening to closing; the system lets go of it when a process dies, however it dies.

    Args:
        folder: The ledger's folder.

    Raises:
        LedgerBusyError: Somebody else writes to this ledger.
    """

    def __init__(self, folder: Path) -> None:
        self._note = folder / "writer.json"
        self._lock = FileLock(folder / "writer.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            got = f"the ledger {str(folder)!r}, which {self._holder()} is writing to"
            remedy = "Close that one first; reading (list, show, log, verify) is possible meanwhile."
            raise LedgerBusyError(refusal(got, "one writer at a time", remedy)) from None
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat("T", "seconds")}
        self._note.write_text(json.dumps(note))  # a courtesy to the second writer; the lock itself does not need it

    def release(self) -> None:
        """Let go."""
        self._lock.release()

    def _holder(self) -> str:
        try:
            note = json.loads(self._note.read_text())
            mine = " (this one)" if note["pid"] == os.getpid() else ""
            return f"process {note['pid']}{mine} on {note['host']}, since {note['since']},"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
