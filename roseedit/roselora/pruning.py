"""The factors of E edits while they are trained: their importance, their pruning, and what anchors bring to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from roseedit.errors import RoseEditError, refusal
from roseedit.models.anatomy import Projection
from roseedit.roselora.adapter import Factors, init_factors
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.importance import update_importance
from roseedit.roselora.norms import constrain, initial_scale
from roseedit.roselora.objective import preservation
from roseedit.roselora.sparsity import threshold_mask, top_k_mask


@dataclass
class _Matrix:
    """One matrix for all edits: factors, moving averages of importance, and inputs on anchors with their unit."""

    factors: Factors
    importance: list[Tensor | None] = field(default_factory=lambda: [None, None])
    keys: Tensor | None = None
    unit: float = 1.0


class SparseFactors:
    """The factors of E edits over several matrices.

    Args:
        model: The model.
        projections: The matrices.
        generators: One per edit, for its start.
        hparams: The settings.
    """

    def __init__(
        self,
        model: nn.Module,
        projections: Sequence[Projection],
        generators: list[torch.Generator],
        hparams: RoseLoRAHparams,
    ) -> None:
        self.model, self.hparams = model, hparams
        self.matrices: dict[str, _Matrix] = {}
        for p in projections:
            device: torch.device = model.get_parameter(p.weight_name).device
            self.matrices[p.module_name] = _Matrix(init_factors(p, hparams.rank, generators, device))
        for tensor in self.tensors():
            tensor.requires_grad_(True)

    @property
    def factors(self) -> dict[str, Factors]:
        """Per module path the bank of factors."""
        return {path: m.factors for path, m in self.matrices.items()}

    def tensors(self) -> list[Tensor]:
        """All factors, for an optimiser."""
        return [t for m in self.matrices.values() for t in m.factors.tensors()]

    def pick(self, edit: int) -> dict[str, Factors]:
        """A copy of one edit's factors."""
        return {path: m.factors.pick(edit) for path, m in self.matrices.items()}

    @torch.no_grad()
    def keep_anchors(self, path: str, keys: Tensor | None) -> None:
        """Remember what anchors bring to a matrix.

        Args:
            path: The module.
            keys: (E, n, d_in), rows of zeros where an edit has fewer; None when there are no anchors at all.
        """
        if keys is None:
            return
        matrix = self.matrices[path]
        matrix.keys = keys.to(matrix.factors.a.device)
        real = matrix.keys[(matrix.keys != 0).any(-1)]
        matrix.unit = float(self.model.get_submodule(path)(real).float().square().sum(-1).mean())

    def preserved(self, device: torch.device) -> Tensor:
        """The change on anchors, summed over matrices and edits."""
        total = torch.zeros((), device=device)
        for m in self.matrices.values():
            if m.keys is not None:
                change = preservation(m.keys, m.factors.a, m.factors.b * self.hparams.scale, m.unit)
                total = total + change.sum().to(device)
        return total

    def score_importance(self) -> None:
        """Update the moving averages from the present factors and gradients, before the optimiser moves them.

        Raises:
            RoseEditError: A gradient is not finite.
        """
        for path, matrix in self.matrices.items():
            for i, weight in enumerate(matrix.factors.tensors()):
                if weight.grad is None:
                    continue
                if not bool(torch.isfinite(weight.grad).all()):
                    message = refusal(f"a gradient of {path} that is not finite", "finite ones", "Lower lr or scale.")
                    raise RoseEditError(message)
                matrix.importance[i] = update_importance(matrix.importance[i], weight, weight.grad, self.hparams.beta)

    @torch.no_grad()
    def prune(self, keep: float) -> None:
        """Cut each row of A and column of B to its most important share, then limit the norms.

        Args:
            keep: The kept share; 1 and above does nothing.
        """
        if keep >= 1:
            return
        rule = top_k_mask if self.hparams.tie_rule == "top_k" else threshold_mask
        for matrix in self.matrices.values():
            unit = initial_scale(matrix.factors.a.shape[-1]) if self.hparams.norm_unit == "initial" else 1.0
            for weight, importance, dim in zip(matrix.factors.tensors(), matrix.importance, (-1, -2), strict=True):
                if importance is not None:
                    weight.mul_(rule(importance, keep, dim))
                constrain(weight, self.hparams.norm_constraint, self.hparams.norm_limit, unit)
