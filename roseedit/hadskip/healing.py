"""Healing: what a skipped layer does instead of nothing, x -> s * x + B A x, solved in closed form.

Going up the layers, the states of the full model and those of the skipped one are carried side by side. At a skipped
layer the map is fitted by least squares from the skipped model's state (with all damage done below) to the state that
the full model has *after* that layer, so later layers mend what earlier ones left over. Tokens are weighted by the
inverse square of their state's size, for the next layer normalises it: without the weights a few tokens with huge
states would decide everything. `distil` continues from there by gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from roseedit.hadskip.paths import Healing
from roseedit.hadskip.texts import all_real, chunks
from roseedit.models.load import LoadedModel
from roseedit.models.replay import capture_activations, replaying, run_body

ROWS = 16  # sequences in one pass
KINDS = ("none", "scale", "lora")


@torch.no_grad()
def entering(loaded: LoadedModel, layer: int, ids: Tensor) -> Tensor:
    """What enters a layer of the full model.

    Args:
        loaded: The model.
        layer: Index of the layer.
        ids: (rows, tokens), without padding.

    Returns:
        (rows, tokens, hidden).
    """
    ids = ids.to(loaded.device)
    parts = (ids[s] for s in chunks(len(ids), ROWS))
    done = [capture_activations(loaded.model, loaded.anatomy, layer, part, all_real(part)) for part in parts]
    return torch.cat(done)


@torch.no_grad()
def through(loaded: LoadedModel, layer: int, states: Tensor, ids: Tensor) -> Tensor:
    """Run one layer through the model's own forward.

    Args:
        loaded: The model.
        layer: Index of the layer.
        states: (rows, tokens, hidden), what enters it.
        ids: (rows, tokens) of the same sequences.

    Returns:
        (rows, tokens, hidden), what leaves it.
    """
    ids, last = ids.to(loaded.device), layer == loaded.anatomy.n_layers - 1
    out = []
    for s in chunks(len(ids), ROWS):
        with replaying(loaded.model, loaded.anatomy, layer, states[s]):
            if last:
                out.append(_leaving(loaded, ids[s]))
            else:
                out.append(capture_activations(loaded.model, loaded.anatomy, layer + 1, ids[s], all_real(ids[s])))
    return torch.cat(out)


def _leaving(loaded: LoadedModel, ids: Tensor) -> Tensor:
    """What the last layer gives out, which is what enters the final norm."""
    seen: list[Tensor] = []
    norm = loaded.model.get_submodule(loaded.anatomy.final_norm)
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        run_body(loaded.model, ids, all_real(ids), head=False)
    finally:
        handle.remove()
    return seen[0]


def solve(
    loaded: LoadedModel,
    ids: Tensor,
    skipped: Iterable[int],
    *,
    kind: str = "lora",
    rank: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Healing:
    """Fit the healing of a set of skipped layers in one sweep over the layers.

    Args:
        loaded: The model, edits applied.
        ids: (rows, tokens) of text to fit on.
        skipped: The skipped layers.
        kind: `"none"`, `"scale"` or `"lora"`.
        rank: Rank of the low-rank pairs.
        progress: Called with 1 after every layer.

    Returns:
        The healing.
    """
    gone = sorted(skipped)
    if kind == "none" or not gone:
        return Healing()
    full = student = entering(loaded, gone[0], ids)
    steps: dict[int, Step] = {}
    for layer in range(gone[0], gone[-1] + 1):
        after = through(loaded, layer, full, ids)
        if layer in gone:
            steps[layer] = Step.fitted(student, after, kind, rank)
            student = steps[layer](student)
        else:
            student = through(loaded, layer, student, ids)
        full = after
        if progress:
            progress(1)
    return Step.healing(steps)


@dataclass(frozen=True)
class Step:
    """What one skipped layer does instead.

    Attributes:
        scale: (hidden,) or None.
        pair: (A, B) or None.
    """

    scale: Tensor | None = None
    pair: tuple[Tensor, Tensor] | None = None

    @classmethod
    def fitted(cls, states: Tensor, after: Tensor, kind: str, rank: int) -> Step:
        """Least squares from what enters a layer to what is wanted after it.

        Args:
            states: (..., hidden).
            after: (..., hidden).
            kind: `"none"`, `"scale"` or `"lora"`.
            rank: Rank of the low-rank pair.

        Returns:
            The step.
        """
        if kind == "none":
            return cls()
        return cls(fit_scale(states, after)) if kind == "scale" else cls(None, fit_low_rank(states, after, rank))

    def __call__(self, states: Tensor) -> Tensor:
        """What the skipped layer hands on.

        Args:
            states: (..., hidden), what enters it.

        Returns:
            (..., hidden).
        """
        out = states if self.scale is None else states * self.scale
        return out if self.pair is None else out + states @ self.pair[0].T @ self.pair[1].T

    @staticmethod
    def healing(steps: Mapping[int, Step]) -> Healing:
        """Many layers' steps as one healing.

        Args:
            steps: By layer.

        Returns:
            The healing.
        """
        scales = {i: s.scale for i, s in steps.items() if s.scale is not None}
        return Healing(scales, {i: s.pair for i, s in steps.items() if s.pair is not None})


def _weights(after: Tensor) -> Tensor:
    return 1.0 / after.flatten(0, -2).float().pow(2).mean(-1).clamp(min=1e-12)


def fit_scale(states: Tensor, after: Tensor) -> Tensor:
    """The scale s that minimises the weighted error of s * x, channel by channel.

    Args:
        states: (..., hidden), x.
        after: (..., hidden), the wanted states.

    Returns:
        (hidden,).
    """
    x, y, w = states.flatten(0, -2).float(), after.flatten(0, -2).float(), _weights(after)[:, None]
    return (w * x * y).sum(0) / (w * x * x).sum(0).clamp(min=1e-12)


def fit_low_rank(states: Tensor, after: Tensor, rank: int, *, ridge: float = 3e-3) -> tuple[Tensor, Tensor]:
    """Weighted reduced-rank ridge regression of the change `after - states` on `states`.

    The full-rank solution is projected onto the directions in which it explains most, which is the best solution of
    that rank (Izenman 1975).

    Args:
        states: (..., hidden), x.
        after: (..., hidden), the wanted states.
        rank: r.
        ridge: Ridge, relative to the mean variance of a channel.

    Returns:
        A (r, hidden) and B (hidden, r): x + B A x is near `after`.
    """
    x, w = states.flatten(0, -2).float(), _weights(after)[:, None]
    y = after.flatten(0, -2).float() - x
    gram, cross = _moments(x, y, w, ridge)
    full = torch.linalg.solve(gram, cross)
    explained = full.T @ gram @ full
    directions = torch.linalg.eigh(explained).eigenvectors[:, -min(rank, len(gram)) :]
    size = (full @ directions).norm(dim=0).clamp(min=1e-12).sqrt()  # balanced factors train evenly
    return ((full @ directions) / size).T.contiguous(), (directions * size).contiguous()


def left_over(states: Tensor, after: Tensor, kind: str, rank: int, *, ridge: float = 3e-3) -> float:
    """The error that healing of a kind leaves, weighted as it is fitted, without making the healing.

    Args:
        states: (..., hidden), x.
        after: (..., hidden), the wanted states.
        kind: Kind of healing.
        rank: Rank of the low-rank map.
        ridge: As for `fit_low_rank`.

    Returns:
        Mean over tokens of the squared error relative to the squared size of the wanted state.
    """
    x, y, w = states.flatten(0, -2).float(), after.flatten(0, -2).float(), _weights(after)[:, None]
    scale = float((w * y * y).sum())
    if kind != "lora":
        error = y - Step.fitted(x, y, kind, rank)(x)
        return float((w * error * error).sum()) / scale
    change = y - x
    gram, cross = _moments(x, change, w, ridge)
    explained = torch.linalg.eigvalsh(cross.T @ torch.linalg.solve(gram, cross))[-min(rank, len(gram)) :].sum()
    return (float((w * change * change).sum()) - float(explained)) / scale


def _moments(x: Tensor, y: Tensor, w: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weighted second moments of x, with ridge, and of x with y."""
    gram = (x * w).T @ x
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    return gram, (x * w).T @ y


def healing_cost(loaded: LoadedModel, layers: Sequence[int], healing: Healing | None) -> float:
    """Cost share of the layers' healing, in the unit of the layers' costs (bytes in the weights' own precision).

    Args:
        loaded: The model.
        layers: The skipped layers.
        healing: Their healing.

    Returns:
        At least 0.
    """
    if healing is None:
        return 0.0
    modules = loaded.model.get_submodule(loaded.anatomy.layers_name)
    whole = sum(p.numel() for p in modules.parameters())
    own = sum(healing.scales[i].numel() for i in layers if i in healing.scales)
    own += sum(t.numel() for i in layers if i in healing.low_rank for t in healing.low_rank[i])
    return own / whole
