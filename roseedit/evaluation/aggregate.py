"""From probes to a figure: mean inside each edit first, then over edits, with an interval and all that is missing."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch

from roseedit.evaluation.metrics import bootstrap_interval, mean_by_edit, resamples


@dataclass(frozen=True)
class Summary:
    """One figure of a table.

    Attributes:
        mean: Mean over edits of the mean inside each; NaN without a value.
        low: 2.5 % quantile of the bootstrap over edits.
        high: 97.5 % quantile.
        n: Edits that have at least one value.
        missing_edits: Edits without one: nothing to ask, or nothing that could be scored.
        probes: Values that went in.
        missing_probes: Values that were None or NaN.
    """

    mean: float
    low: float
    high: float
    n: int
    missing_edits: int
    probes: int
    missing_probes: int


def summarise(
    values: Sequence[float | bool | None],
    edits: Sequence[Hashable],
    *,
    all_edits: Iterable[Hashable] | None = None,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> Summary:
    """Sum a metric up.

    Args:
        values: One value per probe; None or NaN where it could not be scored.
        edits: Which edit each probe belongs to.
        all_edits: Every edit of the run, so that those without a probe are counted as missing.
        clusters: Per probe a key that several edits may share, such as a locality question: resampling then draws
            clusters, because edits that ask the same question are not independent.
        seed: Of the resampling.
        draws: Resamples.

    Returns:
        The figure.
    """
    known = [(float(v), e) for v, e in zip(values, edits, strict=True) if v is not None and not math.isnan(v)]
    means = mean_by_edit([v for v, _ in known], [e for _, e in known])
    with_value = dict.fromkeys(e for _, e in known)
    everyone = set(edits) if all_edits is None else {*all_edits, *edits}
    if clusters is None:
        low, high = bootstrap_interval(means, seed=seed, draws=draws)
    else:
        shared = dict(zip(reversed(edits), reversed(clusters), strict=True))  # an edit's first probe decides
        low, high = clustered_interval(means, [shared[e] for e in with_value], seed=seed, draws=draws)
    mean = sum(means) / len(means) if means else math.nan
    missing = len(everyone) - len(with_value)
    return Summary(mean, low, high, len(means), missing, len(known), len(values) - len(known))


def clustered_interval(
    values: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """95 % interval of the mean by resampling whole clusters.

    Args:
        values: One value per edit.
        clusters: The cluster of each.
        seed: Of the resampling.
        draws: Resamples.

    Returns:
        2.5 % and 97.5 % quantile of the mean; NaN without values.
    """
    if not values:
        return math.nan, math.nan
    number = {key: i for i, key in enumerate(dict.fromkeys(clusters))}
    member = torch.tensor([number[key] for key in clusters])
    sums = torch.zeros(len(number), dtype=torch.float64).index_add_(0, member, torch.tensor(values).double())
    sizes = torch.bincount(member, minlength=len(number)).double()
    drawn = resamples(len(number), seed=seed, draws=draws)
    means = torch.cat([sums[picks].sum(1) / sizes[picks].sum(1) for picks in drawn])
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


@dataclass(frozen=True)
class MedianSummary:
    """The median of a metric that a few values would dominate, such as a perplexity.

    Attributes:
        median: Over edits, of the mean inside each; NaN without a value.
        low: 2.5 % quantile of the bootstrap over edits.
        high: 97.5 % quantile.
        n: Edits with a value.
        missing: Edits without one.
    """

    median: float
    low: float
    high: float
    n: int
    missing: int


def summarise_median(
    values: Sequence[float | None], edits: Sequence[Hashable], *, seed: int = 0, draws: int = 2000
) -> MedianSummary:
    """Median over edits.

    Args:
        values: One value per probe; None or NaN where there is none. Infinity counts.
        edits: Which edit each belongs to.
        seed: Of the resampling.
        draws: Resamples.

    Returns:
        The median with its interval.
    """
    known = [(float(v), e) for v, e in zip(values, edits, strict=True) if v is not None and not math.isnan(v)]
    means = mean_by_edit([v for v, _ in known], [e for _, e in known])
    missing = len(set(edits)) - len(means)
    if not means:
        return MedianSummary(math.nan, math.nan, math.nan, 0, missing)
    data = torch.tensor(means, dtype=torch.float64)
    drawn = torch.cat([_median(data[picks]) for picks in resamples(len(data), seed=seed, draws=draws)]).sort().values
    low, high = drawn[round(0.025 * (draws - 1))], drawn[round(0.975 * (draws - 1))]
    return MedianSummary(float(_median(data)), float(low), float(high), len(means), missing)


def _median(data: torch.Tensor) -> torch.Tensor:
    """Mean of the two middle values; torch's own median is the lower one."""
    ordered, n = data.sort(-1).values, data.shape[-1]
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2
