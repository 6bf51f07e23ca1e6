"""`delta.safetensors`: the indices and values of a delta as bytes, and back.

Reading trusts nothing. The header is checked against what the record announces before anything of the announced size is
allocated, and the values are views of the one buffer that the caller has read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.errors import (
    AbsurdSizeError,
    DuplicateIndexError,
    ExtraTensorError,
    IndexRangeError,
    MissingTensorError,
    NotFiniteError,
    TensorLayoutError,
    TruncatedFileError,
    refusal,
)

BLOB = "delta.safetensors"
PARTS = ("a.index", "a.value", "a.pointer", "b.index", "b.value", "b.pointer")
MAX_BYTES = 4 * 2**30  # a hundred times the largest delta we can think of
MAX_RANK = 2**16
MAX_PRODUCT = 2.0**16  # a change of one entry; integers of 2^-40 hold 2^23
_NARROW = 2**16  # shorter vectors have 16-bit indices
_PREFIX = 8  # bytes of the header's length
_TYPES = {"F32": torch.float32, "I32": torch.int32, "U16": torch.uint16}
_ALLOWED = {"index": ("U16", "I32"), "value": ("F32",), "pointer": ("I32",)}
_AGAIN = "Copy the edit anew."


@dataclass(frozen=True)
class MatrixEntry:
    """What the record says of one matrix.

    Attributes:
        weight: Name of the parameter.
        d_in: Length of each row of A.
        d_out: Length of each column of B.
        transposed: True when the parameter is stored as (d_in, d_out).
    """

    weight: str
    d_in: int
    d_out: int
    transposed: bool


@dataclass(frozen=True)
class _Place:
    dtype: str
    length: int
    start: int
    end: int


def encode_delta(delta: Delta) -> bytes:
    """A delta as a safetensors file.

    Args:
        delta: The delta.

    Returns:
        Its bytes: per matrix the kept indices (16 bit where they fit), values (float32) and pointers of A and B.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for m in delta.matrices:
        parts = (
            _narrow(m.a.index, m.d_in),
            m.a.value,
            m.a.pointer,
            _narrow(m.b.index, m.d_out),
            m.b.value,
            m.b.pointer,
        )
        tensors |= {f"{m.weight_name}:{part}": t.contiguous() for part, t in zip(PARTS, parts, strict=True)}
    return save(tensors)


def _narrow(index: Tensor, n: int) -> Tensor:
    return index.to(torch.uint16) if n <= _NARROW else index


def decode_delta(blob: bytearray, entries: Sequence[MatrixEntry]) -> Delta:
    """The inverse of `encode_delta`.

    Args:
        blob: The whole file; the values of the delta are views of it, so it must not be changed afterwards.
        entries: The matrices that the record announces.

    Returns:
        The delta.

    Raises:
        DeltaError: Its children `AbsurdSizeError`, `DuplicateIndexError`, `ExtraTensorError`, `IndexRangeError`,
            `MissingTensorError`, `NotFiniteError`, `TensorLayoutError` and `TruncatedFileError` say what is wrong.
    """
    length = int.from_bytes(blob[:_PREFIX], "little")
    header = bytes(memoryview(blob)[_PREFIX : _PREFIX + length])
    return Delta(tuple(_matrix(entry, places, blob) for entry, places in read_header(header, len(blob), entries)))


def header_length(prefix: bytes, size: int, entries: Sequence[MatrixEntry]) -> int:
    """How long the header is, when that is a length it can have.

    Args:
        prefix: The first eight bytes of the file.
        size: Bytes of the whole file.
        entries: The matrices that the record announces.

    Returns:
        Bytes of the header.

    Raises:
        TruncatedFileError: Not even a prefix.
        AbsurdSizeError: More than these matrices can need, or more than the file has.
    """
    if len(prefix) < _PREFIX:
        raise TruncatedFileError(refusal(f"{BLOB} of {len(prefix)} bytes", "a whole safetensors file", _AGAIN))
    length = int.from_bytes(prefix[:_PREFIX], "little")
    most = 1024 + sum(len(PARTS) * (len(json.dumps(e.weight)) + 160) for e in entries)
    if length > min(most, size - _PREFIX) or size > MAX_BYTES:
        got = f"{BLOB} of {size} bytes with a header of {length}"
        allowed = f"at most {MAX_BYTES} bytes with a header of {most} for {len(entries)} matrices"
        raise AbsurdSizeError(refusal(got, allowed, _AGAIN))
    return length


def read_header(
    header: bytes, size: int, entries: Sequence[MatrixEntry]
) -> list[tuple[MatrixEntry, dict[str, _Place]]]:
    """Where every tensor lies; all of them, no other, without a gap, each of a type and length it can have.

    Args:
        header: The JSON behind the prefix.
        size: Bytes of the whole file.
        entries: The matrices that the record announces.

    Returns:
        Per matrix its parts.

    Raises:
        DeltaError: As `decode_delta`.
    """
    places = _places(_parsed(header))
    wanted = {f"{e.weight}:{part}" for e in entries for part in PARTS}
    _check_names(set(places), wanted)
    at = 0
    for place in sorted(places.values(), key=lambda p: (p.start, p.end)):
        if place.start != at:
            raise _layout("tensors that overlap or leave a gap", "one directly behind the other")
        at = place.end
    if at != size - _PREFIX - len(header):
        got = f"tensors of {at} bytes in a file with {size - _PREFIX - len(header)} behind its header"
        raise AbsurdSizeError(refusal(got, "as many", _AGAIN))
    found = [(e, {part: places[f"{e.weight}:{part}"] for part in PARTS}) for e in entries]
    for entry, parts in found:
        _check_lengths(entry, parts, _PREFIX + len(header))
    return found


