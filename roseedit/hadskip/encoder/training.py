"""The trainings: fine-tuning the full model, and students of it that skip layers, all with one budget of steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roseedit.hadskip.encoder.classifier import EncoderClassifier, Output
from roseedit.hadskip.encoder.data import Encoded
from roseedit.hadskip.encoder.gates import EncoderGates, GateRouter, theta_at
from roseedit.hadskip.encoder.routing import Router
from roseedit.hadskip.encoder.settings import EncoderHparams
from roseedit.hadskip.homotopy import Homotopy, budget_hinge
from roseedit.models.lowp import native_bfloat16
from roseedit.progress import bar

SOFTNESS = 2.0  # temperature of the distillation
RECENT = 8  # steps whose scores set theta in training


@dataclass(frozen=True)
class Targets:
    """What the full model says about the training rows.

    Attributes:
        logits: (rows, classes).
        pooled: (rows, layers, hidden), its pooled states; None when no loss needs them.
    """

    logits: Tensor
    pooled: Tensor | None


def arithmetic(settings: EncoderHparams, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The arithmetic of training.

    Args:
        settings: The settings.
        device: Where it runs.

    Returns:
        Makes a context: autocast to bfloat16 where that is asked for, or native and left to us.
    """
    wanted = settings.train_dtype
    on = wanted == "bfloat16" or (wanted == "auto" and native_bfloat16(device))
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=on)


@torch.no_grad()
def targets_of(classifier: EncoderClassifier, data: Encoded, settings: EncoderHparams) -> Targets:
    """Ask the full model once about all training rows.

    Args:
        classifier: The full model.
        data: The rows.
        settings: The settings.

    Returns:
        Its answers, in the arithmetic of training.
    """
    device, keep = classifier.head.weight.device, settings.hidden > 0
    order = data.by_length(64)
    with arithmetic(settings, device)():
        outputs = [classifier(data.batch(rows, device), keep=keep) for rows in order]
    back = torch.cat(order).argsort()
    kept = torch.cat([o.pooled for o in outputs if o.pooled is not None])[back] if keep else None
    return Targets(torch.cat([o.logits for o in outputs])[back], kept)


def student_loss(output: Output, labels: Tensor, rows: Tensor, targets: Targets, settings: EncoderHparams) -> Tensor:
    """Cross-entropy, KL from the full model, and distance of the pooled states of layers that ran.

    Args:
        output: Of the student, pooled states kept when the targets have them.
        labels: (rows,).
        rows: Which training rows they are.
        targets: Of the full model.
        settings: The weights.

    Returns:
        A scalar.
    """
    loss = nn.functional.cross_entropy(output.logits, labels)
    if settings.distil:
        loss = loss + settings.distil * distillation(output.logits, targets.logits[rows.to(targets.logits.device)])
    if settings.hidden and targets.pooled is not None and output.pooled is not None:
        width = output.pooled.shape[-1:]
        own, wanted = (nn.functional.layer_norm(x, width) for x in (output.pooled, targets.pooled[rows]))
        ran = output.run.detach()
        loss = loss + settings.hidden * ((own - wanted).pow(2).mean(-1) * ran).sum() / ran.sum()
    return loss


def distillation(logits: Tensor, wanted: Tensor) -> Tensor:
    """KL(full || student) of softened distributions, scaled so that its gradient does not shrink with the softness.

    Args:
        logits: (rows, classes).
        wanted: (rows, classes), the full model's.

    Returns:
        A scalar, the mean over rows.
    """
    said, true = (torch.log_softmax(x / SOFTNESS, -1) for x in (logits, wanted))
    return SOFTNESS**2 * nn.functional.kl_div(said, true, reduction="batchmean", log_target=True)


