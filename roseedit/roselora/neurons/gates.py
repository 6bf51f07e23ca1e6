"""The direction along which a fact can be told from all else, as a squared-hinge separator with a ridge penalty.

Least squares to +1 and -1 would pull in points that lie beyond their margin already; the hinge lets go of them, so that
what is left is spent on the doubtful ones. Each round solves the regression of those within the margin anew (Newton's
method for the squared hinge). They are mostly few, so it is solved in the points, however many are watched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SKETCHED = 2  # rounds in which the worst of many far points stand for the rest
STAND_INS = 128  # so many of them
SAMPLE = 3_000  # most far points in the first half of the rounds: some times their width, and the end is the same


@dataclass(frozen=True)
class Far:
    """Points elsewhere, at which only silence is asked; many runs share them, so that they are never copied.

    Attributes:
        blocks: Each (m, d).
        mass: (all m,), weight of each; 0 leaves it out.
    """

    blocks: Sequence[Tensor]
    mass: Tensor

    def dot(self, w: Tensor) -> list[Tensor]:
        """Products with a direction, (d,), per block."""
        return [block @ w for block in self.blocks]

    def at(self, chosen: Tensor) -> list[Tensor]:
        """The points that are chosen, (all m,), per block."""
        parts = chosen.split([len(block) for block in self.blocks])
        return [block[part] for block, part in zip(self.blocks, parts, strict=True)]


@torch.no_grad()
def separators(
    x: Tensor, wanted: Tensor, mass: Tensor, far: Far, margin: float, *, ridge: float, rounds: int
) -> Tensor:
    """One separating direction per question.

    Args:
        x: (n, d), the points that count from the start.
        wanted: (R, n), what to answer at least where it is above 0, at most where it is below.
        mass: (R, n), weight of each point; 0 leaves it out.
        far: Further points, which count once they come within their margin.
        margin: How far below 0 the answer must stay there.
        ridge: Penalty on squared length, relative to the mean squared length of `x`.
        rounds: Most rounds after the first.

    Returns:
        (R, d).
    """
    gram, silent = x @ x.mT, torch.full_like(far.mass, -margin)

    def one(y: Tensor, m: Tensor) -> Tensor:
        return _separator(x, far, gram, torch.cat([y, silent]), torch.cat([m, far.mass]), ridge=ridge, rounds=rounds)

    return torch.stack([one(y, m) for y, m in zip(wanted, mass, strict=True)])


def _separator(x: Tensor, far: Far, gram: Tensor, wanted: Tensor, mass: Tensor, *, ridge: float, rounds: int) -> Tensor:
    """Newton's method; its first rounds, which call in far more points than will matter, make do with some of them."""
    own = len(x)
    penalty = ridge * (mass[:own] @ gram.diagonal()) / mass[:own].sum()
    near, called, now = mass[:own] > 0, torch.zeros_like(mass[own:], dtype=torch.bool), mass
    for done in range(rounds + 1):
        w = _solved(x, far, gram, wanted, now, near, called, penalty)
        answer = torch.cat([x @ w, *far.dot(w)])
        short = ((wanted.square() - wanted * answer) / wanted.abs()).where(mass > 0, 0.0).clamp(min=0)
        within = short > 0
        if done == rounds or (torch.equal(within[:own], near) and torch.equal(within[own:], called)):
            break
        near, called, now = within[:own], *_for_all(short[own:], mass, done, rounds)
    return w


def _for_all(short: Tensor, mass: Tensor, done: int, rounds: int) -> tuple[Tensor, Tensor]:
    """The far points of the next round, (m,), and all masses, with which they pull as all that fall short would."""
    called, own = short > 0, len(mass) - len(short)
    count = int(called.sum())
    if count > SAMPLE and done < rounds // 2:
        some = called.nonzero()[:: -(-count // SAMPLE), 0]
        pull = count / len(some)
    elif count > STAND_INS and done < min(SKETCHED, rounds - 1):
        worst = short.topk(STAND_INS)
        some, pull = worst.indices, float(short.sum() / worst.values.sum())
    else:
        return called, mass
    chosen = torch.zeros_like(called)
    chosen[some] = True
    return chosen, torch.cat([mass[:own], mass[own:] * pull])


def _solved(  # noqa: PLR0917 - one call site
    x: Tensor, far: Far, gram: Tensor, wanted: Tensor, mass: Tensor, near: Tensor, called: Tensor, penalty: Tensor
) -> Tensor:
    """`ridge_fit` to the points `near` and the far ones that are called in, the products of the first ones known."""
    chosen, points = torch.cat([near, called]), torch.cat([x[near], *far.at(called)])
    if len(points) > x.shape[1]:
        return _primal(points, wanted[chosen], mass[chosen], penalty)
    inner = gram[near][:, near]
    if len(points) > len(inner):
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
