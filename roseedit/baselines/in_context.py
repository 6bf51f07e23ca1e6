"""The fact before the prompt: no weight changes, so there is nothing to apply, only something to say first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from roseedit.baselines.config import InContextHparams, own, read_as
from roseedit.baselines.spaces import IN_CONTEXT
from roseedit.edits.delta import Delta
from roseedit.hparams import Hparams
from roseedit.methods.registry import MadeDelta, Progress
from roseedit.methods.space import Knob
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest


class InContext:
    """An edit that lives in the prompt (IKE without demonstrations)."""

    space: ClassVar[tuple[Knob, ...]] = IN_CONTEXT
    changes_weights: ClassVar[bool] = False

    def read(self, values: Mapping[str, Any], where: str) -> InContextHparams:
        """Build the settings; see `read_as`."""
        return read_as(InContextHparams, values, where)

    def check(self, loaded: LoadedModel, hparams: Hparams) -> None:
        """Any model will do."""
        own(InContextHparams, hparams)

    def fit(
        self,
        loaded: LoadedModel,
        requests: Sequence[EditRequest],
        hparams: Hparams,
        *,
        joint: bool,
        progress: Progress | None = None,
    ) -> list[MadeDelta]:
        """Fill in the template; jointly all facts stand before every prompt."""
        settings = own(InContextHparams, hparams)
        texts = [settings.template.format(prompt=r.prompt.rstrip(), target=r.target_new.strip()) for r in requests]
        if progress:
            progress(float(len(requests)))
        contexts = ["".join(texts)] if joint else texts
        return [MadeDelta(Delta(()), {"steps": 0, "values": 0}, context) for context in contexts]
