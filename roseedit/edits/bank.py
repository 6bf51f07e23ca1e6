"""Many deltas side by side on one model, switched on row by row, so that they are measured together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from roseedit.edits.delta import Delta, MatrixDelta
from roseedit.models.load import LoadedModel
from roseedit.roselora.adapter import FactorBank, Factors


def bank_of(loaded: LoadedModel, deltas: Sequence[Delta]) -> FactorBank:
    """Put deltas side by side.

    Args:
        loaded: The model, without these deltas.
        deltas: The deltas; ranks and matrices may differ, missing parts are zero.

    Returns:
        A bank whose edit i is `deltas[i]`.
    """
    by_name: dict[str, dict[int, MatrixDelta]] = {}
    for i, delta in enumerate(deltas):
        for m in delta.matrices:
            by_name.setdefault(m.weight_name, {})[i] = m
    factors = {name.removesuffix(".weight"): _stacked(found, len(deltas)) for name, found in by_name.items()}
    for path, bank in factors.items():
        device = loaded.model.get_submodule(path).weight.device
        factors[path] = Factors(bank.a.to(device), bank.b.to(device))
    return FactorBank(loaded.model, factors)


def _stacked(found: dict[int, MatrixDelta], n: int) -> Factors:
    some = next(iter(found.values()))
    rank = max(m.rank for m in found.values())
    a, b = torch.zeros(n, rank, some.d_in), torch.zeros(n, some.d_out, rank)
    for i, m in found.items():
        a[i, : m.rank] = m.a.dense(m.d_in)
        b[i, :, : m.rank] = m.b.dense(m.d_out).T
    return Factors(a, b)
