"""Data sets of edits. Nothing outside this folder knows a data set's key names: all of them become `EditRequest`s."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from roseedit.editsets.fields import Record
from roseedit.editsets.reading import read_array
from roseedit.editsets.registry import Editset, find, names
from roseedit.errors import DataError, RequestError, refusal
from roseedit.requests import EditRequest, check_request

__all__ = ["DATA_VARIABLE", "LoadedEditset", "RejectedRecord", "load_editset", "names"]

DATA_VARIABLE = "ROSEEDIT_DATA"
_SAMPLES = Path(__file__).resolve().parents[2] / "data"


@dataclass(frozen=True)
class RejectedRecord:
    """A record that is no possible edit.

    Attributes:
        index: Its position in the file, from 0.
        reason: What is wrong with it.
    """

    index: int
    reason: str


@dataclass(frozen=True)
class LoadedEditset:
    """The contents of one data-set file.

    Attributes:
        name: Name of the edit set.
        path: The file that was read.
        sha256: Its checksum; several revisions of every published set are about.
        requests: The edits, in the file's order. Two of them may contradict each other: some published sets do.
        rejected: The records that are not among them, and why.
    """

    name: str
    path: Path
    sha256: str
    requests: tuple[EditRequest, ...]
    rejected: tuple[RejectedRecord, ...]


def load_editset(name: str, path: str | Path | None = None, limit: int | None = None) -> LoadedEditset:
    """Load an edit set from a file, from the folder that ROSEEDIT_DATA names, or else from the repository's sample.

    Args:
        name: One of `names()`.
        path: A file in that set's schema; goes before everything else.
        limit: Read only this many records from the front of the file, rejected ones included.

    Returns:
        The requests and the rejected records.

    Raises:
        DataError: Unknown name, no file, a file that is not in the expected form, or one without a usable record.
    """
    editset = find(name)
    if limit is not None and limit < 1:
        raise DataError(refusal(f"limit={limit}", "1 or more, or None for all records", "Raise the limit."))
    file = _locate(editset, path)
    records, digest = read_array(file)
    outcomes = [_read_record(editset, record, index) for index, record in enumerate(records[:limit])]
    requests = tuple(item for item in outcomes if isinstance(item, EditRequest))
    rejected = tuple(item for item in outcomes if isinstance(item, RejectedRecord))
    if not requests:
        raise DataError(_nothing_usable(editset, file, rejected))
    return LoadedEditset(name, file, digest, requests, rejected)


def _locate(editset: Editset, path: str | Path | None) -> Path:
    if path is not None:
        return Path(path).expanduser()
    folder = os.environ.get(DATA_VARIABLE)
    if folder:
        # no fall-back from here to the sample: a score on 15 records must not pass for one on the real set
        return _existing(Path(folder).expanduser() / editset.relative_path, editset)
    if editset.sample is None:
        got = f"neither a path nor {DATA_VARIABLE} for {editset.name!r}, which has no sample"
        raise DataError(refusal(got, "one of the two", _remedies(editset)))
    return _existing(_SAMPLES / editset.sample, editset)


def _existing(file: Path, editset: Editset) -> Path:
    if not file.is_file():
        raise DataError(refusal(f"no file {file}", f"the records of {editset.name!r}", _remedies(editset)))
    return file


def _remedies(editset: Editset) -> str:
    return f"Pass path=... or let {DATA_VARIABLE} name a folder that holds {editset.relative_path}."


def _read_record(editset: Editset, record: Record, index: int) -> EditRequest | RejectedRecord:
    number = record.get(editset.id_key, index) if editset.id_key else index
    try:
        request = replace(editset.parse(record), source=f"{editset.name}:{number}")
        check_request(request, f"record {index}")
    except DataError as error:
        return RejectedRecord(index, f"record {index}: {error}")
    except RequestError as error:
        return RejectedRecord(index, str(error))
    return request


def _nothing_usable(editset: Editset, file: Path, rejected: tuple[RejectedRecord, ...]) -> str:
    got = f"{len(rejected)} records of which none can be used ({rejected[0].reason})" if rejected else "an empty array"
    remedy = "Check that the file belongs to this edit set."
    return f"{file}: {refusal(got, f'records in the schema of {editset.name!r}', remedy)}"
