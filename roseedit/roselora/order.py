"""Which rows each step of a joint run looks at."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.objective import Row


class BreadthFirst:
    """Each epoch all requests in a new order, learned ones every other epoch.

    Args:
        rows: All rows; `row.request` tells whose.
        n: Requests.
        hparams: The settings.
    """

    def __init__(self, rows: Sequence[Row], n: int, hparams: RoseLoRAHparams) -> None:
        self.of_request: list[list[int]] = [[] for _ in range(n)]
        for i, row in enumerate(rows):
            self.of_request[row.request].append(i)
        self.rows, self.n, self.hparams = rows, n, hparams
        self.batches = -(-n // hparams.joint_batch)
        self.order: list[int] = []

    def rows_of(self, step: int, lowest: torch.Tensor) -> list[int]:
        """Rows of one mini-batch; `lowest` tells which requests are learned."""
        epoch, at = divmod(step, self.batches)
        if at == 0:
            self.order = list(range(self.n))
            random.Random(f"{self.hparams.seed}/{epoch}").shuffle(self.order)
        batch = self.order[at :: self.batches]
        known = lowest.tolist()
        due = [r for r in batch if epoch % 2 == 0 or known[r] < self.hparams.stop_probability] or batch[:1]
        return [i for r in due for i in self.of_request[r] if self.rows[i].due(epoch)]
