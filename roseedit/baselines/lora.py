"""LoRA: dense factors beside frozen matrices, trained on the answer alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from roseedit.baselines.banked import Recipe, fit_banked, selected
from roseedit.baselines.changes import LowRankChanges
from roseedit.baselines.config import LoRAHparams, own, read_as
from roseedit.baselines.rows import answer_row
from roseedit.baselines.spaces import LORA
from roseedit.hparams import Hparams
from roseedit.methods.registry import MadeDelta, Progress
from roseedit.methods.space import Knob
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest


class LoRA:
    """Low-rank edits without sparsity (arXiv 2106.09685)."""

    space: ClassVar[tuple[Knob, ...]] = LORA

    def read(self, values: Mapping[str, Any], where: str) -> LoRAHparams:
        """Build the settings; see `read_as`."""
        return read_as(LoRAHparams, values, where)

    def check(self, loaded: LoadedModel, hparams: Hparams) -> None:
        """Refuse layers or modules that the model lacks."""
        selected(loaded, own(LoRAHparams, hparams))

    def fit(
        self,
        loaded: LoadedModel,
        requests: Sequence[EditRequest],
        hparams: Hparams,
        *,
        joint: bool,
        progress: Progress | None = None,
    ) -> list[MadeDelta]:
        """Train factors."""
        settings = own(LoRAHparams, hparams)
        values = sum(p.d_in + p.d_out for p in selected(loaded, settings)) * settings.rank
        recipe = Recipe(answer_row, LowRankChanges, values)
        return fit_banked(loaded, requests, settings, recipe, joint=joint, progress=progress)
