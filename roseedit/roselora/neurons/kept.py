"""Facts at subjects that an earlier joint run has fitted, read back from its delta so that another one can go on.

A neuron of such a fact is one outer product in each matrix of its layer, in the outward one with a single entry on the
inward side. The columns that stand in for silenced neurons have many there; they are left out, for they are computed
anew once more neurons are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from roseedit.edits.delta import Delta, MatrixDelta
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.adapter import Factors
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.trainer import Trained


@dataclass(frozen=True)
class Kept:
    """What an earlier run has fitted.

    Attributes:
        requests: Its facts.
        parts: Per layer its neurons.
        taken: Per layer which they are.
    """

    requests: tuple[EditRequest, ...] = ()
    parts: Mapping[int, Trained] = field(default_factory=dict)
    taken: Mapping[int, frozenset[int]] = field(default_factory=dict)

    @property
    def layers(self) -> frozenset[int]:
        """The layers that its neurons are in."""
        return frozenset(self.parts)


NOTHING = Kept()


def kept_of(
    loaded: LoadedModel,
    delta: Delta,
    requests: Sequence[EditRequest],
    report: Mapping[str, Any],
    hparams: RoseLoRAHparams,
) -> Kept | None:
    """Read an earlier run's facts back.

    Args:
        loaded: The model that they were made for.
        delta: Their change.
        requests: What was asked; all of it.
        report: Figures of its making.
        hparams: The settings it was made with.

    Returns:
        Its facts; None where it is not one neuron per fact, at the subjects, and nothing else.
    """
    at_subjects = hparams.support == "neurons" and hparams.many_at == "subject"
    if not at_subjects or not all(request.subject for request in requests):
        return None
    matrices = {m.weight_name: m for m in delta.matrices}
    parts: dict[int, Trained] = {}
    taken: dict[int, frozenset[int]] = {}
    for layer in hparams.subject_indices(loaded.anatomy):
        own = {p.module_name: matrices.pop(p.weight_name, None) for p in find_neurons(loaded, layer).projections}
        down = find_neurons(loaded, layer).down.module_name
        whole = {path: m for path, m in own.items() if m}
        if len(whole) == len(own):
            neurons = whole[down].a.pointer.diff() == 1
            factors = {path: _factors(m, neurons if path == down else None, hparams.scale) for path, m in whole.items()}
            steps = 0 if parts else int(report.get("steps", 0))  # of all layers together
            parts[layer] = Trained(factors, steps, report.get("probability", 1.0), report.get("converged", True))
            taken[layer] = frozenset(factors[down].a.nonzero()[:, 1].tolist())
    if matrices or sum(map(len, taken.values())) != len(requests):
        return None
    return Kept(tuple(requests), parts, taken)


def _factors(matrix: MatrixDelta, which: Tensor | None, scale: float) -> Factors:
    """Some of a change's outer products, all by default; (r, d_in) and (d_out, r)."""
    a, b = matrix.a.dense(matrix.d_in), matrix.b.dense(matrix.d_out) / scale
    return Factors(a, b.mT) if which is None else Factors(a[which], b[which].mT)
