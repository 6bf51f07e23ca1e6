"""What a layer's MLP is given, and what its neurons do, in texts at which nothing is to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.models.load import LoadedModel
from roseedit.models.replay import layers_off, run_body
from roseedit.roselora.neurons.looks import inputs_of
from roseedit.roselora.neurons.mlp import Neurons
from roseedit.roselora.neurons.stages import through


@dataclass(frozen=True)
class Ordinary:
    """What a layer's MLP is given, and what it does, in ordinary text.

    Attributes:
        x: (n, d_in), what enters it, float32.
        use: (neurons,), mean size of what each hands to its column.
    """

    x: Tensor
    use: Tensor


@dataclass(frozen=True)
class Texts:
    """Texts as one layer of a model meets them; their first tokens do not count.

    What enters the layer is remembered for as long as nothing below it is written.

    Attributes:
        loaded: The model; frozen while it is asked.
        neurons: The layer's neurons.
        ids: The texts as token ids; what exceeds the model's window is left out.
        tokens: Most tokens in one pass.
        arithmetic: As of `products_in`.
        replay: As of `through`.
    """

    loaded: LoadedModel
    neurons: Neurons
    ids: Sequence[tuple[int, ...]]
    tokens: int
    arithmetic: str = "weights"
    replay: bool = True

    def look(self) -> Ordinary:
        """All that enters the MLP, and how much each neuron is used."""
        x: list[Tensor] = []
        use: list[Tensor] = []

        def take(entered: Tensor, inner: Tensor) -> None:
            x.append(entered)
            use.append(inner.abs().sum(0))

        self._each(take)
        return Ordinary(torch.cat(x), torch.stack(use).sum(0) / sum(map(len, x)))

    def overlap(self) -> Tensor:
        """How alike the neurons are: (neurons, neurons), the mean product of what each two hand to their columns."""
        size = self.neurons.down.d_in
        total, n = torch.zeros(size, size, device=self.loaded.device), 0

        def take(_entered: Tensor, inner: Tensor) -> None:
            nonlocal n
            total.addmm_(inner.mT, inner)
            n += len(inner)

        self._each(take)
        return total.div_(n)

    @torch.no_grad()
    def _each(self, take: Callable[[Tensor, Tensor], None]) -> None:
        """Hand over, (n, d_in) and (n, neurons) at a time, what enters the MLP and its outward matrix, float32."""
        loaded, neurons = self.loaded, self.neurons

        def visit(_batch: list[int], ids: Tensor, mask: Tensor, _sight: Any) -> None:
            with (
                inputs_of(loaded.model, neurons.opens.module_name) as opened,
                inputs_of(loaded.model, neurons.down.module_name) as closed,
                layers_off(loaded.model, loaded.anatomy, neurons.layer + 1),
            ):
                run_body(loaded.model, ids, mask, head=False)
            take(*(t[0].reshape(*ids.shape, -1)[:, 1:][mask[:, 1:].bool()].float() for t in (opened, closed)))

        cut = [ids[: loaded.anatomy.window] for ids in self.ids]
        through(loaded, cut, neurons.layer + 1, self.tokens, self.arithmetic, visit, replay=self.replay, again=True)
