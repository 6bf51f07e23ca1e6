"""RoseLoRA behind the methods' protocol: requests in, deltas out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from roseedit.edits.edit import Edit
from roseedit.errors import HparamsError, refusal
from roseedit.hparams import Hparams
from roseedit.methods.made import made_of
from roseedit.methods.registry import MadeDelta, Progress
from roseedit.methods.space import Knob, layer_knobs
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.config import RoseLoRAHparams, read_roselora
from roseedit.roselora.engine import adapted, train_independent, train_joint
from roseedit.roselora.neurons.joint import train_joint as train_neurons
from roseedit.roselora.neurons.kept import kept_of
from roseedit.roselora.trainer import Trained


class RoseLoRA:
    """Row- and column-sparse low-rank edits (arXiv 2406.10777)."""

    space: ClassVar[tuple[Knob, ...]] = (
        *layer_knobs(widest=0.05),
        Knob("lr", 5e-3, 1e-1, log=True),
        Knob("steps", 30, 120, whole=True),
        Knob("stop_probability", 0.3, 0.95),
        Knob("gate_ridge", 3e-3, 0.3, log=True),
        Knob("gate_threshold", -0.6, 0.7),
        Knob("gate_margin", 0.4, 1.0),
        Knob("rewordings", 0, 8, whole=True),
        Knob("anchor_known", 0, 12, whole=True),
    )

    def read(self, values: Mapping[str, Any], where: str) -> RoseLoRAHparams:
        """Build the settings; see `read_roselora`."""
        return read_roselora(values, where)

    def check(self, loaded: LoadedModel, hparams: Hparams) -> None:
        """Refuse layers or modules that the model lacks."""
        adapted(loaded, _own(hparams))

    def fit(
        self,
        loaded: LoadedModel,
        requests: Sequence[EditRequest],
        hparams: Hparams,
        *,
        joint: bool,
        progress: Progress | None = None,
    ) -> list[MadeDelta]:
        """Train and turn factors into sparse deltas."""
        own = _own(hparams)
        if joint:
            trained = [train_joint(loaded, requests, own, progress)]
        else:
            trained = train_independent(loaded, requests, own, progress)
        return [_made(loaded, result, own.scale) for result in trained]

    def grow(
        self,
        loaded: LoadedModel,
        kept: Edit,
        requests: Sequence[EditRequest],
        hparams: Hparams,
        *,
        progress: Progress | None = None,
    ) -> MadeDelta | None:
        """Go on from facts at subjects, one neuron each; of other edits nothing tells which fact has which entry."""
        own = _own(hparams)
        there = kept_of(loaded, kept.delta, kept.requests, kept.report, own)
        if there is None or not all(request.subject for request in requests):
            return None
        result = train_neurons(loaded, requests, own, progress, there)
        return _made(loaded, result, own.scale, kept=len(kept.requests))


def _made(loaded: LoadedModel, result: Trained, scale: float, **more: Any) -> MadeDelta:
    return made_of(loaded, {path: f.tensors() for path, f in result.factors.items()}, result, scale, **more)


def _own(hparams: Hparams) -> RoseLoRAHparams:
    if not isinstance(hparams, RoseLoRAHparams):
        got = type(hparams).__name__
        raise HparamsError(refusal(got, "RoseLoRAHparams", "Read the file with method: RoseLoRA."))
    return hparams
