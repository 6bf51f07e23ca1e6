"""Stages of a fit that survive being stopped: each is found in its file, or computed and written there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from roseedit.edits.fingerprint import served_fingerprint
from roseedit.hadskip.distil import Distillation
from roseedit.hadskip.resume import load_stage, save_stage
from roseedit.hadskip.settings import HadSkipHparams
from roseedit.hadskip.teacher import Teacher
from roseedit.hadskip.training import GateTraining
from roseedit.hparams import as_mapping
from roseedit.models.load import LoadedModel
from roseedit.models.lowp import products_in
from roseedit.progress import bar
from roseedit.roselora.trainer import frozen as backbone_frozen

SAVE_EVERY = 5  # steps


class Runner:
    """Runs the stages of a fit, each from its file if it was done, or half done, before.

    Args:
        loaded: The model, edits applied.
        settings: The settings.
        material: Digest of what the fit works on.
        work: Folder of the stages' files.
        show: Draw progress bars.
    """

    def __init__(self, loaded: LoadedModel, settings: HadSkipHparams, material: str, work: Path, show: bool) -> None:
        self.loaded, self.settings, self.material, self.work, self.show = loaded, settings, material, work, show

    def stage(self, name: str, keys: Sequence[str] | None = None, extra: Any = None) -> Path:
        """A file name that holds exactly for the weights and the settings that a stage depends on.

        Args:
            name: Of the stage.
            keys: The settings it depends on; None for all.
            extra: Whatever else it depends on, as plain JSON.

        Returns:
            The file.
        """
        whole = as_mapping(self.settings)
        chosen = {key: whole[key] for key in keys} if keys else whole
        text = json.dumps([served_fingerprint(self.loaded), self.material, chosen, extra], sort_keys=True, default=str)
        return self.work / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"

    @cached_property
    def arithmetic(self) -> Callable[[], AbstractContextManager[None]]:
        """Makes the context in which training runs."""
        return products_in(self.loaded, self.settings.train_dtype)

    def teacher(self, ids: Tensor, *, training: bool = False) -> Teacher:
        """The full model on sequences, from its file if it ran over them before.

        Args:
            ids: (sequences, tokens).
            training: In the arithmetic of the training, else in the weights' own.

        Returns:
            The teacher.
        """
        digest = hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest()
        path = self.stage("teacher", ("seed", "train_dtype") if training else ("seed",), digest)
        found = load_stage(path)
        if found:
            return Teacher(self.loaded, ids, found[0]["states"].to(self.loaded.device))
        with self.arithmetic() if training else nullcontext():
            teacher = Teacher.of(self.loaded, ids)
        save_stage(path, {"states": teacher.states}, {})
        return teacher

    def advance(self, training: GateTraining | Distillation, steps: int, name: str, extra: Any = None) -> None:
        """Bring a training to its end.

        Args:
            training: It is trained in place.
            steps: Steps in all.
            name: Of the stage.
            extra: Whatever it depends on beside the settings.
        """
        path = self.stage(name, None, extra)
        found = load_stage(path)
        if found:
            tensors, record = found
            training.restore(int(record["step"]), tensors)
            training.history = record["history"]
        with bar(steps, name, self.show) as tell, backbone_frozen(self.loaded.model), self.arithmetic():
            tell(training.step)
            while training.step < steps:
                training.advance()
                tell(1)
                if training.step % SAVE_EVERY == 0 or training.step == steps:
                    save_stage(path, training.state(), {"step": training.step, "history": training.history})
