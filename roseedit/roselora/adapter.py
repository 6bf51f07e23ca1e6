"""The factors of many edits side by side, switched on row by row through forward hooks.

W0 x + c B A x is computed as (x A^T) B^T beside the frozen product, so the weights are never written and each row of
a batch can carry an edit of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roseedit.models.anatomy import Projection


@dataclass
class Factors:
    """One factor pair, or a bank of them.

    Attributes:
        a: (E, r, d_in) or (r, d_in).
        b: (E, d_out, r) or (d_out, r).
    """

    a: Tensor
    b: Tensor

    def pick(self, edit: int) -> Factors:
        """A detached copy of one edit's pair."""
        return Factors(self.a[edit].detach().clone(), self.b[edit].detach().clone())

    def tensors(self) -> tuple[Tensor, Tensor]:
        """(a, b)."""
        return self.a, self.b


def init_factors(projection: Projection, rank: int, generators: list[torch.Generator], device: torch.device) -> Factors:
    """The start PEFT uses: A uniform in +-1/sqrt(d_in), B zero.

    Args:
        projection: The adapted matrix.
        rank: r.
        generators: One CPU generator per edit, so that an edit's start does not depend on its neighbours.
        device: Where the factors live.

    Returns:
        A bank of `len(generators)` pairs in float32.
    """
    bound = projection.d_in**-0.5
    rows = [torch.empty(rank, projection.d_in).uniform_(-bound, bound, generator=g) for g in generators]
    b = torch.zeros(len(generators), projection.d_out, rank, device=device)
    return Factors(torch.stack(rows).to(device), b)


class FactorBank:
    """The factors of E edits over several matrices of one model.

    Args:
        model: The model whose modules are adapted.
        factors: Per module path a bank, (E, r, d_in) and (E, d_out, r); all with the same E.
        scale: The factor c in W0 + c B A.
        dropout: Share of the factors' input that is zeroed; for training only.
        seeds: One per edit, for the dropout.
    """

    def __init__(
        self,
        model: nn.Module,
        factors: Mapping[str, Factors],
        scale: float = 1.0,
        dropout: float = 0.0,
        seeds: Sequence[int] = (),
    ) -> None:
        self.model = model
        self.factors = dict(factors)
        self.scale = scale
        self.dropout = dropout
        self.seeds = tuple(seeds)
        self.step = 0

    @contextmanager
    def on_rows(self, edits: Tensor) -> Iterator[None]:
        """Switch edit `edits[i]` on for row i of every forward pass in the block.

        Args:
            edits: (rows,) indices into the bank; -1 leaves a row as the base model has it.

        Yields:
            Nothing.
        """
        handles = []
        try:
            for path, bank in self.factors.items():
                hook = self._hook(path, bank, edits.to(bank.a.device))
                handles.append(self.model.get_submodule(path).register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str, bank: Factors, edits: Tensor) -> Callable[[Any, Any, Tensor], Tensor]:
        a, b = bank.a, bank.b * self.scale
        n = len(edits)
        if len(a) > 1 or not bool((edits == 0).all()):
            present = (edits >= 0).to(a.dtype)[:, None, None]
            a, b = a[edits.clamp(min=0)], b[edits.clamp(min=0)] * present

        def add(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0].reshape(n, -1, args[0].shape[-1])  # some models flatten rows and tokens before an MLP
            update = (self._dropped(x.to(a.dtype), path, edits) @ a.mT) @ b.mT
            return output + update.reshape(output.shape).to(output.dtype)

        return add

    def _dropped(self, x: Tensor, path: str, edits: Tensor) -> Tensor:
        """Zero inputs at random, the same ones for an edit whatever else is in the batch."""
        if not self.dropout:
            return x
        draws = []
        for edit in edits.tolist():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seeds[edit]}/{path}/{self.step}".encode()))
            draws.append(torch.rand(x.shape[1:], generator=generator))
        kept = torch.stack(draws).to(x.device) >= self.dropout
        return x * kept / (1 - self.dropout)
