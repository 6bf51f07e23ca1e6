"""A start for A that knows its keys: the directions in which the loss wants to move, cleared of what anchors use.

The first gradient of a matrix is sum_t g_t k_t^T over the fact's tokens t, with k_t what enters the matrix and g_t the
gradient of what leaves it. A random A catches a small part of it and opens on every other input too. Here the rows of
A start as the leading right singular vectors of that sum, after each k_t has been projected away from the inputs that
the anchors bring (ridge regression, the idea of ROME's C^-1 k). B still starts at zero, so nothing changes at first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NOISE = 1e-6  # share of the leading direction's energy below which a direction is rounding, not signal


@torch.no_grad()
def cleared(keys: Tensor, anchors: Tensor | None, ridge: float) -> Tensor:
    """What is left of `keys` that the anchors' inputs cannot explain.

    Args:
        keys: (E, n, d_in).
        anchors: (E, m, d_in), rows of zeros where an edit has fewer; None for none.
        ridge: Penalty relative to the mean squared length of the anchors' inputs; small clears more.

    Returns:
        (E, n, d_in).
    """
    if anchors is None:
        return keys
    squares = anchors.square().sum(-1)
    unit = squares.sum(-1) / (squares > 0).sum(-1).clamp(min=1)
    penalty = torch.where(unit > 0, ridge * unit, 1.0)[:, None, None]  # an edit without anchors: any will do
    few = anchors.shape[1] <= anchors.shape[2]
    gram = anchors @ anchors.mT if few else anchors.mT @ anchors
    factor = torch.linalg.cholesky(gram + penalty * torch.eye(gram.shape[-1], device=gram.device))
    if not few:
        return penalty * torch.cholesky_solve(keys.mT, factor).mT
    return keys - torch.cholesky_solve(anchors @ keys.mT, factor).mT @ anchors


@torch.no_grad()
def leading_rows(keys: Tensor, gradients: Tensor, fallback: Tensor) -> Tensor:
    """Leading right singular vectors of sum_t g_t k_t^T, as rows as long as the random start's.

    Args:
        keys: (E, n, d_in), rows of zeros where an edit has fewer tokens.
        gradients: (E, n, d_out), likewise.
        fallback: (E, rank, d_in), the random start; its rows stand where there are too few directions.

    Returns:
        (E, rank, d_in).
    """
    if keys.shape[1] > gradients.shape[2]:
        weighted = gradients.mT.double() @ keys.double()
    else:
        values, vectors = torch.linalg.eigh((gradients @ gradients.mT).double())
        weighted = (vectors * values.clamp(min=0).sqrt()[:, None, :]).mT @ keys.double()
    energy, mix = torch.linalg.eigh(weighted @ weighted.mT)
    found = min(fallback.shape[1], energy.shape[-1])
    rows = mix.flip(-1)[..., :found].mT @ weighted
    usable = energy.flip(-1)[:, :found] > NOISE * energy[:, -1:].clamp(min=1e-300)
    largest = rows.gather(-1, rows.abs().argmax(-1, keepdim=True))
    rows = rows * torch.where(largest < 0, -1.0, 1.0)  # the sign is free; the same one in any batch
    wanted = fallback.norm(dim=-1, keepdim=True)[:, :found].double()
    scaled = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-300) * wanted
    out = fallback.clone()
    out[:, :found] = torch.where(usable[..., None], scaled.to(out.dtype), out[:, :found])
    return out


class FirstGradients:
    """Collects what enters the adapted matrices on the fact's tokens, and the gradient of what leaves them.

    Args:
        model: The model.
        paths: The adapted modules.
        edits: The edits looked at, by their places in the bank.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], edits: range) -> None:
        self.model, self.edits = model, edits
        self.keys: dict[str, list[list[Tensor]]] = {path: [[] for _ in edits] for path in paths}
        self.gradients: dict[str, list[list[Tensor]]] = {path: [[] for _ in edits] for path in paths}

    @contextmanager
    def watching(self, edits: Tensor, mask: Tensor) -> Iterator[None]:
        """Collect from every pass of the block; backward must run inside it.

        Args:
            edits: (rows,) the edit of each row.
            mask: (rows, tokens) of 0 and 1.

        Yields:
            Nothing.
        """
        handles = []
        try:
            for path in self.keys:
                hook = self._hook(path, edits.tolist(), mask.bool())
                handles.append(self.model.get_submodule(path).register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str, edits: list[int], real: Tensor) -> Callable[[Any, Any, Tensor], None]:
        def book(into: list[list[Tensor]], values: Tensor) -> None:
            rows = values.detach().float().reshape(*real.shape, -1)
            for row, edit in enumerate(edits):
                into[edit - self.edits.start].append(rows[row][real[row]])

        def look(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            book(self.keys[path], args[0])
            output.register_hook(lambda gradient: book(self.gradients[path], gradient))

        return look

    def stacked(self, path: str) -> tuple[Tensor, Tensor]:
        """Keys (E, n, d_in) and gradients (E, n, d_out) of one matrix, filled up with zeros."""
        return _filled(self.keys[path]), _filled(self.gradients[path])


def _filled(rows: list[list[Tensor]]) -> Tensor:
    joined = [torch.cat(parts) for parts in rows]
    return nn.utils.rnn.pad_sequence(joined, batch_first=True)
