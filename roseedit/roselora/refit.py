"""Pruning A without forgetting what it was for: what stays of a row makes up for what was cut.

A row of A is a direction that answers to the inputs of the fact and, cleared of them, hardly to those of the anchors.
Cutting most of its entries spoils both. So after each cut the entries that stay are moved by the shortest step that
gives the row its answers to all these inputs back (ridge regression, the idea of Optimal Brain Surgeon, Hassibi and
Stork 1993).
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def refitted(a: Tensor, mask: Tensor, inputs: Tensor, ridge: float) -> Tensor:
    """Cut the rows of A, and make up for it.

    Args:
        a: (E, r, d_in), as they were.
        mask: (E, r, d_in), boolean, what stays; as many in each row of an edit.
        inputs: (E, n, d_in), rows of zeros where an edit has fewer.
        ridge: Penalty on the step, relative to the mean squared length of the inputs' kept part.

    Returns:
        (E, r, d_in), zero where the mask is false. Each edit's rows depend on that edit alone.
    """
    out = a * mask
    for edit, rows in enumerate(out):
        own = inputs[edit][inputs[edit].any(-1)]
        if len(own):
            places = mask[edit].nonzero()[:, 1].view(len(rows), -1)
            lost = (a[edit] - rows) @ own.T
            step = _step(own[:, places].movedim(0, 1).double(), lost.double(), ridge)
            rows.scatter_add_(1, places, step.to(rows.dtype))
    return out


def _step(own: Tensor, lost: Tensor, ridge: float) -> Tensor:
    """The ridge solution s of own s = lost: (r, n, k) and (r, n) give (r, k)."""
    few = own.shape[1] <= own.shape[2]
    gram = own @ own.mT if few else own.mT @ own
    level = (ridge * own.square().sum((1, 2)) / own.shape[1]).clamp(min=torch.finfo(own.dtype).tiny)
    factor = torch.linalg.cholesky(gram + level[:, None, None] * torch.eye(gram.shape[-1], device=own.device))
    target = lost[..., None] if few else own.mT @ lost[..., None]
    solved = torch.cholesky_solve(target, factor)
    return (own.mT @ solved if few else solved)[..., 0]
