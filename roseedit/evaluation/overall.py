"""One number for a run: the harmonic mean of reliability, generality, locality and portability, with its interval.

All four are per-edit means of the long form. A zero makes the whole zero: no strength makes up for a failure elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from roseedit.evaluation.metrics import resamples

if TYPE_CHECKING:
    import pandas

# name -> (kind of probe, metric, side of the long form)
PARTS: Mapping[str, tuple[str, str, str]] = {
    "reliability": ("prompt", "exact_match", "after"),
    "generality": ("rephrase", "exact_match", "after"),
    "locality": ("locality", "easyedit_locality", "after"),
    "unchanged": ("locality", "unchanged", "after"),
    "portability": ("portability", "exact_match", "after"),
    "portability_before": ("portability", "exact_match", "before"),
    "portability_forced": ("portability", "easyedit_accuracy", "after"),
    "portability_forced_before": ("portability", "easyedit_accuracy", "before"),
}
GAINS = {
    "portability_gain": ("portability", "portability_before"),
    "portability_forced_gain": ("portability_forced", "portability_forced_before"),
}


@dataclass(frozen=True)
class Overall:
    """A harmonic mean over figures.

    Attributes:
        mean: Of the figures' means over edits; NaN when none is defined.
        low: 2.5 % quantile of the bootstrap over edits.
        high: 97.5 % quantile.
        n: Edits.
    """

    mean: float
    low: float
    high: float
    n: int


def by_edit(rows: pandas.DataFrame, keys: Sequence[str]) -> dict[str, list[float]]:
    """Every part of `PARTS` and `GAINS`, edit by edit.

    Args:
        rows: The long form of independent edits, or the last stage of others.
        keys: Names of the edits.

    Returns:
        Per part one mean per edit, in the order of `keys`; NaN where an edit has no such probe.
    """
    out = {}
    for name, (kind, metric, side) in PARTS.items():
        own = rows[(rows["kind"] == kind) & (rows["metric"] == metric)]
        means = own.groupby("edit")[side].mean()
        out[name] = [float(means.get(key, math.nan)) for key in keys]
    for name, (after, before) in GAINS.items():
        out[name] = [a - b for a, b in zip(out[after], out[before], strict=True)]
    return out


def overall(
    parts: Sequence[Sequence[float]], *, floor: float = 0.0, seed: int = 0, draws: int = 2000, interval: bool = True
) -> Overall:
    """Harmonic mean of the parts' means, resampled over edits.

    Args:
        parts: Per part one value per edit, NaN where there is none; parts without any value are left out.
        floor: Means below it count as it, so that a search can tell bad from worse.
        seed: Of the resampling.
        draws: Resamples.
        interval: False leaves the interval out (NaN).

    Returns:
        The figure.
    """
    data = torch.tensor([list(part) for part in parts], dtype=torch.float64)
    data = data[~data.isnan().all(-1)]
    n = data.shape[-1]
    if not len(data) or not n:
        return Overall(math.nan, math.nan, math.nan, 0)
    mean = float(_harmonic(data.nanmean(-1, keepdim=True), floor))
    if not interval:
        return Overall(mean, math.nan, math.nan, n)
    drawn = [_harmonic(data[:, picks].nanmean(-1), floor) for picks in resamples(n, seed=seed, draws=draws)]
    known = torch.cat(drawn)
    known = known[~known.isnan()]  # a resample may hold no edit with such a probe
    low, high = torch.quantile(known, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Overall(mean, low, high, n)


def _harmonic(means: Tensor, floor: float) -> Tensor:
    """(parts, draws) -> (draws,); 0 where a part is 0 or below."""
    return len(means) / (1 / means.clamp(min=max(floor, 0.0))).sum(0)
