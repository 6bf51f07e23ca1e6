"""Which neurons an edit takes: such as the model hardly uses, and no other edit has."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from roseedit.errors import CapacityError, refusal
from roseedit.roselora.neurons.mlp import Neurons, weight_of

CHOICE = 16  # times as many as are taken: few, and edits made apart meet; many, and what is silenced is missed
LIVELY = 3.0  # times the median size: a neuron with such weights does something, if only for a live edit's fact


@torch.no_grad()
def least_used(model: Any, neurons: Neurons, used: Tensor, share: float) -> Tensor:
    """The neurons whose silence would change the layer least.

    Args:
        model: The model.
        neurons: A layer's neurons.
        used: (neurons,), mean size of what each hands to its column.
        share: How many of them, as a share of all.

    Returns:
        (m,) indices, the least used first. Neurons with large weights are left out, used or not: an edit that is live
        keeps silent on all text but its own.
    """
    columns = weight_of(model, neurons.down).float().norm(dim=0)
    size = columns * weight_of(model, neurons.opens).float().norm(dim=1)
    use = used * columns
    use[size > LIVELY * size.median()] = torch.inf
    order = use.argsort(stable=True)[: max(1, round(share * len(use)))]
    return order[use[order].isfinite()]


def take(free: Tensor, taken: Collection[int], count: int, generator: torch.Generator) -> Tensor:
    """Draw an edit's neurons from the least used, so that edits made apart seldom meet.

    Args:
        free: (m,) neurons to draw from, the least used first.
        taken: Neurons that others have.
        count: How many.
        generator: The edit's own.

    Returns:
        (count,) neurons, rising.

    Raises:
        CapacityError: There are fewer.
    """
    left = [j for j in free.tolist() if j not in taken]
    if len(left) < count:
        got = f"{count} neurons wanted of {len(left)} that are free in the layer"
        raise CapacityError(
            refusal(got, "as many as are free", "Raise `pool`, name more `layers`, or ask for fewer facts.")
        )
    drawn = torch.randperm(min(len(left), CHOICE * count), generator=generator)[:count].tolist()
    return torch.tensor(sorted(left[i] for i in drawn), device=free.device)
