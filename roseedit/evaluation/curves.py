"""Sequences of edits: what is left of each edit after those that followed it.

All functions take one table of scores, (checkpoints, edits). Row k holds the scores measured after `made[k]` edits;
NaN marks what was not measured, and always the edits that did not exist yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from roseedit.errors import DataError, refusal
from roseedit.evaluation.metrics import bootstrap_interval


@dataclass(frozen=True)
class CurvePoint:
    """One point of a curve.

    Attributes:
        x: Edits made so far, or an edit's age in edits.
        mean: Mean over edits.
        low: 2.5 % quantile of the bootstrap over edits.
        high: 97.5 % quantile.
        n: Edits with a score here.
        missing: Edits that should have had one.
    """

    x: int
    mean: float
    low: float
    high: float
    n: int
    missing: int


def retention_curve(scores: Tensor, made: Sequence[int], *, seed: int = 0) -> list[CurvePoint]:
    """How good all edits made so far are, at each checkpoint.

    Args:
        scores: (checkpoints, edits), edits in the order in which they were made.
        made: Per checkpoint, how many edits had been made; rising.
        seed: Of the resampling.

    Returns:
        One point per checkpoint. The last one is the score at the sequence's end.

    Raises:
        DataError: Shapes do not fit, or an edit has a score before it was made.
    """
    _check(scores, made)
    return [_point(m, scores[k, :m], seed) for k, m in enumerate(made)]


def fresh_scores(scores: Tensor, made: Sequence[int]) -> Tensor:
    """Each edit's score at the first checkpoint after it was made: what is reported when forgetting goes unseen.

    Args:
        scores: As in `retention_curve`.
        made: As in `retention_curve`.

    Returns:
        (edits,), NaN for edits that no checkpoint covers.

    Raises:
        DataError: As `retention_curve`.
    """
    _check(scores, made)
    fresh = scores.new_full((scores.shape[1],), math.nan)
    start = 0
    for k, m in enumerate(made):
        fresh[start:m] = scores[k, start:m]
        start = m
    return fresh


def forgetting_curve(scores: Tensor, made: Sequence[int], *, seed: int = 0) -> list[CurvePoint]:
    """How much of its first score an edit has lost, by the number of edits that followed.

    Args:
        scores: As in `retention_curve`.
        made: As in `retention_curve`.
        seed: Of the resampling.

    Returns:
        One point per age (in edits since the edit's first checkpoint): mean of first score minus score then. The
        point at age 0 is 0 by definition. Negative values are edits that became better.

    Raises:
        DataError: As `retention_curve`.
    """
    fresh = fresh_scores(scores, made)
    spans = [(0, made[0]), *pairwise(made)]  # edits [start, end) were first looked at after `end` edits
    lost: dict[int, list[Tensor]] = {}
    for k, m in enumerate(made):
        for start, end in spans[: k + 1]:
            lost.setdefault(m - end, []).append(fresh[start:end] - scores[k, start:end])
    return [_point(age, torch.cat(lost[age]), seed) for age in sorted(lost)]


def final_forgetting(scores: Tensor, made: Sequence[int]) -> Tensor:
    """Per edit, its best score so far minus its score at the end (Chaudhry et al. 2018).

    Args:
        scores: As in `retention_curve`.
        made: As in `retention_curve`.

    Returns:
        (edits,), at least 0; NaN where the end was not measured.

    Raises:
        DataError: As `retention_curve`.
    """
    _check(scores, made)
    best = scores.nan_to_num(nan=-math.inf).max(0).values
    return best - scores[-1]


def _check(scores: Tensor, made: Sequence[int]) -> None:
    fits = scores.dim() == 2 and len(scores) == len(made) > 0 and made[-1] <= scores.shape[1] and made[0] > 0
    if not fits or any(a >= b for a, b in pairwise(made)):
        got = f"scores of shape {tuple(scores.shape)} with edits made {list(made)}"
        allowed = "(checkpoints, edits) and one rising number of edits per checkpoint"
        raise DataError(refusal(got, allowed, "Pass one row of scores per checkpoint."))
    for k, m in enumerate(made):
        if not bool(scores[k, m:].isnan().all()):
            got = f"a score at checkpoint {k} for an edit that comes after the first {m}"
            raise DataError(refusal(got, "NaN for edits that were not made yet", "Mask them."))


def _point(x: int, values: Tensor, seed: int) -> CurvePoint:
    known = values[~values.isnan()].tolist()
    mean = sum(known) / len(known) if known else math.nan
    low, high = bootstrap_interval(known, seed=seed)
    return CurvePoint(x, mean, low, high, len(known), len(values) - len(known))
