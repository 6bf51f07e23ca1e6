"""What is trained: the changes of E edits side by side, switched on row by row; the weights are never written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from roseedit.baselines.config import FineTuneHparams, LoRAHparams
from roseedit.models.anatomy import Projection
from roseedit.models.load import LoadedModel
from roseedit.roselora.adapter import FactorBank, init_factors
from roseedit.roselora.norms import constrain


class Changes(Protocol):
    """The changes of several edits while they are trained."""

    def tensors(self) -> list[Tensor]:
        """All that an optimiser moves."""
        ...

    def on_rows(self, edits: Tensor) -> AbstractContextManager[None]:
        """Switch edit `edits[i]` on for row i of every forward pass in the block."""
        ...

    def begin(self, step: int) -> None:
        """Hear which step comes next."""
        ...

    def limit(self) -> None:
        """Bring the changes back within their limits, after a step."""
        ...

    def pick(self, edit: int) -> dict[str, tuple[Tensor, Tensor]]:
        """One edit's factors A, (r, d_in), and B, (d_out, r), per module path; a copy, scale included."""
        ...


class DenseChanges:
    """A whole matrix per edit and module, each a tensor of its own, so that finished edits cost nothing any more.

    Args:
        loaded: The model.
        projections: The matrices.
        n_edits: E.
        hparams: The settings.
    """

    def __init__(
        self, loaded: LoadedModel, projections: Sequence[Projection], n_edits: int, hparams: FineTuneHparams
    ) -> None:
        self.model, self.hparams = loaded.model, hparams
        self.changes: dict[str, list[Tensor]] = {}
        for p in projections:
            device = self.model.get_parameter(p.weight_name).device
            start = [torch.zeros(p.d_out, p.d_in, device=device, requires_grad=True) for _ in range(n_edits)]
            self.changes[p.module_name] = start

    def tensors(self) -> list[Tensor]:
        """All matrices."""
        return [change for changes in self.changes.values() for change in changes]

    @contextmanager
    def on_rows(self, edits: Tensor) -> Iterator[None]:
        """Switch edit `edits[i]` on for row i of every forward pass in the block.

        Args:
            edits: (rows,) edits, none of them -1.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            for path, changes in self.changes.items():
                hook = _adding([changes[edit] for edit in edits.tolist()])
                stack.callback(self.model.get_submodule(path).register_forward_hook(hook).remove)
            yield

    def begin(self, step: int) -> None:
        """Nothing depends on the step."""

    @torch.no_grad()
    def limit(self) -> None:
        """Clamp each change as the settings say."""
        for change in self.tensors():
            constrain(change, self.hparams.norm_constraint, self.hparams.norm_limit, 1.0)

    def pick(self, edit: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Row i of the change is a_i, and b_i has its only entry at i: d_out outer products say exactly the same."""
        found = {path: changes[edit].detach().cpu().clone() for path, changes in self.changes.items()}
        return {path: (change, torch.eye(len(change))) for path, change in found.items()}


def _adding(changes: list[Tensor]) -> Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that adds `changes[i]` times the input to row i."""

    def add(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].reshape(len(changes), -1, args[0].shape[-1]).float()  # some models flatten rows and tokens
        if all(change is changes[0] for change in changes):
            update = x @ changes[0].mT
        else:  # row by row: a stack of whole matrices would be copied in every pass, forwards and backwards
            update = torch.stack([row @ change.mT for row, change in zip(x, changes, strict=True)])
        return output + update.reshape(output.shape).to(output.dtype)

    return add


class LowRankChanges:
    """A pair of dense factors per edit and module.

    Args:
        loaded: The model.
        projections: The matrices.
        generators: One per edit, for its start and its dropout.
        hparams: The settings.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        projections: Sequence[Projection],
        generators: list[torch.Generator],
        hparams: LoRAHparams,
    ) -> None:
        model, seeds = loaded.model, [g.initial_seed() for g in generators]
        device = {p.module_name: model.get_parameter(p.weight_name).device for p in projections}
        factors = {p.module_name: init_factors(p, hparams.rank, generators, device[p.module_name]) for p in projections}
        self.bank = FactorBank(model, factors, hparams.alpha / hparams.rank, hparams.dropout, seeds)
        for tensor in self.tensors():
            tensor.requires_grad_(True)

    def tensors(self) -> list[Tensor]:
        """All factors."""
        return [tensor for factors in self.bank.factors.values() for tensor in factors.tensors()]

    def on_rows(self, edits: Tensor) -> AbstractContextManager[None]:
        """Switch edit `edits[i]` on for row i of every forward pass in the block."""
        return self.bank.on_rows(edits)

    def begin(self, step: int) -> None:
        """The dropout of each step is another one."""
        self.bank.step = step

    def limit(self) -> None:
        """There is no limit."""

    def pick(self, edit: int) -> dict[str, tuple[Tensor, Tensor]]:
        """One edit's factors, the scale in B."""
        found = {path: factors.pick(edit) for path, factors in self.bank.factors.items()}
        return {path: (factors.a, factors.b * self.bank.scale) for path, factors in found.items()}
