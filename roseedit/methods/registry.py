"""The protocol of a method, and where each one is found. Modules are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from roseedit.errors import HparamsError, near_names, refusal
from roseedit.hparams import Hparams

if TYPE_CHECKING:
    from roseedit.edits.delta import Delta
    from roseedit.edits.edit import Edit
    from roseedit.methods.space import Knob
    from roseedit.models.load import LoadedModel
    from roseedit.requests import EditRequest

_METHODS = {
    "RoseLoRA": "roseedit.methods.roselora:RoseLoRA",
    "FT-M": "roseedit.baselines.finetune:FTM",
    "FT-L": "roseedit.baselines.finetune:FTL",
    "LoRA": "roseedit.baselines.lora:LoRA",
    "AdaLoRA": "roseedit.baselines.adalora:AdaLoRA",
    "InContext": "roseedit.baselines.in_context:InContext",
}
Progress = Callable[[float], None]


@dataclass(frozen=True)
class MadeDelta:
    """What a method made for one request (or, jointly, for all).

    Attributes:
        delta: The change.
        report: Figures of its making, plain JSON values.
        context: Text that stands before every prompt of the edit, for methods that work through the prompt.
    """

    delta: Delta
    report: Mapping[str, Any]
    context: str = ""


class EditingMethod(Protocol):
    """A way to make deltas. It gets the model as it stands, leaves it so, prints nothing and writes no file."""

    @property
    def space(self) -> tuple[Knob, ...]:
        """What `roseedit tune` may try."""
        ...

    def read(self, values: Mapping[str, Any], where: str) -> Hparams:
        """Check loose values and build the method's hyper-parameters."""
        ...

    def check(self, loaded: LoadedModel, hparams: Hparams) -> None:
        """Refuse settings that do not fit the model, before any work."""
        ...

    def fit(
        self,
        loaded: LoadedModel,
        requests: Sequence[EditRequest],
        hparams: Hparams,
        *,
        joint: bool,
        progress: Progress | None = None,
    ) -> list[MadeDelta]:
        """Make one delta per request, each for itself, or one for all when `joint`.

        `progress` is called with the number of requests just done, in fractions.
        """
        ...


@runtime_checkable
class GrowingMethod(Protocol):
    """A method that can go on from a joint edit that it has made."""

    def grow(
        self,
        loaded: LoadedModel,
        kept: Edit,
        requests: Sequence[EditRequest],
        hparams: Hparams,
        *,
        progress: Progress | None = None,
    ) -> MadeDelta | None:
        """Make one delta of an edit's facts, as they are, and further ones. The model is without the edit.

        None where it cannot go on from this edit; said before any work.
        """
        ...


def method_names() -> tuple[str, ...]:
    """The registered methods."""
    return tuple(_METHODS)


def changes_weights(name: str) -> bool:
    """Whether a method's edits can be applied to a model. Methods that work through the prompt can only be measured.

    Args:
        name: As in `method:` of an hparams file.

    Returns:
        False for methods that say so.

    Raises:
        HparamsError: No such method.
    """
    return bool(getattr(find_method(name), "changes_weights", True))


def find_method(name: str) -> EditingMethod:
    """A method by name.

    Args:
        name: As in `method:` of an hparams file.

    Returns:
        The method.

    Raises:
        HparamsError: No such method.
    """
    if name not in _METHODS:
        message = refusal(f"method {name!r}", ", ".join(_METHODS), near_names(name, _METHODS))
        raise HparamsError(message)
    module, _, attribute = _METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()


def read_hparams(values: Mapping[str, Any], where: str = "hparams") -> Hparams:
    """Check loose values with the method they name (RoseLoRA when they name none).

    Args:
        values: Keys and values, `method` among them.
        where: How to name the source in a message.

    Returns:
        The method's hyper-parameters.

    Raises:
        HparamsError: Unknown method or faulty values.
    """
    return find_method(str(values.get("method", "RoseLoRA"))).read(values, where)
