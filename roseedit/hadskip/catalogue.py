"""From the gates' choices to a handful of profiles, and the threshold that makes their mean cost meet the budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from roseedit.hadskip.gate import profile_values

GRID = 257


def nested_sets(scores: Tensor, costs: Tensor, fixed: float, budget: float, most: int) -> list[list[int]]:
    """Nested sets of open gates that are as near to the gates' own choices as their number allows.

    Gates are ordered by their mean score, so the sets differ by how far down this order they reach; sequences differ
    by how many gates they open. Sizes are the quantiles of these numbers, and two that bracket the budget are always
    among them, for only then can a threshold meet it.

    Args:
        scores: (sequences, layers), s_l - theta, positive is open.
        costs: (layers,), cost share of each gate's layer.
        fixed: Cost share of what always runs.
        budget: The budget.
        most: Most sets.

    Returns:
        Sets of positions in the list of gates, the smallest first.
    """
    order = [int(i) for i in scores.mean(0).argsort(descending=True)]
    reached = fixed + torch.cat((torch.zeros(1), costs[order].cumsum(0)))
    below = int((reached <= budget + 1e-6).sum()) - 1
    sizes = {max(0, below)}
    if most > 1:
        sizes.add(min(len(order), below + 1))
    counts = (scores > 0).sum(1).float()
    for q in torch.linspace(0, 1, max(2, most)).tolist():
        if len(sizes) >= most:
            break
        sizes.add(round(float(torch.quantile(counts, q))))
    return [sorted(order[:size]) for size in sorted(sizes)]


def members_of(sets: Sequence[Sequence[int]], layers: int) -> Tensor:
    """Sets as a matrix.

    Args:
        sets: Positions in the list of gates.
        layers: How many gates there are.

    Returns:
        (sets, layers) of 0 and 1.
    """
    out = torch.zeros(len(sets), layers)
    for i, own in enumerate(sets):
        out[i, list(own)] = 1.0
    return out


def centred(scores: Tensor, costs: Tensor, fixed: float, budget: float) -> float:
    """The threshold at which the gates by themselves, without profiles, spend the budget on average.

    Args:
        scores: (sequences, layers).
        costs: (layers,).
        fixed: Cost share of what always runs.
        budget: The budget.

    Returns:
        theta.
    """
    values, order = scores.flatten().sort(descending=True)
    spent = fixed + costs.expand_as(scores).flatten()[order].cumsum(0) / len(scores)
    kept = int((spent <= budget + 1e-6).sum())
    if kept >= len(values):
        return float(values[-1]) - 1e-3
    return float(values[kept] if kept == 0 else (values[kept - 1] + values[kept]) / 2)


def calibration_curve(scores: Tensor, members: Tensor, costs: Tensor, fixed: float) -> list[tuple[float, float]]:
    """Mean cost on held-out sequences against the threshold.

    Args:
        scores: (sequences, layers), s_l, of held-out sequences.
        members: (profiles, layers).
        costs: (layers,).
        fixed: Cost share of what always runs.

    Returns:
        (theta, mean cost), theta rising, one point per change of the cost.
    """
    span = float(scores.max() - scores.min()) + 1.0
    grid = torch.linspace(float(scores.min()) - span, float(scores.max()) + span, GRID * 8)
    each = fixed + members @ costs
    points: list[tuple[float, float]] = []
    for theta in grid.tolist():
        cost = float(each[profile_values(scores, members, costs, theta).argmax(1)].mean())
        if not points or abs(cost - points[-1][1]) > 1e-9:
            points.append((theta, cost))
    return points


def shares_of(scores: Tensor, members: Tensor, costs: Tensor, theta: float) -> list[float]:
    """How often each profile is chosen.

    Args:
        scores: (sequences, layers).
        members: (profiles, layers).
        costs: (layers,).
        theta: The threshold.

    Returns:
        One share per profile, sum 1.
    """
    picked = profile_values(scores, members, costs, theta).argmax(1)
    return (torch.bincount(picked, minlength=len(members)).float() / len(picked)).tolist()
