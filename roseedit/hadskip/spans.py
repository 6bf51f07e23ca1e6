"""Which layers to drop together: how well one linear map stands in for each span of consecutive layers.

What a linear map leaves unexplained of a span grows far more slowly than the span: in a 30-layer model one map for
seven layers leaves about as much as three maps for single layers do. So layers are best dropped in spans, which no
order that is found layer by layer shows.

To second order the KL of an error e in what leaves layer j is s_j e, and errors of different spans add. s_j comes from
the sweep, in which j is dropped alone. A span costs at least what its dearest layer costs alone: what a map cannot do
for one layer (e.g. write the first token's huge state) it cannot do for a span around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from roseedit.hadskip.healing import entering, left_over, through
from roseedit.models.load import LoadedModel

LONGEST = 12  # layers of a span


@torch.no_grad()
def span_errors(
    loaded: LoadedModel,
    ids: Tensor,
    layers: Sequence[int],
    *,
    kind: str = "lora",
    rank: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """What healing leaves unexplained of each span of consecutive layers, relative to the states after it.

    Args:
        loaded: The model, edits applied.
        ids: (rows, tokens) of text to fit on.
        layers: The layers that may be skipped, sorted.
        kind: Kind of healing.
        rank: Its rank per layer.
        progress: Called with 1 after every layer.

    Returns:
        (layers, layers): at [i, j] the mean error of the span from the i-th of these layers to the j-th, infinite
        where they are not consecutive or more than `LONGEST`.
    """
    errors = torch.full((len(layers), len(layers)), float("inf"))
    state, entered = entering(loaded, layers[0], ids), list[Tensor]()
    for layer in range(layers[0], layers[-1] + 1):
        entered.append(state)
        state = through(loaded, layer, state, ids)
        if layer in layers:
            j = layers.index(layer)
            for i in range(max(0, j + 1 - LONGEST), j + 1):
                if layer - layers[i] == j - i:
                    before = entered[layers[i] - layers[0]]
                    errors[i, j] = left_over(before, state, kind, rank * (j - i + 1))
        if progress:
            progress(1)
    return errors


def span_costs(errors: Tensor, losses: Tensor) -> Tensor:
    """The KL that dropping each span is expected to cost.

    Args:
        errors: From `span_errors`.
        losses: (layers,), KL of dropping each layer alone.

    Returns:
        (layers, layers).
    """
    costs = errors * (losses / errors.diagonal().clamp(min=1e-12)).clamp(min=0)
    n = len(losses)
    dearest = torch.stack([torch.cat((torch.zeros(i), losses[i:].cummax(0).values)) for i in range(n)])
    return torch.maximum(costs, dearest)


def best_spans(costs: Tensor, drop: int) -> tuple[int, ...]:
    """The cheapest layers to drop, as spans with a kept layer between any two, by dynamic programming.

    Args:
        costs: From `span_costs`.
        drop: How many layers.

    Returns:
        Positions of the dropped layers, sorted; fewer than `drop` when there are not so many.
    """
    n = len(costs)
    best: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())] for _ in range(n + 1)]
    for p in range(1, n + 1):
        for k in range(1, min(drop, p) + 1):
            found = best[p - 1][k] if k < len(best[p - 1]) else (float("inf"), ())
            for length in range(1, k + 1):
                i = p - length  # the layer before a span is kept, or the two would be one
                joined = i > 0 and bool(costs[i - 1, i].isfinite())
                rest = best[i - 1 if joined else i]
                if k - length < len(rest):
                    cost, gone = rest[k - length]
                    total = cost + float(costs[i, p - 1])
                    if total < found[0]:
                        found = (total, (*gone, *range(i, p)))
            best[p].append(found)
    return max((gone for _, gone in best[n]), key=len)


def total_cost(costs: Tensor, gone: Sequence[int]) -> float:
    """The cost of dropping layers, span by span.

    Args:
        costs: From `span_costs`.
        gone: Positions of the dropped layers, sorted.

    Returns:
        The sum over the maximal spans that the cost table knows; longer ones are taken in parts.
    """
    total, start = 0.0, 0
    for at in range(1, len(gone) + 1):
        ends = at == len(gone) or gone[at] != gone[at - 1] + 1 or not costs[gone[start], gone[at]].isfinite()
        if ends:
            total += float(costs[gone[start], gone[at - 1]])
            start = at
    return total


def order_of_dropping(costs: Tensor, layers: Sequence[int], drop: int) -> tuple[int, ...]:
    """Nested sets that end in the best one of a size: from it, layers come back one by one, the dearest first.

    Args:
        costs: From `span_costs`.
        layers: The layers that may be skipped.
        drop: How many the largest set drops.

    Returns:
        Layers, the first one dropped first.
    """
    gone, back = list(best_spans(costs, drop)), list[int]()
    while gone:
        rests = [[*gone[:i], *gone[i + 1 :]] for i in range(len(gone))]
        kept = min(range(len(gone)), key=lambda i: total_cost(costs, rests[i]))
        back.append(gone.pop(kept))
    return tuple(layers[i] for i in reversed(back))
