"""`edit.json`: everything of an edit beside its numbers, with a seal over its own bytes.

The last line of the file is a hash of all bytes before it. It is checked before the JSON is parsed, so a damaged record
never reaches the parser.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from typing import Any

from roseedit import __version__
from roseedit.edits.blob import MatrixEntry
from roseedit.edits.delta import Delta
from roseedit.edits.edit import Edit, request_as_mapping, request_from_mapping
from roseedit.errors import AbsurdSizeError, DuplicateIndexError, NewerFormatError, RecordError, refusal
from roseedit.requests import EditRequest

RECORD = "edit.json"
FORMAT = 2
MAX_BYTES = 64 * 2**20
MAX_VALUES = 2**21
MAX_LENGTH = 2**28  # of a vector: a thousand vocabularies
_SEAL = re.compile(rb',\n "record_sha256": "([0-9a-f]{64})"\n}\Z')
_NUMBER = re.compile(rb'\{\s*"format":\s*(\d{1,9})\b')
_AGAIN = "Copy the edit anew."


def encode_record(edit: Edit, blob: bytes) -> bytes:
    """The record of an edit.

    Args:
        edit: The edit.
        blob: Its `delta.safetensors`.

    Returns:
        The bytes of `edit.json`.
    """
    record = {
        "format": FORMAT,
        "edit_id": edit.edit_id,
        "model_name": edit.model_name,
        "fingerprint": edit.fingerprint,
        "written_by": {"roseedit": __version__, **_versions()},
        "bytes": len(blob),
        "sha256": hashlib.sha256(blob).hexdigest(),
        "figures": edit_figures(edit),
        "hparams": dict(edit.hparams),
        "requests": [request_as_mapping(request) for request in edit.requests],
        "report": dict(edit.report),
        "scores": dict(edit.scores),
        "matrices": [
            {"weight": m.weight_name, "d_in": m.d_in, "d_out": m.d_out, "transposed": m.transposed}
            for m in edit.delta.matrices
        ],
    }
    return seal(record)


def edit_figures(edit: Edit) -> dict[str, float | int]:
    """Size of an edit: values stored, share of its matrices that is touched and the bound on it, Frobenius norm.

    Args:
        edit: The edit; what its report holds already is not computed again.

    Returns:
        The figures by name.
    """
    delta = edit.delta
    work: dict[str, Callable[[], float | int]] = {
        "values": lambda: delta.n_values,
        "density": lambda: delta.density,
        "density_bound": lambda: delta.density_bound,
        "norm": lambda: delta.norm,
    }
    known = {name: edit.report.get(name) for name in work}
    return {name: v if isinstance(v := known[name], (int, float)) else work[name]() for name in work}


@cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "transformers")}


def seal(record: Mapping[str, Any]) -> bytes:
    """A record as bytes, with their hash as its last line.

    Args:
        record: JSON values.

    Returns:
        The bytes of `edit.json`.
    """
    body = json.dumps(dict(record), indent=1, ensure_ascii=False).encode()
    end = f',\n "record_sha256": "{hashlib.sha256(body).hexdigest()}"\n}}'
    return body.removesuffix(b"\n}") + end.encode()


def read_record(raw: bytes) -> dict[str, Any]:
    """Check the seal, then parse.

    Args:
        raw: The bytes of `edit.json`.

    Returns:
        The record.

    Raises:
        NewerFormatError: A format that this version does not know.
        RecordError: Damaged, or not JSON.
        AbsurdSizeError: More values than any edit has.
    """
    number = _NUMBER.match(raw[:64])
    if number is None:
        raise _damaged("does not begin with its format number")
    if not 1 <= int(number[1]) <= FORMAT:
        got = f"edit format {int(number[1])}"
        raise NewerFormatError(refusal(got, f"1 to {FORMAT}", "Use the version of roseedit that wrote it."))
    if int(number[1]) == 1:
        return _read_format_1(raw)
    found = _SEAL.search(raw[-128:])
    if found is None:
        raise _damaged("does not end with the hash of its bytes")
    digest = hashlib.sha256(memoryview(raw)[: len(raw) - len(found[0])])
    digest.update(b"\n}")
    if digest.hexdigest().encode() != found[1]:
        raise _damaged("differs from its own hash")
    return _parsed(raw)


def _read_format_1(raw: bytes) -> dict[str, Any]:
    """The first format hashed the values of the record instead of its bytes."""
    record = _parsed(raw)
    rest = {key: v for key, v in record.items() if key != "record_sha256"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False)
    if hashlib.sha256(text.encode(errors="replace")).hexdigest() != record.get("record_sha256"):
        raise _damaged("differs from its own hash")
    return record


def _parsed(raw: bytes) -> dict[str, Any]:
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise AbsurdSizeError(refusal(f"{RECORD} with over {MAX_VALUES} values", "fewer", _AGAIN))
    try:
        record = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise _damaged("is not JSON") from error
    if not isinstance(record, dict):
        raise _damaged("is no mapping")
    return record


def _damaged(how: str) -> RecordError:
    return RecordError(refusal(f"{RECORD} that {how}", "the file as it was saved", _AGAIN))


def matrix_entries(record: Mapping[str, Any]) -> list[MatrixEntry]:
    """The matrices that a record announces.

    Args:
        record: The record.

    Returns:
        One entry per matrix.

    Raises:
        RecordError: None, or one that is described wrongly.
        AbsurdSizeError: One with a length that no matrix has.
        DuplicateIndexError: One that stands twice.
    """
    raw = _part(record, "matrices", list)
    entries = [_entry(values) for values in raw]
    if not entries:
        raise _damaged("names no matrix")
    names = [e.weight for e in entries]
    for name in names:
        if names.count(name) > 1:
            raise DuplicateIndexError(refusal(f"{RECORD} with {name} twice", "each matrix once", _AGAIN))
    return entries


def _entry(values: Any) -> MatrixEntry:
    if not isinstance(values, dict):
        raise _damaged("describes a matrix by something else than a mapping")
    weight, d_in, d_out = (_part(values, k, t) for k, t in (("weight", str), ("d_in", int), ("d_out", int)))
    for n in (d_in, d_out):
        if not 1 <= n <= MAX_LENGTH:
            raise AbsurdSizeError(refusal(f"{weight[:80]} with a side of {n}", f"1 to {MAX_LENGTH}", _AGAIN))
    return MatrixEntry(weight, d_in, d_out, _part(values, "transposed", bool))


def _part(record: Mapping[str, Any], key: str, kind: type) -> Any:
    value = record.get(key)
    if type(value) is not kind:
        raise _damaged(f"has {type(value).__name__ if key in record else 'nothing'} as {key!r}")
    return value


def edit_from_record(record: Mapping[str, Any], delta: Delta) -> Edit:
    """Put an edit together again.

    Args:
        record: Its record.
        delta: Its delta.

    Returns:
        The edit.

    Raises:
        RecordError: A part missing or of a wrong type, or an id that does not follow from the contents.
    """
    requests = tuple(_request(values) for values in _part(record, "requests", list))
    if not requests:
        raise _damaged("holds no request")
    hparams, report = _part(record, "hparams", dict), _part(record, "report", dict)
    scores = _part(record, "scores", dict) if "scores" in record else {}
    names = _part(record, "fingerprint", str), _part(record, "model_name", str)
    edit = Edit(delta, requests, hparams, *names, report, scores)
    if edit.edit_id != record.get("edit_id"):
        raise _damaged("has an edit id that does not follow from its contents")
    return edit


def _request(values: Any) -> EditRequest:
    try:
        request = request_from_mapping(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(f"holds a request that cannot be read ({error!r})"[:300]) from error
    texts = [request.prompt, request.target_new, *request.rephrase, *request.target_aliases]
    texts += [v for v in (request.subject, request.target_true, request.source) if v is not None]
    for probe in (*request.locality, *request.portability):
        texts += [probe.group, probe.prompt, *probe.aliases]
    if not all(isinstance(text, str) for text in texts):
        raise _damaged("holds a request with something else than text in it")
    return request
