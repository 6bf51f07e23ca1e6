"""Where a run keeps what, and writing such that a reader (or the next start after a kill) never sees half a file."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roseedit.edits.storage import sync_folder
from roseedit.errors import RunError, refusal


class Layout:
    """The places inside a run's directory.

    Args:
        root: The directory.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.identity = self.root / "run.json"
        self.requests = self.root / "requests.json"
        self.summary = self.root / "summary.json"
        self.table = self.root / "table.md"
        self.cost = self.root / "cost.json"
        self.ability = self.root / "ability.json"
        self.units = self.root / "units"
        self.steps = self.root / "steps"
        self.checkpoints = self.root / "checkpoints"
        self.edits = self.root / "edits"
        self.rows = self.root / "rows"
        self.costs = self.root / "costs"
        self.lock = self.root / ".lock"

    def unit(self, number: int) -> Path:
        """Rows of one finished unit."""
        return self.units / f"unit-{number:05d}.parquet"

    def step(self, number: int) -> Path:
        """Rows of one edit of a sequence, taken right after it was made."""
        return self.steps / f"step-{number:05d}.parquet"

    def checkpoint(self, live: int) -> Path:
        """Rows of all edits of a sequence so far, taken when `live` were live."""
        return self.checkpoints / f"live-{live:05d}.parquet"

    def edit(self, number: int) -> Path:
        """Folder of one saved edit of a sequence, or of the joint edit (0)."""
        return self.edits / f"edit-{number:05d}"

    def shard(self, index: int, count: int) -> Path:
        """Rows of one shard."""
        return self.rows / f"shard-{index}-of-{count}.parquet"

    def cost_of(self, rows: Path) -> Path:
        """Time and memory that went into a file of rows."""
        return self.costs / f"{rows.stem}.json"


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside, flush to the disk, rename, flush the folder.

    Args:
        path: The file; its folder is made when needed.
        data: The content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with beside.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def write_once(path: Path, data: bytes) -> bool:
    """As `write_atomic`, unless the file is there: of several processes exactly one succeeds.

    Args:
        path: The file.
        data: The content.

    Returns:
        True when this call wrote it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    write_atomic(beside, data)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def as_json(value: Any) -> bytes:
    """Bytes that depend on the value alone: keys sorted, floats in full."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Mapping[str, Any]:
    """Read an object from a file of this run.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        RunError: It is not there or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = refusal(f"{path} ({error})", "a file written by `roseedit evaluate`", "Check the path.")
        raise RunError(message) from error
    if not isinstance(value, dict):
        raise RunError(refusal(f"{path} holding {type(value).__name__}", "a JSON object", "Restore the file."))
    return value
