"""Reading a data-set file: a JSON array of objects, or a refusal that names the file and the record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from roseedit.editsets.fields import Record, json_kind
from roseedit.errors import DataError, refusal


def read_array(path: Path) -> tuple[list[Record], str]:
    """Read a JSON array of objects.

    Args:
        path: The file.

    Returns:
        The records, and the SHA-256 of the file in hex.

    Raises:
        DataError: The file cannot be read, is not JSON, not an array, or holds something that is not an object.
    """
    raw = _read_bytes(path)
    records = _decode(raw, path)
    if not isinstance(records, list):
        message = refusal(json_kind(records), "a JSON array of objects", "Check that this is the right file.")
        raise DataError(f"{path}: {message}")
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            message = refusal(json_kind(record), "a JSON object", "Repair or remove the record.")
            raise DataError(f"{path}: record {index}: {message}")
    return records, hashlib.sha256(raw).hexdigest()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = refusal(error.strerror or type(error).__name__, "a readable file", "Check the path.")
        raise DataError(f"{path}: {message}") from error


def _decode(raw: bytes, path: Path) -> Any:
    try:
        # utf-8-sig: editors on Windows like to put a byte order mark in front, which json.loads refuses
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        remedy = "Fetch the file again; JSON Lines must be turned into one array."
        message = refusal(f"text that is not JSON ({error})", "a JSON array in UTF-8", remedy)
        raise DataError(f"{path}: {message}") from error
