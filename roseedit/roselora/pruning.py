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
from roseedit.roselora.start import FirstGradients, cleared, leading_rows


@dataclass
class _Matrix:
    """One matrix for all edits: factors, moving averages of importance, and inputs on anchors with their unit."""

    factors: Factors
    importance: list[Tensor | None] = field(default_factory=lambda: [None, None])
    final: list[Tensor | None] = field(default_factory=lambda: [None, None])
    keys: Tensor | None = None
    unit: Tensor | None = None


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

    @property
    def has_anchors(self) -> bool:
        """Whether anything is to be preserved."""
        return any(m.keys is not None for m in self.matrices.values())

    def tensors(self) -> list[Tensor]:
        """All factors, for an optimiser."""
        return [t for m in self.matrices.values() for t in m.factors.tensors()]

    def pick(self, edit: int) -> dict[str, Factors]:
        """A copy of one edit's factors."""
        return {path: m.factors.pick(edit) for path, m in self.matrices.items()}

    @torch.no_grad()
    def keep_anchors(self, path: str, keys: Tensor | None, dtype: torch.dtype) -> None:
        """Remember what anchors bring to a matrix.

        Args:
            path: The module.
            keys: (E, n, d_in), rows of zeros where an edit has fewer; None when there are no anchors at all.
            dtype: In which they are kept and multiplied.
        """
        if keys is None:
            return
        matrix = self.matrices[path]
        matrix.keys = keys.to(matrix.factors.a.device)
        weight = self.model.get_parameter(f"{path}.weight")
        own = self.model.get_submodule(path)(matrix.keys.to(weight.dtype)).float().square().sum(-1)
        # Per edit, never across the bank: an edit's neighbours must not change what it becomes.
        matrix.unit = (own * (matrix.keys != 0).any(-1)).sum(-1)
        matrix.keys = matrix.keys.to(dtype)

    @torch.no_grad()
    def start_at(self, first: FirstGradients, ridge: float, length: float) -> None:
        """Let A start at the leading directions of the first gradient, cleared of what anchors bring.

        Args:
            first: Inputs and output gradients of the facts' tokens.
            ridge: See `cleared`.
            length: Length of the rows relative to the random start's.
        """
        own = slice(first.edits.start, first.edits.stop)
        for path, m in self.matrices.items():
            keys, gradients = first.stacked(path)
            anchors = None if m.keys is None else m.keys[own].float()
            rows = leading_rows(cleared(keys, anchors, ridge), gradients, m.factors.a[own])
            m.factors.a[own] = rows * length

    def preserved(self, device: torch.device) -> Tensor:
        """The change on anchors, summed over matrices and edits."""
        total = torch.zeros((), device=device)
        for m in self.matrices.values():
            if m.keys is not None and m.unit is not None:
                change = preservation(m.keys, m.factors.a, m.factors.b * self.hparams.scale, m.unit)
                total = total + change.sum().to(device)
        return total

    @torch.no_grad()
    def select(self, places: Tensor) -> None:
        """Go on with some of the edits only.

        Args:
            places: (edits that stay,) their places in the bank, in rising order.
        """
        for m in self.matrices.values():
            a, b = (t.detach()[places.to(t.device)].requires_grad_(True) for t in m.factors.tensors())
            m.factors = Factors(a, b)
            m.importance = [_rows(t, places) for t in m.importance]
            m.final = [_rows(t, places) for t in m.final]
            m.keys, m.unit = _rows(m.keys, places), _rows(m.unit, places)

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
    def prune(self, keep_a: float, keep_b: float, *, last: bool) -> None:
        """Cut each row of A and column of B to its most important share, then limit the norms.

        Args:
            keep_a: The kept share of A's rows.
            keep_b: The kept share of B's columns; with 1 and above for both, nothing is done.
            last: The share is final. What is cut never returns, so from then on the support stays as it is.
        """
        if min(keep_a, keep_b) >= 1:
            return
        rule = top_k_mask if self.hparams.tie_rule == "top_k" else threshold_mask
        for matrix in self.matrices.values():
            unit = initial_scale(matrix.factors.a.shape[-1]) if self.hparams.norm_unit == "initial" else 1.0
            for i, (weight, dim, keep) in enumerate(
                zip(matrix.factors.tensors(), (-1, -2), (keep_a, keep_b), strict=True)
            ):
                importance, final = matrix.importance[i], matrix.final[i]
                if importance is not None and keep < 1:
                    mask = rule(importance, keep, dim) if final is None else final
                    weight.mul_(mask)
                    matrix.final[i] = mask if last else None
                constrain(weight, self.hparams.norm_constraint, self.hparams.norm_limit, unit)


def _rows(tensor: Tensor | None, places: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[places.to(tensor.device)]
