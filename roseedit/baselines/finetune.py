"""FT-M and FT-L: fine-tuning of one matrix on the answer alone (the two forms that EasyEdit ships)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from roseedit.baselines.banked import MakeRow, Recipe, fit_banked, selected
from roseedit.baselines.changes import DenseChanges
from roseedit.baselines.config import FineTuneHparams, FTLHparams, FTMHparams, own, read_as
from roseedit.baselines.rows import answer_row, last_token_row
from roseedit.baselines.spaces import FINE_TUNING
from roseedit.hparams import Hparams
from roseedit.methods.registry import MadeDelta, Progress
from roseedit.methods.space import Knob
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest


class FTM:
    """Cross-entropy on the answer's tokens, each after the right ones before it."""

    space: ClassVar[tuple[Knob, ...]] = FINE_TUNING
    settings: ClassVar[type[FineTuneHparams]] = FTMHparams
    make_row: ClassVar[MakeRow] = staticmethod(answer_row)

    def read(self, values: Mapping[str, Any], where: str) -> FineTuneHparams:
        """Build the settings; see `read_as`."""
        return read_as(self.settings, values, where)

    def check(self, loaded: LoadedModel, hparams: Hparams) -> None:
        """Refuse layers or modules that the model lacks."""
        selected(loaded, own(self.settings, hparams))

    def fit(
        self,
        loaded: LoadedModel,
        requests: Sequence[EditRequest],
        hparams: Hparams,
        *,
        joint: bool,
        progress: Progress | None = None,
    ) -> list[MadeDelta]:
        """Train whole matrices."""
        settings = own(self.settings, hparams)
        recipe: Recipe[FineTuneHparams] = Recipe(
            self.make_row,
            lambda model, matrices, generators, h: DenseChanges(model, matrices, len(generators), h),
            sum(p.d_in * p.d_out for p in selected(loaded, settings)),
        )
        return fit_banked(loaded, requests, settings, recipe, joint=joint, progress=progress)


class FTL(FTM):
    """Cross-entropy of all the answer's tokens at the last token of the prompt."""

    settings: ClassVar[type[FineTuneHparams]] = FTLHparams
    make_row: ClassVar[MakeRow] = staticmethod(last_token_row)
