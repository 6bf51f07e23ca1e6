"""The edit engine: E edits trained side by side in one batched pass per step.

One step is the paper's: gradients, importance (before the optimiser moves anything), Adam, prune, norm constraint.
Around it: the layers below the lowest edited one are never run again, the head sees target and anchor positions only,
rows of finished edits leave the batch, and a pass that does not fit into memory is halved. The weights of the model
are never written.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from roseedit.errors import CapacityError, RoseEditError, refusal
from roseedit.models.anatomy import Projection
from roseedit.models.load import LoadedModel
from roseedit.models.lowp import Bfloat16Products, native_bfloat16
from roseedit.roselora.adapter import FactorBank, Factors, init_factors
from roseedit.roselora.batches import Pass, RowStore
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.importance import update_importance
from roseedit.roselora.norms import constrain, initial_scale
from roseedit.roselora.objective import Row, anchor_losses, fact_losses, preservation
from roseedit.roselora.schedule import keep_at
from roseedit.roselora.sparsity import threshold_mask, top_k_mask

logger = logging.getLogger(__name__)
Progress = Callable[[float], None]
R = TypeVar("R")
PLANS_KEPT = 8


@dataclass
class Trained:
    """What became of one edit.

    Attributes:
        factors: Per module path, (r, d_in) and (d_out, r).
        steps: Optimiser steps it took.
        probability: Smallest target-token probability when last looked at.
        converged: True when it stopped by itself.
    """

    factors: dict[str, Factors]
    steps: int
    probability: float
    converged: bool


@dataclass
class Schedule:
    """Steps of one run; joint runs stretch the settings' steps over their epochs.

    Attributes:
        steps: T.
        start: t_i.
        end: t_f.
    """

    steps: int
    start: int
    end: int

    @classmethod
    def of(cls, hparams: RoseLoRAHparams, stretch: float = 1.0) -> Schedule:
        """The settings' schedule, each time multiplied by `stretch`."""
        times = (hparams.steps, hparams.prune_start, hparams.prune_end)
        steps, start, end = (max(1, round(t * stretch)) for t in times)
        return cls(steps, start, max(end, start + 1))


@dataclass
class _Matrix:
    """Factors of one matrix for all edits, with their moving averages of importance."""

    factors: Factors
    importance: list[Tensor | None] = field(default_factory=lambda: [None, None])
    keys: Tensor | None = None
    unit: float = 1.0


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model gets a gradient inside the block; their flags are restored after it."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


