"""The neurons of many requests in one layer: looked at, chosen, opened, trained, and turned into factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean

import torch
from torch import Tensor

from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.adapter import Factors
from roseedit.roselora.asking import is_question
from roseedit.roselora.batches import RowStore
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.memory import trim_memory, within_memory
from roseedit.roselora.neurons.before import before_speech, behind
from roseedit.roselora.neurons.choice import take
from roseedit.roselora.neurons.echoes import echoes, known_look, says
from roseedit.roselora.neurons.facts import Opened, Points, answer_length, elsewhere, opened, points_of
from roseedit.roselora.neurons.gates import Far
from roseedit.roselora.neurons.looks import Look, Place, look_at
from roseedit.roselora.neurons.mlp import Neurons, Rows, inward_rows, said, weight_of
from roseedit.roselora.neurons.sightings import sighting_rows
from roseedit.roselora.neurons.subjects import subject_key, subject_points
from roseedit.roselora.neurons.texts import Ordinary
from roseedit.roselora.neurons.trainer import Columns, ColumnTrainer, Learned
from roseedit.roselora.objective import Row, build_rows, request_seed
from roseedit.roselora.trainer import Progress, Trained, frozen, share_of

HEARD = 0.25  # what a neuron says on its fact is 1 on average
Choose = Callable[[int, Tensor], list[int]]


@dataclass(frozen=True)
class _Taken:
    """One edit's neurons: which, and their inward side now and then."""

    which: Tensor
    new: Opened
    opens: Rows
    carries: Rows | None


