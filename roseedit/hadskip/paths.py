"""Run a model with some of its decoder layers skipped.

A skipped layer's `forward` is replaced by a stand-in that hands its input on, so no kernel runs and no K/V is written,
while masks, rotary tables and layer kinds stay the model's own business. transformers reads lengths and masks from the
K/V slots of certain layers (the first, and the first of each kind of attention); these always run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor

from roseedit.edits.live import live_edits
from roseedit.errors import SkipError, refusal
from roseedit.models.load import LoadedModel
from roseedit.models.replay import hidden_of

_NOTHING: Mapping[int, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Healing:
    """What a skipped layer does instead of nothing: x -> s * x + B A x, on the skip path only.

    Attributes:
        scales: Per layer s, (hidden,).
        low_rank: Per layer (A, B), (r, hidden) and (hidden, r).
    """

    scales: Mapping[int, Tensor] = field(default_factory=lambda: _NOTHING)
    low_rank: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=lambda: _NOTHING)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have any healing."""
        return tuple(sorted({*self.scales, *self.low_rank}))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: `scale.<layer>`, `a.<layer>`, `b.<layer>`."""
        out = {f"scale.{i}": scale for i, scale in self.scales.items()}
        for i, (a, b) in self.low_rank.items():
            out |= {f"a.{i}": a, f"b.{i}": b}
        return out

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Healing:
        """The inverse of `tensors`.

        Args:
            tensors: Its result.

        Returns:
            The healing.

        Raises:
            SkipError: A name or a shape that does not fit.
        """
        parts: dict[str, dict[int, Tensor]] = {"scale": {}, "a": {}, "b": {}}
        for name, tensor in tensors.items():
            part, _, layer = name.partition(".")
            if part not in parts or not layer.isdigit() or tensor.dim() != (1 if part == "scale" else 2):
                message = refusal(
                    f"a healing tensor {name!r} of shape {tuple(tensor.shape)}", "scale, a, b", "Save anew."
                )
                raise SkipError(message)
            parts[part][int(layer)] = tensor
        a, b = parts["a"], parts["b"]
        if a.keys() != b.keys() or any(len(a[i]) != b[i].shape[1] for i in a):
            raise SkipError(refusal("low-rank pairs that do not fit", "A (r, hidden), B (hidden, r)", "Save anew."))
        return cls(parts["scale"], {i: (a[i], b[i]) for i in a})


class executing:
    """Inside the block `model(...)`, cached or not, runs exactly these layers. Blocks may be nested: the inner counts.

    Made once, it can be entered any number of times; entering costs microseconds.

    Args:
        loaded: The model.
        layers: The layers that run, in any order.
        healing: What skipped layers do instead of nothing.

    Raises:
        SkipError: A layer out of range or twice, or one that must run left out.
    """

    def __init__(self, loaded: LoadedModel, layers: Iterable[int], healing: Healing | None = None) -> None:
        self._prepare(loaded, check_layers(loaded, layers), healing)

    @classmethod
    def below(cls, loaded: LoadedModel, layer: int) -> executing:
        """Only the layers below one: for passes that are not finished, with a cache that knows its length by itself.

        Args:
            loaded: The model.
            layer: First layer that does not run.

        Returns:
            The block.
        """
        block = cls.__new__(cls)
        block._prepare(loaded, tuple(range(layer)), None)
        return block

    def _prepare(self, loaded: LoadedModel, layers: tuple[int, ...], healing: Healing | None) -> None:
        self.layers = layers
        modules: Any = loaded.model.get_submodule(loaded.anatomy.layers_name)
        self._homes = [module.__dict__ for module in modules]
        as_tuple = loaded.anatomy.layer_returns_tuple
        runs = set(self.layers)
        self._stand_ins = [
            None if i in runs else _SkipPath(as_tuple, *_healing_of(healing, i)) for i in range(len(self._homes))
        ]
        self._before: list[list[Any]] = []

    def __enter__(self) -> executing:
        before = []
        for home, stand_in in zip(self._homes, self._stand_ins, strict=True):
            found = home.get("forward")
            before.append(found)
            if stand_in is not None:
                home["forward"] = stand_in
            elif isinstance(found, _SkipPath):
                del home["forward"]
        self._before.append(before)
        return self

    def __exit__(self, *_: object) -> None:
        for home, found in zip(self._homes, self._before.pop(), strict=True):
            if found is None:
                home.pop("forward", None)
            else:
                home["forward"] = found


def _healing_of(healing: Healing | None, layer: int) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    return (None, None) if healing is None else (healing.scales.get(layer), healing.low_rank.get(layer))


class _SkipPath:
    """Stands in for a skipped layer's forward.

    Args:
        as_tuple: True when the layer's own forward returns a tuple.
        scale: (hidden,) or None.
        low_rank: (A, B) or None.
    """

    def __init__(
        self, as_tuple: bool, scale: Tensor | None = None, low_rank: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.as_tuple = as_tuple
        self.scale = scale
        self.low_rank = low_rank

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        x = hidden_of(args, kwargs)
        out = x if self.scale is None else x * self.scale.to(x)
        if self.low_rank is not None:
            a, b = self.low_rank
            out = out + x @ a.to(x).mT @ b.to(x).mT
        return (out, None) if self.as_tuple else out


def check_layers(loaded: LoadedModel, layers: Iterable[int]) -> tuple[int, ...]:
    """Check a set of executed layers.

    Args:
        loaded: The model.
        layers: The layers, in any order.

    Returns:
        The same, sorted.

    Raises:
        SkipError: A layer out of range or twice, or one that must run left out.
    """
    given = list(layers)
    n = loaded.anatomy.n_layers
    if len(set(given)) != len(given) or not all(isinstance(i, int) and 0 <= i < n for i in given):
        message = refusal(f"executed layers {given}", f"different numbers from 0 to {n - 1}", "Correct the list.")
        raise SkipError(message)
    missing = sorted(set(anchor_layers(loaded)) - set(given))
    if missing:
        message = refusal(
            f"executed layers without {missing}",
            "sets that hold the first layer of each kind of attention, from whose K/V the model reads its lengths",
            "Add them.",
        )
        raise SkipError(message)
    return tuple(sorted(given))


def anchor_layers(loaded: LoadedModel) -> tuple[int, ...]:
    """The layers from whose K/V slots transformers reads lengths and mask sizes.

    Args:
        loaded: The model.

    Returns:
        Layer 0 and the first layer of each kind of attention.
    """
    kinds: Sequence[str] = getattr(loaded.model.config.get_text_config(), "layer_types", None) or ["all"]
    return tuple(sorted({0, *(kinds.index(kind) for kind in set(kinds))}))


def edited_layers(loaded: LoadedModel) -> tuple[int, ...]:
    """The layers that a live edit touches.

    Args:
        loaded: The model.

    Returns:
        Their indices.
    """
    names = {m.weight_name for delta in live_edits(loaded.model).deltas for m in delta.matrices}
    return tuple(sorted({p.layer for p in loaded.anatomy.projections if p.weight_name in names}))


def protected_layers(loaded: LoadedModel) -> tuple[int, ...]:
    """The layers that no profile may skip.

    Args:
        loaded: The model, edits applied.

    Returns:
        0, 1, the last, the first of each kind of attention, and every layer that a live edit touches.
    """
    n = loaded.anatomy.n_layers
    return tuple(sorted({0, min(1, n - 1), n - 1, *anchor_layers(loaded), *edited_layers(loaded)}))
