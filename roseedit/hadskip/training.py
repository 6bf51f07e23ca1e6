"""The homotopic training of gates: both branches of every gated layer run, mixed by hard straight-through gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.hadskip.catalogue import centred
from roseedit.hadskip.distil import copy_into, frozen, rows_of_step, trainable
from roseedit.hadskip.gate import Gates, straight_through
from roseedit.hadskip.homotopy import Homotopy, budget_hinge
from roseedit.hadskip.paths import Healing
from roseedit.hadskip.resume import optimiser_tensors, restore_optimiser
from roseedit.hadskip.teacher import Teacher, kl, some_positions, student_logprobs
from roseedit.models.load import LoadedModel
from roseedit.models.replay import hidden_of


@dataclass(frozen=True)
class GateSettings:
    """How gates are trained.

    Attributes:
        rows: Sequences per step.
        lr: Step size of the gates.
        healing_lr: Step size of the healing that is trained along.
        positions: Share of positions looked at.
        seed: Of noise and draws.
    """

    rows: int = 8
    lr: float = 0.15
    healing_lr: float = 5e-4
    positions: float = 0.5
    seed: int = 0


@contextmanager
def gated(loaded: LoadedModel, gates: Gates, values: Tensor, healing: Healing) -> Iterator[None]:
    """Inside the block every gated layer gives g F(x) + (1 - g) heal(x), row by row; gradients reach the gates.

    This is for training: nothing is saved, both branches run.

    Args:
        loaded: The model.
        gates: The gates, for their layers.
        values: (rows, layers), g.
        healing: What a skipped layer does instead.

    Yields:
        Nothing.
    """
    modules: Any = loaded.model.get_submodule(loaded.anatomy.layers_name)
    try:
        for j, layer in enumerate(gates.layers):
            modules[layer].forward = _mixed(modules[layer].forward, values[:, j], layer, healing)
        yield
    finally:
        for layer in gates.layers:
            modules[layer].__dict__.pop("forward", None)


def _mixed(own: Any, value: Tensor, layer: int, healing: Healing) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        x, ran = hidden_of(args, kwargs), own(*args, **kwargs)
        out = ran[0] if isinstance(ran, tuple) else ran
        g = value.to(x)[:, None, None]
        mixed = g * out + (1 - g) * healed(x, layer, healing)
        return (mixed, *ran[1:]) if isinstance(ran, tuple) else mixed

    return forward


def healed(x: Tensor, layer: int, healing: Healing) -> Tensor:
    """What a skipped layer hands on.

    Args:
        x: (..., hidden).
        layer: The layer.
        healing: The healing.

    Returns:
        s * x + B A x, as far as the layer has any.
    """
    out = x * healing.scales[layer].to(x) if layer in healing.scales else x
    if layer in healing.low_rank:
        a, b = healing.low_rank[layer]
        out = out + x @ a.to(x).mT @ b.to(x).mT
    return out


class GateTraining:
    """One fit of gates along a homotopy; `state` and `restore` make it resumable.

    Args:
        teacher: The full model on the training sequences.
        gates: The gates, initialised; trained in place.
        features: (sequences, features), what the gates see of each.
        healing: Start of the healing.
        costs: (layers,), cost share of each gated layer.
        fixed: Cost share of what always runs.
        homotopy: The schedules.
        settings: How.
    """

    def __init__(
        self,
        teacher: Teacher,
        gates: Gates,
        *,
        features: Tensor,
        healing: Healing,
        costs: Tensor,
        fixed: float,
        homotopy: Homotopy,
        settings: GateSettings,
    ) -> None:
        self.teacher, self.gates, self.features = teacher, gates, features
        self.costs, self.fixed, self.homotopy, self.settings = costs, fixed, homotopy, settings
        self.student, self.tensors = trainable(healing)
        groups: list[dict[str, Any]] = [{"params": list(gates.parameters()), "lr": settings.lr}]
        if self.tensors:
            groups.append({"params": self.tensors, "lr": settings.healing_lr})
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95))
        self.step = 0
        self.history: list[dict[str, float]] = []

    @property
    def healing(self) -> Healing:
        """The healing as it stands."""
        return frozen(self.student)

    def advance(self) -> None:
        """One step. Draws depend on the seed and the step alone, so a resumed fit repeats an unbroken one."""
        t, plan, settings = self.step, self.homotopy, self.settings
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + t)
        rows = rows_of_step(t, settings.rows, len(self.features), settings.seed)
        where = some_positions(len(rows), self.teacher.ids.shape[1], settings.positions, generator)
        with torch.no_grad():  # the threshold at which the gates by themselves spend b_t
            theta = centred(self.gates(self.features), self.costs, self.fixed, plan.budget_at(t))
        scores = self.gates(self.features[rows]) - theta
        values = straight_through(scores, plan.temperature_at(t), generator if plan.noisy_at(t) else None)
        wanted = self.teacher.logprobs(rows, where)
        with gated(self.teacher.loaded, self.gates, values, self.student):
            said = student_logprobs(self.teacher.loaded, self.teacher.ids[rows], where)
        divergence = kl(wanted, said).mean()
        cost = self.fixed + (values @ self.costs).mean()
        loss = divergence + plan.penalty_at(t) * budget_hinge(cost, plan.budget_at(t))
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.tensors, 1.0)
        self.optimiser.step()
        told = {"step": t, "kl": float(divergence.detach()), "cost": float(cost.detach()), "budget": plan.budget_at(t)}
        self.history.append(told)
        self.step += 1

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs beside its arguments."""
        gates = {f"gates.{name}": t for name, t in self.gates.state_dict().items()}
        healing = {f"healing.{name}": t for name, t in self.student.tensors().items()}
        return gates | healing | optimiser_tensors(self.optimiser)

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on where a stopped training was.

        Args:
            step: Steps done.
            tensors: Its `state`.
        """
        own = {name.removeprefix("gates."): t for name, t in tensors.items() if name.startswith("gates.")}
        self.gates.load_state_dict(own)
        copy_into(self.student, tensors)
        restore_optimiser(self.optimiser, tensors)
        self.step = step