def optimise(
    groups: Sequence[dict[str, Any]],
    batches: Sequence[Tensor],
    loss_of: Callable[[int, Tensor], Tensor],
    settings: EncoderHparams,
    *,
    what: str,
    show: bool,
) -> None:
    """AdamW with a tenth of warm-up and linear decay.

    Args:
        groups: Parameters and their largest step size.
        batches: Rows per step.
        loss_of: The loss of a step, from its number and rows.
        settings: The settings.
        what: Label of the progress bar.
        show: Draw it.
    """
    from transformers import get_linear_schedule_with_warmup

    optimiser = torch.optim.AdamW([dict(group) for group in groups], weight_decay=settings.weight_decay, fused=True)
    schedule = get_linear_schedule_with_warmup(optimiser, len(batches) // 10, len(batches))
    with bar(len(batches), what, show) as tell:
        for step, rows in enumerate(batches):
            optimiser.zero_grad()
            loss_of(step, rows).backward()
            for group in groups:
                nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimiser.step()
            schedule.step()
            tell(1)
    optimiser.zero_grad()


def n_steps(data: Encoded, epochs: float, settings: EncoderHparams) -> int:
    """Steps of a training.

    Args:
        data: Its rows.
        epochs: Passes over them.
        settings: For the rows per step.

    Returns:
        At least 1.
    """
    return max(1, round(epochs * len(data) / settings.rows))


def finetune(classifier: EncoderClassifier, data: Encoded, settings: EncoderHparams, show: bool = False) -> None:
    """Fine-tune the full model by cross-entropy, in place.

    Args:
        classifier: The full model.
        data: Training rows.
        settings: The settings.
        show: Draw a progress bar.
    """
    device, draws = classifier.head.weight.device, torch.Generator().manual_seed(settings.seed)
    inside = arithmetic(settings, device)

    def loss_of(_step: int, rows: Tensor) -> Tensor:
        with inside():
            output = classifier(data.batch(rows, device), generator=draws)
        return nn.functional.cross_entropy(output.logits, data.labels[rows].to(device))

    batches = data.steps(settings.rows, n_steps(data, settings.epochs, settings), draws)
    groups = [{"params": list(classifier.parameters()), "lr": settings.lr}]
    optimise(groups, batches, loss_of, settings, what="fine-tuning", show=show)


def train_student(
    student: EncoderClassifier,
    data: Encoded,
    targets: Targets,
    router: Router,
    settings: EncoderHparams,
    *,
    epochs: float | None = None,
    show: bool = False,
) -> None:
    """Train a student that a router without gradients runs, in place.

    Args:
        student: A copy of the full model.
        data: Training rows.
        targets: The full model's answers.
        router: Says what runs.
        settings: The settings.
        epochs: Passes over the data; left out, `skip_epochs`.
        show: Draw a progress bar.
    """
    device, draws = student.head.weight.device, torch.Generator().manual_seed(settings.seed + 1)
    inside, keep = arithmetic(settings, device), targets.pooled is not None

    def loss_of(_step: int, rows: Tensor) -> Tensor:
        with inside():
            output = student(data.batch(rows, device), router, keep=keep, generator=draws)
        return student_loss(output, data.labels[rows].to(device), rows, targets, settings)

    passes = settings.skip_epochs if epochs is None else epochs
    batches = data.steps(settings.rows, n_steps(data, passes, settings), draws)
    groups = [{"params": list(student.parameters()), "lr": settings.skip_lr}]
    optimise(groups, batches, loss_of, settings, what="student", show=show)


class GateTraining:
    """Gates, encoder and head along a homotopy from the full model to the budget.

    Args:
        student: A copy of the full model; trained in place.
        gates: Its gates, initialised; trained in place.
        data: Training rows.
        targets: The full model's answers.
        settings: The settings.

    Attributes:
        history: Per step: mean cost and budget.
    """

    def __init__(
        self,
        student: EncoderClassifier,
        gates: EncoderGates,
        data: Encoded,
        targets: Targets,
        settings: EncoderHparams,
    ) -> None:
        self.student, self.gates, self.data, self.targets, self.settings = student, gates, data, targets, settings
        steps = n_steps(data, settings.skip_epochs * (1 - settings.warm), settings)
        along = settings.homotopy and not settings.warm  # else the warm-up has come down to the budget
        self.plan = Homotopy(steps, settings.budget, penalty=settings.penalty, on=along)
        self.draws = torch.Generator().manual_seed(settings.seed + 2)
        self.inside = arithmetic(settings, student.head.weight.device)
        self.history: list[dict[str, float]] = []
        self.recent: deque[Tensor] = deque(maxlen=RECENT)

    def run(self, show: bool = False) -> None:
        """Train.

        Args:
            show: Draw a progress bar.
        """
        groups = [
            {"params": list(self.student.parameters()), "lr": self.settings.skip_lr},
            {"params": list(self.gates.parameters()), "lr": self.settings.gate_lr, "weight_decay": 0.0},
        ]
        batches = self.data.steps(self.settings.rows, self.plan.steps, self.draws)
        optimise(groups, batches, self.loss_of, self.settings, what="gates", show=show)

    def loss_of(self, step: int, rows: Tensor) -> Tensor:
        """The loss of one step; theta is such that the gates, by recent scores, spend the budget of the moment.

        Args:
            step: From 0.
            rows: Its training rows.

        Returns:
            A scalar.
        """
        plan, device = self.plan, self.student.head.weight.device
        noise = self.settings.noise if plan.noisy_at(step) else 0.0
        if self.recent:
            self.gates.theta.fill_(theta_at(torch.cat(list(self.recent)), self._open_share(step), noise))
        router = GateRouter(self.gates, plan.temperature_at(step), self.draws if noise else None, noise or 1.0)
        with self.inside():
            keep = self.targets.pooled is not None
            batch = self.data.batch(rows, device)
            output = self.student(batch, router, mix=True, keep=keep, generator=self.draws)
        cost = output.run.mean()
        self.recent.append(torch.stack(router.scores, 1))
        self.history.append({"cost": float(cost.detach()), "budget": plan.budget_at(step)})
        labels = self.data.labels[rows].to(device)
        loss = student_loss(output, labels, rows, self.targets, self.settings)
        return loss + plan.penalty_at(step) * budget_hinge(cost, plan.budget_at(step))

    def _open_share(self, step: int) -> float:
        """Share of the gates that may be open; 0.999 stands for all, where no threshold would be low enough."""
        n_layers, gated = self.student.parts.n_layers, len(self.gates.layers)
        share = (self.plan.budget_at(step) * n_layers - (n_layers - gated)) / gated
        return min(0.999, max(0.0, share))
