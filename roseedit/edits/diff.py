"""Two edits side by side: what each touches, where they meet, and whether they pull the same way there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.edits.delta import GRID_BITS, Delta, MatrixDelta
from roseedit.edits.edit import Edit


@dataclass(frozen=True)
class Sizes:
    """How many of something the first edit touches, the second, and both.

    Attributes:
        a: The first.
        b: The second.
        both: Touched by both.
    """

    a: int
    b: int
    both: int

    @property
    def jaccard(self) -> float:
        """Shared part of the union; 0 where neither touches anything."""
        union = self.a + self.b - self.both
        return self.both / union if union else 0.0


@dataclass(frozen=True)
class Entry:
    """One entry of a matrix.

    Attributes:
        weight: Name of the parameter.
        row: Output it belongs to, whatever way the parameter is stored.
        column: Input it belongs to.
        a: Its change in the first edit.
        b: Its change in the second.
    """

    weight: str
    row: int
    column: int
    a: float
    b: float


@dataclass(frozen=True)
class MatrixDiff:
    """Two edits on one matrix.

    Attributes:
        weight: Name of the parameter.
        entries: Touched entries.
        rows: Touched outputs.
        columns: Touched inputs.
        norm_a: Frobenius norm of the first change.
        norm_b: Of the second.
        dot: Inner product of the two changes.
        largest: Entries with the largest change of either edit.
    """

    weight: str
    entries: Sizes
    rows: Sizes
    columns: Sizes
    norm_a: float
    norm_b: float
    dot: float
    largest: tuple[Entry, ...]

    @property
    def cosine(self) -> float | None:
        """Of the two changes; None where one of them is nothing."""
        return _cosine(self.dot, self.norm_a, self.norm_b)


@dataclass(frozen=True)
class EditDiff:
    """Two edits.

    Attributes:
        a: Id of the first.
        b: Id of the second.
        same_base: Whether configuration and tokenizer of their bases agree.
        matrices: One entry per matrix that either touches.
    """

    a: str
    b: str
    same_base: bool
    matrices: tuple[MatrixDiff, ...]

    @property
    def entries(self) -> Sizes:
        """Over all matrices."""
        return Sizes(*(sum(getattr(m.entries, side) for m in self.matrices) for side in ("a", "b", "both")))

    @property
    def cosine(self) -> float | None:
        """Of the two whole changes."""
        norms = (math.sqrt(sum(getattr(m, side) ** 2 for m in self.matrices)) for side in ("norm_a", "norm_b"))
        return _cosine(sum(m.dot for m in self.matrices), *norms)

    def largest(self, n: int = 10) -> list[Entry]:
        """The entries with the largest change of either edit.

        Args:
            n: How many.

        Returns:
            Largest first.
        """
        found = [entry for m in self.matrices for entry in m.largest]
        return sorted(found, key=_size, reverse=True)[:n]

    def as_mapping(self, n: int = 10) -> dict[str, Any]:
        """Plain JSON values.

        Args:
            n: How many of the largest entries.

        Returns:
            All figures by name.
        """
        matrices = []
        for m in self.matrices:
            values = asdict(m)
            values["largest"] = [asdict(entry) for entry in m.largest[:n]]
            matrices.append({**values, "cosine": m.cosine})
        whole = {"entries": {**asdict(self.entries), "jaccard": self.entries.jaccard}, "cosine": self.cosine}
        largest = [asdict(entry) for entry in self.largest(n)]
        return {
            "a": self.a,
            "b": self.b,
            "same_base": self.same_base,
            **whole,
            "matrices": matrices,
            "largest": largest,
        }


def diff_edits(a: Edit, b: Edit, *, largest: int = 10) -> EditDiff:
    """Compare two edits.

    Args:
        a: The first.
        b: The second.
        largest: How many of the largest entries to keep per matrix.

    Returns:
        The comparison.
    """
    parts = _by_name(a.delta), _by_name(b.delta)
    names = list(dict.fromkeys([*parts[0], *parts[1]]))
    same = a.fingerprint.split(":")[:2] == b.fingerprint.split(":")[:2]
    matrices = tuple(_matrix(name, parts[0].get(name), parts[1].get(name), largest) for name in names)
    return EditDiff(a.edit_id, b.edit_id, same, matrices)


def _by_name(delta: Delta) -> dict[str, MatrixDelta]:
    return {m.weight_name: m for m in delta.matrices}


def _matrix(name: str, a: MatrixDelta | None, b: MatrixDelta | None, largest: int) -> MatrixDiff:
    (at_a, da), (at_b, db) = _changes(a), _changes(b)
    union = torch.cat([at_a, at_b]).unique()
    wide = torch.zeros(2, len(union), dtype=torch.float64)
    wide[0, torch.searchsorted(union, at_a)] = da
    wide[1, torch.searchsorted(union, at_b)] = db
    shared = int(torch.isin(at_a, at_b).sum())
    top = wide.abs().amax(0).argsort(descending=True)[:largest]
    some = a or b
    entries = tuple(_entry(name, some, int(union[i]), *wide[:, i].tolist()) for i in top) if some else ()
    return MatrixDiff(
        name,
        Sizes(len(at_a), len(at_b), shared),
        _sizes(a.b.index if a else None, b.b.index if b else None),
        _sizes(a.a.index if a else None, b.a.index if b else None),
        float(da.norm()),
        float(db.norm()),
        float(wide[0] @ wide[1]),
        entries,
    )


def _changes(m: MatrixDelta | None) -> tuple[Tensor, Tensor]:
    if m is None:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    index, change = m.changes()
    return index, change.double() * 2.0**-GRID_BITS


def _sizes(a: Tensor | None, b: Tensor | None) -> Sizes:
    one, two = (set() if index is None else set(index.tolist()) for index in (a, b))
    return Sizes(len(one), len(two), len(one & two))


def _entry(name: str, m: MatrixDelta, flat: int, a: float, b: float) -> Entry:
    outer, inner = divmod(flat, m.d_out if m.transposed else m.d_in)
    row, column = (inner, outer) if m.transposed else (outer, inner)
    return Entry(name, row, column, a, b)


def _size(entry: Entry) -> float:
    return max(abs(entry.a), abs(entry.b))


def _cosine(dot: float, *norms: float) -> float | None:
    product = math.prod(norms)
    return dot / product if product else None


def shared_entries(edits: Iterable[Edit]) -> int:
    """Entries that more than one of many edits touches.

    Args:
        edits: The edits.

    Returns:
        How many.
    """
    found: dict[str, list[Tensor]] = {}
    for edit in edits:
        for m in edit.delta.matrices:
            found.setdefault(m.weight_name, []).append(m.changes()[0])
    return sum(int((torch.cat(parts).unique(return_counts=True)[1] > 1).sum()) for parts in found.values())
