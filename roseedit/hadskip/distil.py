"""Healing trained by gradient: the skipped model is to say what the full, edited model says (KL), edits' answers first.

An edit's training ends once its answer is likely enough, so that a small change of the distribution can turn the first
choice. On the tokens of the answers, which the user asked for, a cross-entropy is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from roseedit.hadskip.healing import entering
from roseedit.hadskip.paths import Healing, executing
from roseedit.hadskip.resume import optimiser_tensors, restore_optimiser
from roseedit.hadskip.teacher import Teacher, kl, some_positions, student_logprobs
from roseedit.models.replay import replaying


@dataclass(frozen=True)
class DistilSettings:
    """How healing is trained.

    Attributes:
        steps: Steps.
        rows: Sequences per step.
        lr: Adam's largest step size, falling to a tenth as a cosine.
        positions: Share of positions looked at.
        seed: Of the draws.
        answer_weight: Weight of the edits' own answers.
    """

    steps: int = 60
    rows: int = 8
    lr: float = 1e-3
    positions: float = 0.5
    seed: int = 0
    answer_weight: float = 1.0


def trainable(healing: Healing) -> tuple[Healing, list[Tensor]]:
    """A copy of a healing whose tensors ask for gradients.

    Args:
        healing: The healing.

    Returns:
        The copy, and its tensors.
    """
    tensors = {name: t.detach().clone().requires_grad_(True) for name, t in healing.tensors().items()}
    return Healing.of_tensors(tensors), list(tensors.values())


def frozen(healing: Healing) -> Healing:
    """A copy without gradients.

    Args:
        healing: The healing.

    Returns:
        The copy.
    """
    return Healing.of_tensors({name: t.detach().clone() for name, t in healing.tensors().items()})


def lr_at(step: int, steps: int, lr: float) -> float:
    """Cosine from `lr` to a tenth of it, after a short warm-up.

    Args:
        step: From 0.
        steps: In all.
        lr: The largest.

    Returns:
        The step size.
    """
    warm = min(1.0, (step + 1) / max(1, round(0.05 * steps)))
    return warm * lr * (0.55 + 0.45 * math.cos(math.pi * step / max(1, steps)))


class Distillation:
    """The training of one healing for one or several sets of executed layers; `state` and `restore` make it resumable.

    Args:
        teacher: The full model on the training sequences; its weights stay as they are.
        executed: Sets of executed layers; each step takes one.
        shares: How often each.
        healing: Where to start.
        settings: How.
        answers: (sequences, tokens), True for the tokens of an edit's answer; None for none.
    """

    def __init__(
        self,
        teacher: Teacher,
        executed: Sequence[Iterable[int]],
        shares: Sequence[float],
        healing: Healing,
        settings: DistilSettings,
        *,
        answers: Tensor | None = None,
    ) -> None:
        self.teacher, self.settings = teacher, settings
        nothing = torch.zeros_like(teacher.ids, dtype=torch.bool)
        self.answers = answers if answers is not None and settings.answer_weight else nothing
        self.student, self.tensors = trainable(healing)
        sets = [set(layers) for layers in executed]
        self.paths = [executing(teacher.loaded, layers, self.student) for layers in sets]
        n = teacher.loaded.anatomy.n_layers
        self.entry = min((i for i in range(n) if any(i not in own for own in sets)), default=0)
        self.states = entering(teacher.loaded, self.entry, teacher.ids)
        self.shares = torch.tensor(shares)
        self.step = 0
        self.history: list[float] = []
        self.optimiser = torch.optim.Adam(self.tensors, lr=settings.lr, betas=(0.9, 0.99)) if self.tensors else None

    @property
    def healing(self) -> Healing:
        """The healing as it stands."""
        return frozen(self.student)

    def advance(self) -> None:
        """One step. Draws depend on the seed and the step alone, so a resumed fit repeats an unbroken one."""
        if self.optimiser is not None:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
            for group in self.optimiser.param_groups:
                group["lr"] = lr_at(self.step, self.settings.steps, self.settings.lr)
            picked = int(torch.multinomial(self.shares, 1, generator=generator))
            loss = self._loss(self.paths[picked], generator)
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.tensors, 1.0)
            self.optimiser.step()
            self.history.append(float(loss.detach()))
        self.step += 1

    def _loss(self, path: executing, generator: torch.Generator) -> Tensor:
        """KL on the step's sequences; below the first skipped layer all states are the full model's, and stored.

        On the tokens of answers, their negative log-likelihood besides.
        """
        teacher, settings = self.teacher, self.settings
        rows = rows_of_step(self.step, settings.rows, len(teacher.ids), settings.seed)
        where = some_positions(len(rows), teacher.ids.shape[1], settings.positions, generator)
        wanted, loaded, n = teacher.logprobs(rows, where), teacher.loaded, len(where[0])
        asked = self.answers[rows][:, 1:].nonzero(as_tuple=True)
        every = torch.cat((where[0], asked[0])), torch.cat((where[1], asked[1]))
        with path, replaying(loaded.model, loaded.anatomy, self.entry, self.states[rows]), torch.enable_grad():
            said = student_logprobs(loaded, teacher.ids[rows], every)
        loss = kl(wanted, said[:n]).mean()
        if not len(asked[0]):
            return loss
        target = teacher.ids[rows][asked[0], asked[1] + 1].to(said.device)
        return loss + settings.answer_weight * nll_loss(said[n:], target)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs beside its arguments."""
        own = {f"healing.{name}": t for name, t in self.student.tensors().items()}
        return own | (optimiser_tensors(self.optimiser) if self.optimiser else {})

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on where a stopped training was.

        Args:
            step: Steps done.
            tensors: Its `state`.
        """
        copy_into(self.student, tensors)
        if self.optimiser is not None:
            restore_optimiser(self.optimiser, tensors)
        self.step = step


@torch.no_grad()
def copy_into(healing: Healing, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite a healing's tensors in place.

    Args:
        healing: The healing.
        tensors: Values under `healing.<name>`.
    """
    for name, own in healing.tensors().items():
        own.copy_(tensors[f"healing.{name}"])


def rows_of_step(step: int, rows: int, n: int, seed: int) -> Tensor:
    """Which sequences a step takes: all of them in turn, in an order that is drawn anew each time round.

    Args:
        step: From 0.
        rows: Sequences per step.
        n: Sequences in all.
        seed: Of the orders.

    Returns:
        (rows,).
    """
    places = range(step * rows, (step + 1) * rows)
    turns = {place // n for place in places}
    orders = {t: torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + t)) for t in turns}
    return torch.stack([orders[place // n][place % n] for place in places])
