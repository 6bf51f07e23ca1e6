"""The norm constraint on the factors, applied after each prune (RoseLoRA, section on editing)."""

from __future__ import annotations

import torch
from torch import Tensor


def initial_scale(d_in: int) -> float:
    """Bound of A's uniform start, 1/sqrt(d_in), the unit of the relative limits."""
    return d_in**-0.5


@torch.no_grad()
def constrain(factor: Tensor, kind: str, limit: float, unit: float) -> float:
    """Limit a factor's size in place.

    Args:
        factor: (..., rows, columns).
        kind: `"none"`; `"entry"` clamps each entry to +-limit * unit; `"frobenius"` shrinks a factor whose squared
            norm exceeds (limit * unit)^2 times its number of entries.
        limit: The limit.
        unit: What it is relative to; 1 for an absolute limit.

    Returns:
        Share of non-zero entries that were cut (`entry`) or of factors that were shrunk (`frobenius`).
    """
    if kind == "entry":
        over = factor.abs() > limit * unit
        share = over.sum() / (factor != 0).sum().clamp(min=1)
        factor.clamp_(-limit * unit, limit * unit)
        return float(share)
    if kind == "frobenius":
        norm = factor.square().sum((-2, -1), keepdim=True).sqrt()
        largest = limit * unit * (factor.shape[-1] * factor.shape[-2]) ** 0.5
        shrink = (largest / norm.clamp(min=torch.finfo(factor.dtype).tiny)).clamp(max=1.0)
        factor.mul_(shrink)
        return float((shrink < 1).float().mean())
    return 0.0
