"""Training rows as tensors: stored activations, wanted positions, and the plan of passes for one step.

Built once per set of rows and reused in every step: the layers below the lowest edited one are run here, and never
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.models.answers import AnswerHead
from roseedit.models.encoding import pad_right, plan_batches
from roseedit.models.head import head_at, headless, last_mlp_at, thrifty_head
from roseedit.models.load import LoadedModel
from roseedit.models.past import Past, PastCache
from roseedit.models.replay import capture_activations, layers_off, replaying, run_body
from roseedit.roselora.inputs import Inputs
from roseedit.roselora.objective import BaseTop, Row


@dataclass
class Pass:
    """The rows of one forward and backward pass. Fact positions come before anchor positions.

    Attributes:
        ids: (rows, tokens).
        mask: (rows, tokens).
        activations: (rows, tokens, hidden), what enters the lowest edited layer.
        edits: (rows,) place in the bank.
        at: Two (positions,) tensors, row and column of each position looked at.
        labels: (fact positions,).
        label_requests: (fact positions,) which request.
        label_weights: (fact positions,).
        anchor_weights: (anchor positions,).
        base: The base model at the anchor positions; None before it is known.
        past: Per row what stands before its tokens here; empty where rows are whole.
    """

    ids: Tensor
    mask: Tensor
    activations: Tensor
    edits: Tensor
    at: tuple[Tensor, Tensor]
    labels: Tensor
    label_requests: Tensor
    label_weights: Tensor
    anchor_weights: Tensor
    base: BaseTop | None = None
    past: Sequence[Past] = ()

    def logits(self, loaded: LoadedModel, layer: int) -> Tensor:
        """Replay from `layer` up; (positions, vocabulary), with whatever bank is switched on."""
        return self._top(loaded, layer, thrifty_head)

    def losses(self, loaded: LoadedModel, layer: int, head: AnswerHead, enough: float) -> Tensor:
        """As `fact_losses` of `logits`; no gradient where a token has `enough`."""
        hidden = self._top(loaded, layer, headless)
        return head.losses(hidden[: len(self.labels)], self.labels, enough)

    def _top(self, loaded: LoadedModel, layer: int, as_head: Callable[[Any], AbstractContextManager[None]]) -> Tensor:
        """What leaves the head at the positions looked at, the head changed as said."""
        model, anatomy = loaded.model, loaded.anatomy
        with (
            replaying(model, anatomy, layer, self.activations),
            last_mlp_at(model, anatomy, *self.at),
            head_at(model, *self.at),
            as_head(model),
        ):
            past = PastCache(anatomy.n_layers, layer, self.past) if self.past else None
            return run_body(model, self.ids, self.mask, past=past)[0]


class RowStore:
    """All rows of a bank with what is known of them before training.

    Args:
        loaded: The model, unedited by this bank.
        rows: The training rows.
        layer: The lowest edited layer.
        max_tokens: Most tokens in one pass, padding included.
        watched: Paths of modules whose inputs on the anchors' last tokens are to be kept.
        last: How many last tokens.
        base: Remember the base model's distribution at the anchors; else they run through the watched layers only.
        ready: Per row what enters `layer`, where that is known; nothing is run then.
        pasts: Per row the first tokens that nothing changes; passes start behind them. `ready` is then of the others.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rows: Sequence[Row],
        layer: int,
        max_tokens: int,
        *,
        watched: Sequence[str] = (),
        last: int = 1,
        base: bool = True,
        ready: Sequence[Tensor] = (),
        pasts: Sequence[Past] = (),
    ) -> None:
        self.loaded, self.rows, self.layer = loaded, list(rows), layer
        self.pasts = list(pasts)
        self.max_tokens = max_tokens
        self.activations: list[Tensor] = list(ready) or [torch.empty(0)] * len(self.rows)
        self.base: list[BaseTop | None] = [None] * len(self.rows)
        self.watched, self.last, self.wants_base = tuple(watched), last, base
        self.keys: dict[str, dict[int, Inputs]] = {path: {} for path in watched}
        if not ready:
            for batch in plan_batches([len(row.ids) for row in self.rows], max_tokens):
                self._prepare(batch)

    @torch.no_grad()
    def _prepare(self, batch: list[int]) -> None:
        ids, mask = pad_right([self.rows[i].ids for i in batch], self.loaded.pad_id, self.loaded.device)
        stored = capture_activations(self.loaded.model, self.loaded.anatomy, self.layer, ids, mask)
        for place, i in enumerate(batch):
            self.activations[i] = stored[place, : len(self.rows[i].ids)].clone()
        anchors = [i for i in batch if not self.rows[i].labels]
        if anchors and self.wants_base:
            self._prepare_base(anchors)
        elif anchors and self.watched:
            self._prepare_keys(anchors)
            for i in anchors:  # asked for nothing else
                self.activations[i] = torch.empty(0)

    def _prepare_base(self, anchors: list[int]) -> None:
        work = self._pass(anchors)
        with self._watching(anchors):
            base = BaseTop.of(work.logits(self.loaded, self.layer))
        at = 0
        for i in anchors:
            n = len(self.rows[i].columns)
            self.base[i] = base.take(torch.arange(at, at + n, device=base.tokens.device))
            at += n

    def _prepare_keys(self, anchors: list[int]) -> None:
        """Run no further than the watched modules; anchors are not asked for anything else."""
        work = self._pass(anchors)
        top = max(p.layer for p in self.loaded.anatomy.projections if p.module_name in self.watched) + 1
        anatomy = self.loaded.anatomy
        with (
            self._watching(anchors),
            replaying(self.loaded.model, anatomy, self.layer, work.activations),
            layers_off(self.loaded.model, anatomy, top),
        ):
            run_body(self.loaded.model, work.ids, work.mask, head=False)

    @contextmanager
    def _watching(self, anchors: list[int]) -> Iterator[None]:
        """Keep what enters the watched modules at the anchors' last tokens."""

        def keep(path: str, inputs: Tensor) -> None:
            x = inputs.reshape(len(anchors), -1, inputs.shape[-1])
            for place, i in enumerate(anchors):
                end = len(self.rows[i].ids)
                own = self.keys[path].setdefault(self.rows[i].edit, Inputs())
                own.add(i, x[place, max(0, end - self.last) : end].clone())

        handles = []
        try:
            for path in self.watched:
                module = self.loaded.model.get_submodule(path)
                handles.append(module.register_forward_pre_hook(lambda _, args, path=path: keep(path, args[0])))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def take_keys(self, path: str, n_edits: int) -> Tensor | None:
        """What enters a watched module on each edit's anchors; handed out once, for it is a large part of the memory.

        Args:
            path: The module.
            n_edits: Edits in the bank.

        Returns:
            (n_edits, most keys of an edit, d_in), filled up with zeros; None when no edit has an anchor. Of very many
            inputs of an edit only d_in that stand for them.
        """
        own = {edit: inputs.keys() for edit, inputs in self.keys.pop(path).items()}
        if not own:
            return None
        some = next(iter(own.values()))
        out = torch.zeros(n_edits, max(map(len, own.values())), some.shape[-1], device=self.loaded.device)
        for edit, keys in own.items():
            out[edit, : len(keys)] = keys
        return out

    def planned(self, chosen: Sequence[int]) -> Iterator[tuple[list[int], Pass]]:
        """As `passes`, each with the indices of its rows, and made when its turn comes."""
        for batch in plan_batches([len(self.rows[i].ids) - self._begins(i) for i in chosen], self.max_tokens):
            own = [chosen[k] for k in batch]
            yield own, self._pass(own)

    def _begins(self, i: int) -> int:
        """First token of a row that passes run."""
        return self.pasts[i].length if self.pasts else 0

    def passes(self, chosen: Sequence[int], *, brief: bool = False) -> list[Pass]:
        """Group rows into passes of at most `max_tokens`.

        Args:
            chosen: Indices of the rows of one step.
            brief: Look at facts up to the first token of their answer only.

        Returns:
            The passes.
        """
        rows = [self.rows[i].brief() if brief else self.rows[i] for i in chosen]
        plan = plan_batches([len(row.ids) for row in rows], self.max_tokens)
        return [self._pass([chosen[k] for k in batch], [rows[k] for k in batch]) for batch in plan]

    def _pass(self, batch: list[int], as_rows: Sequence[Row] = ()) -> Pass:
        rows = as_rows or [self.rows[i] for i in batch]
        device, begin = self.loaded.device, [self._begins(i) for i in batch]
        ids, mask = pad_right([row.ids[n:] for row, n in zip(rows, begin, strict=True)], self.loaded.pad_id, device)
        stored = torch.zeros(*ids.shape, self.loaded.anatomy.hidden_size, dtype=self.activations[batch[0]].dtype)
        stored = stored.to(device)
        for place, i in enumerate(batch):
            n = len(rows[place].ids) - begin[place]
            stored[place, :n] = self.activations[i][:n]
        facts = [(p, c - begin[p], t, r) for p, r in enumerate(rows) for c, t in zip(r.columns, r.labels, strict=False)]
        anchors = [(p, c - begin[p], r) for p, r in enumerate(rows) if not r.labels for c in r.columns]

        def column(values: list[int] | list[float]) -> Tensor:
            return torch.tensor(values, device=device)

        known = [base for i in batch if not self.rows[i].labels and (base := self.base[i]) is not None]
        top = BaseTop(torch.cat([b.tokens for b in known]), torch.cat([b.logprobs for b in known])) if known else None
        where = (
            column([f[0] for f in facts] + [a[0] for a in anchors]),
            column([f[1] for f in facts] + [a[1] for a in anchors]),
        )
        return Pass(
            ids,
            mask,
            stored,
            torch.tensor([row.edit for row in rows]),
            where,
            labels=column([f[2] for f in facts]).long(),
            label_requests=column([f[3].request for f in facts]).long(),
            label_weights=column([f[3].weight / len(f[3].columns) for f in facts]).float(),
            anchor_weights=column([a[2].weight / len(a[2].columns) for a in anchors]).float(),
            base=top,
            past=[self.pasts[i] for i in batch] if any(begin) else (),
        )
