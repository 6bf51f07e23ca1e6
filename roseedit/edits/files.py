"""The files of an edit: one folder with `delta.safetensors` (`blob.py`) and `edit.json` (`record.py`).

Loading trusts nothing: what lies in the folder is looked at before a file is opened, hashes are checked before anything
is parsed, sizes before anything is allocated, and every number must be one that an edit can have.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

from roseedit.edits.blob import BLOB, MAX_BYTES, decode_delta, encode_delta, header_length, read_header
from roseedit.edits.edit import Edit
from roseedit.edits.fingerprint import Fingerprint, base_fingerprint, matches_format_1
from roseedit.edits.record import FORMAT, RECORD, edit_from_record, encode_record, matrix_entries, read_record
from roseedit.edits.record import MAX_BYTES as MAX_RECORD
from roseedit.edits.storage import make_folder, write_file
from roseedit.errors import (
    AbsurdSizeError,
    ChecksumError,
    DeltaError,
    EditNotFoundError,
    PickleFoundError,
    RecordError,
    SymlinkError,
    TruncatedFileError,
    WrongBaseError,
    WrongTokenizerError,
    refusal,
)
from roseedit.models.load import LoadedModel

__all__ = ["BLOB", "FORMAT", "PICKLES", "RECORD", "check_base", "check_free", "edit_files", "load_edit", "save_edit"]

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
_CHUNK = 2**20


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
    target = Path(folder)
    check_free(target)
    contents = edit_files(edit)
    make_folder(target)
    for name, data in contents.items():
        write_file(target / name, data)
    return target


def edit_files(edit: Edit) -> dict[str, bytes]:
    """What the files of an edit hold.

    Args:
        edit: The edit.

    Returns:
        Contents by name, in the order in which they are to be written: the record, which vouches for the rest, last.
    """
    blob = encode_delta(edit.delta)
    return {BLOB: blob, RECORD: encode_record(edit, blob)}


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something already.

    Args:
        folder: Where an edit is to be saved.

    Raises:
        DeltaError: It is in use.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DeltaError(refusal(f"the folder {str(folder)!r}, which is in use", "a new or empty one", "Name another."))


def load_edit(folder: str | Path, loaded: LoadedModel | None = None) -> Edit:
    """Read an edit.

    Args:
        folder: Where it was saved.
        loaded: The model it is meant for; its fingerprint is compared.

    Returns:
        The edit, not applied.

    Raises:
        DeltaError: One of its children, by what is wrong: `EditNotFoundError`, `PickleFoundError`, `SymlinkError`,
            `RecordError`, `NewerFormatError`, `TruncatedFileError`, `ChecksumError`, `AbsurdSizeError`,
            `MissingTensorError`, `ExtraTensorError`, `TensorLayoutError`, `IndexRangeError`, `DuplicateIndexError`,
            `NotFiniteError`, `WrongBaseError`, `WrongTokenizerError`.
    """
    source = Path(folder)
    check_folder(source)
    with (source / RECORD).open("rb") as file:
        record = read_record(_read(file, MAX_RECORD, RECORD))
    with (source / BLOB).open("rb") as file:
        edit = _read_edit(file, record)
    if loaded is not None:
        check_base(edit, loaded)
    return edit


def check_folder(source: Path) -> None:
    """Look at what lies in a folder without opening any of it.

    Args:
        source: The folder of an edit.

    Raises:
        EditNotFoundError: No folder, or not both files in it.
        PickleFoundError: A pickled file in it.
        SymlinkError: A link that leads out of it.
    """
    if not source.is_dir():
        message = refusal(f"{str(source)!r}, which is no folder", "the folder of a saved edit", "Check the path.")
        raise EditNotFoundError(message)
    inside = sorted(source.iterdir())
    pickled = [p.name for p in inside if p.suffix.lower() in PICKLES]
    if pickled:
        message = refusal(f"a folder with {', '.join(pickled)} in it", "safetensors and json only", "Remove that file.")
        raise PickleFoundError(message)
    own = source.resolve()
    for path in inside:
        if path.is_symlink() and not _stays(path, own):
            message = refusal(
                f"the link {path.name}, which leads out of its folder", "files", "Copy what it points at."
            )
            raise SymlinkError(message)
    missing = [name for name in (BLOB, RECORD) if not (source / name).is_file()]
    if missing:
        message = refusal(f"a folder without {' and '.join(missing)}", "both files of an edit", "Copy it anew.")
        raise EditNotFoundError(message)


def _stays(path: Path, folder: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(folder)
    except (OSError, RuntimeError):  # dangling, or in a circle
        return False


def _read(file: BinaryIO, most: int, name: str) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > most:
        raise AbsurdSizeError(refusal(f"{name} of {size} bytes", f"at most {most}", "Copy the edit anew."))
    return file.read(size)


def _read_edit(file: BinaryIO, record: dict[str, Any]) -> Edit:
    """Size, hash, header, and only then the numbers; the file is read into one buffer that the delta keeps."""
    size = os.fstat(file.fileno()).st_size
    entries = matrix_entries(record)
    expected = size if record["format"] == 1 else record.get("bytes")  # the first format did not say
    if type(expected) is not int:
        raise RecordError(refusal(f"{RECORD} without the size of {BLOB}", "the file as it was saved", "Copy it anew."))
    if expected > MAX_BYTES or size > MAX_BYTES:
        raise AbsurdSizeError(refusal(f"{BLOB} of {size} bytes", f"at most {MAX_BYTES}", "Copy the edit anew."))
    if size < expected:
        message = refusal(f"{BLOB} of {size} bytes", f"the {expected} bytes that were saved", "Copy the edit anew.")
        raise TruncatedFileError(message)
    _check_hash(_digest(file, min(size, _CHUNK)), record)
    file.seek(0)
    length = header_length(file.read(8), size, entries)
    read_header(file.read(length), size, entries)
    blob = bytearray(size)
    file.seek(0)
    file.readinto(blob)  # type: ignore[attr-defined]
    _check_hash(hashlib.sha256(blob).hexdigest(), record)  # the file may have been changed since the first look
    return edit_from_record(record, decode_delta(blob, entries))


def _digest(file: BinaryIO, step: int) -> str:
    digest = hashlib.sha256()
    while piece := file.read(step):
        digest.update(piece)
    return digest.hexdigest()


def _check_hash(found: str, record: dict[str, Any]) -> None:
    if type(record.get("sha256")) is not str:
        raise RecordError(refusal(f"{RECORD} without the hash of {BLOB}", "the file as it was saved", "Copy it anew."))
    if found != record["sha256"]:
        message = refusal(f"{BLOB} whose SHA-256 differs from its record", "the file as it was saved", "Copy it anew.")
        raise ChecksumError(message)


def check_base(edit: Edit, loaded: LoadedModel) -> None:
    """Refuse a model that the edit was not made for.

    Args:
        edit: The edit; if its fingerprint is strict, every weight of the model is compared.
        loaded: The model.

    Raises:
        WrongBaseError: A matrix missing, another configuration, or other bytes.
        WrongTokenizerError: The right weights with another tokenizer.
    """
    names = [m.weight_name for m in edit.delta.matrices]
    own = dict(loaded.model.named_parameters())
    missing = [name for name in names if name not in own]
    if missing:
        raise WrongBaseError(_not_the_base(edit, loaded, f"has no {missing[0]}"))
    if ":" not in edit.fingerprint:
        if not matches_format_1(loaded, names, edit.fingerprint):
            raise WrongBaseError(_not_the_base(edit, loaded, "has another fingerprint"))
        return
    wanted = Fingerprint.parse(edit.fingerprint)
    found = Fingerprint.parse(base_fingerprint(loaded, names, strict=wanted.everything is not None))
    if found.config != wanted.config:
        raise WrongBaseError(_not_the_base(edit, loaded, "has another configuration"))
    if found.weights != wanted.weights:
        raise WrongBaseError(_not_the_base(edit, loaded, "has other bytes, or another dtype, in the edited matrices"))
    if found.everything != wanted.everything:
        raise WrongBaseError(_not_the_base(edit, loaded, "has other bytes outside the edited matrices"))
    if found.tokenizer != wanted.tokenizer:
        raise WrongTokenizerError(_not_the_base(edit, loaded, "has the right weights and another tokenizer"))


def _not_the_base(edit: Edit, loaded: LoadedModel, why: str) -> str:
    return refusal(
        f"the model {loaded.name!r}, which is not the base of edit {edit.edit_id}: it {why}",
        f"{edit.model_name!r} with the same weights, dtype and tokenizer",
        "Load that model, or make the edit anew on this one.",
    )
