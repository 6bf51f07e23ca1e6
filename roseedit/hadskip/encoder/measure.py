"""Evaluation in float32: what a classifier says, which layers ran, how long it takes; thresholds that meet a budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from roseedit.hadskip.encoder.classifier import EncoderClassifier
from roseedit.hadskip.encoder.data import Encoded
from roseedit.hadskip.encoder.gates import EncoderGates, GateRouter
from roseedit.hadskip.encoder.routing import Router

HALVINGS = 16


@dataclass(frozen=True)
class Judged:
    """What a classifier said about some rows.

    Attributes:
        logits: (rows, classes).
        run: (rows, layers), 1 for layers that ran.
        seconds: What the passes took, tokenising and padding left out.
    """

    logits: Tensor
    run: Tensor
    seconds: float

    @property
    def cost(self) -> float:
        """Mean share of layers that ran."""
        return float(self.run.mean())

    def correct(self, labels: Tensor) -> list[float]:
        """1 per row that was right, else 0.

        Args:
            labels: (rows,).

        Returns:
            One value per row.
        """
        return (self.logits.argmax(1) == labels).float().tolist()


@torch.no_grad()
def judge(classifier: EncoderClassifier, data: Encoded, router: Router | None = None, size: int = 32) -> Judged:
    """Run a classifier over rows, computing only what runs.

    Args:
        classifier: The classifier.
        data: The rows.
        router: Decides what runs; None for all layers.
        size: Rows per batch, of like length.

    Returns:
        What it said, in the rows' order.
    """
    order, device = data.by_length(size), classifier.head.weight.device
    outputs, seconds = [], 0.0
    for rows in order:
        batch = data.batch(rows, device)
        start = time.perf_counter()
        outputs.append(classifier(batch, router))
        seconds += time.perf_counter() - start
    back = torch.cat(order).argsort()
    logits, run = torch.cat([o.logits for o in outputs]), torch.cat([o.run for o in outputs])
    return Judged(logits.cpu()[back], run.cpu()[back], seconds)


def threshold_for(
    cost_of: Callable[[float], float], budget: float, low: float, high: float, *, halvings: int = HALVINGS
) -> float:
    """The threshold whose mean cost is nearest to a budget without exceeding it.

    Args:
        cost_of: Mean cost at a threshold; falls as the threshold rises, but for small dents.
        budget: The mean cost that is wanted.
        low: A threshold that costs too much.
        high: One that costs little enough.
        halvings: Most costs that are asked for.

    Returns:
        The threshold, found by halving.
    """
    best, best_cost = high, float("-inf")
    for _ in range(halvings):
        middle = (low + high) / 2
        cost = cost_of(middle)
        if cost <= budget + 1e-9:
            high = middle
            if cost >= best_cost:
                best, best_cost = middle, cost
        else:
            low = middle
        if best_cost >= budget - 1e-9:
            break
    return best


def calibrate(classifier: EncoderClassifier, gates: EncoderGates, held_out: Encoded, budget: float) -> float:
    """Set the gates' theta so that the mean cost on held-out training data equals the budget.

    Args:
        classifier: The classifier.
        gates: Its gates; theta is set in place.
        held_out: Rows that neither were trained on nor are tested on.
        budget: The mean cost that is wanted.

    Returns:
        The mean cost reached: the budget, up to the grain of the rows.
    """
    start, reached = float(gates.theta), {}

    def cost_of(theta: float) -> float:
        gates.theta.fill_(theta)
        reached[theta] = judge(classifier, held_out, GateRouter(gates)).cost
        return reached[theta]

    width = 1.0
    while cost_of(start + width) > budget:
        width *= 2
    back = 1.0
    while cost_of(start - back) <= budget and back < 2**10:
        back *= 2
    gates.theta.fill_(threshold_for(cost_of, budget, start - back, start + width))
    return judge(classifier, held_out, GateRouter(gates)).cost
