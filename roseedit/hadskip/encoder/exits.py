"""Early exit, which skipping must beat: a classifier after every layer, and two rules for when to stop.

* *entropy* (DeeBERT's rule): leave at the first layer whose class distribution has an entropy below a threshold;
* *patience* (PABEE's rule): leave once so many consecutive classifiers have agreed with the one before. Patience is a
  whole number, so a mean cost in between is met by a mixture of two neighbouring ones.

The exits are trained jointly with the encoder, from the fine-tuned model, losses weighted by depth as in PABEE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roseedit.errors import SkipError, refusal
from roseedit.hadskip.encoder.classifier import EncoderClassifier, Output, zero_linear
from roseedit.hadskip.encoder.data import Encoded
from roseedit.hadskip.encoder.measure import threshold_for
from roseedit.hadskip.encoder.settings import EncoderHparams
from roseedit.hadskip.encoder.training import Targets, arithmetic, n_steps, optimise, student_loss

RULES = ("patience", "entropy")


class Exits(nn.Module):
    """One linear classifier after every layer but the last, which has the model's own head.

    Args:
        n_layers: Layers of the encoder.
        hidden_size: Width of the states.
        n_classes: How many classes.
    """

    def __init__(self, n_layers: int, hidden_size: int, n_classes: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(zero_linear(hidden_size, n_classes) for _ in range(n_layers - 1))

    def forward(self, output: Output) -> Tensor:
        """Logits after every layer.

        Args:
            output: Of a pass of all layers, pooled states kept.

        Returns:
            (rows, layers, classes), float32.

        Raises:
            SkipError: The pooled states were not kept.
        """
        if output.pooled is None:
            raise SkipError(refusal("a pass without pooled states", "one with keep=True", "Run it so."))
        early = [head(output.pooled[:, i]).float() for i, head in enumerate(self.heads)]
        return torch.stack([*early, output.logits], 1)


def train_exits(
    student: EncoderClassifier,
    exits: Exits,
    data: Encoded,
    targets: Targets,
    settings: EncoderHparams,
    *,
    show: bool = False,
) -> None:
    """Train exits and encoder jointly, in place, for as many steps as gates are.

    Args:
        student: A copy of the full model.
        exits: Its exits.
        data: Training rows.
        targets: The full model's answers, which every exit is distilled from.
        settings: The settings.
        show: Draw a progress bar.
    """
    device, draws = student.head.weight.device, torch.Generator().manual_seed(settings.seed + 1)
    inside, n = arithmetic(settings, device), student.parts.n_layers

    def loss_of(_step: int, rows: Tensor) -> Tensor:
        with inside():
            output = student(data.batch(rows, device), keep=True, generator=draws)
            logits = exits(output)
        labels = data.labels[rows].to(device)
        losses = [
            (i + 1) * student_loss(Output(logits[:, i], output.run, None), labels, rows, targets, settings)
            for i in range(n)
        ]
        return torch.stack(losses).sum() / (n * (n + 1) / 2)

    batches = data.steps(settings.rows, n_steps(data, settings.skip_epochs, settings), draws)
    groups = [{"params": [*student.parameters(), *exits.parameters()], "lr": settings.skip_lr}]
    optimise(groups, batches, loss_of, settings, what="exits", show=show)


@torch.no_grad()
def exit_logits(student: EncoderClassifier, exits: Exits, data: Encoded, size: int = 32) -> Tensor:
    """What every exit says; leaving early changes nothing that ran before.

    Args:
        student: The classifier.
        exits: Its exits.
        data: The rows.
        size: Rows per batch.

    Returns:
        (rows, layers, classes).
    """
    order, device = data.by_length(size), student.head.weight.device
    logits = torch.cat([exits(student(data.batch(rows, device), keep=True)) for rows in order])
    return logits.cpu()[torch.cat(order).argsort()]


def entropy_depths(logits: Tensor, threshold: float) -> Tensor:
    """Layers that run under the entropy rule.

    Args:
        logits: (rows, layers, classes).
        threshold: Leave below it, in nats.

    Returns:
        (rows,), from 1.
    """
    entropy = torch.special.entr(logits.double().softmax(-1)).sum(-1)
    return _first_true(entropy < threshold)


def patience_depths(logits: Tensor, patience: int) -> Tensor:
    """Layers that run under the patience rule.

    Args:
        logits: (rows, layers, classes).
        patience: How many times in a row a classifier must agree with the one before; 0 leaves after the first layer.

    Returns:
        (rows,), from 1.
    """
    said = logits.argmax(-1)
    streak, streaks = torch.zeros(len(said), dtype=torch.long), []
    for i in range(said.shape[1]):
        agrees = said[:, i] == said[:, max(0, i - 1)]
        streak = torch.where(agrees, streak + 1, torch.zeros_like(streak)) if i else streak
        streaks.append(streak)
    return _first_true(torch.stack(streaks, 1) >= patience)


def _first_true(stops: Tensor) -> Tensor:
    last = torch.ones_like(stops[:, :1])
    return torch.cat((stops[:, :-1], last), 1).int().argmax(1) + 1


@dataclass(frozen=True)
class ExitRule:
    """A calibrated rule: with probability `share` the first threshold, else the second.

    Attributes:
        rule: `"patience"` or `"entropy"`.
        thresholds: Two of them; equal for entropy.
        share: Weight of the first.
    """

    rule: str
    thresholds: tuple[float, float]
    share: float

    def depths(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Layers that run under both thresholds.

        Args:
            logits: (rows, layers, classes).

        Returns:
            Two of (rows,).
        """
        if self.rule == "entropy":
            return entropy_depths(logits, self.thresholds[0]), entropy_depths(logits, self.thresholds[1])
        return patience_depths(logits, int(self.thresholds[0])), patience_depths(logits, int(self.thresholds[1]))

    def judged(self, logits: Tensor, labels: Tensor) -> tuple[list[float], float]:
        """How the rule does, in expectation over the mixture.

        Args:
            logits: (rows, layers, classes).
            labels: (rows,).

        Returns:
            Per row how often it is right, and the mean cost share.
        """
        right, cost = torch.zeros(len(labels)), 0.0
        for depths, weight in zip(self.depths(logits), (self.share, 1 - self.share), strict=True):
            said = logits[torch.arange(len(labels)), depths - 1].argmax(-1)
            right += weight * (said == labels).float()
            cost += weight * float(depths.float().mean()) / logits.shape[1]
        return right.tolist(), cost


