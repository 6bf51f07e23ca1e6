"""The direction along which a fact can be told from all else, as a squared-hinge separator with a ridge penalty.

Least squares to +1 and -1 would pull in points that lie beyond their margin already; the hinge lets go of them, so that
what is left is spent on the doubtful ones. Each round solves the regression of those within the margin anew (Newton's
method for the squared hinge). They are mostly few, so it is solved in the points, however many are watched.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    out = []
    for y, m in zip(wanted, mass, strict=True):
        penalty = ridge * (m[:own] @ gram.diagonal()) / m[:own].sum()
        near, far = m[:own] > 0, torch.zeros_like(m[own:], dtype=torch.bool)
        for left in range(rounds, -1, -1):
            w = _solved(x, gram, y, m, near, far, penalty)
            short = (m > 0) & (y * (x @ w) < y.square())
            if left == 0 or (torch.equal(short[:own], near) and torch.equal(short[own:], far)):
                break
            near, far = short[:own], short[own:]
        out.append(w)
    return torch.stack(out)


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
