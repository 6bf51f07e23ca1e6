"""Run an encoder in which a router decides, per layer and row, whether the layer is computed.

The stock model runs; only the `forward` of its layers is wrapped for the length of a block, so masks and position
biases are made by transformers. Two ways to apply a decision give the same numbers:

* *gather* (inference): the rows that run are gathered, computed and put back; a layer no row wants costs nothing;
* *mix* (training): x_l = g_l F_l(x_{l-1}) + (1 - g_l) x_{l-1}, so that gradients reach the gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from roseedit.hadskip.encoder.structure import EncoderParts
from roseedit.hadskip.homotopy import Homotopy
from roseedit.models.replay import hidden_of


class Router(Protocol):
    """Decides which rows a layer is computed for."""

    def decide(self, layer: int, x: Tensor, mask: Tensor) -> Tensor | None:
        """Decide.

        Args:
            layer: Its index.
            x: (rows, tokens, hidden), what enters it.
            mask: (rows, tokens), 1 for real tokens.

        Returns:
            (rows,) of 0 and 1, or None when all rows run.
        """


class AllLayers:
    """Every layer runs for every row: the stock model."""

    def decide(self, layer: int, x: Tensor, mask: Tensor) -> Tensor | None:
        """See `Router`."""
        return None


class FixedLayers:
    """The same layers run for every row.

    Args:
        layers: The layers that run.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = frozenset(layers)

    def decide(self, layer: int, x: Tensor, mask: Tensor) -> Tensor | None:
        """See `Router`."""
        return None if layer in self.layers else torch.zeros(len(x), device=x.device)


class RandomDepth:
    """Every row runs the lowest of the gated layers: as many as the budget of the moment allows, one fewer or one more.

    Args:
        plan: Where the budget comes down along.
        gated: The layers that may be skipped; the others always run.
        n_layers: Layers of the encoder.
        generator: Source of the draws.
    """

    def __init__(self, plan: Homotopy, gated: Sequence[int], n_layers: int, generator: torch.Generator) -> None:
        self.plan, self.n_layers, self.generator = plan, n_layers, generator
        self.places = {layer: i for i, layer in enumerate(sorted(gated))}
        self.step, self.depths = 0, torch.zeros(0)

    def decide(self, layer: int, x: Tensor, mask: Tensor) -> Tensor | None:
        """See `Router`; layer 0 begins the next step."""
        if layer == 0:
            middle = self.plan.budget_at(self.step) * self.n_layers - (self.n_layers - len(self.places))
            spread = 3 * torch.rand(len(x), generator=self.generator) - 1.5
            self.depths = (middle + spread).round().to(x.device)
            self.step += 1
        return (self.depths > self.places[layer]).float() if layer in self.places else None


@dataclass
class Trace:
    """What a routed pass did.

    Attributes:
        values: Per layer, (rows,) of 0 and 1; they carry the gates' gradients in training.
        states: Per layer, (rows, tokens, hidden), what left it; empty unless asked for.
    """

    values: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    @property
    def run(self) -> Tensor:
        """(rows, layers), which layers ran."""
        return torch.stack(self.values, 1)


@contextmanager
def routed(
    encoder: nn.Module, parts: EncoderParts, router: Router, mask: Tensor, *, mix: bool, keep_states: bool = False
) -> Iterator[Trace]:
    """Let a router decide for the length of a block, in which the encoder runs once.

    Args:
        encoder: The encoder; left as it was.
        parts: Its parts.
        router: Decides.
        mask: (rows, tokens) of the batch.
        mix: Compute all rows and mix, instead of gathering those that run.
        keep_states: Record what leaves each layer.

    Yields:
        The trace, filled by the pass.
    """
    trace, layers = Trace(), parts.layers(encoder)
    try:
        for i, layer in enumerate(layers):
            layer.__dict__["forward"] = _wrapped(layer.forward, i, router, mask, trace, mix, keep_states, parts)
        yield trace
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _wrapped(  # noqa: PLR0917 - a closure's worth of state
    own: Callable[..., Any],
    layer: int,
    router: Router,
    mask: Tensor,
    trace: Trace,
    mix: bool,
    keep_states: bool,
    parts: EncoderParts,
) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        x = hidden_of(args, kwargs)
        values = router.decide(layer, x, mask)
        trace.values.append(torch.ones(len(x), device=x.device) if values is None else values)
        if values is None or (not mix and bool((values > 0.5).all())):
            after = _tensor(own(*args, **kwargs))
        elif mix:
            g = values.to(x)[:, None, None]
            after = g * _tensor(own(*args, **kwargs)) + (1 - g) * x
        else:
            after = _gathered(own, x, values, args, kwargs)
        if keep_states:
            trace.states.append(after)
        return (after,) if parts.returns_tuple else after

    return forward


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _gathered(
    own: Callable[..., Any], x: Tensor, values: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """The rows that run, computed and put back among the others."""
    rows = (values > 0.5).nonzero().flatten()
    if not len(rows):
        return x

    def pick(item: Any) -> Any:
        whole = isinstance(item, Tensor) and item.dim() > 1 and len(item) == len(x)
        return item[rows] if whole else item  # what has one row for all is broadcast

    ran = _tensor(own(*(pick(a) for a in args), **{name: pick(a) for name, a in kwargs.items()}))
    return x.index_copy(0, rows, ran.to(x.dtype))
