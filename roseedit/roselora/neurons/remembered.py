"""What was found out about a model, for as long as the weights that it depends on are what they were."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

from roseedit.edits.versions import version
from roseedit.models.load import LoadedModel


@dataclass(frozen=True)
class _Kept:
    """A find, and the parameters it depends on, each as it was written then."""

    found: Any
    state: tuple[tuple[ReferenceType[nn.Parameter], int], ...]

    def holds(self, parameters: tuple[nn.Parameter, ...]) -> bool:
        """Whether these are the parameters, and what they were. An id would not tell: a later one may get it anew."""
        return len(parameters) == len(self.state) and all(
            was() is now and written == version(now) for (was, written), now in zip(self.state, parameters, strict=True)
        )


KEPT: WeakKeyDictionary[Any, dict[Hashable, _Kept]] = WeakKeyDictionary()
Found = TypeVar("Found")


def remembered(model: Any, key: Hashable, parameters: Iterable[nn.Parameter], look: Callable[[], Found]) -> Found:
    """Look once.

    Args:
        model: The model; what is kept goes with it.
        key: What is looked at, and how.
        parameters: The model's parameters that the find depends on.
        look: Does it.

    Returns:
        What it found, now or earlier with the same weights.
    """
    kept, weights = KEPT.setdefault(model, {}), tuple(parameters)
    if key not in kept or not kept[key].holds(weights):
        kept.pop(key, None)
        kept[key] = _Kept(look(), tuple((ref(p), version(p)) for p in weights))
    found: Found = kept[key].found
    return found


def below(loaded: LoadedModel, layer: int) -> list[nn.Parameter]:
    """The parameters that decide what enters a layer.

    Args:
        loaded: The model.
        layer: The layer.

    Returns:
        All that are in no layer from `layer` up.
    """
    upper = tuple(f"{loaded.anatomy.layers_name}.{i}." for i in range(layer, loaded.anatomy.n_layers))
    return [p for name, p in loaded.model.named_parameters() if not name.startswith(upper)]
