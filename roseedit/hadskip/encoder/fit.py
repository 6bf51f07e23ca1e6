"""A whole fit: fine-tune the full model, start gates from it, train them along the homotopy, calibrate."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from roseedit.errors import BudgetError, SkipError, refusal
from roseedit.hadskip.baselines import baseline_set
from roseedit.hadskip.encoder.classifier import EncoderClassifier
from roseedit.hadskip.encoder.data import Encoded, Example, n_classes, split
from roseedit.hadskip.encoder.exits import Exits, train_exits
from roseedit.hadskip.encoder.gates import EncoderGates
from roseedit.hadskip.encoder.load import load_encoder
from roseedit.hadskip.encoder.measure import calibrate
from roseedit.hadskip.encoder.routing import FixedLayers, RandomDepth
from roseedit.hadskip.encoder.settings import EncoderHparams
from roseedit.hadskip.encoder.starts import Sweep, initialise, sweep
from roseedit.hadskip.encoder.structure import EncoderParts
from roseedit.hadskip.encoder.training import GateTraining, Targets, finetune, n_steps, targets_of, train_student
from roseedit.hadskip.homotopy import Homotopy
from roseedit.models.load import default_device

STATIC = {"static": "static-kl", "even": "even", "random": "random", "prefix": "prefix-exit"}


def gated_layers(protect: Sequence[int], n_layers: int, budget: float) -> tuple[int, ...]:
    """The layers that get a gate.

    Args:
        protect: Layers that always run; negative ones count from the top.
        n_layers: Layers of the encoder.
        budget: Mean cost share.

    Returns:
        The others.

    Raises:
        SkipError: A layer out of range, or none is left to gate.
        BudgetError: The protected layers alone cost more than the budget.
    """
    if any(not -n_layers <= layer < n_layers for layer in protect):
        raise SkipError(refusal(f"protect {list(protect)}", f"layers {-n_layers} to {n_layers - 1}", "Correct it."))
    kept = {layer % n_layers for layer in protect}
    if len(kept) > budget * n_layers + 1e-9:
        got = f"budget {budget} with {len(kept)} protected layers of {n_layers}"
        remedy = f"Raise the budget to {math.ceil(1000 * len(kept) / n_layers) / 1000}, or protect fewer layers."
        raise BudgetError(refusal(got, "a budget that covers the protected layers", remedy))
    if len(kept) == n_layers:
        raise SkipError(refusal(f"all {n_layers} layers protected", "one that may be skipped", "Protect fewer."))
    return tuple(layer for layer in range(n_layers) if layer not in kept)


def static_layers(name: str, parts: EncoderParts, found: Sweep, budget: float, seed: int) -> tuple[int, ...]:
    """A fixed set of layers, of the nearest size that is not cheaper than the budget.

    Args:
        name: `static` (largest KL when dropped alone), `even`, `random` or `prefix` (the first ones).
        parts: Of the encoder.
        found: From `sweep`.
        budget: Mean cost share.
        seed: Of `random`.

    Returns:
        The layers that run.
    """
    run = math.ceil(budget * parts.n_layers - 1e-9)
    return baseline_set(STATIC[name], parts.n_layers, found.layers, run, importance=found.kl.mean(0), seed=seed)


@dataclass
class Gated:
    """A classifier with its gates.

    Attributes:
        classifier: Trained along with the gates.
        gates: Calibrated.
        calibrated_cost: Mean cost on held-out training data.
    """

    classifier: EncoderClassifier
    gates: EncoderGates
    calibrated_cost: float


class ClassifierFit:
    """A fit and what it is compared with, all from one fine-tuned full model.

    Args:
        settings: The settings.
        train: Training examples; a part is set aside for calibration.
        show: Draw progress bars.

    Raises:
        DataError: Labels with gaps, or too few examples.
        ModelError: The encoder cannot be loaded.
        SkipError: Nothing to gate, or a budget below what always runs.
    """

    def __init__(self, settings: EncoderHparams, train: Sequence[Example], *, show: bool = False) -> None:
        self.settings, self.show, self.n_classes = settings, show, n_classes(train)
        device = default_device() if settings.device == "auto" else settings.device
        loaded = load_encoder(settings.model, device=device, revision=settings.revision)
        parts = loaded.parts
        self.gated = gated_layers(settings.protect, parts.n_layers, settings.budget)
        self.max_tokens = min(settings.max_tokens, parts.window)
        learnt, aside = split(train, settings.held_out, settings.seed)
        self.full = EncoderClassifier(loaded, self.n_classes, settings.pooling, settings.dropout).to(device)
        self.train, self.held_out = self.encode(learnt), self.encode(aside)

    def encode(self, examples: Sequence[Example]) -> Encoded:
        """Examples as this encoder's tokens.

        Args:
            examples: The examples.

        Returns:
            The rows.
        """
        return Encoded.of(examples, self.full.tokenizer, self.max_tokens)

    def finetune(self) -> EncoderClassifier:
        """Fine-tune the full model; everything else starts from it.

        Returns:
            The full model.
        """
        finetune(self.full, self.train, self.settings, self.show)
        return self.full

    @cached_property
    def targets(self) -> Targets:
        """What the fine-tuned full model says about the training rows."""
        return targets_of(self.full, self.train, self.settings)

    @cached_property
    def found(self) -> Sweep:
        """What dropping each layer alone does to the fine-tuned full model."""
        return self._sweep(self.full, "alone")

    def _open_gates(self, classifier: EncoderClassifier) -> EncoderGates:
        head = classifier.head if self.settings.confidence else None
        width, feature = classifier.parts.hidden_size, self.settings.feature
        gates = EncoderGates(self.gated, width, feature, head=head, pooling=classifier.pooling)
        return gates.to(classifier.head.weight.device)

    def fit_gates(self) -> Gated:
        """Train gates along with a copy of the full model, and calibrate them.

        Returns:
            The copy and its gates.
        """
        settings, student = self.settings, copy.deepcopy(self.full)
        if settings.warm:
            self._warm_up(student)
        gates = self._open_gates(student)
        found = None if settings.init == "I0" else self._sweep(student, settings.sweep)
        initialise(gates, settings.init, found, settings.needed)
        GateTraining(student, gates, self.train, self.targets, settings).run(self.show)
        if settings.refit and settings.init == "I2":
            initialise(gates, "I2", self._sweep(student, settings.sweep), settings.needed)
        return Gated(student, gates, calibrate(student, gates, self.held_out, settings.budget))

    def _warm_up(self, student: EncoderClassifier) -> None:
        """Teach the encoder to end early: else a layer seems needed because ending before it was never learnt."""
        settings, draws = self.settings, torch.Generator().manual_seed(self.settings.seed + 3)
        epochs = settings.skip_epochs * settings.warm
        plan = Homotopy(n_steps(self.train, epochs, settings), settings.budget, on=settings.homotopy)
        router = RandomDepth(plan, self.gated, student.parts.n_layers, draws)
        train_student(student, self.train, self.targets, router, settings, epochs=epochs, show=self.show)

    def _sweep(self, classifier: EncoderClassifier, kind: str) -> Sweep:
        return sweep(classifier, self._open_gates(classifier), self.train, self.settings.judged, kind)

    def fit_static(self, name: str) -> tuple[EncoderClassifier, FixedLayers]:
        """Train a copy of the full model that always runs the same layers.

        Args:
            name: A key of `STATIC`.

        Returns:
            The copy, and the router to run it with.

        Raises:
            SkipError: An unknown name.
        """
        if name not in STATIC:
            raise SkipError(refusal(f"baseline {name!r}", ", ".join(STATIC), "Choose one of them."))
        settings, student = self.settings, copy.deepcopy(self.full)
        router = FixedLayers(static_layers(name, student.parts, self.found, settings.budget, settings.seed))
        train_student(student, self.train, self.targets, router, settings, show=self.show)
        return student, router

    def fit_exits(self) -> tuple[EncoderClassifier, Exits]:
        """Train early exits jointly with a copy of the full model.

        Returns:
            The copy and its exits.
        """
        student = copy.deepcopy(self.full)
        parts = student.parts
        exits = Exits(parts.n_layers, parts.hidden_size, self.n_classes).to(student.head.weight.device)
        train_exits(student, exits, self.train, self.targets, self.settings, show=self.show)
        return student, exits
