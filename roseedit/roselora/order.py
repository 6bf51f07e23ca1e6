"""Which rows each step of a joint run looks at."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.objective import Row


class BreadthFirst:
    """Each epoch all requests in a new order; learned ones every other epoch, or after ever longer rests.

    Args:
        rows: All rows; `row.request` tells whose.
        n: Requests.
        hparams: The settings.
        apart: Requests hardly change each other: each time one is still found learned it rests twice as long.
    """

    def __init__(self, rows: Sequence[Row], n: int, hparams: RoseLoRAHparams, *, apart: bool = False) -> None:
        self.of_request: list[list[int]] = [[] for _ in range(n)]
        for i, row in enumerate(rows):
            self.of_request[row.request].append(i)
        self.rows, self.n, self.hparams, self.apart = rows, n, hparams, apart
        self.batches = -(-n // hparams.joint_batch)
        self.order: list[int] = []
        self.rest, self.again = [1] * n, [0] * n  # epochs; the first epoch in which it is due once learned

    def rows_of(self, step: int, lowest: torch.Tensor) -> list[int]:
        """Rows of one mini-batch, none where all of it rests; `lowest` tells which requests are learned."""
        epoch, at = divmod(step, self.batches)
        if at == 0:
            self.order = list(range(self.n))
            random.Random(f"{self.hparams.seed}/{epoch}").shuffle(self.order)
        batch = self.order[at :: self.batches]
        known = lowest.tolist()
        due = [r for r in batch if self._due(r, epoch, known[r])]
        if not due and not self.apart:
            due = batch[:1]
        return [i for r in due for i in self.of_request[r] if self.rows[i].due(epoch)]

    def _due(self, request: int, epoch: int, known: float) -> bool:
        if known < self.hparams.stop_probability:
            self.rest[request], self.again[request] = 1, epoch + 1
            return True
        if not self.apart:
            return epoch % 2 == 0
        if epoch < self.again[request]:
            return False
        self.rest[request] *= 2
        self.again[request] = epoch + self.rest[request]
        return True
