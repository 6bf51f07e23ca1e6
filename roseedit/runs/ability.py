"""General ability of the model with all edits live, beside the base model's."""

from __future__ import annotations

from roseedit.errors import RunError, refusal
from roseedit.models.load import LoadedModel
from roseedit.runs.files import Layout


def measure_ability(loaded: LoadedModel, layout: Layout) -> None:
    """Refuse: nothing that measures it is at hand.

    Args:
        loaded: The model with all edits live.
        layout: The run's directory.

    Raises:
        RunError: Always.
    """
    raise RunError(refusal("--ability", "runs without it", "Leave it out."))
