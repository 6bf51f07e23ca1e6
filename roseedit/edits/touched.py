"""The touched entries of one parameter: their originals, the integer sums of all live changes, and how many touch each.

Few entries of a large matrix are kept as a sorted list. Once more than a third of it is touched, all of it is kept,
which is then smaller than the list and needs no searching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from roseedit.edits.delta import GRID_BITS, MatrixDelta

DENSE_FROM = 1 / 3
SMALL = 2**21  # entries; such a matrix is kept whole from the start: 40 MiB at most, and three times as fast


@dataclass
class Touched:
    """The touched entries of one parameter.

    Attributes:
        index: Sorted flat positions, or None when every entry of the parameter is kept.
        original: Their original values, in the parameter's dtype.
        total: Integer sums of all live changes, in units of 2^-40.
        count: How many live outer products touch each; where it is 0, `original` means nothing.
        size: Entries of the parameter.
        written: What was last written to each entry, where every entry is kept; None elsewhere. Comparing with it is
            faster than adding up anew what the weights must be.
    """

    index: Tensor | None
    original: Tensor
    total: Tensor
    count: Tensor
    size: int
    written: Tensor | None = None

    @classmethod
    def nothing(cls, flat: Tensor) -> Touched:
        """No entry yet of the parameter `flat`, (n,)."""
        sums = torch.zeros(0, dtype=torch.int64, device=flat.device)
        return cls(sums, flat[:0].clone(), sums.clone(), sums.int(), len(flat))

    def holding(self, index: Tensor, flat: Tensor) -> Touched:
        """A record that holds these entries too; those that nothing touches yet are taken as they are now.

        Args:
            index: Flat positions, in any order, repeated or not.
            flat: The parameter, (n,).

        Returns:
            This record or, where room had to be made, a new one.
        """
        if self.index is None:
            free = index[self.count.index_select(0, index) == 0]
            values = flat.index_select(0, free)
            self.original.index_copy_(0, free, values)
            if self.written is not None:
                self.written.index_copy_(0, free, values)
            return self
        if self.size <= SMALL:
            return self._dense(flat).holding(index, flat)
        new = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        new[index] = True
        new[self.index] = False
        more = int(new.sum())
        if len(self.index) + more > DENSE_FROM * len(flat):
            return self._dense(flat).holding(index, flat)
        if not more:
            return self
        return self._with(new, flat)

    def places(self, index: Tensor) -> Tensor:
        """Where entries stand in this record: one pass over a map of the matrix is faster than a search.

        Args:
            index: Flat positions that are held.

        Returns:
            What `current` and `shift` take.
        """
        if self.index is None:
            return index
        place = torch.empty(self.size, dtype=torch.int32, device=index.device)
        place[self.index] = torch.arange(len(self.index), dtype=torch.int32, device=index.device)
        return place.index_select(0, index).long()

    def changed(self, at: Tensor, original: Tensor) -> Tensor:
        """What the weights must be at entries that a live edit touches.

        Args:
            at: `places` of entries.
            original: Their original values.

        Returns:
            Values, in the parameter's dtype.
        """
        change = self.total.index_select(0, at).double()
        return torch.add(original.double(), change, alpha=2.0**-GRID_BITS).to(original.dtype)

    def current(self, at: Tensor, original: Tensor) -> Tensor:
        """What the weights must be at entries that may be touched or not.

        Args:
            at: `places` of entries.
            original: Their original values.

        Returns:
            Values, in the parameter's dtype.
        """
        return torch.where(self.count.index_select(0, at) > 0, self.changed(at, original), original)

    def expected(self, index: Tensor, at: Tensor, original: Tensor) -> Tensor:
        """The same as `current`, from what was last written where that is known.

        Args:
            index: Flat positions of entries.
            at: Their `places`.
            original: Their original values.

        Returns:
            Values, in the parameter's dtype.
        """
        return self.current(at, original) if self.written is None else self.written.index_select(0, index)

    def write(self, flat: Tensor, index: Tensor, values: Tensor) -> None:
        """Write to the parameter.

        Args:
            flat: The parameter, (n,).
            index: Flat positions; they may repeat, with the same value.
            values: What to write.
        """
        flat.scatter_(0, index, values)
        if self.written is not None:
            self.written.scatter_(0, index, values)

    def shift(self, at: Tensor, change: Tensor, by: int | Tensor) -> None:
        """Add changes, or take them off.

        Args:
            at: `places` of entries; they may repeat.
            change: What to add to their sums.
            by: What to add to their counts.
        """
        times = by if isinstance(by, Tensor) else torch.full_like(at, by, dtype=torch.int32)
        self.total.index_add_(0, at, change)
        self.count.index_add_(0, at, times)

    def restored(self, weight: Tensor) -> Tensor:
        """A copy of the parameter with the originals in place."""
        if self.index is None:
            return torch.where((self.count > 0).view_as(weight), self.original.view_as(weight), weight)
        copy = weight.clone().contiguous()
        copy.view(-1)[self.index] = self.original
        return copy

    def compact(self) -> Touched | None:
        """Without the entries that nothing touches; None when none is left."""
        if self.index is None:
            return self if int(self.count.max()) > 0 else None
        left = self.count > 0
        if bool(left.all()):
            return self
        if not bool(left.any()):
            return None
        return Touched(self.index[left], self.original[left], self.total[left], self.count[left], self.size)

    def _with(self, new: Tensor, flat: Tensor) -> Touched:
        """Merge new entries in, which `new` marks in the matrix."""
        known = self.index if self.index is not None else new.nonzero()[:0, 0]
        new[known] = True
        index = new.nonzero()[:, 0]
        n = len(index)
        total, count = self.total.new_zeros(n), self.count.new_zeros(n)
        out = Touched(index, flat.index_select(0, index), total, count, self.size)
        old = out.places(known)
        for into, was in ((out.original, self.original), (total, self.total), (count, self.count)):
            into.index_copy_(0, old, was)
        return out

    def _dense(self, flat: Tensor) -> Touched:
        total = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
        out = Touched(None, flat.clone(), total, torch.zeros_like(total, dtype=torch.int32), len(flat))
        out.written = flat.clone()
        if self.index is not None and len(self.index):
            out.original[self.index], out.total[self.index] = self.original, self.total
            out.count[self.index] = self.count
        return out


def gathered(changes: Sequence[MatrixDelta]) -> tuple[Tensor, Tensor, Tensor]:
    """All changes of one matrix added up, before anything is written.

    Args:
        changes: Deltas of the same matrix.

    Returns:
        Sorted flat positions, integer sums, and how many outer products touch each.
    """
    total = torch.zeros(changes[0].d_in * changes[0].d_out, dtype=torch.int64)
    count = torch.zeros(len(total), dtype=torch.int32)
    for m in changes:
        index, change = m.products()
        total.index_add_(0, index, change)
        count.index_add_(0, index, torch.ones_like(index, dtype=torch.int32))
    index = count.nonzero()[:, 0]
    return index, total[index], count[index]
