"""The direction along which a fact can be told from all else, as a squared-hinge separator with a ridge penalty.

Least squares to +1 and -1 would pull in points that lie beyond their margin already; the hinge lets go of them, so that
what is left is spent on the doubtful ones. Each round solves the regression of those within the margin anew (Newton's
method for the squared hinge). They are mostly few, so it is solved in the points, however many are watched.
"""

from __future__ import annotations

import torch
from torch import Tensor

SKETCHED = 2  # rounds in which the worst of very many far points stand for the rest
STAND_INS = 128  # so many of them


@torch.no_grad()
def separators(x: Tensor, wanted: Tensor, mass: Tensor, *, own: int, ridge: float, rounds: int) -> Tensor:
    """One separating direction per question.

    Args:
        x: (n, d), the points.
        wanted: (R, n), what to answer at least where it is above 0, at most where it is below.
        mass: (R, n), weight of each point; 0 leaves it out.
        own: The first so many points count from the start, the others once they come within their margin.
        ridge: Penalty on squared length, relative to the mean squared length of the first points.
        rounds: Most rounds after the first.

    Returns:
        (R, d).
    """
    gram = x[:own] @ x[:own].mT
    return torch.stack(
        [_separator(x, gram, y, m, ridge=ridge, rounds=rounds) for y, m in zip(wanted, mass, strict=True)]
    )


def _separator(x: Tensor, gram: Tensor, wanted: Tensor, mass: Tensor, *, ridge: float, rounds: int) -> Tensor:
    """Newton's method; its first rounds, which call in far more points than will matter, make do with the worst."""
    own = len(gram)
    penalty = ridge * (mass[:own] @ gram.diagonal()) / mass[:own].sum()
    near, far, now = mass[:own] > 0, torch.zeros_like(mass[own:], dtype=torch.bool), mass
    for done in range(rounds + 1):
        w = _solved(x, gram, wanted, now, near, far, penalty)
        short = ((wanted.square() - wanted * (x @ w)) / wanted.abs()).where(mass > 0, 0.0).clamp(min=0)
        within = short > 0
        if done == rounds or (torch.equal(within[:own], near) and torch.equal(within[own:], far)):
            break
        near, far, now = within[:own], within[own:], mass
        if done < min(SKETCHED, rounds - 1) and int(far.sum()) > STAND_INS:
            far, now = _worst(short[own:], mass)
    return w


def _worst(short: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """The far points that fall shortest of their margin, and masses with which they pull as all of them would."""
    worst = short.topk(STAND_INS)
    far = torch.zeros_like(short, dtype=torch.bool)
    far[worst.indices] = True
    own = len(mass) - len(short)
    return far, torch.cat([mass[:own], mass[own:] * (short.sum() / worst.values.sum())])


def _solved(  # noqa: PLR0917 - one call site
    x: Tensor, gram: Tensor, wanted: Tensor, mass: Tensor, near: Tensor, far: Tensor, penalty: Tensor
) -> Tensor:
    """`ridge_fit` to the points `near` and `far`, the products of the first ones known."""
    chosen = torch.cat([near, far]).nonzero()[:, 0]
    points = x[chosen]
    if len(points) > x.shape[1]:
        return _primal(points, wanted[chosen], mass[chosen], penalty)
    inner = gram[near][:, near]
    if bool(far.any()):
        across = points[len(inner) :] @ points.mT
        inner = torch.cat([torch.cat([inner, across[:, : len(inner)].mT], 1), across])
    root = mass[chosen].sqrt()
    return _dual(inner, root, wanted[chosen], penalty) @ points


@torch.no_grad()
def ridge_fit(x: Tensor, wanted: Tensor, mass: Tensor, ridge: float) -> Tensor:
    """The direction that minimises sum mass (x w - wanted)^2 + penalty |w|^2.

    Args:
        x: (n, d).
        wanted: (n,).
        mass: (n,).
        ridge: As in `separators`.

    Returns:
        (d,).
    """
    gram = x @ x.mT
    penalty = ridge * (mass @ gram.diagonal()) / mass.sum()
    return _dual(gram, mass.sqrt(), wanted, penalty) @ x


def _dual(gram: Tensor, root: Tensor, wanted: Tensor, penalty: Tensor) -> Tensor:
    system = root[:, None] * gram * root
    system.diagonal().add_(penalty.clamp(min=torch.finfo(gram.dtype).tiny))
    return root * torch.cholesky_solve((root * wanted)[:, None], torch.linalg.cholesky(system))[:, 0]


def _primal(x: Tensor, wanted: Tensor, mass: Tensor, penalty: Tensor) -> Tensor:
    """The same, solved in the inputs: cheaper once there are more points than inputs."""
    weighted = x * mass[:, None]
    system = x.mT @ weighted
    system.diagonal().add_(penalty.clamp(min=torch.finfo(x.dtype).tiny))
    return torch.cholesky_solve((weighted.mT @ wanted)[:, None], torch.linalg.cholesky(system))[:, 0]
