"""From requests to deltas, for methods that train many edits side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from roseedit.baselines.changes import Changes
from roseedit.baselines.config import BankedHparams, TrainedHparams
from roseedit.baselines.trainer import Progress, Stepper, bank_size, train_apart, train_together
from roseedit.methods.made import made_of
from roseedit.methods.registry import MadeDelta
from roseedit.models.anatomy import Projection
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.objective import Row, request_seed

H = TypeVar("H", bound=BankedHparams)
MakeRow = Callable[..., Row]


@dataclass(frozen=True)
class Recipe(Generic[H]):
    """What sets one of these methods apart from the others.

    Attributes:
        row: Makes a request's training row.
        changes: Makes what is trained.
        values_per_edit: Numbers that are trained for one edit.
    """

    row: MakeRow
    changes: Callable[[LoadedModel, Sequence[Projection], list[torch.Generator], H], Changes]
    values_per_edit: int


def selected(loaded: LoadedModel, hparams: TrainedHparams) -> tuple[Projection, ...]:
    """The matrices that the settings name, checked against the model."""
    return loaded.anatomy.select(hparams.modules, hparams.layer_indices(loaded.anatomy))


def fit_banked(
    loaded: LoadedModel,
    requests: Sequence[EditRequest],
    hparams: H,
    recipe: Recipe[H],
    *,
    joint: bool,
    progress: Progress | None,
) -> list[MadeDelta]:
    """Train, in as many banks as memory asks for.

    Args:
        loaded: The model; left as it was.
        requests: The requests.
        hparams: The settings.
        recipe: What the method is.
        joint: One change for all.
        progress: Called with the number of requests just done, in fractions.

    Returns:
        One delta per request, or one for all.
    """
    projections = selected(loaded, hparams)

    def stepper(group: Sequence[EditRequest], one: bool) -> Stepper:
        rows = [recipe.row(loaded, r, i, 0 if one else i, end_mark=hparams.end_mark) for i, r in enumerate(group)]
        seeds = [request_seed(r, hparams.seed, "joint" if one else "init") for r in (group[:1] if one else group)]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return Stepper(loaded, recipe.changes(loaded, projections, generators, hparams), rows, projections, hparams)

    if joint:
        together = train_together(stepper(requests, one=True), progress)
        return [made_of(loaded, together.factors, together)]
    size = bank_size(loaded, recipe.values_per_edit, hparams, len(requests))
    groups = [requests[at : at + size] for at in range(0, len(requests), size)]
    trained = [t for group in groups for t in train_apart(stepper(group, one=False), progress)]
    return [made_of(loaded, t.factors, t) for t in trained]
