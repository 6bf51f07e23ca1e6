"""CounterFact's figures (Meng et al. 2022): which of two answers the model finds more probable.

All of them compare two given candidates; a model that would say neither can score 1. The negative log-likelihood (NLL)
is the mean over an answer's tokens, as in ROME's evaluation, so that a longer answer is not less probable for its
length alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from roseedit.evaluation.scoring import PairScore


def nll(scored: PairScore) -> float:
    """Mean negative log-likelihood per target token.

    Args:
        scored: Teacher-forced score of one answer.

    Returns:
        In nats, at least 0; NaN for an answer without tokens.
    """
    return -scored.logprob / len(scored.logprobs) if scored.logprobs else math.nan


def prefers(first: PairScore, second: PairScore) -> bool:
    """The model finds the first answer more probable, per token.

    On prompt and paraphrases `first` is the new answer (ES, PS); on neighbours it is the true one (NS). A tie counts
    against it.

    Args:
        first: Score of the answer that should win.
        second: Score of the other one, on the same prompt.

    Returns:
        True when NLL(first) < NLL(second).
    """
    return nll(first) < nll(second)


def magnitude(first: PairScore, second: PairScore) -> float:
    """By how much: the difference of the two per-token probabilities exp(-NLL).

    Args:
        first: As in `prefers`.
        second: As in `prefers`.

    Returns:
        In [-1, 1], above 0 exactly when the first is preferred.
    """
    return math.exp(-nll(first)) - math.exp(-nll(second))


def harmonic_mean(values: Sequence[float]) -> float:
    """CounterFact's S: the harmonic mean of the means ES, PS and NS over all edits.

    Args:
        values: The means, each in [0, 1].

    Returns:
        0 when one of them is 0; NaN without values or when one is missing (NaN).
    """
    if not values or any(math.isnan(value) for value in values):
        return math.nan
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def target_perplexity(scored: PairScore) -> float:
    """exp(NLL) of an answer. Unbounded: one failed edit can outweigh a thousand, so report the median over edits.

    Args:
        scored: Teacher-forced score of the answer.

    Returns:
        At least 1; infinity where the exponential overflows.
    """
    try:
        return math.exp(nll(scored))
    except OverflowError:
        return math.inf
