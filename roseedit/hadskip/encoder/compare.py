"""What a fit reached: accuracy of the full and the gated model on data neither saw, costs and speed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from roseedit.evaluation.metrics import bootstrap_interval
from roseedit.hadskip.encoder.classifier import EncoderClassifier
from roseedit.hadskip.encoder.data import Encoded, Example
from roseedit.hadskip.encoder.files import GatedClassifier
from roseedit.hadskip.encoder.fit import ClassifierFit
from roseedit.hadskip.encoder.gates import GateRouter
from roseedit.hadskip.encoder.measure import judge
from roseedit.hadskip.encoder.routing import Router
from roseedit.hparams import as_mapping


@dataclass(frozen=True)
class Score:
    """How one model did on development data.

    Attributes:
        name: Which.
        accuracy: Share of inputs that were right.
        low: 2.5 % quantile of the bootstrap over inputs.
        high: 97.5 % quantile.
        n: Inputs.
        cost: Mean share of layers that ran.
    """

    name: str
    accuracy: float
    low: float
    high: float
    n: int
    cost: float


def score(name: str, right: Sequence[float], cost: float) -> Score:
    """Accuracy with its interval.

    Args:
        name: Of the model.
        right: Per input, how often it was right.
        cost: Mean share of layers that ran.

    Returns:
        The score.
    """
    low, high = bootstrap_interval(right)
    return Score(name, sum(right) / len(right), low, high, len(right), cost)


def speed_up(
    full: EncoderClassifier, gated: EncoderClassifier, router: Router, data: Encoded, *, size: int = 32, passes: int = 3
) -> float:
    """Time of the full model over time of the gated one, the median of passes in turn.

    Args:
        full: The full model.
        gated: The gated one.
        router: Its gates.
        data: What both run over; tokenising and padding are not timed.
        size: Inputs per batch.
        passes: Passes of each.

    Returns:
        Above 1 where skipping saves time.
    """
    ratios = []
    for _ in range(passes):
        whole = judge(full, data, size=size).seconds
        ratios.append(whole / judge(gated, data, router, size=size).seconds)
    return statistics.median(ratios)


def fit_and_compare(
    fit: ClassifierFit, dev: Sequence[Example], *, passes: int = 3
) -> tuple[GatedClassifier, dict[str, Any]]:
    """Fine-tune, fit gates, and compare on development data, which nothing is tuned on.

    Args:
        fit: Not yet run.
        dev: Development examples.
        passes: Passes that are timed; 0 leaves the speed out.

    Returns:
        The gated classifier, and a record with `scores`, `calibrated_cost` and `speed_up`.
    """
    full = fit.finetune()
    gated = fit.fit_gates()
    data, router = fit.encode(dev), GateRouter(gated.gates)
    whole, skipped = judge(full, data), judge(gated.classifier, data, router)
    scores = [
        score("full", whole.correct(data.labels), whole.cost),
        score("gated", skipped.correct(data.labels), skipped.cost),
    ]
    figures: dict[str, Any] = {
        "scores": [asdict(s) for s in scores],
        "calibrated_cost": gated.calibrated_cost,
        "speed_up": speed_up(full, gated.classifier, router, data, passes=passes) if passes else None,
    }
    made_by = {"settings": as_mapping(fit.settings), "figures": figures}
    sentences = len(dev[0].texts)
    return GatedClassifier(gated.classifier, gated.gates, fit.max_tokens, sentences, made_by), figures
