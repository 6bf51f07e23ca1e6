"""AdaLoRA with its rank allocation (arXiv 2303.10512) through PEFT: one edit at a time, the whole model per step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from roseedit.baselines.banked import selected
from roseedit.baselines.config import AdaLoRAHparams, own, read_as
from roseedit.baselines.rows import answer_row
from roseedit.baselines.spaces import ADALORA
from roseedit.baselines.trainer import Trained
from roseedit.errors import HparamsError, refusal
from roseedit.hparams import Hparams
from roseedit.methods.made import made_of
from roseedit.methods.registry import MadeDelta, Progress
from roseedit.methods.space import Knob
from roseedit.models.anatomy import Projection
from roseedit.models.encoding import pad_right
from roseedit.models.load import LoadedModel
from roseedit.models.replay import positions_from_mask
from roseedit.requests import EditRequest
from roseedit.roselora.objective import Row, fact_losses, request_seed
from roseedit.roselora.trainer import frozen

NAME = "default"
IGNORED = -100


class AdaLoRA:
    """Low-rank edits whose ranks go to the matrices that need them."""

    space: ClassVar[tuple[Knob, ...]] = ADALORA

    def read(self, values: Mapping[str, Any], where: str) -> AdaLoRAHparams:
        """Build the settings; see `read_as`."""
        return read_as(AdaLoRAHparams, values, where)

    def check(self, loaded: LoadedModel, hparams: Hparams) -> None:
        """Refuse layers or modules that the model lacks, and a machine without PEFT."""
        selected(loaded, own(AdaLoRAHparams, hparams))
        try:
            import peft  # noqa: F401
        except ImportError as error:
            message = refusal("method AdaLoRA without PEFT", "PEFT installed", "pip install 'roseedit[peft]'")
            raise HparamsError(message) from error

    def fit(
        self,
        loaded: LoadedModel,
        requests: Sequence[EditRequest],
        hparams: Hparams,
        *,
        joint: bool,
        progress: Progress | None = None,
    ) -> list[MadeDelta]:
        """Train one adapter after another; the model is unwrapped again whatever happens."""
        settings = own(AdaLoRAHparams, hparams)
        groups = [requests] if joint else [[request] for request in requests]
        return [_fit_one(loaded, group, settings, progress) for group in groups]


def _fit_one(
    loaded: LoadedModel, requests: Sequence[EditRequest], hparams: AdaLoRAHparams, progress: Progress | None
) -> MadeDelta:
    projections = selected(loaded, hparams)
    rows = [answer_row(loaded, r, i, 0, end_mark=hparams.end_mark) for i, r in enumerate(requests)]
    seed = request_seed(requests[0], hparams.seed, "adalora")
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with frozen(loaded.model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)  # PEFT draws its start and its dropout from the global generator
        with adapted(loaded, projections, hparams, batches=-(-len(rows) // hparams.joint_batch)) as adapter:
            trained = _Run(loaded, adapter, rows, hparams).train(progress)
            factors, ranks = _product(adapter, projections, hparams)
    trained = Trained(factors, trained.steps, trained.probability, trained.converged)
    return made_of(loaded, trained.factors, trained, ranks=ranks)


@contextmanager
def adapted(
    loaded: LoadedModel, projections: Sequence[Projection], hparams: AdaLoRAHparams, batches: int = 1
) -> Iterator[Any]:
    """The model with PEFT's AdaLoRA layers in place of its own, for the length of a block.

    Args:
        loaded: The model.
        projections: The matrices.
        hparams: The settings.
        batches: Optimiser steps in one of the settings' steps.

    Yields:
        An `AdaLoraModel`.
    """
    from peft import AdaLoraConfig, AdaLoraModel

    model, wrap = loaded.model, cast(Any, AdaLoraModel)
    total, start, end = (
        (hparams.steps * batches, hparams.allocate_start * batches, hparams.allocate_end * batches)
        if hparams.allocate
        else (3, 1, 2)  # never looked at
    )
    config = AdaLoraConfig(
        target_modules=[p.module_name for p in projections],
        init_r=hparams.init_rank,
        target_r=hparams.rank,
        lora_alpha=hparams.alpha,
        lora_dropout=hparams.dropout,
        orth_reg_weight=hparams.orthogonality,
        total_step=total,
        tinit=start,
        tfinal=total - end,
        fan_in_fan_out=any(p.transposed for p in projections),
    )
    own_modules = {p.module_name: model.get_submodule(p.module_name) for p in projections}
    try:
        adapter = wrap(model, config, NAME)
        for path in own_modules:
            model.get_submodule(path).lora_dropout.train()
        yield adapter
    finally:
        for path, module in own_modules.items():
            model.set_submodule(path, module)
        vars(model).pop("peft_config", None)


class _Run:
    """The steps of one adapter."""

    def __init__(self, loaded: LoadedModel, adapter: Any, rows: Sequence[Row], hparams: AdaLoRAHparams) -> None:
        self.loaded, self.adapter, self.rows, self.hparams = loaded, adapter, rows, hparams
        self.trained = [p for n, p in adapter.named_parameters() if "lora_" in n]
        self.optimizer = torch.optim.Adam(self.trained, lr=hparams.lr, weight_decay=hparams.weight_decay)
        self.lowest = [0.0] * len(rows)
        self.taken = 0

    def train(self, progress: Progress | None) -> Trained:
        """Epochs of shuffled mini-batches; a single request is a single batch. The factors are read off afterwards."""
        n, hparams = len(self.rows), self.hparams
        batches = -(-n // hparams.joint_batch)
        earliest = hparams.allocate_end if hparams.allocate else 0
        for epoch in range(hparams.steps):
            order, total = list(range(n)), 0.0
            random.Random(f"{hparams.seed}/{epoch}").shuffle(order)
            for at in range(batches):
                batch = order[at::batches]
                loss = self._backward([self.rows[i] for i in batch])
                total += loss * len(batch)
                if n == 1 and epoch > earliest and loss < hparams.stop_loss:
                    break  # as it is before this step, like the other methods
                self._step()
            if progress:
                progress(n / hparams.steps)
            if epoch > earliest and total / n < hparams.stop_loss:
                if progress:
                    progress(n * (1 - (epoch + 1) / hparams.steps))
                return Trained({}, self.taken, min(self.lowest), converged=True)
        return Trained({}, self.taken, min(self.lowest), converged=False)

    def _backward(self, rows: Sequence[Row]) -> float:
        """PEFT's loss (the answer's and the orthogonality term) backwards; returns the answer's part."""
        device, pad = self.loaded.device, self.loaded.pad_id
        # the last token of the answer is no input, but transformers wants labels of the inputs' shape
        ids, mask = pad_right([(*row.ids, row.labels[-1]) for row in rows], pad, device)
        labels = torch.full_like(ids, IGNORED)
        for i, row in enumerate(rows):
            labels[i, [c + 1 for c in row.columns]] = torch.tensor(row.labels, device=device)
        self.optimizer.zero_grad(set_to_none=True)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_from_mask(mask)}
        out = self.adapter(**inputs, labels=labels, use_cache=False)
        out.loss.backward()
        return self._book(rows, out.logits.detach())

    def _book(self, rows: Sequence[Row], logits: Tensor) -> float:
        total = 0.0
        for i, row in enumerate(rows):
            wanted = torch.tensor(row.labels, device=logits.device)
            nll = fact_losses(logits[i, list(row.columns)], wanted)
            self.lowest[row.request] = float((-nll).exp().min())
            total += float(nll.mean())
        return total / len(rows)

    def _step(self) -> None:
        self.optimizer.step()
        self.taken += 1
        if self.hparams.allocate:
            self.adapter.update_and_allocate(self.taken)


@torch.no_grad()
def _product(
    adapter: Any, projections: Sequence[Projection], hparams: AdaLoRAHparams
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, int]]:
    """The final product as factors; what was masked is zero in both, so that all matrices keep one rank."""
    factors, ranks = {}, {}
    for p in projections:
        layer = adapter.model.get_submodule(p.module_name)
        values, a, b = (part[NAME].detach().float().cpu() for part in (layer.lora_E, layer.lora_A, layer.lora_B))
        kept = (values != 0).float()
        scale = layer.scaling[NAME] / (float(layer.ranknum[NAME]) + 1e-5)
        factors[p.module_name] = a * values, b * kept.T * scale
        ranks[p.module_name] = int(kept.sum())
    return factors, ranks
