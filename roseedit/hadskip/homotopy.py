"""The homotopy: a family of problems from "run everything" to "keep to the budget", each started from the last.

Schedules of one fit over T steps, all in terms of u = clip((t - t0) / (t1 - t0), 0, 1):

* budget       b_t = b + (1 - b)(1 - u)^3, the cubic shape of HomoDistil;
* temperature  from `tau_start` to `tau_end`, geometrically;
* penalty      from 0 to `penalty` over [0, t0], then constant;
* noise        on, except in the last tenth.

The shape is a reconstruction: the HadSkip paper names a homotopic optimisation and does not publish its form in what
is known to us (docs/hadskip.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from roseedit.errors import SkipError, refusal


@dataclass(frozen=True)
class Homotopy:
    """The schedules.

    Attributes:
        steps: T, steps of the whole fit.
        budget: b, the final cost share, in (0, 1].
        start: t0 / T.
        end: t1 / T.
        tau_start: Gate temperature up to t0.
        tau_end: Gate temperature from t1.
        penalty: Largest weight of the budget's hinge.
        quiet: Share of steps at the end without noise.
        on: False is the ablation: b_t = b, the last temperature and the full penalty from the first step.
    """

    steps: int
    budget: float
    start: float = 0.1
    end: float = 0.7
    tau_start: float = 2.0
    tau_end: float = 0.3
    penalty: float = 20.0
    quiet: float = 0.1
    on: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.budget <= 1 or not 0 <= self.start < self.end <= 1:
            got = f"{self.steps} steps, budget {self.budget}, window {self.start} to {self.end}"
            raise SkipError(refusal(got, "steps >= 1, 0 < budget <= 1, 0 <= start < end <= 1", "Correct it."))

    def progress_at(self, step: int) -> float:
        """How far the window has been passed.

        Args:
            step: t, from 0.

        Returns:
            u in [0, 1].
        """
        first, last = self.start * self.steps, self.end * self.steps
        return min(1.0, max(0.0, (step - first) / (last - first))) if self.on else 1.0

    def budget_at(self, step: int) -> float:
        """The budget of the problem at a step.

        Args:
            step: t, from 0.

        Returns:
            b_t, falling from 1 to b.
        """
        return self.budget + (1.0 - self.budget) * (1.0 - self.progress_at(step)) ** 3

    def temperature_at(self, step: int) -> float:
        """The temperature of the soft gate.

        Args:
            step: t, from 0.

        Returns:
            tau, falling.
        """
        return self.tau_start * (self.tau_end / self.tau_start) ** self.progress_at(step)

    def penalty_at(self, step: int) -> float:
        """The weight of the hinge.

        Args:
            step: t, from 0.

        Returns:
            lambda, rising to `penalty`.
        """
        first = self.start * self.steps
        return self.penalty if not self.on or first <= 0 else self.penalty * min(1.0, step / first)

    def noisy_at(self, step: int) -> bool:
        """Whether the gates are noisy.

        Args:
            step: t, from 0.

        Returns:
            False in the quiet part at the end.
        """
        return step < self.steps * (1.0 - self.quiet)


def budget_hinge(cost: Tensor, budget: float, *, slack: float = 0.02, floor: float = 0.1) -> Tensor:
    """How far a mean cost is outside of [budget - slack, budget].

    Args:
        cost: Mean cost share of a batch, a scalar.
        budget: b_t.
        slack: How much less may be spent without a penalty.
        floor: Weight of spending too little, relative to spending too much.

    Returns:
        A scalar, 0 inside; a hinge stops pushing when the budget is met.
    """
    return (cost - budget).clamp(min=0) + floor * (budget - slack - cost).clamp(min=0)
