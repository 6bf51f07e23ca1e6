"""Who picks the profile of a sequence: a chooser, asked once per prompt and never again during its decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from roseedit.errors import BudgetError, SkipError, refusal
from roseedit.hadskip.profile import SkipProfiles
from roseedit.models.load import LoadedModel


@dataclass(frozen=True)
class PromptBatch:
    """What a chooser may look at.

    Attributes:
        ids: (rows, tokens), right-padded.
        mask: (rows, tokens), 1 for real tokens.
        states: (rows, tokens, hidden), what entered layer `looks_at`; None when the chooser looks at none.
    """

    ids: Tensor
    mask: Tensor
    states: Tensor | None = None


class Chooser(Protocol):
    """Picks one profile per sequence; the same prompt gets the same profile, whatever else is in the batch."""

    @property
    def looks_at(self) -> int | None:
        """Layer whose input is wanted; all layers below it are executed in every profile. None: ids are enough."""
        ...

    @property
    def n_bytes(self) -> int:
        """Bytes of parameters that one choice reads, for the account of what gating costs."""
        ...

    def choose(self, loaded: LoadedModel, prompts: PromptBatch, budget: float | None) -> Sequence[int]:
        """Pick.

        Args:
            loaded: The model.
            prompts: The prompts.
            budget: Cost share that may be executed (on average, if the chooser was calibrated so); None for no limit.

        Returns:
            Index of a profile per row.
        """
        ...


class FixedChooser:
    """Always the same profile: the one named, or the costliest within the budget.

    Args:
        profiles: The profiles.
        name: Name of a profile.

    Raises:
        SkipError: No profile of that name.
    """

    looks_at = None
    n_bytes = 0

    def __init__(self, profiles: SkipProfiles, name: str | None = None) -> None:
        self.profiles = profiles
        names = [profile.name for profile in profiles.profiles]
        if name is not None and name not in names:
            raise SkipError(refusal(f"profile {name!r}", ", ".join(names), "Choose one of them."))
        self.index = None if name is None else names.index(name)

    def choose(self, loaded: LoadedModel, prompts: PromptBatch, budget: float | None) -> Sequence[int]:
        """The one profile, for every row.

        Args:
            loaded: Not looked at.
            prompts: Only their number counts.
            budget: Most cost share; the named profile must meet it.

        Returns:
            Index of a profile per row.

        Raises:
            BudgetError: No profile meets the budget, or the named one does not.
        """
        allowed = self.profiles.within(budget)
        if self.index is None:
            return [allowed[0]] * len(prompts.ids)
        if self.index not in allowed:
            name = self.profiles.profiles[self.index].name
            known = ", ".join(self.profiles.profiles[i].name for i in allowed)
            message = refusal(f"profile {name} with budget {budget}", known, "Leave one of the two out.")
            raise BudgetError(message)
        return [self.index] * len(prompts.ids)


def chooser_of(profiles: SkipProfiles) -> Chooser:
    """The chooser that belongs to profiles: their gate, or the fixed choice when they have none.

    Args:
        profiles: The profiles.

    Returns:
        A chooser.
    """
    if not profiles.gate_settings:
        return FixedChooser(profiles)
    from roseedit.hadskip.gate import make_chooser

    return make_chooser(profiles)
