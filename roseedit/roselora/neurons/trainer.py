"""The outward columns of many neurons, trained side by side.

What opens a neuron is settled before (`facts.py`), so only its column is learned: the vector that it adds to the
stream where it is open. What it says at each place of each row is known, so a step is: add the columns to what left
the edited layer, run the layers above, and let Adam move the columns. Neither anchors nor importance are needed: what
must not change does not see the neuron.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from roseedit.models.answers import AnswerHead, ends_in_head
from roseedit.models.load import LoadedModel
from roseedit.models.lowp import products_in
from roseedit.roselora.batches import Pass, RowStore
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.memory import trim_memory, within_memory
from roseedit.roselora.neurons.mlp import Neurons
from roseedit.roselora.objective import fact_losses, pushing
from roseedit.roselora.trainer import Progress, frozen

RETRY = 20  # steps after which an edit that has got nowhere starts anew
NOWHERE = 0.1  # probability; a column that has grown past its aim drowns the stream and feels no gradient any more
SMALLER = 0.4  # share of the learning rate from the second try on
TRIES = 3  # all wordings; the same with smaller steps; its own prompt alone
MOMENTS = ("exp_avg", "exp_avg_sq")
SPARED = 4  # one wording in so many may stay unsure; few requests have a subject that all frames suit


@dataclass
class Columns:
    """The neurons of one edit, as the trainer needs them.

    Attributes:
        speech: Per fact row (tokens, R), what they say.
        silenced: Per fact row (tokens, R), what the neurons that made room used to say.
        old: (R, hidden), the columns they said it with.
        unit: Root mean square of the stream where they write; columns are learned in this unit.
        size: R.
    """

    speech: dict[int, Tensor]
    silenced: dict[int, Tensor]
    old: Tensor
    unit: float
    size: int


@dataclass(frozen=True)
class Learned:
    """What became of one edit's columns.

    Attributes:
        columns: (R, hidden).
        steps: Optimiser steps it took.
        probability: Smallest target-token probability when last looked at.
        converged: True when it stopped by itself.
    """

    columns: Tensor
    steps: int
    probability: float
    converged: bool


@dataclass
class _Work:
    """One pass with what its neurons say, (rows, tokens, R), and what is silenced, (rows, tokens, hidden)."""

    indices: Sequence[int]
    rows: Pass
    speech: Tensor
    silenced: Tensor


class ColumnTrainer:
    """Trains the columns of E edits.

    Args:
        loaded: The model.
        neurons: The edited layer.
        store: The fact rows with what enters the first replayed layer; `row.edit` is the place in the bank.
        edits: One per edit, its neurons.
        hparams: The settings.
        retrying: Edits of one request that get nowhere start anew, with smaller steps, at last on its own prompt alone.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        neurons: Neurons,
        store: RowStore,
        edits: Sequence[Columns],
        hparams: RoseLoRAHparams,
        *,
        retrying: bool = False,
    ) -> None:
        self.loaded, self.neurons, self.store, self.edits, self.hparams = loaded, neurons, store, edits, hparams
        self.arithmetic = products_in(loaded, hparams.train_dtype, store.layer)
        shape = len(edits), max(edit.size for edit in edits), neurons.down.d_out
        self.columns = torch.zeros(shape, device=loaded.device, requires_grad=True)
        self.units = torch.tensor([edit.unit for edit in edits], device=loaded.device)[:, None, None]
        self.optimizer = torch.optim.Adam([self.columns], lr=hparams.lr)
        self.owner = {row.request: row.edit for row in store.rows}
        self.owners = torch.tensor([self.owner[r] for r in range(len(self.owner))], device=loaded.device)
        self.lowest = torch.zeros(len(self.owner), device=loaded.device)
        self.sure = torch.zeros(len(store.rows), device=loaded.device)  # of each row, when it was last looked at
        self.wordings: list[list[int]] = [[] for _ in self.owner]
        for i, row in enumerate(store.rows):
            self.wordings[row.request].append(i)
        self.done: list[Learned | None] = [None] * len(edits)
        self.tries = [1 if retrying else TRIES] * len(edits)
        self.head: AnswerHead | None = None

    def run(self, choose: Callable[[int], list[int]], steps: int, progress: Progress | None = None) -> list[Learned]:
        """Train until every edit is done or the steps are used up.

        Args:
            choose: Rows of step t; rows of edits that are done are left out by themselves.
            steps: Most steps.
            progress: Called with the share of the run just done; the shares add up to 1.

        Returns:
            One result per edit.
        """
        step = 0
        with frozen(self.loaded.model):
            plain = ends_in_head(self.loaded.model, self.loaded.anatomy)
            self.head = AnswerHead(self.loaded.model) if plain else None
            while step < steps and any(done is None for done in self.done):
                self._step(step, [i for i in choose(step) if self._wanted(i)])
                step += 1
                trim_memory()
                if progress:
                    progress(1 / steps)
        if progress:
            progress(1 - step / steps)
        for edit, done in enumerate(self.done):
            if done is None:
                self._finish(edit, steps, converged=False)
        return [done for done in self.done if done is not None]

    def _wanted(self, i: int) -> bool:
        """Whether a row is still trained on."""
        row = self.store.rows[i]
        return self.done[row.edit] is None and i in self.wordings[row.request]

    def _step(self, step: int, chosen: list[int]) -> None:
        if not chosen:
            return

        def attempt(tokens: int) -> None:
            self.store.max_tokens = tokens
            self._backward(chosen)

        within_memory(attempt, self.store.max_tokens, max(len(self.store.rows[i].ids) for i in chosen))
        worst = self._worst().tolist()  # before this step's update; read once, for a GPU is waited for
        self._stop(step, worst)
        self.optimizer.step()
        self._retry(step + 1, worst)

    def _work(self, rows: Sequence[int], work: Pass) -> _Work:
        size = self.columns.shape[1]
        speech = torch.zeros(*work.ids.shape, size, device=self.loaded.device)
        silenced = torch.zeros(*work.ids.shape, self.columns.shape[2], device=self.loaded.device)
        for place, i in enumerate(rows):
            own = self.edits[self.store.rows[i].edit]
            speech[place, : len(own.speech[i]), : own.size] = own.speech[i]
            silenced[place, : len(own.silenced[i])] = own.silenced[i] @ own.old
        return _Work(rows, work, speech, silenced)

    def _backward(self, chosen: Sequence[int]) -> None:
        """Gradients of all passes of a step; books each row's smallest target probability."""
        self.optimizer.zero_grad(set_to_none=True)
        for indices, rows in self.store.planned(chosen):
            work = self._work(indices, rows)
            with self.arithmetic(), self._added(work):
                nll = self._losses(rows)
            sure = (-nll.detach()).exp()
            (nll * pushing(sure < self.hparams.enough, rows.at[0]) * rows.label_weights).sum().backward()
            least = torch.ones(len(work.indices), device=sure.device).scatter_reduce_(0, rows.at[0], sure, "amin")
            self.sure[torch.tensor(work.indices, device=sure.device)] = least
        sure_of = self.sure.tolist()  # all at once: a GPU is waited for once per step, not once per request
        asked = sorted({self.store.rows[i].request for i in chosen})
        least_of = [lowest([sure_of[i] for i in self.wordings[request]]) for request in asked]
        device = self.lowest.device
        self.lowest[torch.tensor(asked, device=device)] = torch.tensor(least_of, device=device)

    def _losses(self, rows: Pass) -> Tensor:
        if self.head:
            return rows.losses(self.loaded, self.store.layer, self.head, self.hparams.enough)
        return fact_losses(rows.logits(self.loaded, self.store.layer), rows.labels)

    @contextmanager
    def _added(self, work: _Work) -> Iterator[None]:
        """Inside the block the replay of the pass carries its edits."""
        edits = work.rows.edits.to(self.columns.device)
        change = work.speech @ (self.columns[edits] * self.units[edits]) - work.silenced
        if self.store.layer > self.neurons.layer:
            stored = work.rows.activations
            try:
                work.rows.activations = stored + change.to(stored.dtype)
                yield
            finally:
                work.rows.activations = stored
            return
        module = self.loaded.model.get_submodule(self.neurons.down.module_name)
        handle = module.register_forward_hook(lambda _, __, out: out + change.reshape(out.shape).to(out.dtype))
        try:
            yield
        finally:
            handle.remove()

    def _stop(self, step: int, worst: Sequence[float]) -> None:
        """Finish the edits whose requests all have their target."""
        for edit, least in enumerate(worst):
            if self.done[edit] is None and least >= self.hparams.stop_probability:
                self._finish(edit, step, converged=True)

    def _retry(self, steps: int, worst: Sequence[float]) -> None:
        """Start the edits anew that have got nowhere, unless too few steps are left to get further."""
        if steps + RETRY > self.hparams.steps:
            return
        for edit, least in enumerate(worst):
            tries = self.tries[edit]
            if self.done[edit] is None and tries < TRIES and steps >= tries * RETRY and least < NOWHERE:
                self.tries[edit] += 1
                if tries == 1:
                    self.units[edit] *= SMALLER
                else:
                    self.wordings = [own[:1] if self.owner[r] == edit else own for r, own in enumerate(self.wordings)]
                for kept in (self.columns.data, *(self.optimizer.state[self.columns][m] for m in MOMENTS)):
                    kept[edit] = 0.0

    def _worst(self) -> Tensor:
        """Per edit how sure its least sure request is."""
        worst = torch.ones(len(self.edits), device=self.lowest.device)
        return worst.scatter_reduce_(0, self.owners, self.lowest, "amin")

    def _finish(self, edit: int, step: int, *, converged: bool) -> None:
        own = self.edits[edit]
        worst = float(self.lowest[self.owners == edit].min())
        columns = (self.columns[edit, : own.size] * self.units[edit]).detach().clone()
        self.done[edit] = Learned(columns, step, worst, converged)


def lowest(sure: Sequence[float]) -> float:
    """How sure a request's answer is: its own prompt's, or its other wordings' but for the least sure of many.

    Args:
        sure: Of each wording the smallest probability of a target token, its own prompt first.

    Returns:
        The one that counts.
    """
    own, *others = sure
    return min([own, *sorted(others)[len(others) // SPARED :]])