def calibrate_exit(rule: str, logits: Tensor, budget: float) -> ExitRule:
    """Choose thresholds so that the mean cost on held-out training data equals the budget.

    Args:
        rule: One of `RULES`.
        logits: (rows, layers, classes), of held-out rows.
        budget: Mean cost share.

    Returns:
        The rule.

    Raises:
        SkipError: An unknown rule.
    """
    if rule not in RULES:
        raise SkipError(refusal(f"exit rule {rule!r}", ", ".join(RULES), "Choose one of them."))
    n = logits.shape[1]
    if rule == "entropy":
        top = math.log(logits.shape[2]) + 1e-3

        def cost_of(threshold: float) -> float:
            return float(entropy_depths(logits, threshold).float().mean()) / n

        threshold = threshold_for(cost_of, budget, 0.0, top, halvings=60)
        return ExitRule(rule, (threshold, threshold), 1.0)
    costs = [float(patience_depths(logits, t).float().mean()) / n for t in range(n + 1)]
    above = next((t for t, cost in enumerate(costs) if cost >= budget), n)
    below = max(0, above - 1)
    gap = costs[above] - costs[below]
    share = (budget - costs[below]) / gap if gap > 0 else 1.0
    return ExitRule(rule, (float(above), float(below)), min(1.0, max(0.0, share)))
