"""What a method lets `roseedit tune` try: declared beside the method, free of any search library.

Places are searched as shares of depth, so that a space fits any model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from roseedit.hparams import Hparams
from roseedit.models.anatomy import Anatomy

MIDDLE, SPAN = "depth.middle", "depth.span"
JOIN = "+"
Value = float | int | str | bool


@dataclass(frozen=True)
class Knob:
    """One setting and what may be tried for it.

    Attributes:
        name: Name of the setting; `depth.middle` and `depth.span` stand for `depth` with `layers: auto`.
        low: Least value.
        high: Largest value.
        log: Search on a logarithmic scale.
        whole: Whole numbers only.
        choices: Values instead of a range; several modules in one are joined by `+`.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[Value, ...] = ()

    def fitted(self, value: Any) -> Value | None:
        """The nearest value that may be tried, None where nothing is near.

        Args:
            value: From a file.

        Returns:
            The value.
        """
        if self.choices:
            return value if value in self.choices else None
        near = min(max(float(value), self.low), self.high)
        return round(near) if self.whole else near


def layer_knobs(low: float = 0.3, high: float = 1.0, widest: float = 0.0) -> tuple[Knob, ...]:
    """Where to edit.

    Args:
        low: Least middle of the edited layers, as a share of depth.
        high: Largest middle.
        widest: Largest distance from the first to the last edited layer; 0 for a single layer.

    Returns:
        The knobs.
    """
    span = (Knob(SPAN, 0.0, widest),) if widest else ()
    return (Knob(MIDDLE, low, high), *span)


def fitted(knobs: Sequence[Knob], base: Hparams, anatomy: Anatomy) -> tuple[tuple[Knob, ...], Hparams]:
    """A space and its beginning for one model: modules that the model lacks are left out.

    Args:
        knobs: The space.
        base: Where to begin.
        anatomy: Of the model.

    Returns:
        Both; a beginning at modules that the model lacks is moved to the first that it has.
    """
    has = {p.role for p in anatomy.projections} | {p.module_name.rpartition(".")[2] for p in anatomy.projections}
    out = []
    for knob in knobs:
        if knob.name != "modules":
            out.append(knob)
            continue
        choices = tuple(choice for choice in knob.choices if set(str(choice).split(JOIN)) <= has)
        out.append(replace(knob, choices=choices))
        if choices and not set(base.modules) <= has:  # type: ignore[attr-defined]
            base = base.replaced(modules=str(choices[0]).split(JOIN))
    return tuple(out), base


def with_values(base: Hparams, chosen: Mapping[str, Value]) -> Hparams:
    """Settings with what a search chose.

    Args:
        base: All other values.
        chosen: Values by knob.

    Returns:
        The settings.

    Raises:
        HparamsError: Values that do not go together.
    """
    changes: dict[str, Any] = {name: v for name, v in chosen.items() if name not in (MIDDLE, SPAN)}
    if "modules" in changes:
        changes["modules"] = str(changes["modules"]).split(JOIN)
    if MIDDLE in chosen:
        middle, half = float(chosen[MIDDLE]), float(chosen.get(SPAN, 0.0)) / 2
        ends = max(0.0, middle - half), min(1.0, middle + half)
        changes |= {"layers": "auto", "depth": [round(end, 4) for end in ends]}
    return base.replaced(**changes)


def values_of(hparams: Hparams, knobs: Sequence[Knob], anatomy: Anatomy) -> dict[str, Value]:
    """The inverse: where in a space some settings stand, as near as it allows.

    Args:
        hparams: The settings.
        knobs: The space.
        anatomy: Of the model, for layers given by number.

    Returns:
        Values by knob; knobs that cannot say it are left out.
    """
    out: dict[str, Value] = {}
    for knob in knobs:
        found: Any
        if knob.name in (MIDDLE, SPAN):
            layers = hparams.layer_indices(anatomy)  # type: ignore[attr-defined]
            ends = [layer / max(1, anatomy.n_layers - 1) for layer in (layers[0], layers[-1])]
            found = sum(ends) / 2 if knob.name == MIDDLE else ends[1] - ends[0]
        else:
            found = getattr(hparams, knob.name)
            found = JOIN.join(found) if knob.name == "modules" else found
        if (fitted := knob.fitted(found)) is not None:
            out[knob.name] = fitted
    return out
