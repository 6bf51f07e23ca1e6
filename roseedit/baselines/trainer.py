"""The steps of fine-tuning and LoRA: Adam on the answer's cross-entropy, E edits in one pass, each with its own change.

As in RoseLoRA's engine the layers below the lowest changed one run once, the head sees the answer's positions only,
rows of finished edits leave, and a pass that does not fit into memory is halved.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from roseedit.baselines.changes import Changes
from roseedit.baselines.config import BankedHparams
from roseedit.models.anatomy import Projection
from roseedit.models.load import LoadedModel
from roseedit.roselora.batches import RowStore
from roseedit.roselora.memory import COPIES_OF_FACTORS, SHARE, free_memory, pass_tokens, within_memory
from roseedit.roselora.objective import Row, fact_losses
from roseedit.roselora.trainer import frozen

Progress = Callable[[float], None]
MOST = 128


@dataclass(frozen=True)
class Trained:
    """What became of one edit.

    Attributes:
        factors: Per module path A, (r, d_in), and B, (d_out, r), scale included.
        steps: Optimiser steps it took.
        probability: Smallest target-token probability when last looked at.
        converged: True when it stopped by itself.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    steps: int
    probability: float
    converged: bool


def bank_size(loaded: LoadedModel, values_per_edit: int, hparams: BankedHparams, n: int) -> int:
    """How many edits fit side by side.

    Args:
        loaded: The model.
        values_per_edit: Numbers that are trained for one edit.
        hparams: The settings; `edits_per_bank` above 0 is taken as it is.
        n: How many are wanted.

    Returns:
        At least 1, at most `n`.
    """
    if hparams.edits_per_bank:
        return min(n, hparams.edits_per_bank)
    return max(1, min(n, MOST, int(free_memory(loaded.device) * SHARE // (values_per_edit * 4 * COPIES_OF_FACTORS))))


class Stepper:
    """Gradients and steps of a bank of changes.

    Args:
        loaded: The model.
        changes: What is trained.
        rows: Training rows; `row.edit` is the place among the changes, `row.request` counts from 0 without a gap.
        projections: The changed matrices.
        hparams: The settings.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        changes: Changes,
        rows: Sequence[Row],
        projections: Sequence[Projection],
        hparams: BankedHparams,
    ) -> None:
        self.loaded, self.changes, self.hparams, self.rows = loaded, changes, hparams, rows
        self.layer = min(p.layer for p in projections)
        self.optimizer = torch.optim.Adam(changes.tensors(), lr=hparams.lr, weight_decay=hparams.weight_decay)
        tokens = pass_tokens(loaded, projections, cast(Any, hparams))  # of the settings it reads batch_tokens only
        longest = max(len(row.ids) for row in rows)
        with frozen(loaded.model):
            store = within_memory(lambda most: RowStore(loaded, rows, self.layer, most, base=False), tokens, longest)
        self.store = store
        self.lowest = torch.zeros(1 + max(row.request for row in rows))

    def gradients(self, chosen: Sequence[int], step: int, share: float = 1.0) -> Tensor:
        """Backward over some rows; books the smallest target probability of each in `lowest`.

        Args:
            chosen: The rows.
            step: Which step it is.
            share: Factor of the loss.

        Returns:
            (requests,) mean loss over the target's tokens; 0 for requests without a chosen row.
        """
        self.changes.begin(step)

        def attempt(tokens: int) -> Tensor:
            self.store.max_tokens = tokens
            return self._backward(chosen, share)

        return within_memory(attempt, self.store.max_tokens, max(len(self.rows[i].ids) for i in chosen))

    def _backward(self, chosen: Sequence[int], share: float) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        losses, lowest = torch.zeros_like(self.lowest), torch.full_like(self.lowest, 2.0)
        for work in self.store.passes(chosen):
            with self.changes.on_rows(work.edits):
                nll = fact_losses(work.logits(self.loaded, self.layer), work.labels)
                (share * (nll * work.label_weights).sum()).backward()
            requests, seen = work.label_requests.cpu(), nll.detach().cpu()
            losses.index_add_(0, requests, seen * work.label_weights.cpu())
            lowest.scatter_reduce_(0, requests, (-seen).exp(), "amin")
        self.lowest = torch.where(lowest > 1.0, self.lowest, lowest)
        return losses

    def step(self) -> None:
        """Move what has a gradient."""
        self.optimizer.step()
        self.changes.limit()


def train_apart(stepper: Stepper, progress: Progress | None = None) -> list[Trained]:
    """Every edit for itself, all in the same passes.

    Args:
        stepper: With one row per edit, in order.
        progress: Called with the number of requests just done, in fractions.

    Returns:
        One result per edit.
    """
    n, steps, stop = len(stepper.rows), stepper.hparams.steps, stepper.hparams.stop_loss
    done: list[Trained | None] = [None] * n

    def finish(edit: int, step: int, *, converged: bool) -> None:
        done[edit] = Trained(stepper.changes.pick(edit), step, float(stepper.lowest[edit]), converged)
        if progress:
            progress(1 - step / steps)

    with frozen(stepper.loaded.model):
        for step in range(steps):
            going = [edit for edit in range(n) if done[edit] is None]
            if not going:
                break
            losses = stepper.gradients(going, step).tolist()
            for edit in going:
                if losses[edit] < stop:
                    finish(edit, step, converged=True)
            stepper.step()
            if progress:
                progress(sum(found is None for found in done) / steps)
    for edit in range(n):
        if done[edit] is None:
            finish(edit, steps, converged=False)
    return [found for found in done if found is not None]


def train_together(stepper: Stepper, progress: Progress | None = None) -> Trained:
    """All requests in one change, breadth first; `steps` counts epochs of shuffled mini-batches.

    A batch whose mean loss is below `stop_loss` takes no step, and an epoch below it is the last one.

    Args:
        stepper: With one row per request and a single change.
        progress: Called with the number of requests just done, in fractions.

    Returns:
        The result; its `probability` is that of the worst request.
    """
    hparams, n = stepper.hparams, len(stepper.rows)
    batches = -(-n // hparams.joint_batch)
    taken, epoch, converged = 0, 0, False
    with frozen(stepper.loaded.model):
        while epoch < hparams.steps and not converged:
            order, total = list(range(n)), 0.0
            random.Random(f"{hparams.seed}/{epoch}").shuffle(order)
            for at in range(batches):
                batch = order[at::batches]
                loss = float(stepper.gradients(batch, epoch * batches + at, 1 / len(batch)).sum())
                total += loss
                if loss / len(batch) >= hparams.stop_loss:
                    stepper.step()
                    taken += 1
            converged = total / n < hparams.stop_loss
            epoch += 1
            if progress:
                progress(n / hparams.steps)
    if progress:
        progress(n * (1 - epoch / hparams.steps))
    return Trained(stepper.changes.pick(0), taken, float(stepper.lowest.min()), converged)
