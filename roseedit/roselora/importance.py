"""Importance of a factor's entries: |w * dL/dw|, smoothed over steps (RoseLoRA, section 3; AdaLoRA's sensitivity)."""

from __future__ import annotations

from torch import Tensor


def update_importance(smoothed: Tensor | None, weight: Tensor, grad: Tensor, beta: float) -> Tensor:
    """One step of the moving average; called before the optimiser moves the weight.

    Args:
        smoothed: Average of the steps before, or None at the first step, whose value is stored as it is.
        weight: Factor, any shape.
        grad: Its gradient, same shape.
        beta: Share of the old average, in [0, 1).

    Returns:
        The new average in float32, same shape. Half precision would let small values become 0, and pruned entries
        could then return.
    """
    current = (weight.detach().float() * grad.float()).abs()
    return current if smoothed is None else smoothed.mul(beta).add_(current, alpha=1.0 - beta)
