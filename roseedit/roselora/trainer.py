"""The edit engine: E edits trained side by side in one batched pass per step.

One step is the paper's: gradients, importance (before the optimiser moves anything), Adam, prune, norm constraint.
Around it: the layers below the lowest edited one are never run again, the head sees target and anchor positions only,
rows of finished edits leave the batch, and a pass that does not fit into memory is halved. The weights of the model
are never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roseedit.models.anatomy import Projection
from roseedit.models.load import LoadedModel
from roseedit.models.lowp import products_in
from roseedit.roselora.adapter import FactorBank, Factors
from roseedit.roselora.batches import Pass, RowStore
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.memory import within_memory
from roseedit.roselora.objective import Row, anchor_losses, fact_losses, pushing
from roseedit.roselora.pruning import SparseFactors
from roseedit.roselora.schedule import keep_at
from roseedit.roselora.start import FirstGradients

Progress = Callable[[float], None]
PLANS_KEPT = 8
STARTED = 16  # edits at a time: what their tokens bring and want is as large as all factors


def share_of(n: float, progress: Progress | None) -> Progress | None:
    """A trainer tells shares of its run, the caller wants requests."""
    return None if progress is None else lambda share: progress(share * n)


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
        return cls(steps, start, min(max(end, start + 1), steps - 1))


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
        *,
        hparams: RoseLoRAHparams,
        schedule: Schedule,
        max_tokens: int,
    ) -> None:
        self.loaded, self.hparams, self.schedule = loaded, hparams, schedule
        self.n_edits = len(generators)
        self.layer = min(p.layer for p in projections) if hparams.replay else 0
        self.arithmetic = products_in(loaded, hparams.train_dtype, self.layer)
        self.sparse = SparseFactors(loaded.model, projections, generators, hparams)
        self.optimizer = torch.optim.Adam(self.sparse.tensors(), lr=hparams.lr)
        self.seeds = [g.initial_seed() for g in generators]
        self.bank = FactorBank(loaded.model, self.sparse.factors, hparams.scale, hparams.dropout, self.seeds)
        self.place = torch.arange(self.n_edits)  # of each edit in the bank; -1 once it has left
        self.store = self._prepare(rows, max_tokens)
        self.done: list[Trained | None] = [None] * self.n_edits
        self.owner = {row.request: row.edit for row in rows}
        self.lowest = torch.zeros(len(self.owner), device=loaded.device)
        self.owners = torch.tensor([self.owner[r] for r in range(len(self.owner))], device=loaded.device)
        self.plans: dict[tuple[int, ...], list[Pass]] = {}
        if hparams.start == "keys":
            self._start_at_keys()

    def _start_at_keys(self) -> None:
        """Put the rows of A where the first gradient wants them (see `start.py`), a few edits at a time."""
        facts: dict[int, list[int]] = {}
        for i, row in enumerate(self.store.rows):
            if row.labels:
                facts.setdefault(row.edit, []).append(i)
        for at in range(0, self.n_edits, STARTED):
            edits = range(at, min(at + STARTED, self.n_edits))
            first = FirstGradients(self.loaded.model, list(self.sparse.matrices), edits)
            self._first_gradients([i for edit in edits for i in facts[edit]], first)
            self.sparse.start_at(first, self.hparams.start_ridge, self.hparams.start_length)
        for factors in self.sparse.factors.values():
            factors.b.grad = None

    def _first_gradients(self, facts: list[int], first: FirstGradients) -> None:
        with frozen(self.loaded.model):
            for work in self.store.passes(facts, brief=True):
                with self.arithmetic(), self.bank.on_rows(work.edits), first.watching(work.edits, work.mask):
                    nll = fact_losses(work.logits(self.loaded, self.layer)[: len(work.labels)], work.labels)
                    (nll * work.label_weights).sum().backward()

    def _prepare(self, rows: Sequence[Row], max_tokens: int) -> RowStore:
        """Run the lower layers once, and look at what anchors bring to the adapted matrices."""
        watched = list(self.sparse.matrices) if self.hparams.preserve_weight else []
        last = self.hparams.preserve_tokens
        dtype = torch.float32 if self.arithmetic is nullcontext else torch.bfloat16
        everything = products_in(self.loaded, self.hparams.train_dtype)
        with frozen(self.loaded.model), everything():
            store = within_memory(
                lambda tokens: RowStore(
                    self.loaded,
                    rows,
                    self.layer,
                    tokens,
                    watched=watched,
                    last=last,
                    base=bool(self.hparams.kl_weight),
                ),
                max_tokens,
                max(len(row.ids) for row in rows),
            )
        for path in watched:
            self.sparse.keep_anchors(path, store.take_keys(path, self.n_edits), dtype)
        return store

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
        self._compact()
        self.bank.step = step
        loss = self._gradients(chosen)
        if step > self.schedule.end:
            self._stop(step, loss)
        self.sparse.score_importance()
        self.optimizer.step()
        keeps = self.hparams.keep, self.hparams.keep_b or self.hparams.keep
        shares = [keep_at(step, keep, self.schedule.start, self.schedule.end) for keep in keeps]
        self.sparse.prune(*shares, last=step >= self.schedule.end)

    def _compact(self) -> None:
        """Once half of the edits in the bank are done, go on with the others only, moments included."""
        going = [edit for edit, done in enumerate(self.done) if done is None]
        places = self.place[going]
        if 2 * len(going) > int((self.place >= 0).sum()):
            return
        old = [self.optimizer.state[t] for t in self.sparse.tensors()]
        self.sparse.select(places)
        self.optimizer = torch.optim.Adam(self.sparse.tensors(), lr=self.hparams.lr)
        for tensor, state in zip(self.sparse.tensors(), old, strict=True):
            kept = {k: v[places.to(v.device)] if v.dim() else v for k, v in state.items()}
            self.optimizer.state[tensor] = kept
        self.bank.factors = self.sparse.factors
        self.bank.seeds = tuple(self.seeds[edit] for edit in going)
        self.place = torch.full_like(self.place, -1)
        self.place[going] = torch.arange(len(going))
        self.plans.clear()

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
            for work in self.plans[key]:
                work.edits = self.place[work.edits]
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
            sure = (-nll.detach()).exp()
            loss = (nll * pushing(sure < self.hparams.enough, work.at[0][:n]) * work.label_weights).sum()
            if work.base is not None:
                loss = loss + (anchor_losses(logits[n:], work.base) * work.anchor_weights).sum()
            loss.backward()
            losses.index_add_(0, self.owners[work.label_requests], (nll * work.label_weights).detach())
            lowest.scatter_reduce_(0, work.label_requests, sure, "amin")
        if self.sparse.has_anchors:
            self._preservation().backward()
        self.lowest = torch.where(lowest > 1.0, self.lowest, lowest)
        return losses

    def _preservation(self) -> Tensor:
        """The change on anchors, weighted: ever less for edits that are not learned when the others have left."""
        late = max(0, self.bank.step - self.schedule.end)
        weight = self.hparams.preserve_weight * self.hparams.preserve_fade**late
        return weight * self.sparse.preserved(self.loaded.device)

    def _stop(self, step: int, losses: Tensor) -> None:
        """Finish the edits whose requests all have their target, as they are before this step's update."""
        worst = torch.ones(self.n_edits, device=self.lowest.device)
        worst.scatter_reduce_(0, self.owners, self.lowest, "amin")
        sure = worst >= self.hparams.stop_probability
        learned = sure | (losses < self.hparams.stop_loss) if self.hparams.stop_loss else sure
        for edit in learned.nonzero()[:, 0].tolist():
            if self.done[edit] is None:
                self._finish(edit, step, converged=True)

    def _finish(self, edit: int, step: int, *, converged: bool) -> None:
        worst = min(float(self.lowest[r]) for r, owner in self.owner.items() if owner == edit)
        self.done[edit] = Trained(self.sparse.pick(int(self.place[edit])), step, worst, converged)
