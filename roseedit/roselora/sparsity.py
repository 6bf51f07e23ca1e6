"""What is cut, and the guarantee that follows.

`B A` is the sum of r outer products. If row i of A keeps a share a_i and column i of B a share b_i, term i is non-zero
on a rectangle of a share a_i b_i of the matrix, and a union is no larger than the sum: density(B A) <= sum_i a_i b_i.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kept_count(n: int, keep: float) -> int:
    """How many of n entries are kept: round(keep * n), at least 1.

    Args:
        n: Length of the row or column.
        keep: Kept share, in (0, 1].

    Returns:
        The count.
    """
    return max(1, round(keep * n))


def top_k_mask(importance: Tensor, keep: float, dim: int) -> Tensor:
    """Exactly `kept_count` entries per row or column: the most important, ties to the lower index.

    Args:
        importance: (..., r, d_in) for A, (..., d_out, r) for B.
        keep: Kept share.
        dim: The dimension along which entries compete: -1 for A, -2 for B.

    Returns:
        Boolean mask of the same shape.
    """
    k = kept_count(importance.shape[dim], keep)
    order = importance.argsort(dim=dim, descending=True, stable=True).narrow(dim, 0, k)
    return torch.zeros_like(importance, dtype=torch.bool).scatter_(dim, order, True)


def threshold_mask(importance: Tensor, keep: float, dim: int) -> Tensor:
    """The authors' rule: cut what lies strictly below the k-th smallest, k = int(n (1 - keep)); ties survive.

    Args:
        importance: As in `top_k_mask`.
        keep: Kept share.
        dim: As in `top_k_mask`.

    Returns:
        Boolean mask; about one entry more per row than keep * n.
    """
    k = int(importance.shape[dim] * (1.0 - keep))
    if k < 1:
        return torch.ones_like(importance, dtype=torch.bool)
    return importance >= importance.kthvalue(k, dim=dim, keepdim=True).values


def density_bound(a: Tensor, b: Tensor) -> Tensor:
    """Upper bound on the density of B A, from the shares really kept.

    Args:
        a: (..., r, d_in).
        b: (..., d_out, r).

    Returns:
        (...,): sum_i a_i b_i, at most 1.
    """
    rows = (a != 0).float().mean(-1)
    columns = (b != 0).float().mean(-2)
    return (rows * columns).sum(-1).clamp(max=1.0)


def touched(a: Tensor, b: Tensor) -> Tensor:
    """Where the product B A can be non-zero.

    Args:
        a: (..., r, d_in).
        b: (..., d_out, r).

    Returns:
        (..., d_out, d_in), boolean: the union of the r rectangles.
    """
    return ((b != 0).float() @ (a != 0).float()) > 0


def density(a: Tensor, b: Tensor) -> Tensor:
    """Share of the matrix that B A can touch.

    Args:
        a: (..., r, d_in).
        b: (..., d_out, r).

    Returns:
        (...,), in [0, 1].
    """
    return touched(a, b).float().mean((-2, -1))
