"""How far to draft: by measured times and acceptance, with a debt limit, so that drafting never costs much.

All times are in units of one plain step. A draft of g tokens costs g c + v(g) and brings E = (1 - a^(g+1)) / (1 - a)
tokens on average, a being the acceptance of one token. Drafting is worth it when E > g c + v(g). Finding out costs time
too: what drafting has lost so far (its *debt*) plus the worst that the next cycle can lose must stay within a small
share of the tokens decoded, over all sequences of a model, or the step is a plain one.
"""

from __future__ import annotations

import statistics
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from roseedit.hadskip.profile import Profile, SkipProfiles
from roseedit.models.load import LoadedModel

LONGEST_DRAFT = 8
MEMORY = 15  # timings kept per kind of step
FIRST_PLAIN = 2  # plain steps before the first draft, to know what one costs
LOSS_SHARE = 0.015  # of all tokens; with the grace it keeps the mean above 0.97 of plain speed
GRACE = 4.0  # plain steps that a new model may lose while acceptance is unknown
MOST_CREDIT = 20.0
GAIN = 1.02  # expected gain below which drafting is not worth its risk
SMOOTHING = 0.15
UNKNOWN_ACCEPTANCE = 0.8


def _times() -> deque[float]:
    return deque(maxlen=MEMORY)


@dataclass
class Pace:
    """What is known of one profile on one model at one batch size.

    Attributes:
        cost: Expected time of a draft step before any was measured, in plain steps.
        acceptance: Smoothed chance that a drafted token is right.
        longest: Most tokens per draft.
        debt: Plain steps lost by drafting so far; negative when it has paid.
        tokens: Tokens per row decoded so far.
    """

    cost: float
    acceptance: float = UNKNOWN_ACCEPTANCE
    longest: int = LONGEST_DRAFT
    debt: float = 0.0
    tokens: float = 0.0
    threshold: float = 0.8
    _plain: deque[float] = field(default_factory=_times)
    _draft: deque[float] = field(default_factory=_times)
    _verify: dict[int, deque[float]] = field(default_factory=dict)

    def draft_length(self) -> int:
        """Tokens to draft next; 0 for a plain step."""
        if len(self._plain) < FIRST_PLAIN:
            return 0
        best = max(range(1, self.longest + 1), key=self.rate)
        if self.rate(best) >= GAIN and self._affordable(best):
            return best
        # acceptance changes with the text: what no longer pays is tried again as soon as the debt limit allows
        return 1 if self._worth_a_try() and self._affordable(1) else 0

    def rate(self, g: int) -> float:
        """Expected speed of drafting g tokens, in plain speeds."""
        return expected_tokens(self.acceptance, g) / self.price(g)

    def price(self, g: int) -> float:
        """Time of one cycle with g drafts, in plain steps."""
        plain = statistics.median(self._plain)
        draft = statistics.median(self._draft) / plain if self._draft else self.cost
        return g * draft + self._verify_price(g, plain)

    def _verify_price(self, g: int, plain: float) -> float:
        """Unmeasured lengths are priced like the nearest measured one, or optimistically like a plain step."""
        if not self._verify:
            return 1.0
        nearest = min(self._verify, key=lambda known: (abs(known - g), known))
        return statistics.median(self._verify[nearest]) / plain

    def _worth_a_try(self) -> bool:
        """Whether drafting could pay at all if every draft were right."""
        return any((g + 1) / self.price(g) >= GAIN for g in range(1, self.longest + 1))

    def _affordable(self, g: int) -> bool:
        worst = self.price(g) - 1  # one token comes out of every cycle
        return self.debt + worst <= GRACE + LOSS_SHARE * self.tokens

    def saw_plain(self, seconds: float) -> None:
        """Book a plain step."""
        self._plain.append(seconds)
        self.tokens += 1

    def saw_cycle(self, drafted: int, draft_seconds: float, verify_seconds: float, tokens: float) -> None:
        """Book one cycle.

        Args:
            drafted: Tokens drafted per row.
            draft_seconds: Time of drafting.
            verify_seconds: Time of the full pass.
            tokens: Tokens committed per row, on average.
        """
        self._draft.append(draft_seconds / drafted)
        self._verify.setdefault(drafted, _times()).append(verify_seconds)
        self.tokens += tokens
        spent = (draft_seconds + verify_seconds) / statistics.median(self._plain) if self._plain else tokens
        self.debt = max(-MOST_CREDIT, self.debt + spent - tokens)

    def saw_verdicts(self, accepted: int, rejected: int) -> None:
        """Book drafted tokens that the full model looked at: those before and at the first wrong one."""
        for right in [1.0] * accepted + [0.0] * rejected:
            self.acceptance += SMOOTHING * (right - self.acceptance)

    def saw_doubt(self, stopped_early: bool) -> None:
        """Adapt the probability below which a draft stops: stricter while acceptance is below 0.9."""
        if stopped_early:
            step = 0.01 if self.acceptance < 0.9 else -0.01
            self.threshold = min(0.99, max(0.05, self.threshold + step))


def expected_tokens(acceptance: float, g: int) -> float:
    """Mean tokens per verification.

    Args:
        acceptance: Chance that a drafted token is right.
        g: Tokens drafted.

    Returns:
        (1 - a^(g+1)) / (1 - a), or g + 1 for a = 1.
    """
    return sum(acceptance**i for i in range(g + 1))


_KNOWN: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], Pace]] = weakref.WeakKeyDictionary()


def pace_of(loaded: LoadedModel, profile: Profile, rows: int, cost: float) -> Pace:
    """The pace of a profile, kept with the model from call to call.

    Args:
        loaded: The model.
        profile: The drafting profile.
        rows: Sequences in the batch.
        cost: Expected time of a draft step, in plain steps.

    Returns:
        The one record.
    """
    known = _KNOWN.setdefault(loaded.model, {})
    key = (profile.layers, profile.healing, rows.bit_length())
    if key not in known:
        known[key] = Pace(cost, float(profile.measured.get("acceptance", UNKNOWN_ACCEPTANCE)))
    return known[key]


def forget_pace(loaded: LoadedModel) -> None:
    """Forget all that was measured on a model, e.g. before a benchmark.

    Args:
        loaded: The model.
    """
    _KNOWN.pop(loaded.model, None)


def best_drafter(profiles: SkipProfiles, costs: dict[str, float]) -> str:
    """The profile that promises most as a drafter: by measured acceptance, else the cheapest.

    Args:
        profiles: The profiles.
        costs: Time of a step by profile name, in plain steps.

    Returns:
        Its name.
    """

    def promise(profile: Profile) -> tuple[float, float]:
        acceptance = float(profile.measured.get("acceptance", 0.0))
        cost = costs[profile.name]
        gain = max(expected_tokens(acceptance, g) / (g * cost + 1) for g in range(1, LONGEST_DRAFT + 1))
        return gain, -profile.cost

    return max(profiles.profiles, key=promise).name