def _layout(got: str, allowed: str) -> TensorLayoutError:
    return TensorLayoutError(refusal(f"{BLOB} with {got}", allowed, _AGAIN))


def _parsed(header: bytes) -> dict[str, Any]:
    try:
        values = json.loads(header, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise _layout("a header that is not JSON", "the header as it was saved") from error
    if not isinstance(values, dict):
        raise _layout("a header that is no mapping", "names and places of tensors")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _layout("metadata that is no mapping", "a mapping or none")
    return values


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _layout("a name twice in its header", "each tensor once")
    return found


def _places(values: Mapping[str, Any]) -> dict[str, _Place]:
    out = {}
    for name, raw in values.items():
        try:
            dtype, (length,), (start, end) = raw["dtype"], raw["shape"], raw["data_offsets"]
            whole = all(type(n) is int and 0 <= n <= MAX_BYTES for n in (length, start, end))
            kind = name.rpartition(".")[2]
            fits = whole and dtype in _ALLOWED.get(kind, _TYPES) and end - start == length * _TYPES[dtype].itemsize
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise _layout(f"{name[:80]!r} of a type, shape or place that it cannot have", "a vector as it was saved")
        out[name] = _Place(dtype, length, start, end)
    return out


def _check_names(got: set[str], wanted: set[str]) -> None:
    missing, extra = sorted(wanted - got), sorted(got - wanted)
    if missing:
        raise MissingTensorError(refusal(f"{BLOB} without {missing[0]!r}", "every tensor of the record", _AGAIN))
    if extra:
        raise ExtraTensorError(refusal(f"{BLOB} with {extra[0][:80]!r}", "tensors of the record only", _AGAIN))


def _check_lengths(entry: MatrixEntry, parts: Mapping[str, _Place], behind: int) -> None:
    for side, n in (("a", entry.d_in), ("b", entry.d_out)):
        index, values, pointer = (parts[f"{side}.{kind}"] for kind in ("index", "value", "pointer"))
        rank = pointer.length - 1
        if not 0 <= rank <= MAX_RANK or index.length > rank * n:
            got = f"{entry.weight} of rank {rank} with {index.length} indices"
            raise AbsurdSizeError(refusal(got, f"rank 0 to {MAX_RANK}, at most {n} indices each", _AGAIN))
        if index.length != values.length:
            raise IndexRangeError(
                refusal(f"{entry.weight} with {index.length} indices and {values.length} values", "as many", _AGAIN)
            )
        for place in (index, values, pointer):
            if (behind + place.start) % _TYPES[place.dtype].itemsize:
                raise _layout("a tensor at an odd place", "places that its type divides")
    if parts["a.pointer"].length != parts["b.pointer"].length:
        rows, columns = parts["a.pointer"].length - 1, parts["b.pointer"].length - 1
        got = f"{entry.weight} with {rows} rows and {columns} columns"
        raise IndexRangeError(refusal(got, "as many of each", _AGAIN))


def _matrix(entry: MatrixEntry, parts: Mapping[str, _Place], blob: bytearray) -> MatrixDelta:
    behind = _PREFIX + int.from_bytes(blob[:_PREFIX], "little")

    def tensor(name: str) -> Tensor:
        place = parts[name]
        dtype = _TYPES[place.dtype]
        if not place.length:
            return torch.zeros(0, dtype=dtype)
        return torch.frombuffer(blob, dtype=dtype, count=place.length, offset=behind + place.start)

    a = SparseVectors(tensor("a.index").int(), tensor("a.value"), tensor("a.pointer"))
    b = SparseVectors(tensor("b.index").int(), tensor("b.value"), tensor("b.pointer"))
    for vectors, n in ((a, entry.d_in), (b, entry.d_out)):
        _check_vectors(entry.weight, vectors, n)
    if _largest(a) * _largest(b) > MAX_PRODUCT:
        got = f"{entry.weight} with a change of {_largest(a) * _largest(b):.3g}"
        raise NotFiniteError(refusal(got, f"at most {MAX_PRODUCT:.0f} per entry", _AGAIN))
    return MatrixDelta(entry.weight, entry.d_in, entry.d_out, entry.transposed, a, b)


def _largest(vectors: SparseVectors) -> float:
    return float(vectors.value.abs().max()) if len(vectors.value) else 0.0


def _check_vectors(name: str, vectors: SparseVectors, n: int) -> None:
    index, pointer = vectors.index, vectors.pointer.long()
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < n:
        raise IndexRangeError(refusal(f"{name} with an index out of range", f"0 to {n - 1}", _AGAIN))
    ends = int(pointer[0]) == 0 and int(pointer[-1]) == len(index)
    if not ends or bool((pointer.diff() < 0).any()):
        raise IndexRangeError(refusal(f"{name} with broken pointers", "pointers that fit the values", _AGAIN))
    repeated = index.diff() <= 0
    starts = pointer[1:-1]
    starts = starts[(starts > 0) & (starts < len(index))]
    repeated[starts - 1] = False  # a new vector may start anywhere
    if bool(repeated.any()):
        raise DuplicateIndexError(refusal(f"{name} with an index twice or out of order", "rising indices", _AGAIN))
    if len(vectors.value) and not math.isfinite(float(vectors.value.sum(dtype=torch.float64))):
        raise NotFiniteError(refusal(f"{name} with NaN or infinity", "finite numbers", _AGAIN))
