"""Independent and joint runs of the edit engine, with a batch size that fits into memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from roseedit.models.anatomy import Projection
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.memory import bank_size, pass_tokens
from roseedit.roselora.neurons import independent, joint
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.objective import build_rows, request_seed
from roseedit.roselora.order import BreadthFirst
from roseedit.roselora.trainer import BankTrainer, Progress, Schedule, Trained, share_of


def adapted(loaded: LoadedModel, hparams: RoseLoRAHparams) -> tuple[Projection, ...]:
    """The matrices that the settings name, checked against the model."""
    if hparams.support == "neurons":
        layers = hparams.written_indices(loaded.anatomy)
        loaded.anatomy.select(("mlp.down",), layers)  # refuses layers that the model lacks
        return tuple(p for layer in layers for p in find_neurons(loaded, layer).projections)
    return loaded.anatomy.select(hparams.modules, hparams.layer_indices(loaded.anatomy))


def train_independent(
    loaded: LoadedModel, requests: Sequence[EditRequest], hparams: RoseLoRAHparams, progress: Progress | None = None
) -> list[Trained]:
    """Each request alone on the model as it stands, many in one bank.

    Args:
        loaded: The model; left as it was.
        requests: The requests.
        hparams: The settings.
        progress: Called with the number of requests just done, in fractions.

    Returns:
        One result per request, in order; it does not depend on which others shared its bank.
    """
    if hparams.support == "neurons":
        return independent.train_independent(loaded, requests, hparams, progress)
    projections = adapted(loaded, hparams)
    size = bank_size(loaded, projections, hparams, len(requests))
    out: list[Trained] = []
    for at in range(0, len(requests), size):
        group = requests[at : at + size]
        out += _train_bank(loaded, group, projections, hparams, progress)
    return out


def _train_bank(
    loaded: LoadedModel,
    group: Sequence[EditRequest],
    projections: Sequence[Projection],
    hparams: RoseLoRAHparams,
    progress: Progress | None,
) -> list[Trained]:
    rows = [row for edit, request in enumerate(group) for row in build_rows(loaded, request, edit, edit, hparams)]
    generators = [_generator(request, hparams.seed) for request in group]
    tokens = pass_tokens(loaded, projections, hparams)
    trainer = BankTrainer(
        loaded, projections, rows, generators, hparams=hparams, schedule=Schedule.of(hparams), max_tokens=tokens
    )

    def choose(step: int) -> list[int]:
        return [i for i, row in enumerate(rows) if row.due(step)]

    return trainer.run(choose, share_of(len(group), progress))


def _generator(request: EditRequest, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(request_seed(request, seed, "init"))


def train_joint(
    loaded: LoadedModel, requests: Sequence[EditRequest], hparams: RoseLoRAHparams, progress: Progress | None = None
) -> Trained:
    """All requests in one delta, breadth first: shuffled mini-batches over all of them, epoch after epoch.

    Args:
        loaded: The model; left as it was.
        requests: The requests.
        hparams: The settings; `steps` and the pruning times count epochs, `rank` grows with the requests.
        progress: Called with the number of requests just done, in fractions.

    Returns:
        One result; its `probability` is that of the worst request.
    """
    if hparams.support == "neurons":
        return joint.train_joint(loaded, requests, hparams, progress)
    projections = adapted(loaded, hparams)
    own = hparams.replaced(rank=joint_rank(hparams.rank, len(requests), projections))
    rows = [row for n, request in enumerate(requests) for row in build_rows(loaded, request, n, 0, own)]
    generator = torch.Generator().manual_seed(request_seed(requests[0], own.seed, "joint"))
    chooser = BreadthFirst(rows, len(requests), own)
    tokens = pass_tokens(loaded, projections, own)
    trainer = BankTrainer(
        loaded,
        projections,
        rows,
        [generator],
        hparams=own,
        schedule=Schedule.of(own, stretch=chooser.batches),
        max_tokens=tokens,
    )
    return trainer.run(lambda step: chooser.rows_of(step, trainer.lowest), share_of(len(requests), progress))[0]


def joint_rank(rank: int, n: int, projections: Sequence[Projection]) -> int:
    """Rank of a joint delta: twice as many outer products as facts, within what a matrix and LoRA servers can hold.

    Args:
        rank: The rank for a single fact, which is the least.
        n: Facts.
        projections: The adapted matrices.

    Returns:
        The rank.
    """
    return max(rank, min(2 * n, 512, *(min(p.d_in, p.d_out) for p in projections)))
