"""Reading a data-set file: a JSON array or JSON Lines. What is no object is handed on as broken, with the reason."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roseedit.editsets.fields import Record, json_kind
from roseedit.errors import DataError, refusal


@dataclass(frozen=True)
class Broken:
    """Stands in the place of a record that could not be read.

    Attributes:
        reason: What is wrong with it.
    """

    reason: str


def read_records(path: Path) -> tuple[list[Record | Broken], str]:
    """Read the records of a file.

    Args:
        path: A JSON array of objects, or JSON Lines, in UTF-8.

    Returns:
        One entry per element or line that is not blank, and the SHA-256 of the file in hex.

    Raises:
        DataError: The file cannot be read, or is neither of the two.
    """
    raw = _read_bytes(path)
    return _records(raw, path), hashlib.sha256(raw).hexdigest()


def _records(raw: bytes, path: Path) -> list[Record | Broken]:
    try:
        # utf-8-sig: editors on Windows like to put a byte order mark in front, which json.loads refuses
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(_not_json(path, error)) from error
    if path.suffix == ".jsonl":
        return _lines(text)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = _lines(text)
        if not lines or isinstance(lines[0], Broken):
            raise DataError(_not_json(path, error)) from error
        return lines
    if not isinstance(values, list):
        message = refusal(json_kind(values), "a JSON array of objects", "Check that this is the right file.")
        raise DataError(f"{path}: {message}")
    return [_record(value) for value in values]


def _lines(text: str) -> list[Record | Broken]:
    # not splitlines: a JSON text may hold U+2028 and other line ends of Unicode as they are
    return [_line(line) for line in text.split("\n") if line.strip()]


def _line(line: str) -> Record | Broken:
    try:
        return _record(json.loads(line))
    except (ValueError, RecursionError) as error:
        return Broken(refusal(f"a line that is not JSON ({error})", "one JSON object a line", "Repair or remove it."))


def _record(value: Any) -> Record | Broken:
    if isinstance(value, dict):
        return value
    return Broken(refusal(json_kind(value), "a JSON object", "Repair or remove the record."))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = refusal(error.strerror or type(error).__name__, "a readable file", "Check the path.")
        raise DataError(f"{path}: {message}") from error


def _not_json(path: Path, error: Exception) -> str:
    message = refusal(f"text that is not JSON ({error})", "a JSON array or JSON Lines in UTF-8", "Fetch it again.")
    return f"{path}: {message}"
