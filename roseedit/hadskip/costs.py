"""What a layer costs, and how fast a set of layers can be at best.

Decoding one sequence is bound by the bytes that a step reads, so a layer's cost is its share of all layers' bytes. The
head is read in every step whatever is skipped; that is what the speed limit accounts for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from roseedit.models.load import LoadedModel


def layer_bytes(loaded: LoadedModel) -> tuple[tuple[int, ...], int]:
    """Bytes that one decoding step reads.

    Args:
        loaded: The model.

    Returns:
        Bytes of the parameters of each layer, and bytes of the head.
    """
    layers: Any = loaded.model.get_submodule(loaded.anatomy.layers_name)
    per_layer = tuple(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers)
    head = loaded.model.get_output_embeddings().weight
    return per_layer, head.numel() * head.element_size()


def layer_costs(loaded: LoadedModel) -> tuple[float, ...]:
    """Each layer's share of the bytes of all layers.

    Args:
        loaded: The model.

    Returns:
        One share per layer, sum 1.
    """
    per_layer, _ = layer_bytes(loaded)
    return tuple(size / sum(per_layer) for size in per_layer)


@torch.no_grad()
def measured_layer_costs(loaded: LoadedModel, *, rows: int = 1, tokens: int = 1, passes: int = 9) -> tuple[float, ...]:
    """Each layer's share of the time of all layers, the median of several uncached passes.

    Args:
        loaded: The model.
        rows: Sequences per pass.
        tokens: Tokens per sequence.
        passes: Passes that are timed, after one that is not.

    Returns:
        One share per layer, sum 1.
    """
    layers: Any = loaded.model.get_submodule(loaded.anatomy.layers_name)
    spent: list[list[float]] = [[] for _ in layers]
    started = [0.0] * len(layers)
    handles = [layer.register_forward_pre_hook(partial(_start, started, i)) for i, layer in enumerate(layers)]
    handles += [layer.register_forward_hook(partial(_stop, started, spent, i)) for i, layer in enumerate(layers)]
    try:
        ids = torch.full((rows, tokens), loaded.pad_id, dtype=torch.long, device=loaded.device)
        for _ in range(passes + 1):
            loaded.model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    medians = [statistics.median(times[1:]) for times in spent]
    return tuple(median / sum(medians) for median in medians)


def _start(started: list[float], layer: int, *_: Any) -> None:
    started[layer] = now()


def _stop(started: list[float], spent: list[list[float]], layer: int, *_: Any) -> None:
    spent[layer].append(now() - started[layer])


def now() -> float:
    """Seconds, after all work that was handed to a GPU is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def cost_of(loaded: LoadedModel, layers: Iterable[int]) -> float:
    """Cost share of a set of executed layers.

    Args:
        loaded: The model.
        layers: The executed layers.

    Returns:
        In (0, 1].
    """
    costs = layer_costs(loaded)
    return min(1.0, sum(costs[i] for i in layers))


def speed_limit(loaded: LoadedModel, layers: Iterable[int], gate_bytes: int = 0) -> float:
    """Best possible speed-up of decoding, (L + r) / (k + r + g) in bytes.

    Args:
        loaded: The model.
        layers: The executed layers.
        gate_bytes: Bytes of gates read in each step; 0 when the choice is made once per sequence.

    Returns:
        Time of the full model over time of the executed layers.
    """
    per_layer, head = layer_bytes(loaded)
    return (sum(per_layer) + head) / (sum(per_layer[i] for i in layers) + head + gate_bytes)
