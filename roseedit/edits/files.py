"""The files of an edit: one folder with `delta.safetensors` (indices and values) and `edit.json` (everything else).

Loading trusts nothing: the blob's SHA-256 is checked before it is parsed, a folder with pickled weights in it is
refused, and every index must lie inside its matrix.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit import __version__
from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.edits.edit import Edit, request_as_mapping, request_from_mapping
from roseedit.edits.fingerprint import base_fingerprint
from roseedit.errors import DeltaError, refusal
from roseedit.models.load import LoadedModel

FORMAT = 1
BLOB, RECORD = "delta.safetensors", "edit.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_PARTS = ("a.index", "a.value", "a.pointer", "b.index", "b.value", "b.pointer")


def save_edit(edit: Edit, folder: str | Path) -> Path:
    """Write an edit.

    Args:
        edit: The edit.
        folder: A new or empty folder.

    Returns:
        The folder.

    Raises:
        DeltaError: The folder holds something already.
    """
    from safetensors.torch import save

    target = Path(folder)
    check_free(target)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{m.weight_name}:{part}": t for m in edit.delta.matrices for part, t in zip(_PARTS, _parts(m), strict=True)
    }
    blob = save(tensors)
    record = {
        "format": FORMAT,
        "roseedit": __version__,
        "edit_id": edit.edit_id,
        "model_name": edit.model_name,
        "fingerprint": edit.fingerprint,
        "sha256": hashlib.sha256(blob).hexdigest(),
        "hparams": dict(edit.hparams),
        "requests": [request_as_mapping(request) for request in edit.requests],
        "report": dict(edit.report),
        "matrices": [
            {"weight": m.weight_name, "d_in": m.d_in, "d_out": m.d_out, "transposed": m.transposed}
            for m in edit.delta.matrices
        ],
    }
    record["record_sha256"] = record_hash(record)
    write_whole(target / BLOB, blob)
    write_whole(target / RECORD, json.dumps(record, indent=1, ensure_ascii=False).encode())
    return target


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something already.

    Args:
        folder: Where an edit is to be saved.

    Raises:
        DeltaError: It is in use.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DeltaError(refusal(f"the folder {str(folder)!r}, which is in use", "a new or empty one", "Name another."))


def record_hash(record: dict[str, Any]) -> str:
    """Hash of everything in the record beside the hash itself.

    Args:
        record: Contents of `edit.json`.

    Returns:
        64 hex digits, the same before and after a trip through JSON.
    """
    rest = {key: v for key, v in record.items() if key != "record_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _parts(m: MatrixDelta) -> tuple[Tensor, ...]:
    return (m.a.index, m.a.value, m.a.pointer, m.b.index, m.b.value, m.b.pointer)


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, flush to the disk, rename: a reader never sees half a file.

    Args:
        path: The file.
        data: Its new contents.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(path)


def load_edit(folder: str | Path, loaded: LoadedModel | None = None) -> Edit:
    """Read an edit.

    Args:
        folder: Where it was saved.
        loaded: The model it is meant for; its fingerprint is compared.

    Returns:
        The edit, not applied.

    Raises:
        DeltaError: Files missing, damaged, pickled or of a newer format, indices out of range, numbers that are not
            finite, or another base model.
    """
    source = Path(folder)
    record = _read_record(source)
    blob = (source / BLOB).read_bytes()
    if hashlib.sha256(blob).hexdigest() != record.get("sha256"):
        message = refusal(f"{BLOB} whose SHA-256 differs from its record", "the file as it was saved", "Copy it anew.")
        raise DeltaError(message)
    try:
        edit = _edit(record, blob)
    except DeltaError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        message = refusal(f"{RECORD} with a missing or wrong part ({error!r})", "the file as saved", "Copy it anew.")
        raise DeltaError(message) from error
    if loaded is not None:
        check_base(edit, loaded)
    return edit


def check_base(edit: Edit, loaded: LoadedModel) -> None:
    """Refuse a model that the edit was not made for.

    Args:
        edit: The edit.
        loaded: The model.

    Raises:
        DeltaError: Another base: a weight missing, of another shape, or other bytes.
    """
    names = [m.weight_name for m in edit.delta.matrices]
    own = dict(loaded.model.named_parameters())
    missing = [name for name in names if name not in own]
    if missing or base_fingerprint(loaded, names) != edit.fingerprint:
        message = refusal(
            f"the model {loaded.name!r}, which is not the base of edit {edit.edit_id}",
            f"{edit.model_name!r} with the same weights, dtype and tokenizer",
            "Load that model, or make the edit anew on this one.",
        )
        raise DeltaError(message)


def _read_record(source: Path) -> dict[str, Any]:
    if not source.is_dir():
        raise DeltaError(
            refusal(f"{str(source)!r}, which is no folder", "the folder of a saved edit", "Check the path.")
        )
    pickled = sorted(p.name for p in source.iterdir() if p.suffix in PICKLES)
    if pickled:
        message = refusal(f"a folder with {', '.join(pickled)} in it", "safetensors and json only", "Remove that file.")
        raise DeltaError(message)
    missing = [name for name in (BLOB, RECORD) if not (source / name).is_file()]
    if missing:
        message = refusal(f"a folder without {' and '.join(missing)}", "both files of an edit", "Copy it anew.")
        raise DeltaError(message)
    try:
        record = json.loads((source / RECORD).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DeltaError(refusal(f"{RECORD} that is not JSON", "the file as saved", "Copy it anew.")) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        got = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise DeltaError(refusal(f"edit format {got!r}", f"{FORMAT}", "Use the version of roseedit that wrote it."))
    if record_hash(record) != record.get("record_sha256"):
        message = refusal(f"{RECORD} that differs from its own hash", "the file as it was saved", "Copy it anew.")
        raise DeltaError(message)
    return record


def _edit(record: dict[str, Any], blob: bytes) -> Edit:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(blob)
    except SafetensorError as error:
        raise DeltaError(refusal(f"{BLOB} that cannot be parsed", "the file as saved", "Copy it anew.")) from error
    delta = Delta(tuple(_matrix(entry, tensors) for entry in record["matrices"]))
    requests = tuple(request_from_mapping(values) for values in record["requests"])
    return Edit(delta, requests, record["hparams"], record["fingerprint"], record["model_name"], record["report"])


def _matrix(entry: dict[str, Any], tensors: dict[str, Tensor]) -> MatrixDelta:
    name, d_in, d_out = entry["weight"], int(entry["d_in"]), int(entry["d_out"])
    parts = [tensors[f"{name}:{part}"] for part in _PARTS]
    a, b = SparseVectors(*parts[:3]), SparseVectors(*parts[3:])
    for vectors, n in ((a, d_in), (b, d_out)):
        _check_vectors(name, vectors, n)
    if len(a) != len(b):
        raise DeltaError(refusal(f"{name} with {len(a)} rows and {len(b)} columns", "as many of each", "Copy it anew."))
    return MatrixDelta(name, d_in, d_out, bool(entry["transposed"]), a, b)


def _check_vectors(name: str, vectors: SparseVectors, n: int) -> None:
    index, pointer = vectors.index, vectors.pointer
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < n:
        raise DeltaError(refusal(f"{name} with an index out of range", f"0 to {n - 1}", "Copy the edit anew."))
    ordered = len(pointer) > 0 and int(pointer[0]) == 0 and bool((pointer.diff() >= 0).all())
    if not ordered or int(pointer[-1]) != len(index) or len(index) != len(vectors.value):
        raise DeltaError(refusal(f"{name} with broken pointers", "pointers that fit the values", "Copy the edit anew."))
    if not bool(torch.isfinite(vectors.value).all()):
        raise DeltaError(refusal(f"{name} with NaN or infinity", "finite numbers", "Copy the edit anew."))
