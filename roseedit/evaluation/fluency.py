"""Fluency as n-gram entropy (Zhang et al. 2018, as ROME uses it), with a splitter and a decoding rule of our own."""

from __future__ import annotations

import math
import re
from collections import Counter

_WORDS = re.compile(r"\w+|[^\w\s]")
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # ROME's weights of bigrams and trigrams


def words(text: str) -> list[str]:
    """Split a text into words and single punctuation marks, case kept.

    Args:
        text: Any text.

    Returns:
        The pieces.
    """
    return _WORDS.findall(text)


def entropy(text: str, n: int) -> float:
    """H_n = -sum p log2 p over the n-grams of a text.

    Args:
        text: Any text.
        n: Words in an n-gram.

    Returns:
        In bits; NaN when the text has fewer than n words.
    """
    pieces = words(text)
    counts = Counter(tuple(pieces[i : i + n]) for i in range(len(pieces) - n + 1))
    total = counts.total()
    return -sum(c / total * math.log2(c / total) for c in counts.values()) + 0.0 if total else math.nan


def ngram_entropy(text: str) -> float:
    """(2/3 H_2 + 4/3 H_3) / 2: low for a text that repeats itself. High is not good in itself.

    It grows with the length of the text, so compare texts of one token limit, greedy, about 100 tokens without stop
    strings, and put the unedited model's figure beside it.

    Args:
        text: What the model generated, without the prompt.

    Returns:
        In bits (ROME's tables show it times 100); NaN when the text has fewer than three words.
    """
    return sum(weight * entropy(text, n) for n, weight in _WEIGHTS.items()) / len(_WEIGHTS)