class BankTrainer:
    """Trains a bank of E edits.

    Args:
        loaded: The model.
        projections: The matrices to adapt.
        rows: Training rows; `row.edit` is the place in the bank. Several requests may share one edit.
        generators: One per edit, for its start.
        hparams: The settings.
        schedule: Steps of this run.
        max_tokens: Most tokens in one pass.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        projections: Sequence[Projection],
        rows: Sequence[Row],
        generators: list[torch.Generator],
        hparams: RoseLoRAHparams,
        schedule: Schedule,
        max_tokens: int,
    ) -> None:
        self.loaded, self.hparams, self.schedule = loaded, hparams, schedule
        self.projections = list(projections)
        self.n_edits = len(generators)
        self.layer = min(p.layer for p in projections) if hparams.replay else 0
        self.arithmetic = _arithmetic(loaded, hparams.train_dtype, self.layer)
        self.matrices = {
            p.module_name: _Matrix(init_factors(p, hparams.rank, generators, self._device_of(p))) for p in projections
        }
        for tensor in self._tensors():
            tensor.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self._tensors(), lr=hparams.lr)
        seeds = [g.initial_seed() for g in generators]
        factors = {name: m.factors for name, m in self.matrices.items()}
        self.bank = FactorBank(loaded.model, factors, hparams.scale, hparams.dropout, seeds)
        everything = _arithmetic(loaded, hparams.train_dtype, 0)
        with frozen(loaded.model), everything():
            watched = list(self.matrices) if hparams.preserve_weight else []
            last = hparams.preserve_tokens
            self.store = within_memory(
                lambda tokens: RowStore(loaded, rows, self.layer, tokens, watched=watched, last=last),
                max_tokens,
                max(len(row.ids) for row in rows),
            )
        for path in watched:
            self._keep_anchors(path)
        self.done: list[Trained | None] = [None] * self.n_edits
        self.owner = {row.request: row.edit for row in rows}
        self.lowest = torch.zeros(len(self.owner), device=loaded.device)
        self.plans: dict[tuple[int, ...], list[Pass]] = {}
        self.cut_share = 0.0

    def _device_of(self, projection: Projection) -> torch.device:
        return self.loaded.model.get_submodule(projection.module_name).weight.device

    def _tensors(self) -> list[Tensor]:
        return [t for m in self.matrices.values() for t in m.factors.tensors()]

    def run(self, choose: Callable[[int], list[int]], progress: Progress | None = None) -> list[Trained]:
        """Train to the end.

        Args:
            choose: Rows of step t; rows of edits that are done are left out by themselves.
            progress: Called with the share of the run just done; the shares add up to 1.

        Returns:
            One result per edit.
        """
        with frozen(self.loaded.model):
            step = 0
            while step < self.schedule.steps and any(done is None for done in self.done):
                self._step(step, [i for i in choose(step) if self._wanted(self.store.rows[i])])
                step += 1
                if progress:
                    progress(1 / self.schedule.steps)
            if progress:
                progress(1 - step / self.schedule.steps)
            for edit, done in enumerate(self.done):
                if done is None:
                    self._finish(edit, self.schedule.steps, converged=False)
        return [done for done in self.done if done is not None]

    def _wanted(self, row: Row) -> bool:
        """Rows of finished edits are left out, and anchors where they serve `preserve_weight` alone."""
        return self.done[row.edit] is None and bool(row.labels or self.hparams.kl_weight)

    def _step(self, step: int, chosen: list[int]) -> None:
        if not chosen:
            return
        self.bank.step = step
        loss = self._gradients(chosen)
        if step > self.schedule.end:
            self._stop(step, loss)
        self._score_importance()
        self.optimizer.step()
        self._prune(step + 1)

    def _gradients(self, chosen: list[int]) -> Tensor:
        """Backward over all passes of a step; started anew with smaller passes when memory runs out."""

        def attempt(tokens: int) -> Tensor:
            if tokens != self.store.max_tokens:
                self.store.max_tokens = tokens
                self.plans.clear()
            return self._backward(self._plan(chosen))

        return within_memory(attempt, self.store.max_tokens, max(len(self.store.rows[i].ids) for i in chosen))

    def _plan(self, chosen: list[int]) -> list[Pass]:
        """The passes of a step. Anchors take turns, so a few plans come again and again until an edit is done."""
        key = tuple(chosen)
        if key not in self.plans:
            if len(self.plans) >= PLANS_KEPT:
                self.plans.clear()
            self.plans[key] = self.store.passes(chosen)
        return self.plans[key]

    def _backward(self, passes: list[Pass]) -> Tensor:
        """Accumulate gradients; books each request's smallest target probability, returns each edit's fact loss."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(self.n_edits, device=self.loaded.device)
        lowest = torch.full_like(self.lowest, 2.0)
        for work in passes:
            with self.arithmetic(), self.bank.on_rows(work.edits):
                logits = work.logits(self.loaded, self.layer)
            n = len(work.labels)
            nll = fact_losses(logits[:n], work.labels)
            pushed = nll * (nll.detach() > -math.log(self.hparams.enough))
            loss = (pushed * work.label_weights).sum()
            if work.base is not None:
                loss = loss + (anchor_losses(logits[n:], work.base) * work.anchor_weights).sum()
            loss.backward()
            losses.index_add_(0, work.edits.to(losses.device)[work.at[0][:n]], (nll * work.label_weights).detach())
            lowest.scatter_reduce_(0, work.label_requests, (-nll.detach()).exp(), "amin")
        if self.hparams.preserve_weight:
            (self.hparams.preserve_weight * self._preserved()).backward()
        self.lowest = torch.where(lowest > 1.0, self.lowest, lowest)
        return losses

    @torch.no_grad()
    def _keep_anchors(self, path: str) -> None:
        module = self.loaded.model.get_submodule(path)
        matrix = self.matrices[path]
        matrix.keys = self.store.keys_by_edit(path, self.n_edits).to(matrix.factors.a.device)
        real = matrix.keys[(matrix.keys != 0).any(-1)]
        matrix.unit = float(module(real).float().square().sum(-1).mean()) if len(real) else 1.0

    def _preserved(self) -> Tensor:
        """Sum over matrices and edits of the change on anchors."""
        parts = []
        for m in self.matrices.values():
            if m.keys is not None:
                parts.append(preservation(m.keys, m.factors.a, m.factors.b * self.hparams.scale, m.unit).sum())
        return torch.stack([part.to(self.loaded.device) for part in parts]).sum()

    def _stop(self, step: int, losses: Tensor) -> None:
        """Finish the edits whose requests all have their target, as they are before this step's update."""
        worst = torch.ones(self.n_edits, device=self.lowest.device)
        owners = torch.tensor([self.owner[r] for r in range(len(self.owner))], device=self.lowest.device)
        worst.scatter_reduce_(0, owners, self.lowest, "amin")
        sure = worst >= self.hparams.stop_probability
        learned = sure | (losses < self.hparams.stop_loss) if self.hparams.stop_loss else sure
        for edit in learned.nonzero()[:, 0].tolist():
            if self.done[edit] is None:
                self._finish(edit, step, converged=True)

    def _finish(self, edit: int, step: int, *, converged: bool) -> None:
        factors = {name: m.factors.pick(edit) for name, m in self.matrices.items()}
        worst = min(float(self.lowest[r]) for r, owner in self.owner.items() if owner == edit)
        self.done[edit] = Trained(factors, step, worst, converged)

    def _score_importance(self) -> None:
        for name, matrix in self.matrices.items():
            for i, weight in enumerate(matrix.factors.tensors()):
                grad = weight.grad
                if grad is None:
                    continue
                if not bool(torch.isfinite(grad).all()):
                    message = refusal(
                        f"a gradient that is not finite in {name}", "finite gradients", "Lower lr or scale."
                    )
                    raise RoseEditError(message)
                matrix.importance[i] = update_importance(matrix.importance[i], weight, grad, self.hparams.beta)

    @torch.no_grad()
    def _prune(self, step: int) -> None:
        keep = keep_at(step, self.hparams.keep, self.schedule.start, self.schedule.end)
        rule = top_k_mask if self.hparams.tie_rule == "top_k" else threshold_mask
        if keep >= 1:
            return
        for matrix in self.matrices.values():
            unit = initial_scale(matrix.factors.a.shape[-1]) if self.hparams.norm_unit == "initial" else 1.0
            for weight, importance, dim in zip(matrix.factors.tensors(), matrix.importance, (-1, -2), strict=True):
                if importance is not None:
                    weight.mul_(rule(importance, keep, dim))
                self.cut_share = constrain(weight, self.hparams.norm_constraint, self.hparams.norm_limit, unit)


