"""From trained factors to what the protocol wants: the delta with the figures of its making."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from roseedit.edits.delta import Delta
from roseedit.methods.registry import MadeDelta
from roseedit.models.load import LoadedModel


class Training(Protocol):
    """What is told of an edit's training."""

    @property
    def steps(self) -> int:
        """Optimiser steps it took."""
        ...

    @property
    def probability(self) -> float:
        """Smallest target-token probability when last looked at."""
        ...

    @property
    def converged(self) -> bool:
        """True when it stopped by itself."""
        ...


def made_of(
    loaded: LoadedModel,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    training: Training,
    scale: float = 1.0,
    **more: Any,
) -> MadeDelta:
    """A trained edit as the protocol wants it.

    Args:
        loaded: The model.
        factors: Per module path A, (r, d_in), and B, (d_out, r).
        training: How the training went.
        scale: c in W0 + c B A.
        **more: Further figures of its making.

    Returns:
        The delta with its figures.

    Raises:
        DeltaError: A factor holds NaN or infinity.
    """
    projections = {p.module_name: p for p in loaded.anatomy.projections}
    delta = Delta.from_factors(projections, factors, scale)
    report = {
        "steps": training.steps,
        "probability": round(training.probability, 6),
        "converged": training.converged,
        "density": delta.density,
        "density_bound": delta.density_bound,
        "values": delta.n_values,
        "norm": delta.norm,
        **more,
    }
    return MadeDelta(delta, report)
