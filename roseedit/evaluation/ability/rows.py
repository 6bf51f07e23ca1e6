"""Ability figures with their interval, and the change between two of them over the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from roseedit.errors import DataError, refusal


@dataclass(frozen=True)
class AbilityRow:
    """One figure of one task.

    Attributes:
        task: Name of the task.
        metric: `"acc"` (raw likelihood), `"acc_norm"` (likelihood over the choice's length) or `"perplexity"`.
        value: The figure.
        low: 2.5 % quantile of the bootstrap over items (text windows for perplexity).
        high: 97.5 % quantile.
        n: Items; tokens for perplexity.
        chance: What guessing scores, NaN for perplexity.
        items: Per item the score, per window the mean negative log-likelihood.
        weights: Weight of each item: 1, or the window's tokens.
    """

    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    chance: float
    items: tuple[float, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class AbilityChange:
    """What an edit did to one figure.

    Attributes:
        task: Name of the task.
        metric: As in `AbilityRow`.
        before: The unedited model's figure.
        after: The edited model's.
        change: Their difference.
        low: 2.5 % quantile of the difference, items resampled in pairs.
        high: 97.5 % quantile.
        n: Items.
    """

    task: str
    metric: str
    before: float
    after: float
    change: float
    low: float
    high: float
    n: int


def make_row(
    name: tuple[str, str], items: Sequence[float], weights: Sequence[float], *, n: int, chance: float
) -> AbilityRow:
    """Sum items up.

    Args:
        name: Task and metric.
        items: As in `AbilityRow`.
        weights: As in `AbilityRow`.
        n: As in `AbilityRow`.
        chance: As in `AbilityRow`.

    Returns:
        The row with its interval.
    """
    values, shares = _tensor(items), _tensor(weights)
    exp = name[1] == "perplexity"
    drawn = _figure(values[(picks := _picks(len(items)))], shares[picks], exp)
    low, high = _quantiles(drawn)
    value = float(_figure(values, shares, exp))
    return AbilityRow(*name, value, low, high, n, chance, tuple(items), tuple(weights))


def ability_change(before: Sequence[AbilityRow], after: Sequence[AbilityRow]) -> list[AbilityChange]:
    """Compare two measurements over the same items, item by item.

    Args:
        before: Rows of the unedited model.
        after: Rows of the edited one, same tasks and limits.

    Returns:
        One change per row of `after`.

    Raises:
        DataError: A row has no counterpart with the same items.
    """
    known = {(row.task, row.metric): row for row in before}
    return [_change(known.get((row.task, row.metric)), row) for row in after]


def _change(old: AbilityRow | None, new: AbilityRow) -> AbilityChange:
    if old is None or old.weights != new.weights:
        got = f"{new.task} {new.metric} with {len(new.items)} items and {len(old.items) if old else 'no'} before"
        raise DataError(refusal(got, "the same items before and after", "Measure both with the same tasks and limits."))
    exp = new.metric == "perplexity"
    shares, a, b = _tensor(new.weights), _tensor(old.items), _tensor(new.items)
    picks = _picks(len(shares))
    drawn = _figure(b[picks], shares[picks], exp) - _figure(a[picks], shares[picks], exp)
    change = new.value - old.value
    return AbilityChange(new.task, new.metric, old.value, new.value, change, *_quantiles(drawn), len(shares))


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _picks(n: int, draws: int = 2000) -> Tensor:
    return torch.randint(max(n, 1), (draws, n), generator=torch.Generator().manual_seed(0))


def _figure(values: Tensor, weights: Tensor, exp: bool) -> Tensor:
    mean = (values * weights).sum(-1) / weights.sum(-1)
    return mean.exp() if exp else mean


def _quantiles(drawn: Tensor) -> tuple[float, float]:
    if not len(drawn) or bool(drawn.isnan().any()):
        return math.nan, math.nan
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
