"""What enters a matrix on many tokens: as it came or, when that is too much, as its second moment."""

from __future__ import annotations

import torch
from torch import Tensor

ROOM = 4  # times d_in: so many inputs are kept as they came


class Inputs:
    """Inputs of one matrix. Whatever only asks for sums of squares of linear maps of them sees no difference."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Tensor]] = []
        self.waiting = 0  # inputs in `rows`
        self.moment: Tensor | None = None

    def add(self, place: int, inputs: Tensor) -> None:
        """Take some more.

        Args:
            place: Where they belong in the order.
            inputs: (n, d_in).
        """
        self.rows.append((place, inputs))
        self.waiting += len(inputs)
        if self.waiting > ROOM * inputs.shape[-1]:
            self.moment = self._summed()
            self.rows, self.waiting = [], 0

    def keys(self) -> Tensor:
        """The inputs, (n, d_in), or at most d_in rows with the same second moment; float32."""
        if self.moment is not None:
            return root_of(self._summed())
        return torch.cat([x for _, x in sorted(self.rows, key=lambda row: row[0])]).float()

    def _summed(self) -> Tensor:
        if not self.rows and self.moment is not None:
            return self.moment
        x = torch.cat([x for _, x in self.rows]).double()
        return x.T @ x if self.moment is None else self.moment + x.T @ x


def root_of(moment: Tensor, most: int | None = None) -> Tensor:
    """Orthogonal rows K with K^T K = moment, strongest first.

    Args:
        moment: (d, d), symmetric, no negative direction but rounding.
        most: Leave the weakest out, so that no more than so many rows stand.

    Returns:
        (d or `most`, d), float32.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    rows = (vectors * values.clamp(min=0).sqrt()).T.flip(0)
    return rows[:most].float().contiguous()
