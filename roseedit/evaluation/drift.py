"""How far an edit moves the weights: an alarm, not a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from roseedit.edits.delta import GRID_BITS, Delta


@dataclass(frozen=True)
class MatrixDrift:
    """The change of one weight matrix.

    Attributes:
        weight_name: Name of the parameter.
        norm: Frobenius norm of the change.
        relative: The same over the unedited matrix's norm; None when the weights were not given.
        density: Share of entries that are touched.
        rank: Outer products in the change.
    """

    weight_name: str
    norm: float
    relative: float | None
    density: float
    rank: int


def drift(delta: Delta, weights: Mapping[str, Tensor] | None = None) -> list[MatrixDrift]:
    """Norm and density of a delta, matrix by matrix.

    Args:
        delta: The delta.
        weights: *Unedited* weights by parameter name, such as `dict(model.named_parameters())` while no edit is live;
            for the relative norm.

    Returns:
        One entry per matrix, in the delta's order.
    """
    out = []
    for m in delta.matrices:
        flat, change = m.changes()
        norm = float((change.double() * 2.0**-GRID_BITS).norm())
        base = float(weights[m.weight_name].detach().double().norm()) if weights is not None else 0.0
        out.append(
            MatrixDrift(m.weight_name, norm, norm / base if base else None, len(flat) / (m.d_in * m.d_out), m.rank)
        )
    return out
