"""Profiles: fixed sets of executed layers, with what each costs and what it was measured to be worth."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from roseedit.edits.fingerprint import served_fingerprint
from roseedit.edits.live import live_edits
from roseedit.errors import BudgetError, SkipError, StaleProfilesError, refusal
from roseedit.hadskip.costs import cost_of
from roseedit.hadskip.paths import Healing, check_layers, edited_layers, protected_layers
from roseedit.models.load import LoadedModel

MOST_PROFILES = 8
SLACK = 1e-6  # a cost share that equals the budget but for rounding is within it
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Profile:
    """A fixed set of executed layers.

    Attributes:
        name: Letters, digits, dots, dashes.
        layers: The executed layers, sorted.
        cost: Their share of the cost of all layers, in (0, 1].
        measured: Figures by name: `speed`, `perplexity`, `kl`, `agreement`, `acceptance`, ...
        healing: Key of what its skipped layers do instead of nothing, or None.
    """

    name: str
    layers: tuple[int, ...]
    cost: float
    measured: Mapping[str, float] = field(default_factory=dict)
    healing: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise SkipError(refusal(f"profile name {self.name!r}", "letters, digits, dots and dashes", "Rename it."))
        ordered = all(isinstance(i, int) and i >= 0 for i in self.layers) and sorted(set(self.layers)) == [*self.layers]
        if not self.layers or not ordered:
            message = refusal(
                f"profile {self.name}: layers {list(self.layers)}", "different ones, sorted", "Sort them."
            )
            raise SkipError(message)
        if not 0 < self.cost <= 1:
            raise SkipError(refusal(f"profile {self.name}: cost {self.cost}", "0 < cost <= 1", "Use costs.cost_of."))
        for name, value in self.measured.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise SkipError(
                    refusal(f"profile {self.name}: {name} {value!r}", "a finite number", "Measure it anew.")
                )

    def skipped(self, n_layers: int) -> tuple[int, ...]:
        """The layers that do not run.

        Args:
            n_layers: How many the model has.

        Returns:
            Their indices.
        """
        return tuple(sorted(set(range(n_layers)) - set(self.layers)))


@dataclass(frozen=True, eq=False)
class SkipProfiles:
    """All that is needed to serve one model with layers skipped.

    Attributes:
        model_name: What the user called the model.
        n_layers: How many layers it has.
        protected: Layers that every profile executes.
        fingerprint: Of the weights, edits applied, that the profiles were fitted on (`edits.fingerprint`).
        profiles: One to eight, in any order.
        healings: What skipped layers do instead of nothing, by key.
        gates: Parameters of the gate that chooses, by name; opaque here.
        gate_settings: What the gate's code needs beside them, as plain JSON; empty when there is no gate.
        made_by: How they were made: command, budget, data, seeds; plain JSON.
    """

    model_name: str
    n_layers: int
    protected: tuple[int, ...]
    fingerprint: str
    profiles: tuple[Profile, ...]
    healings: Mapping[str, Healing] = field(default_factory=dict)
    gates: Mapping[str, Tensor] = field(default_factory=dict)
    gate_settings: Mapping[str, Any] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "profiles", tuple(self.profiles))
        object.__setattr__(self, "protected", tuple(sorted(self.protected)))
        names = [profile.name for profile in self.profiles]
        if not 1 <= len(names) <= MOST_PROFILES or len(set(names)) != len(names):
            message = refusal(f"profiles {names}", f"1 to {MOST_PROFILES}, each name once", "Merge some.")
            raise SkipError(message)
        if not re.fullmatch(r"[0-9a-f]{64}", self.fingerprint):
            raise SkipError(refusal(f"fingerprint {self.fingerprint!r}", "64 hex digits", "Use served_fingerprint."))
        for profile in self.profiles:
            self._check(profile)

    def _check(self, profile: Profile) -> None:
        beyond = [i for i in (*profile.layers, *self.protected) if i >= self.n_layers]
        missing = sorted(set(self.protected) - set(profile.layers))
        if beyond or missing:
            got = f"profile {profile.name} with layers {beyond} beyond the last and without the protected {missing}"
            raise SkipError(refusal(got, f"layers below {self.n_layers}, all protected ones", "Fit it anew."))
        if profile.healing is not None and profile.healing not in self.healings:
            known = ", ".join(self.healings) or "none"
            raise SkipError(refusal(f"profile {profile.name}: healing {profile.healing!r}", known, "Add it."))

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        sets: Mapping[str, Iterable[int]],
        *,
        measured: Mapping[str, Mapping[str, float]] | None = None,
        healings: Mapping[str, Healing] | None = None,
        healing_of: Mapping[str, str] | None = None,
        gates: Mapping[str, Tensor] | None = None,
        gate_settings: Mapping[str, Any] | None = None,
        made_by: Mapping[str, Any] | None = None,
    ) -> SkipProfiles:
        """Make profiles for the model as it is now.

        Args:
            loaded: The model, edits applied.
            sets: Executed layers by profile name.
            measured: Figures by profile name.
            healings: Healings by key.
            healing_of: Key of the healing by profile name; left out: none.
            gates: Parameters of the gate.
            gate_settings: What the gate's code needs beside them.
            made_by: How they were made.

        Returns:
            The profiles, costs by bytes.

        Raises:
            SkipError: A set without a protected layer, or out of range.
        """
        profiles = tuple(
            Profile(
                name,
                check_layers(loaded, layers),
                cost_of(loaded, set(layers)),
                dict((measured or {}).get(name, {})),
                (healing_of or {}).get(name),
            )
            for name, layers in ((name, list(layers)) for name, layers in sets.items())
        )
        return cls(
            loaded.name,
            loaded.anatomy.n_layers,
            protected_layers(loaded),
            served_fingerprint(loaded),
            profiles,
            healings or {},
            gates or {},
            gate_settings or {},
            made_by or {},
        )

    @property
    def nested(self) -> bool:
        """Whether each profile's layers contain those of every cheaper one."""
        ordered = sorted((set(p.layers) for p in self.profiles), key=len)
        return all(small <= large for small, large in itertools.pairwise(ordered))

    def healing(self, index: int) -> Healing | None:
        """The healing of a profile.

        Args:
            index: Which profile.

        Returns:
            Its healing, or None.
        """
        key = self.profiles[index].healing
        return None if key is None else self.healings[key]

    def within(self, budget: float | None) -> tuple[int, ...]:
        """Profiles whose cost meets a budget.

        Args:
            budget: Most cost share, in (0, 1]; None for no limit.

        Returns:
            Their indices, the costliest first.

        Raises:
            BudgetError: The budget is out of range, or no profile meets it.
        """
        if budget is not None and not 0 < budget <= 1:
            raise BudgetError(refusal(f"budget {budget}", "0 < budget <= 1", "Give a share of layer cost."))
        order = sorted(range(len(self.profiles)), key=lambda i: (-self.profiles[i].cost, i))
        found = tuple(i for i in order if budget is None or self.profiles[i].cost <= budget + SLACK)
        if not found:
            costs = ", ".join(f"{self.profiles[i].name} {self.profiles[i].cost:.3f}" for i in order)
            message = refusal(f"budget {budget}, which no profile meets", costs, "Raise it, or fit for that budget.")
            raise BudgetError(message)
        return found

    def check(self, loaded: LoadedModel, *, stale_is_fine: bool = False) -> None:
        """Refuse a model that the profiles do not belong to.

        Args:
            loaded: The model, edits applied.
            stale_is_fine: Accept other weights of the same shape: right for the lossless contract, whose output does
                not depend on the profile.

        Raises:
            StaleProfilesError: The weights are not those that the profiles were fitted on.
            SkipError: Another number of layers, or a live edit in a layer that a profile skips.
        """
        if self.n_layers != loaded.anatomy.n_layers:
            message = refusal(f"profiles for {self.n_layers} layers", f"{loaded.anatomy.n_layers}", "Take its own.")
            raise SkipError(message)
        for profile in self.profiles:
            check_layers(loaded, profile.layers)
            lost = sorted(set(edited_layers(loaded)) - set(profile.layers))
            if lost:
                message = refusal(
                    f"profile {profile.name}, which skips layers {lost} that carry a live edit",
                    "profiles that execute every edited layer",
                    "Fit the profiles anew with the edits applied, or revert the edits.",
                )
                raise SkipError(message)
        if not stale_is_fine and served_fingerprint(loaded) != self.fingerprint:
            raise self._stale(loaded)

    def _stale(self, loaded: LoadedModel) -> StaleProfilesError:
        now, fitted = served_fingerprint(loaded), self.made_by.get("edits")
        edits = f" with {len(fitted)} edits live" if isinstance(fitted, list) else ""
        budget = self.gate_settings.get("budget", "B")
        live = live_edits(loaded.model).deltas
        ledger = " --ledger FOLDER" if live else ""
        return StaleProfilesError(
            refusal(
                f"the weights {now[:12]} of {loaded.name!r} with {len(live)} edits live, on which these profiles were "
                "not fitted",
                f"the weights {self.fingerprint[:12]} of {self.model_name!r}{edits}",
                f"Fit anew: roseedit skip fit --model {loaded.name} --budget {budget}{ledger} --out DIR, "
                "or bring the same edits live.",
            )
        )

    def cache_salt(self, index: int) -> str:
        """Key under which an engine may share K/V of a common prefix between requests of the bounded contract.

        Args:
            index: The profile.

        Returns:
            16 hex digits that differ between profiles, healings and weights. Full-model K/V need no salt.
        """
        profile = self.profiles[index]
        text = f"{self.fingerprint} {profile.layers} {profile.healing} {_digest(self.healing(index))}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(healing: Healing | None) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(healing.tensors().items() if healing else ()):
        found.update(name.encode())
        found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
