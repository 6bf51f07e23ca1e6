"""What a joint run may take of one layer, and what it does there."""

from __future__ import annotations

from collections.abc import Sequence

from roseedit.models.encoding import encode_prompt
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.memory import pass_tokens
from roseedit.roselora.neurons.bank import NeuronBank
from roseedit.roselora.neurons.choice import least_used
from roseedit.roselora.neurons.kept import NOTHING, Kept
from roseedit.roselora.neurons.mlp import find_neurons
from roseedit.roselora.neurons.ordinary import ordinary_ids, ordinary_look, with_more
from roseedit.roselora.neurons.own_text import own_text
from roseedit.roselora.neurons.sightings import sentences_of
from roseedit.roselora.neurons.standins import require_room, taken_over
from roseedit.roselora.neurons.subjects import subject_key
from roseedit.roselora.neurons.texts import Texts
from roseedit.roselora.order import BreadthFirst
from roseedit.roselora.trainer import Progress, Trained, share_of

GATES = 0.3  # of a run's progress, about: what fitting them takes of its time


class JointLayer:
    """A layer in a joint run.

    Args:
        loaded: The model.
        layer: Index of the layer.
        hparams: The settings.
        kept: What an earlier run has fitted; its part in this layer stays as it is.
        wide: Many facts: silent in much more ordinary text.
        at_subject: Neurons open where subjects end.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        layer: int,
        hparams: RoseLoRAHparams,
        kept: Kept = NOTHING,
        *,
        wide: bool,
        at_subject: bool,
    ) -> None:
        self.loaded, self.hparams, self.wide, self.at_subject = loaded, hparams, wide, at_subject
        self.neurons = find_neurons(loaded, layer)
        self.tokens = pass_tokens(loaded, self.neurons.projections, hparams)
        used = ordinary_look(loaded, self.neurons, hparams, self.tokens).use
        self.free = least_used(loaded.model, self.neurons, used, hparams.pool)
        self.own_text = own_text(loaded, hparams.own_text, hparams.seed) if wide else []
        self.sentences = self._sentences() if at_subject and hparams.sightings else []
        self.kept = [kept.parts[layer]] if layer in kept.parts else []
        self.taken = set(kept.taken.get(layer, ()))

    @property
    def left(self) -> int:
        """Neurons that are free still."""
        return len(set(self.free.tolist()) - self.taken)

    def expect(self, count: int) -> None:
        """Refuse, before any fit, what could not be completed once so many more are taken."""
        if self._is_many(len(self.taken) + count):
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
        ordinary = ordinary_look(loaded, self.neurons, hparams, self.tokens, wide=self.wide)
        for silent in (self.own_text, self._prompts(earlier, group)):  # the first is the same for every batch
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
            sentences=self.sentences,
            taken=self.taken,
            progress=share_of(GATES, progress),
        )
        self.taken |= bank.taken
        order = BreadthFirst(bank.store.rows, len(group), self.hparams, apart=True)
        return bank.train(order.rows_of, self.hparams.steps * order.batches, share_of(1 - GATES, progress))[0]

    def _sentences(self) -> list[str]:
        """Behind which subjects are seen."""
        texts = [self.loaded.tokenizer.decode(list(ids)) for ids in self.own_text]
        return sentences_of(texts, self.hparams.sightings, self.hparams.seed)

    def _prompts(self, earlier: Sequence[EditRequest], group: Sequence[EditRequest]) -> list[tuple[int, ...]]:
        """What was asked before, as token ids, but for what is about the subjects that open now."""
        now = {subject_key(request) for request in group} if self.at_subject else set()
        others = (request for request in earlier if subject_key(request) not in now)
        return [tuple(encode_prompt(self.loaded.tokenizer, request.prompt).ids) for request in others]