class NeuronBank:
    """Neurons for many requests, side by side.

    Args:
        loaded: The model.
        requests: The requests.
        neurons: The layer.
        hparams: The settings.
        ordinary: What the layer's MLP does in ordinary text.
        free: Neurons of the layer to draw from.
        tokens: Most tokens in one pass.
        joint: All requests in one edit, each silent at the others' places.
        many: Many facts in one edit: neurons are chosen by their use in ordinary text alone.
        at_subject: One neuron per request, which opens where its subject ends, in place of one per token of its answer.
        sentences: Behind which subjects are seen; with `at_subject`.
        taken: Neurons of the layer that may not be taken.
        progress: Called with the share of the gates just fitted.

    Raises:
        CapacityError: Too few neurons are free.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        requests: Sequence[EditRequest],
        neurons: Neurons,
        hparams: RoseLoRAHparams,
        *,
        ordinary: Ordinary,
        free: Tensor,
        tokens: int,
        joint: bool = False,
        many: bool = False,
        at_subject: bool = False,
        sentences: Sequence[str] = (),
        taken: set[int] | frozenset[int] = frozenset(),
        progress: Progress | None = None,
    ) -> None:
        self.loaded, self.requests, self.neurons, self.hparams, self.joint = loaded, requests, neurons, hparams, joint
        self.tokens, self.many, self.at_subject = tokens, many, at_subject
        rows: list[Row] = []
        for n, request in enumerate(requests):
            edit = 0 if joint else n
            rows += build_rows(loaded, request, n, edit, hparams)
            rows += sighting_rows(loaded, request, n, edit, sentences)
        with frozen(loaded.model):
            self.place = Place.of(loaded, neurons, replay=hparams.replay)
        trim_memory()
        look = self._look(rows, tokens)
        self.ordinary = ordinary.x
        self.free = free
        self.taken: set[int] = set()
        mine = self._openings(rows, look, taken, share_of(1 / len(requests), progress))
        self.edits = [_joined(mine)] if joint else mine
        speech = self._speech(rows, look)
        facts = answerable(rows, speech, at_subject=at_subject)
        self.columns = self._columns(look, facts, speech)
        ready = [look.activations[i] for i in facts]
        stored = list(facts.values())
        pasts = before_speech(loaded, self.place, stored, self.columns, ready, tokens, hparams.train_dtype)
        if pasts:
            self.columns = [behind(own, pasts) for own in self.columns]
            ready = [x[past.length :] for x, past in zip(ready, pasts, strict=True)]
        # Half as many: the backward pass keeps what the look lets go.
        self.store = RowStore(loaded, stored, self.place.start, tokens // 2, ready=ready, pasts=pasts)

    def _look(self, rows: Sequence[Row], tokens: int) -> Look:
        longest = max(len(row.ids) for row in rows)
        last = longest if self.at_subject else self.hparams.preserve_tokens
        arithmetic = self.hparams.train_dtype
        with frozen(self.loaded.model):
            return within_memory(
                lambda most: look_at(self.loaded, rows, self.place, last, most, arithmetic), tokens, longest
            )

    def _openings(
        self, rows: Sequence[Row], look: Look, taken: set[int] | frozenset[int], progress: Progress | None
    ) -> list[_Taken]:
        of_request: list[list[int]] = [[] for _ in self.requests]
        for i, row in enumerate(rows):
            of_request[row.request].append(i)
        others, echo, out = self._others(look, rows), self._echoes(look, rows, [own[0] for own in of_request]), []
        for n, own in enumerate(of_request):
            inputs = [look.inputs[i].float() for i in own]
            count, points = self._places([rows[i] for i in own], inputs, elsewhere(*others(n), echo(n)))
            generator = torch.Generator().manual_seed(request_seed(self.requests[n], self.hparams.seed, "neurons"))
            near = None if self.many else partial(self._use_at, torch.cat(inputs))
            which = take(self.free, taken | self.taken if self.joint else taken, count, generator, near)
            if self.joint:
                self.taken |= set(which.tolist())
            opens, carries = self._rows_now(which)
            biases = opens.bias, carries.bias if carries else torch.zeros_like(opens.bias)
            new = opened(points, count, self.neurons, biases, self.hparams, self._threshold(n))
            out.append(_Taken(which, new, opens, carries))
            if progress:
                progress(1.0)
        return out

    def _places(self, rows: Sequence[Row], inputs: Sequence[Tensor], far: Far) -> tuple[int, Points]:
        """How many neurons a request takes, and the places at which they are asked."""
        if self.at_subject:
            return 1, subject_points(rows, inputs, far)
        count = answer_length(rows, self.hparams.most_neurons)
        return count, points_of(rows, inputs, count, far)

    def _threshold(self, n: int) -> float:
        if self.at_subject:
            return self.hparams.subject_threshold
        return self.hparams.threshold(question=is_question(self.requests[n].prompt))

    def _use_at(self, x: Tensor, which: Tensor) -> Tensor:
        """How much neurons write at some places, (n, d_in): the mean size of what each says times its column's."""
        opens, carries = self._rows_now(which)
        columns = weight_of(self.loaded.model, self.neurons.down)[:, which].float().norm(dim=0)
        return said(self.neurons, x, opens, carries).abs().mean(0) * columns

    def _others(self, look: Look, rows: Sequence[Row]) -> Callable[[int], tuple[Tensor, Tensor | None]]:
        """Per request the places elsewhere, some left out: in ordinary text, in a joint run of all other requests."""
        if not self.joint:
            return lambda _n: (self.ordinary, None)
        x = torch.cat([torch.cat(list(look.inputs)).float(), self.ordinary])
        owner = [row.request for row, own in zip(rows, look.inputs, strict=True) for _ in range(len(own))]
        whose = torch.tensor([*owner, *[-1] * len(self.ordinary)], device=x.device)

        def others(n: int) -> tuple[Tensor, Tensor]:
            mine = [m for m, other in enumerate(self.requests) if m == n or self._same_places(n, m)]
            return x, torch.isin(whose, torch.tensor(mine, device=x.device))

        return others

    def _same_places(self, one: int, other: int) -> bool:
        return self.at_subject and subject_key(self.requests[one]) == subject_key(self.requests[other])

    def _echoes(self, look: Look, rows: Sequence[Row], own: Sequence[int]) -> Callable[[int], Tensor | None]:
        """Per request the well-known places at which the model says what it says at the request's own prompt."""
        if not self.hparams.anchor_echoes or self.at_subject:
            return lambda _n: None
        loaded, place = self.loaded, self.place
        with frozen(loaded.model):
            known = known_look(loaded, place, self.tokens, self.hparams.train_dtype)
            said_now = says(loaded, place, [rows[i] for i in own], [look.activations[i] for i in own])
        size, most = loaded.model.get_output_embeddings().weight.shape[0], self.hparams.anchor_echoes

        def of(n: int) -> Tensor:
            return echoes(known, said_now.take(torch.tensor([n])), self.requests[n].prompt, most, size)

        return of

    def _rows_now(self, which: Tensor) -> tuple[Rows, Rows | None]:
        model, neurons = self.loaded.model, self.neurons
        carries = inward_rows(model, neurons.carries, which) if neurons.carries else None
        return inward_rows(model, neurons.opens, which), carries

    def _speech(self, rows: Sequence[Row], look: Look) -> dict[int, Tensor]:
        """What its edit's neurons say at each place of each row that is trained on, (tokens, R), by the row's index."""
        out = {}
        for i, row in enumerate(rows):
            if row.labels and row.turns:
                new = self.edits[row.edit].new
                out[i] = said(self.neurons, look.inputs[i].float(), new.opens, new.carries) * new.gain
        return out

    def _columns(self, look: Look, facts: Mapping[int, Row], speech: Mapping[int, Tensor]) -> list[Columns]:
        """Per edit what the trainer needs; `facts` are the rows to be stored, by their places among all."""
        down = weight_of(self.loaded.model, self.neurons.down)
        out = []
        for edit, own in enumerate(self.edits):
            mine = {i: k for i, (k, row) in enumerate(facts.items()) if row.edit == edit}
            silenced = {i: said(self.neurons, look.inputs[k].float(), own.opens, own.carries) for i, k in mine.items()}
            unit = mean(look.sizes[k] for k in mine.values())
            old = down[:, own.which].float().mT
            out.append(Columns({i: speech[k] for i, k in mine.items()}, silenced, old, unit, len(own.which)))
        return out

    def due(self, step: int, _lowest: Tensor) -> list[int]:
        """The rows whose turn it is, of all requests."""
        return [i for i, row in enumerate(self.store.rows) if row.due(step)]

    def train(self, choose: Choose, steps: int, progress: Progress | None = None) -> list[Trained]:
        """Learn the columns.

        Args:
            choose: Rows of a step, from the step and each request's smallest probability.
            steps: Most steps.
            progress: Called with the share of the run just done.

        Returns:
            One result per edit.
        """
        trainer = ColumnTrainer(
            self.loaded, self.neurons, self.store, self.columns, self.hparams, retrying=not self.joint
        )
        learned = trainer.run(lambda step: choose(step, trainer.lowest), steps, progress)
        return [self._trained(own, result) for own, result in zip(self.edits, learned, strict=True)]

    def _trained(self, own: _Taken, learned: Learned) -> Trained:
        """One edit as factors: one outer product per neuron and matrix, one side of it a single entry."""
        neurons, scale = self.neurons, self.hparams.scale
        pairs = [(neurons.opens, own.new.opens.weight - own.opens.weight)]
        if neurons.carries and own.new.carries and own.carries:
            pairs.append((neurons.carries, own.new.carries.weight - own.carries.weight))
        factors = {p.module_name: Factors(rows, _single(own.which, p.d_out) / scale) for p, rows in pairs}
        old = weight_of(self.loaded.model, neurons.down)[:, own.which].float()
        new = (self.hparams.column_share * learned.columns * own.new.gain[:, None]).mT
        factors[neurons.down.module_name] = Factors(_single(own.which, neurons.down.d_in).mT, (new - old) / scale)
        return Trained(factors, learned.steps, learned.probability, learned.converged)


