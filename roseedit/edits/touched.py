"""The touched entries of one parameter: their originals, the integer sums of all live changes, and how many touch each.

Few entries are kept as a sorted list. Once more than a third of the matrix is touched, all of it is kept, which is
then smaller than the list and needs no searching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from roseedit.edits.delta import GRID_BITS, MatrixDelta

DENSE_FROM = 1 / 3


@dataclass
class Touched:
    """The touched entries of one parameter.

    Attributes:
        index: Sorted flat positions, or None when every entry of the parameter is kept.
        original: Their original values, in the parameter's dtype.
        total: Integer sums of all live changes, in units of 2^-40.
        count: How many live outer products touch each; where it is 0, `original` means nothing.
    """

    index: Tensor | None
    original: Tensor
    total: Tensor
    count: Tensor

    @classmethod
    def nothing(cls, flat: Tensor) -> Touched:
        """No entry yet of the parameter `flat`, (n,)."""
        sums = torch.zeros(0, dtype=torch.int64, device=flat.device)
        return cls(sums, flat[:0].clone(), sums.clone(), sums.int())

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
            if len(free):
                self.original[free] = flat[free]
            return self
        place = torch.searchsorted(self.index, index).clamp(max=max(len(self.index) - 1, 0))
        fresh = (index[self.index[place] != index] if len(self.index) else index).unique()
        if len(self.index) + len(fresh) > DENSE_FROM * len(flat):
            return self._dense(flat).holding(index, flat)
        if not len(fresh):
            return self
        return self._with(fresh, flat[fresh])

    def agrees(self, index: Tensor, flat: Tensor) -> bool:
        """Whether the parameter has the values there that it must have.

        Args:
            index: Flat positions that are held.
            flat: The parameter.

        Returns:
            False when something else has changed them.
        """
        return torch.equal(flat.index_select(0, index), self.current(index))

    def current(self, index: Tensor) -> Tensor:
        """What the weights must be there now.

        Args:
            index: Flat positions that are held.

        Returns:
            Values, in the parameter's dtype.
        """
        at = self._at(index)
        original = self.original.index_select(0, at)
        change = self.total.index_select(0, at).double()
        changed = torch.add(original.double(), change, alpha=2.0**-GRID_BITS).to(original.dtype)
        return torch.where(self.count.index_select(0, at) > 0, changed, original)

    def shift(self, index: Tensor, change: Tensor, by: int | Tensor) -> None:
        """Add changes, or take them off.

        Args:
            index: Flat positions that are held; they may repeat.
            change: What to add to their sums.
            by: What to add to their counts.
        """
        at = self._at(index)
        times = by if isinstance(by, Tensor) else torch.full_like(index, by, dtype=torch.int32)
        self.total.index_add_(0, at, change)
        self.count.index_add_(0, at, times)

    def restored(self, weight: Tensor) -> Tensor:
        """A copy of the parameter with the originals in place."""
        copy = weight.clone().contiguous()
        if self.index is None:
            held = self.count > 0
            copy.view(-1)[held] = self.original[held]
        else:
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
        return Touched(self.index[left], self.original[left], self.total[left], self.count[left])

    def _at(self, index: Tensor) -> Tensor:
        return index if self.index is None else torch.searchsorted(self.index, index)

    def _with(self, fresh: Tensor, original: Tensor) -> Touched:
        """Merge sorted new entries in, without sorting the old ones again."""
        old = self.index if self.index is not None else fresh[:0]
        n = len(old) + len(fresh)
        new_at = torch.searchsorted(old, fresh) + torch.arange(len(fresh), device=fresh.device)
        is_old = torch.ones(n, dtype=torch.bool, device=fresh.device)
        is_old[new_at] = False
        out = Touched(old.new_empty(n), self.original.new_empty(n), self.total.new_zeros(n), self.count.new_zeros(n))
        index = old.new_empty(n)
        for into, was, new in ((index, old, fresh), (out.original, self.original, original)):
            into[is_old], into[new_at] = was, new
        out.index, out.total[is_old], out.count[is_old] = index, self.total, self.count
        return out

    def _dense(self, flat: Tensor) -> Touched:
        total = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
        out = Touched(None, flat.clone(), total, torch.zeros_like(total, dtype=torch.int32))
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
