"""Independent and joint runs with neurons."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from roseedit.errors import CapacityError, refusal
from roseedit.models.encoding import encode_pair, encode_prompt
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.adapter import Factors
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.memory import pass_tokens
from roseedit.roselora.neurons.bank import NeuronBank
from roseedit.roselora.neurons.choice import least_used
from roseedit.roselora.neurons.mlp import find_neurons, weight_of
from roseedit.roselora.neurons.ordinary import ordinary_ids, ordinary_look, with_more
from roseedit.roselora.neurons.own_text import own_text
from roseedit.roselora.neurons.room import side_by_side
from roseedit.roselora.neurons.standins import require_room, taken_over
from roseedit.roselora.neurons.subjects import subject_key
from roseedit.roselora.neurons.texts import Texts
from roseedit.roselora.order import BreadthFirst
from roseedit.roselora.trainer import Progress, Trained, share_of

FEW = 8  # facts of a joint run that need no more ordinary text than one does
FACTS = 100  # of a joint run at a time; each further batch is fitted on what the ones before have made of the model


def layers_of(loaded: LoadedModel, hparams: RoseLoRAHparams, *, at_subject: bool = False) -> tuple[int, ...]:
    """The layers whose neurons may be taken, the one to start with first: the highest."""
    indices = hparams.subject_indices if at_subject else hparams.layer_indices
    return tuple(sorted(indices(loaded.anatomy), reverse=True))


def train_independent(
    loaded: LoadedModel, requests: Sequence[EditRequest], hparams: RoseLoRAHparams, progress: Progress | None = None
) -> list[Trained]:
    """Each request alone on the model as it stands; arguments and result as of `engine.train_independent`."""
    layer = layers_of(loaded, hparams)[0]
    neurons = find_neurons(loaded, layer)
    tokens = pass_tokens(loaded, neurons.projections, hparams)
    size = side_by_side(loaded, neurons, hparams, tokens)
    ordinary = ordinary_look(loaded, neurons, hparams, tokens)
    free = least_used(loaded.model, neurons, ordinary.use, hparams.pool)

    def made(group: Sequence[EditRequest]) -> list[Trained]:
        bank = NeuronBank(loaded, group, neurons, hparams, ordinary=ordinary, free=free, tokens=tokens)
        return bank.train(bank.due, hparams.steps, share_of(len(group), progress))

    # The groups' banks are never in memory together.
    return [trained for at in range(0, len(requests), size) for trained in made(requests[at : at + size])]


def train_joint(
    loaded: LoadedModel, requests: Sequence[EditRequest], hparams: RoseLoRAHparams, progress: Progress | None = None
) -> Trained:
    """All requests in one delta; arguments and result as of `engine.train_joint`.

    Of many facts those with a subject may come first, in lower layers and where their subjects end (`many_at`).

    Raises:
        CapacityError: The layers have too few neurons to spare.
    """
    many = len(requests) > FEW
    named = [many and hparams.many_at == "subject" and bool(request.subject) for request in requests]
    parts: list[Trained] = []
    for at_subject in (True, False):
        group = [request for request, there in zip(requests, named, strict=True) if there == at_subject]
        _fill(loaded, group, hparams, parts, progress, wide=many, at_subject=at_subject)
    return merged(parts)


def _fill(
    loaded: LoadedModel,
    group: Sequence[EditRequest],
    hparams: RoseLoRAHparams,
    parts: list[Trained],
    progress: Progress | None,
    *,
    wide: bool,
    at_subject: bool,
) -> None:
    """Add the parts of some requests, each trained on what the parts before it have made of the model."""
    wanted = [1 if at_subject else _neurons_for(loaded, request, hparams) for request in group]
    rooms = _rooms(loaded, hparams, wanted, wide=wide, at_subject=at_subject) if group else []
    shares = _shares([room.left for room in rooms], wanted)
    ends = itertools.accumulate(shares)
    spans = [(room, end - n, end) for room, n, end in zip(rooms, shares, ends, strict=True)]
    for room, start, end in spans:
        room.expect(sum(wanted[start:end]))
    for room, start, end in spans:
        before = list(parts)
        for first in range(start, end, FACTS):
            some = group[first : min(first + FACTS, end)]
            with wearing(loaded, parts):
                parts.append(room.train(some, group[:first], share_of(len(some), progress)))
        with wearing(loaded, before):  # the layer's neurons as they were
            parts += room.completed()


def _neurons_for(loaded: LoadedModel, request: EditRequest, hparams: RoseLoRAHparams) -> int:
    encoded = encode_pair(loaded.tokenizer, request.prompt, request.target_new, end_mark=hparams.end_mark)
    return min(len(encoded.target), hparams.most_neurons)


def _rooms(
    loaded: LoadedModel, hparams: RoseLoRAHparams, wanted: Sequence[int], *, wide: bool, at_subject: bool
) -> list[_Room]:
    """As many layers as it takes, the lowest first: what is fitted later must not move what earlier neurons see."""
    rooms: list[_Room] = []
    for layer in layers_of(loaded, hparams, at_subject=at_subject):
        rooms.insert(0, _Room(loaded, layer, hparams, wide=wide, at_subject=at_subject))
        if sum(_shares([room.left for room in rooms], wanted)) == len(wanted):
            return rooms
    got = f"facts for {sum(wanted)} neurons, with {sum(room.left for room in rooms)} free in all"
    more = "subject_layers" if at_subject else "layers"
    raise CapacityError(refusal(got, "facts that fit", f"Raise `pool`, name more `{more}`, or ask for fewer."))


def _shares(left: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """How many facts go to each layer when they come in order and a layer is left once the next does not fit."""
    shares: list[int] = []
    for room in left:
        shares.append(sum(total <= room for total in itertools.accumulate(wanted[sum(shares) :])))
    return shares


class _Room:
    """What a joint run may take of one layer."""

    def __init__(
        self, loaded: LoadedModel, layer: int, hparams: RoseLoRAHparams, *, wide: bool, at_subject: bool
    ) -> None:
        self.loaded, self.hparams, self.wide, self.at_subject = loaded, hparams, wide, at_subject
        self.neurons = find_neurons(loaded, layer)
        self.tokens = pass_tokens(loaded, self.neurons.projections, hparams)
        used = ordinary_look(loaded, self.neurons, hparams, self.tokens).use
        self.free = least_used(loaded.model, self.neurons, used, hparams.pool)
        self.own_text = own_text(loaded, hparams.own_text, hparams.seed) if wide else []
        self.taken: set[int] = set()

    @property
    def left(self) -> int:
        """Neurons that are free still."""
        return len(self.free) - len(self.taken)

    def expect(self, count: int) -> None:
        """Refuse, before any fit, what could not be completed."""
        if self._is_many(count):
            require_room(self.neurons)

    def _is_many(self, count: int) -> bool:
        return 0 < self.hparams.compensate_from <= count

    def completed(self) -> list[Trained]:
        """Let the layer's other neurons take over for those taken, where they are many."""
        hparams = self.hparams
        if not self._is_many(len(self.taken)):
            return []
        ids = [*self.own_text, *ordinary_ids(self.loaded, hparams, wide=self.wide)]
        texts = Texts(self.loaded, self.neurons, ids, self.tokens, hparams.train_dtype, hparams.replay)
        return [taken_over(texts, self.taken, scale=hparams.scale)]

    def train(self, group: Sequence[EditRequest], earlier: Sequence[EditRequest], progress: Progress | None) -> Trained:
        """Fit some facts side by side, silent in ordinary text and at the prompts of those fitted before."""
        loaded, hparams = self.loaded, self.hparams
        silent = [*self.own_text, *self._prompts(earlier, group)]
        ordinary = ordinary_look(loaded, self.neurons, hparams, self.tokens, wide=self.wide)
        ordinary = with_more(ordinary, loaded, self.neurons, silent, hparams, self.tokens)
        bank = NeuronBank(
            self.loaded,
            group,
            self.neurons,
            self.hparams,
            ordinary=ordinary,
            free=self.free,
            tokens=self.tokens,
            joint=True,
            many=self.wide,
            at_subject=self.at_subject,
            taken=self.taken,
        )
        self.taken |= bank.taken
        order = BreadthFirst(bank.store.rows, len(group), self.hparams, apart=True)
        return bank.train(order.rows_of, self.hparams.steps * order.batches, progress)[0]

    def _prompts(self, earlier: Sequence[EditRequest], group: Sequence[EditRequest]) -> list[tuple[int, ...]]:
        """What was asked before, as token ids, but for what is about the subjects that open now."""
        now = {subject_key(request) for request in group} if self.at_subject else set()
        others = (request for request in earlier if subject_key(request) not in now)
        return [tuple(encode_prompt(self.loaded.tokenizer, request.prompt).ids) for request in others]


