"""Whether two ways to run a model say the same, as far as its numbers can tell."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

EXACT = 1e-3  # share of the largest number by which float32 sums in another order may differ
ROUGH = 5e-2  # the same of bfloat16 and float16; a pass that sees wrong tokens is off by far more


def agree(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Compare what two ways give.

    Args:
        pairs: Tensors of equal shape.

    Returns:
        True when none differs by more than rounding explains.
    """
    found = [(float((a.float() - b.float()).abs().max()), float(b.abs().max()), b.dtype) for a, b in pairs]
    most = max(size for _, size, _ in found)
    exact = all(dtype in (torch.float32, torch.float64) for *_, dtype in found)
    return max(off for off, *_ in found) < (EXACT if exact else ROUGH) * most
