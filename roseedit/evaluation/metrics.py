"""Metrics: pure functions of what `scoring` and `generation` return."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from roseedit.evaluation.generation import Generated
from roseedit.evaluation.scoring import PairScore

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (as SQuAD's scorer does).

    Args:
        text: Any text.

    Returns:
        The normal form.
    """
    return " ".join(_ARTICLES.sub(" ", text.casefold().translate(_PUNCTUATION)).split())


def exact_match(said: Generated, accepted: Iterable[str]) -> bool:
    """The answer, whole and with a natural stop, is one of the accepted ones; reaching the token cap is a miss.

    Args:
        said: What the model generated.
        accepted: Accepted answers, any of which counts.

    Returns:
        True on a match.
    """
    return said.natural and normalise(said.text) in {normalise(answer) for answer in accepted}


def starts_with_answer(said: Generated, accepted: Iterable[str]) -> bool:
    """The continuation begins with an accepted answer, whatever follows.

    Args:
        said: What the model generated.
        accepted: Accepted answers.

    Returns:
        True when it does.
    """
    text = f"{normalise(said.text)} "
    return any(text.startswith(f"{normalise(answer)} ") for answer in accepted if normalise(answer))


def unchanged(before: Generated, after: Generated) -> bool:
    """The generated answer is the same up to normalisation.

    Args:
        before: Unedited model.
        after: Edited model.

    Returns:
        True when it is.
    """
    return normalise(before.text) == normalise(after.text)


def token_agreement(before: PairScore, after: PairScore) -> float:
    """Share of target positions at which both models have the same first choice (EasyEdit's locality).

    Args:
        before: Unedited model, teacher forced on the reference answer.
        after: Edited model, same pair.

    Returns:
        In [0, 1].
    """
    return sum(x == y for x, y in zip(before.argmax, after.argmax, strict=True)) / len(before.argmax)


def kl_divergence(before: Tensor, after: Tensor) -> Tensor:
    """KL(before || after) of next-token distributions.

    Args:
        before: (n, vocabulary) log-probabilities.
        after: The same of the edited model.

    Returns:
        (n,), in nats, at least 0.
    """
    return (before.exp() * (before - after)).sum(-1).clamp(min=0)


def mean_by_edit(values: Sequence[float], edits: Sequence[int]) -> list[float]:
    """Mean inside each edit, so that an edit with many probes does not outweigh the others.

    Args:
        values: One value per probe.
        edits: Which edit each belongs to.

    Returns:
        One mean per edit that has a probe, in order of first appearance.
    """
    groups: dict[int, list[float]] = {}
    for value, edit in zip(values, edits, strict=True):
        groups.setdefault(edit, []).append(value)
    return [sum(group) / len(group) for group in groups.values()]


def bootstrap_interval(values: Sequence[float], *, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean by resampling edits.

    Args:
        values: One value per edit.
        seed: Of the resampling.
        draws: Resamples.

    Returns:
        2.5 % and 97.5 % quantile of the mean; NaN without values.
    """
    if not values:
        return float("nan"), float("nan")
    data = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(data), (draws, len(data)), generator=generator)
    low, high = torch.quantile(data[picks].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
