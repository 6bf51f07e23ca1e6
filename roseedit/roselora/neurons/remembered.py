"""What was found out about a model, for as long as no weight of it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

KEPT: WeakKeyDictionary[Any, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()
Found = TypeVar("Found")


def remembered(model: Any, key: tuple[Any, ...], look: Callable[[], Found]) -> Found:
    """Look once.

    Args:
        model: The model; what is kept goes with it.
        key: What is looked at, and how.
        look: Does it.

    Returns:
        What it found, now or earlier with the same weights.
    """
    written = sum(p._version + id(p) for p in model.parameters())
    kept = KEPT.setdefault(model, {})
    for old in [known for known in kept if known[-1] != written]:
        del kept[old]
    whole = *key, written
    if whole not in kept:
        kept[whole] = look()
    found: Found = kept[whole]
    return found
