"""Which neurons an edit takes: such as the model hardly uses, least of all near the edit's fact, and no other edit has.

What a neuron did is lost once an edit takes it. Near ties in what the model says about the subject turn over by little,
so it matters what it does just there: of some hundred neurons idle in ordinary text a few are idler still.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from roseedit.errors import CapacityError, refusal
from roseedit.roselora.neurons.mlp import Neurons, weight_of

CHOICE = 16  # times as many as are taken: few, and edits made apart meet; many, and what is silenced is missed
NEAR = 256  # neurons whose use near the fact is looked at: fewer, and edits made apart meet more often
LIVELY = 3.0  # times the median size: a neuron with such weights does something, if only for a live edit's fact


@torch.no_grad()
def least_used(model: Any, neurons: Neurons, used: Tensor, share: float) -> Tensor:
    """The neurons whose silence would change the layer least.

    Args:
        model: The model.
        neurons: A layer's neurons.
        used: (neurons,), mean size of what each hands to its column.
        share: How many of them, as a share of all, live edits' own included.

    Returns:
        (m,) indices, the least used first. Neurons with large weights are left out, used or not: an edit that is live
        keeps silent on all text but its own.
    """
    columns = weight_of(model, neurons.down).float().norm(dim=0)
    size = columns * weight_of(model, neurons.opens).float().norm(dim=1)
    use = used * columns
    lively = size > LIVELY * size.median()
    use[lively] = torch.inf
    return use.argsort(stable=True)[: max(0, round(share * len(use)) - int(lively.sum()))]


def take(
    free: Tensor,
    taken: Collection[int],
    count: int,
    generator: torch.Generator,
    near: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Choose an edit's neurons from the least used: the idlest near its fact, or at random so that edits seldom meet.

    Args:
        free: (m,) neurons to draw from, the least used first.
        taken: Neurons that others have.
        count: How many.
        generator: The edit's own.
        near: (m,) neurons -> (m,), how much they write near the edit's fact; left out: they are drawn.

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
    if near is None:
        some = torch.tensor(left[: CHOICE * count], device=free.device)
        order = torch.randperm(len(some), generator=generator).to(some.device)
    else:
        some = torch.tensor(left[:NEAR], device=free.device)
        order = near(some).argsort(stable=True)
    return some[order[:count]].sort().values