@contextmanager
def wearing(loaded: LoadedModel, parts: Sequence[Trained]) -> Iterator[None]:
    """Inside the block the model has the changes; its own parameters are put aside unwritten."""
    own: dict[str, nn.Parameter] = {}
    projections = {p.module_name: p for p in loaded.anatomy.projections}
    try:
        for path in {path for part in parts for path in part.factors}:
            module = loaded.model.get_submodule(path)
            own[path] = module.weight
            changed = weight_of(loaded.model, projections[path]).float().clone()
            for part in parts:
                if path in part.factors:
                    changed += part.factors[path].b @ part.factors[path].a
            changed = changed.t() if projections[path].transposed else changed
            module.weight = nn.Parameter(changed.to(own[path].dtype).contiguous(), requires_grad=False)
        yield
    finally:
        for path, weight in own.items():
            loaded.model.get_submodule(path).weight = weight


def merged(parts: Sequence[Trained]) -> Trained:
    """Several changes as one."""
    if len(parts) == 1:
        return parts[0]
    found: dict[str, list[Factors]] = {}
    for part in parts:
        for path, factors in part.factors.items():
            found.setdefault(path, []).append(factors)
    whole = {p: Factors(torch.cat([f.a for f in own]), torch.cat([f.b for f in own], 1)) for p, own in found.items()}
    steps, sure = sum(part.steps for part in parts), min(part.probability for part in parts)
    return Trained(whole, steps, sure, all(part.converged for part in parts))
