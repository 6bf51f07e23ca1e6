"""Metrics of single answers: pure functions of what `scoring` and `generation` return.

Beside this file: `preference` (CounterFact's ES, PS, NS), `easyedit` (EasyEdit's token accuracy), `fluency`, `curves`
(sequences of edits), `drift` (the size of the change), `aggregate` (from probes to one figure with its interval).
"""

from __future__ import annotations

import re
import string
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from roseedit.evaluation.prompts import Generated
from roseedit.evaluation.scoring import PairScore

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MOST_PICKS = 4_000_000
_JOINERS = frozenset({"and", "or", "also"})


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (as SQuAD's scorer does).

    Args:
        text: Any text.

    Returns:
        The normal form.
    """
    return " ".join(_ARTICLES.sub(" ", text.casefold().translate(_PUNCTUATION)).split())


def _key(text: str) -> str:
    """The normal form, or the text itself where nothing is left of it: "A" and "*" are answers too, "" is none."""
    return normalise(text) or " ".join(text.casefold().split())


def exact_match(said: Generated, accepted: Iterable[str]) -> bool:
    """The answer, whole and with a natural stop, is one of the accepted ones; reaching the token cap is a miss.

    Args:
        said: What the model generated.
        accepted: Accepted answers, any of which counts (for alias lists: any alias of any list, `Probe.aliases`).

    Returns:
        True on a match.
    """
    return said.natural and bool(_key(said.text)) and _key(said.text) in {_key(answer) for answer in accepted}


def exact_match_every(said: Generated, answers: Sequence[Sequence[str]]) -> bool:
    """The strict reading of several alias lists: every list is named once, and nothing else but "and" or "or".

    With a single list this is `exact_match`. Some published lists hold alternatives ("no", "incorrect", ...); those
    cannot be met under this rule, which is why it is not the headline.

    Args:
        said: What the model generated.
        answers: One sequence of aliases per answer (`Probe.answers`).

    Returns:
        True on a match; False when there is no answer to name.
    """
    if len(answers) <= 1:
        return exact_match(said, [alias for aliases in answers for alias in aliases])
    lists = dict.fromkeys(tuple(normalise(alias) for alias in names) for names in answers)  # repeats ask nothing new
    return said.natural and _names_all(f" {normalise(said.text)} ", list(lists))


def _names_all(text: str, answers: Sequence[Sequence[str]]) -> bool:
    if not answers:
        return set(text.split()) <= _JOINERS
    # the marker keeps words apart that were not neighbours, so that no alias is read across a gap
    found = (alias for alias in answers[0] if alias and f" {alias} " in text)
    return any(_names_all(text.replace(f" {alias} ", " and ", 1), answers[1:]) for alias in found)


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


def contains_answer(said: Generated, accepted: Iterable[str]) -> bool:
    """An accepted answer stands somewhere in the continuation, as whole words.

    Args:
        said: What the model generated.
        accepted: Accepted answers.

    Returns:
        True when one does.
    """
    text = f" {normalise(said.text)} "
    return any(f" {normalise(answer)} " in text for answer in accepted if normalise(answer))


def unchanged(before: Generated, after: Generated) -> bool:
    """The generated answer is the same up to normalisation.

    Args:
        before: Unedited model.
        after: Edited model.

    Returns:
        True when it is.
    """
    return _key(before.text) == _key(after.text)


def prefix_agreement(before: Generated, after: Generated) -> float:
    """How far two answers run alike: shared leading words over the words of the longer one.

    Softer than `unchanged` for long answers, where one late word makes all the difference.

    Args:
        before: Unedited model.
        after: Edited model.

    Returns:
        In [0, 1]; 1 when both are empty.
    """
    a, b = _key(before.text).split(), _key(after.text).split()
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    return shared / max(len(a), len(b)) if a or b else 1.0


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
    weights = before.exp()
    # a token that the first distribution rules out adds nothing, even where the difference is infinite or undefined
    return torch.where(weights > 0, weights * (before - after), 0).sum(-1).clamp(min=0)


def mean_by_edit(values: Sequence[float], edits: Sequence[Hashable]) -> list[float]:
    """Mean inside each edit, so that an edit with many probes does not outweigh the others.

    Args:
        values: One value per probe.
        edits: Which edit each belongs to.

    Returns:
        One mean per edit that has a probe, in order of first appearance.
    """
    groups: dict[Hashable, list[float]] = {}
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
    means = torch.cat([data[picks].mean(1) for picks in resamples(len(data), seed=seed, draws=draws)])
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def resamples(n: int, *, seed: int = 0, draws: int = 2000) -> Iterator[Tensor]:
    """Bootstrap resamples, in portions, so that large sets do not need draws times n numbers at once.

    Args:
        n: How many there are to draw from.
        seed: Of the resampling.
        draws: Resamples.

    Yields:
        (some draws, n) positions; `draws` rows in all.
    """
    generator = torch.Generator().manual_seed(seed)
    portion = max(1, _MOST_PICKS // max(n, 1))
    for start in range(0, draws, portion):
        yield torch.randint(n, (min(portion, draws - start), n), generator=generator)
