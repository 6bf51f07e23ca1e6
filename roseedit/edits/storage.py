"""The one small file layer under edits: every write, flush, rename and commit goes through here.

Nothing here knows what is written. Each primitive operation is announced before and after it happens, so that a test
can raise, or kill the process, at every boundary (`watched`).
"""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Watch = Callable[[str, Path], None]
_watch: Watch | None = None
_numbers = itertools.count()
TEMPORARY = ".tmp-"


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Tell `watch` of every boundary passed in the block; it may raise, or end the process.

    Args:
        watch: Called with e.g. `"before fsync"` and the path.

    Yields:
        Nothing.
    """
    global _watch  # noqa: PLW0603 - one process, one file layer
    old, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = old


@contextmanager
def _doing(what: str, path: Path) -> Iterator[None]:
    if _watch is not None:
        _watch(f"before {what}", path)
    yield
    if _watch is not None:
        _watch(f"after {what}", path)


def write_file(path: Path, data: bytes) -> None:
    """Write beside, flush, rename, flush the folder: a reader never sees half a file, a crash never loses a whole one.

    Args:
        path: Where.
        data: What.
    """
    beside = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        _write_flushed(beside, data)
        rename(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write a new folder of files and flush it; its own name lasts once it is renamed to what it is to be called.

    Args:
        folder: A temporary name.
        contents: Files by name.
    """
    with _doing("mkdir", folder):
        folder.mkdir()
    for name, data in contents.items():
        _write_flushed(folder / name, data)
    sync_folder(folder)


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as out:
        with _doing("write", path):
            out.write(data)
            out.flush()
        with _doing("fsync", path):
            os.fsync(out.fileno())


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name on the same disk, and make that last.

    Args:
        source: What.
        target: Its new name, not in use (a file may be replaced).
    """
    with _doing("rename", target):
        source.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder, where the system can do that.

    Args:
        folder: The folder.
    """
    with _doing("fsync", folder):
        if os.name == "nt":  # Windows opens no folders and journals its names itself
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder with its parents, durably.

    Args:
        folder: The folder; may be there already.
    """
    missing = list(itertools.takewhile(lambda p: not p.exists(), (folder, *folder.parents)))
    for one in reversed(missing):
        with _doing("mkdir", one):
            one.mkdir(exist_ok=True)
        sync_folder(one.parent)


def temporary_name(folder: Path) -> Path:
    """A name in `folder` that nobody uses and that says it is no finished thing.

    Args:
        folder: Where.

    Returns:
        The path; nothing is made.
    """
    return folder / f"{TEMPORARY}{os.getpid()}-{next(_numbers)}"


def remove_tree(folder: Path) -> None:
    """Remove a folder; it loses its name first, so that a crash never leaves half of it under that name.

    Args:
        folder: The folder.
    """
    doomed = folder
    if not folder.name.startswith(TEMPORARY):
        doomed = temporary_name(folder.parent)
        rename(folder, doomed)
    with _doing("remove", doomed):
        shutil.rmtree(doomed)


def execute(db: sqlite3.Connection, path: Path, statement: str, values: Sequence[Any] = ()) -> None:
    """One changing statement.

    Args:
        db: The connection.
        path: The database's file, for the watch.
        statement: SQL.
        values: Its parameters.
    """
    with _doing("statement", path):
        db.execute(statement, values)


@contextmanager
def transaction(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """All statements of the block or none of them, on the disk when the block is left.

    Args:
        db: A connection in autocommit mode.
        path: The database's file, for the watch.

    Yields:
        Nothing.
    """
    execute(db, path, "BEGIN IMMEDIATE")
    try:
        yield
        with _doing("commit", path):
            db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