def answerable(rows: Sequence[Row], speech: Mapping[int, Tensor], *, at_subject: bool = False) -> dict[int, Row]:
    """The fact rows to train on: all that are asked in every step, and others if a neuron opens for each token.

    Where none does nothing can be learned, and trying would only blow its column up.

    Args:
        rows: Training rows.
        speech: Per fact row, by its index in `rows`, (tokens, R): what its edit's neurons say there.
        at_subject: One is to open where the subject ends instead.

    Returns:
        The rows by their index; those that take turns share them out anew.
    """
    turns: dict[int, list[int]] = {}
    out = {}
    for i, said_there in speech.items():
        row = rows[i]
        if row.turns == 1:
            out[i] = row
        elif _heard(said_there, row.subject if at_subject else row.columns):
            turns.setdefault(row.request, []).append(i)
    for own in turns.values():
        out |= {i: replace(rows[i], turn=turn, turns=len(own)) for turn, i in enumerate(own)}
    return dict(sorted(out.items()))


def _heard(said_there: Tensor, places: Sequence[int]) -> bool:
    return bool(places) and float(said_there[list(places)].amax(-1).min()) >= HEARD


def _single(which: Tensor, n: int) -> Tensor:
    """(n, R), column i zero but for a one at `which[i]`."""
    out = torch.zeros(n, len(which), device=which.device)
    out[which, torch.arange(len(which), device=which.device)] = 1.0
    return out


def _joined(parts: Sequence[_Taken]) -> _Taken:
    """The neurons of several requests as those of one edit."""
    gated = parts[0].carries is not None
    new = Opened(
        _stacked([p.new.opens for p in parts]),
        _stacked([p.new.carries for p in parts if p.new.carries]) if gated else None,
        torch.cat([p.new.gain for p in parts]),
    )
    carries = _stacked([p.carries for p in parts if p.carries]) if gated else None
    return _Taken(torch.cat([p.which for p in parts]), new, _stacked([p.opens for p in parts]), carries)


def _stacked(rows: Sequence[Rows]) -> Rows:
    return Rows(torch.cat([r.weight for r in rows]), torch.cat([r.bias for r in rows]))
