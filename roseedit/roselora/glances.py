"""Which facts a step looks at whole, and which at the first token of the answer only.

A model that has said the first token of a new answer mostly knows the rest ("Gar" is followed by "azi"). Once the rest
is sure, most steps run the prompt alone: fewer tokens, and one position for the head instead of a whole answer. Every
few steps, and before an edit may stop, the whole answer is looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from roseedit.roselora.objective import Row


class Glances:
    """What is known of each request's answer: whether its first token is sure, and whether the rest is.

    Args:
        n_requests: Requests of the run.
        enough: The rest is sure when each of its tokens is this sure.
        first: A first token this sure calls for a look at the whole.
        every: The whole is looked at in every so many steps at least; 1 always does.
        device: Where the looks happen.
    """

    def __init__(self, n_requests: int, *, enough: float, first: float, every: int, device: torch.device) -> None:
        self.enough, self.first, self.every = enough, first, every
        self.rest_sure = torch.zeros(n_requests, dtype=torch.bool, device=device)
        self.first_sure = torch.zeros(n_requests, dtype=torch.bool, device=device)

    def chosen(self, step: int, rows: Sequence[Row]) -> list[bool]:
        """Which rows are looked at briefly.

        Args:
            step: The step.
            rows: Rows of that step.

        Returns:
            One flag per row.
        """
        if step % self.every == 0:
            return [False] * len(rows)
        brief = (self.rest_sure & ~self.first_sure).tolist()
        return [len(row.labels) > 1 and brief[row.request] for row in rows]

    def book(self, sure: Tensor, requests: Tensor, first: Tensor, whole: Tensor) -> None:
        """Remember what a pass saw.

        Args:
            sure: (positions,), see `objective.sureness`.
            requests: (positions,), the request of each.
            first: (positions,), boolean: an answer's first token.
            whole: (positions,), boolean: of an answer that was looked at whole.
        """
        seen = torch.full((2, len(self.rest_sure)), 2.0, device=sure.device)
        seen[0].scatter_reduce_(0, requests[first], sure[first], "amin")
        rest = whole & ~first
        seen[1].scatter_reduce_(0, requests[rest], sure[rest], "amin")
        self.first_sure = torch.where(seen[0] > 1, self.first_sure, seen[0] >= self.first)
        self.rest_sure = torch.where(seen[1] > 1, self.rest_sure, seen[1] >= self.enough)


def brief(row: Row) -> Row:
    """A fact row up to the first token of its answer.

    Args:
        row: The whole row.

    Returns:
        The prompt alone, with one label.
    """
    end = row.columns[0] + 1
    return replace(row, ids=row.ids[:end], columns=row.columns[:1], labels=row.labels[:1], brief=True)
