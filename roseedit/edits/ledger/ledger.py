"""The ledger: every edit that a model ever got, what became of it, and a chain that shows later changes."""

from __future__ import annotations

import platform
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from roseedit import __version__
from roseedit.edits import storage
from roseedit.edits.ledger.blobs import Blobs
from roseedit.edits.ledger.chain import Fault, Standing, advance, linked, walk
from roseedit.edits.ledger.database import Database
from roseedit.edits.ledger.lock import WriterLock
from roseedit.edits.ledger.plans import Draft, Plan
from roseedit.edits.ledger.recovery import Report, inspect, set_aside
from roseedit.edits.ledger.schema import Entry, as_json
from roseedit.errors import LedgerError, TamperError, refusal

if TYPE_CHECKING:
    from roseedit.edits.edit import Edit
    from roseedit.models.load import LoadedModel

DATABASE, BLOBS = "ledger.sqlite", "blobs"


class Ledger:
    """A ledger folder: `ledger.sqlite` (the chain of entries) and `blobs/` (the edits' files).

    Args:
        folder: The folder.
        write: Hold the writer's lock until `close`. Without it, what is there is read, and stays as it was when it was
            opened (see `reload`).
        create: With `write`, make a ledger where there is none.
        mending: Open for writing although the chain is broken, for `set_aside`.

    Raises:
        LedgerError: No ledger there, or an unreadable one.
        LedgerBusyError: Another writer holds it.
        TamperError: Opened for writing, and its chain is broken.
    """

    def __init__(self, folder: str | Path, *, write: bool = False, create: bool = True, mending: bool = False) -> None:
        self.folder = Path(folder)
        self.blobs = Blobs(self.folder / BLOBS)
        self._lock: WriterLock | None = None
        if write and (create or (self.folder / DATABASE).is_file()):
            if self.folder.exists() and not self.folder.is_dir():
                got = f"{str(self.folder)!r}, which is no folder"
                raise LedgerError(refusal(got, "a new folder or one with a ledger", "Name another."))
            storage.make_folder(self.folder)
            self._lock = WriterLock(self.folder)
        try:
            self._db = Database(self.folder / DATABASE, write=self._lock is not None)
            self.reload()
            if write and not mending:
                self._refuse_broken()
        except BaseException:
            self.close()
            raise

    # -- reading

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The chain, oldest first, up to its first fault."""
        return tuple(self._entries)

    @property
    def fault(self) -> Fault | None:
        """Where the chain breaks, if it does."""
        return self._fault

    @property
    def head(self) -> str:
        """Hash of the last entry: who notes it elsewhere can prove later that nothing before it was changed or cut."""
        return self._entries[-1].hash if self._entries else ""

    @property
    def states(self) -> dict[str, Standing]:
        """Where every edit stands, in order of first entry."""
        return dict(self._states)

    @property
    def live(self) -> tuple[Standing, ...]:
        """The applied edits, in order of application."""
        return tuple(sorted((s for s in self._states.values() if s.live), key=lambda s: s.changed.seq))

    def find(self, edit_id: str) -> Standing:
        """An edit by its id or the beginning of it.

        Args:
            edit_id: At least four digits.

        Returns:
            Where it stands.

        Raises:
            LedgerError: None, or more than one.
        """
        if edit_id in self._states:
            return self._states[edit_id]
        found = [s for name, s in self._states.items() if len(edit_id) >= 4 and name.startswith(edit_id)]
        if len(found) == 1:
            return found[0]
        what = "fits several edits" if found else "is not in the ledger"
        known = ", ".join(s.edit_id for s in found or list(self._states.values())[-5:]) or "none yet"
        raise LedgerError(refusal(f"edit {edit_id!r}, which {what}", known, "See the list of edits."))

    def load(self, edit_id: str, loaded: LoadedModel | None = None) -> Edit:
        """Read an edit from its files, which are checked first.

        Args:
            edit_id: Which.
            loaded: A model that it must fit.

        Returns:
            The edit.

        Raises:
            LedgerError: Its files are gone, damaged, or those of another edit.
            DeltaError: Another base model.
        """
        from roseedit.edits.files import load_edit

        standing = self.find(edit_id)
        edit = load_edit(self.blobs.check(str(standing.record.blob)), loaded)
        if edit.edit_id != standing.edit_id:
            got = f"files of edit {edit.edit_id} where edit {standing.edit_id} should be"
            raise LedgerError(refusal(got, "the files that were entered", "Restore them from a backup."))
        return edit

    def check_same_base(self, edit: Edit) -> None:
        """Refuse an edit of another base, as far as that shows without the model.

        Args:
            edit: An edit that is to be entered.

        Raises:
            LedgerError: An applied edit of the same matrices has another base.
        """
        names = {m.weight_name for m in edit.delta.matrices}
        for standing in self.live:
            if standing.record.fingerprint == edit.fingerprint:
                return
            if {m.weight_name for m in self.load(standing.edit_id).delta.matrices} == names:
                got = f"edit {edit.edit_id} of {edit.model_name!r}, made for another base than edit {standing.edit_id}"
                raise LedgerError(refusal(got, "edits of one base in one ledger", "Use a ledger of its own for it."))

    def verify(self, head: str | None = None) -> Report:
        """Walk the whole chain and all files.

        Args:
            head: A hash that was noted earlier and must still be in the chain.

        Returns:
            What was found.
        """
        return inspect(self._db, self.blobs, head)

    def reload(self) -> None:
        """Read the chain anew."""
        self._entries, self._states, self._fault = walk(self._db.rows())

    # -- writing

    def commit(self, plan: Plan) -> list[Entry]:
        """Enter everything a plan says, in one transaction; files are on the disk before.

        Args:
            plan: What to enter.

        Returns:
            The new entries.

        Raises:
            LedgerError: Opened for reading, or somebody else wrote to it.
        """
        self._refuse_reading()
        self._refuse_broken()
        last = self._entries[-1] if self._entries else None
        if self._db.head() != ((last.seq, last.hash) if last else (0, "")):
            got = "a ledger that something else wrote to meanwhile"
            raise LedgerError(refusal(got, "changes through its one writer", "Open it anew."))
        now, call = _now(), str((last.seq if last else 0) + 1)
        entries = linked([self._entry(draft, now, call) for draft in plan.drafts], last)
        states = dict(self._states)
        for entry in entries:
            wrong = advance(states, entry)
            if wrong:
                raise LedgerError(refusal(f"edit {entry.edit_id}: {wrong}", "what its state allows", "See the log."))
        try:
            self._db.append(entries)
        except BaseException:
            self.reload()  # it may have failed after the commit
            raise
        self._entries += entries
        self._states = states
        return entries

    def gc(self, *, dry_run: bool = False) -> list[Path]:
        """Remove folders of files that no entry names, left by a crash between files and entry.

        Args:
            dry_run: Only say which.

        Returns:
            What was (or would be) removed.
        """
        if not dry_run:
            self._refuse_reading()
        report = self.verify()
        if not dry_run:
            for path in report.unreferenced:
                storage.remove_tree(path)
        return list(report.unreferenced)

    def set_aside(self) -> int:
        """Move a broken tail into the quarantine table, byte for byte, and note that in the chain.

        Returns:
            How many entries were moved.

        Raises:
            LedgerError: Opened for reading, or nothing is broken.
        """
        self._refuse_reading()
        moved = set_aside(self._db, _now())
        self.reload()
        return moved

    def close(self) -> None:
        """Let go of the files and of the writer's lock."""
        if hasattr(self, "_db"):
            self._db.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _entry(self, draft: Draft, now: str, call: str) -> Entry:
        """A draft as an entry without its place in the chain; a new edit's files are written on the way."""
        plain = Entry(0, "", now, call, draft.action, draft.edit_id, as_json(draft.detail))
        edit = draft.edit
        if edit is None or draft.edit_id in self._states:
            return plain
        from roseedit.edits.edit import request_as_mapping
        from roseedit.edits.record import edit_figures

        figures = edit_figures(edit)
        return replace(
            plain,
            requests=as_json([request_as_mapping(r) for r in edit.requests]),
            hparams=as_json(edit.hparams),
            seed=edit.hparams.get("seed"),
            versions=as_json(_versions()),
            model_name=edit.model_name,
            fingerprint=edit.fingerprint,
            norm=figures["norm"],
            density=figures["density"],
            report=as_json(edit.report),
            metrics=as_json(draft.metrics),
            blob=self.blobs.put(edit),
        )

    def _refuse_reading(self) -> None:
        if self._lock is None:
            raise LedgerError(refusal("a ledger open for reading", "one open for writing", "Open it with write=True."))

    def _refuse_broken(self) -> None:
        if self._fault is not None:
            message = refusal(
                f"a ledger whose chain is broken at {self._fault}",
                "a whole chain",
                "Restore it from a backup, or move the broken tail aside: roseedit edits verify --set-aside.",
            )
            raise TamperError(message)


def _now() -> str:
    return datetime.now(UTC).isoformat("T", "microseconds")


@cache
def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "safetensors")
    return {"roseedit": __version__, "python": platform.python_version(), **{n: metadata.version(n) for n in names}}