def _arithmetic(loaded: LoadedModel, wanted: str, layer: int) -> Callable[[], AbstractContextManager[None]]:
    """`auto` multiplies in bfloat16 where the processor does so natively and the weights are float32."""
    is_float = loaded.model.dtype == torch.float32
    if is_float and (wanted == "bfloat16" or (wanted == "auto" and native_bfloat16(loaded.device))):
        return Bfloat16Products(loaded.model, loaded.anatomy, layer).active
    return nullcontext


def within_memory(attempt: Callable[[int], R], tokens: int, least: int) -> R:
    """Try with ever smaller passes until one fits into memory.

    Args:
        attempt: Does the work with passes of at most that many tokens; starts from scratch each time.
        tokens: Passes of the first attempt.
        least: The longest row; a pass cannot be smaller.

    Returns:
        What `attempt` returned.

    Raises:
        CapacityError: Not even one row fits.
    """
    while True:
        try:
            return attempt(tokens)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        if tokens <= least:
            message = refusal("too little memory for one row", f"room for {least} tokens", "Use a smaller model.")
            raise CapacityError(message)
        tokens = max(least, tokens // 2)
        logger.warning("out of memory; going on with %d tokens per pass", tokens)


def _out_of_memory(error: Exception) -> bool:
    said = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in said)
