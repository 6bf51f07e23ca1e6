"""Versions of parameters that know when an edit was taken off: what the model held before, it holds again.

torch counts the writes to a tensor. What was found out about a model is good for as long as no weight it depends on is
written; an edit that is put on and taken off again brings back every bit, so that such finds hold again, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class _Writes(NamedTuple):
    """The version before the first of our writes, None where somebody else wrote in between; and torch's count now."""

    first: int | None
    last: int


_WRITES = WeakTensorKeyDictionary()
_BACK = WeakTensorKeyDictionary()


def version(weight: Tensor) -> int:
    """Which content a tensor has: equal numbers mean equal bits, as far as torch counts writes.

    Args:
        weight: The tensor.

    Returns:
        torch's count of writes or, where the last writes brought back an earlier content, the count of then.
    """
    back = _BACK.get(weight)
    if back is None or back.last != weight._version:
        return int(weight._version)
    return int(back.first)


@contextmanager
def writing(weight: Tensor) -> Iterator[None]:
    """Within, a live edit writes to the tensor; if that fails, the writes count as somebody else's.

    Args:
        weight: The tensor; of one made in inference mode torch counts no writes, so that it has no versions.
    """
    if weight.is_inference():
        yield
        return
    writes = _WRITES.get(weight) or _Writes(version(weight), weight._version)
    if writes.last != weight._version:
        writes = _Writes(None, weight._version)
    yield
    _WRITES[weight] = _Writes(writes.first, weight._version)


def brought_back(weight: Tensor) -> None:
    """Say that the last of the writes has taken off all that the others put on.

    Args:
        weight: The tensor.
    """
    writes = _WRITES.pop(weight, None)
    if writes is not None and writes.first is not None:
        _BACK[weight] = writes
