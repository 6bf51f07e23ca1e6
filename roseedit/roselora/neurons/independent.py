"""Independent runs with neurons."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.memory import pass_tokens
from roseedit.roselora.neurons.bank import NeuronBank
from roseedit.roselora.neurons.choice import least_used
from roseedit.roselora.neurons.facts import neurons_for
from roseedit.roselora.neurons.mlp import Neurons, find_neurons
from roseedit.roselora.neurons.ordinary import ordinary_look
from roseedit.roselora.neurons.room import side_by_side
from roseedit.roselora.neurons.texts import Ordinary
from roseedit.roselora.trainer import Progress, Trained, share_of


def train_independent(
    loaded: LoadedModel, requests: Sequence[EditRequest], hparams: RoseLoRAHparams, progress: Progress | None = None
) -> list[Trained]:
    """Each request alone on the model as it stands; arguments and result as of `engine.train_independent`."""
    neurons, ordinary, free = _with_room(loaded, requests, hparams)
    tokens = pass_tokens(loaded, neurons.projections, hparams)
    size = side_by_side(loaded, neurons, hparams, tokens)

    def made(group: Sequence[EditRequest]) -> list[Trained]:
        bank = NeuronBank(loaded, group, neurons, hparams, ordinary=ordinary, free=free, tokens=tokens)
        return bank.train(bank.due, hparams.steps, share_of(len(group), progress))

    # The groups' banks are never in memory together.
    return [trained for at in range(0, len(requests), size) for trained in made(requests[at : at + size])]


def _with_room(
    loaded: LoadedModel, requests: Sequence[EditRequest], hparams: RoseLoRAHparams
) -> tuple[Neurons, Ordinary, Tensor]:
    """The highest layer that live edits have not filled, its ordinary use and its free neurons; else the lowest."""
    wanted = max(neurons_for(loaded, request, hparams) for request in requests)
    for index in sorted(hparams.layer_indices(loaded.anatomy), reverse=True):
        neurons = find_neurons(loaded, index)
        ordinary = ordinary_look(loaded, neurons, hparams, pass_tokens(loaded, neurons.projections, hparams))
        free = least_used(loaded.model, neurons, ordinary.use, hparams.pool)
        if len(free) >= wanted:
            break
    return neurons, ordinary, free
