"""Hyper-parameters: frozen dataclasses read strictly from YAML.

An unknown key, a wrong type or a value out of range is an error that names the fix; all faults of a file are reported
at once, before any model is loaded.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from roseedit.errors import HparamsError, near_names, refusal

H = TypeVar("H")
T = TypeVar("T", bound="Hparams")


def value(default: Any, help: str, **limits: Any) -> Any:
    """A field with its help text and limits (`low`, `high`, `above`, `choices`).

    Args:
        default: Its default.
        help: What it does, in one line.
        **limits: What values are allowed.

    Returns:
        A dataclass field.
    """
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class HealthLimits:
    """How much harm edits may do before they are taken off again; see `edits.health`.

    Attributes:
        perplexity: Of a calibration text, relative to the unedited model.
        norm: Of an edit's change of one matrix, relative to that matrix.
        repetition: Rise of the share of repeated phrases in what the model says to neutral prompts.
    """

    perplexity: float = value(1.2, "largest perplexity, as a multiple of the unedited model's", low=1.0)
    norm: float = value(0.5, "largest change of one matrix by one edit, as a share of its norm", above=0.0)
    repetition: float = value(0.25, "largest rise of the share of repeated phrases", low=0.0, high=1.0)
    new_tokens: int = value(40, "tokens said to each neutral prompt; 0 skips that check", low=0, high=1000)
    text: str | None = value(None, "file with a calibration text; left out: the one that ships")


@dataclass(frozen=True)
class Hparams:
    """What every method has: the model and where it is to run.

    Attributes:
        model: Hub id, local folder, GGUF file or embedded alias.
        seed: Seeds every random choice of an edit, together with the request itself.
    """

    method: ClassVar[str] = ""

    model: str = value("smollm2-135m", "hub id, local folder, GGUF file or embedded alias")
    dtype: str = value(
        "default", "precision of the weights", choices=("default", "float32", "bfloat16", "float16", "auto")
    )
    quantize: str | None = value(
        None, "nf4: in 4 bit, but for the layers that edits write to; needs bitsandbytes", choices=(None, "nf4")
    )
    device: str = value("auto", "cpu, cuda, cuda:0, mps or auto")
    revision: str | None = value(None, "commit, branch or tag on the hub")
    anatomy: dict[str, str] = field(default_factory=dict, metadata={"help": "module paths, where the search fails"})
    seed: int = value(0, "seed of all random choices", low=0)
    strict: bool = value(False, "edits name every weight of their base by its hash, not only those they change")

    health: HealthLimits | None = field(
        default=None, metadata={"help": "limits of the health check, a mapping; true for the usual ones"}
    )

    def replaced(self: T, **changes: Any) -> T:
        """A copy with some values changed, checked like a file.

        Args:
            **changes: New values by field name.

        Returns:
            The copy.
        """
        return from_mapping(type(self), {**as_mapping(self), **changes}, "hparams")


def as_mapping(hparams: Hparams) -> dict[str, Any]:
    """All values by name, with `method`, ready for YAML or JSON.

    Args:
        hparams: The hyper-parameters.

    Returns:
        A new dictionary; tuples become lists.
    """
    values = {f.name: getattr(hparams, f.name) for f in dataclasses.fields(hparams)}
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    if hparams.health is not None:
        plain["health"] = dataclasses.asdict(hparams.health)
    else:
        del plain["health"]  # a check that is off is no setting of an edit
    for name in ("strict", "quantize"):
        if not plain[name]:
            del plain[name]
    return {"method": hparams.method, **plain}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that must hold one mapping.

    Args:
        path: The file.

    Returns:
        Its keys and values, unchecked.

    Raises:
        HparamsError: No such file, not YAML, or not a mapping.
    """
    file = Path(path)
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        hint = near_names(file.name, near) if near else "Check the path."
        raise HparamsError(refusal(f"the hparams file {str(path)!r}, which does not exist", "a YAML file", hint))
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise HparamsError(
            refusal(f"{str(path)!r}, which is not YAML ({reason})", "a YAML mapping", "Mend it.")
        ) from error
    if not isinstance(loaded, dict):
        message = refusal(f"{str(path)!r} holding {type(loaded).__name__}", "a mapping of keys to values", "Mend it.")
        raise HparamsError(message)
    return loaded


def from_mapping(cls: type[H], values: Mapping[str, Any], where: str) -> H:
    """Build hyper-parameters from loose values.

    Args:
        cls: The dataclass of the method.
        values: Keys and values; `method` may be among them.
        where: How to name the source in a message.

    Returns:
        The checked hyper-parameters.

    Raises:
        HparamsError: One or more faults; the message lists them all.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    faults: list[str] = []
    clean: dict[str, Any] = {}
    for key, raw in values.items():
        if key == "method":
            continue
        if key not in fields:
            faults.append(f"unknown key {key!r}. {near_names(str(key), fields)}")
            continue
        try:
            clean[key] = _converted(raw, hints[key])
            _check_limits(clean[key], fields[key].metadata)
        except (TypeError, ValueError) as error:
            faults.append(f"{key}: {error}. It is: {fields[key].metadata['help']}")
    if faults:
        raise HparamsError(f"{where}: " + "; ".join(faults))
    return cls(**clean)


def _converted(raw: Any, wanted: Any) -> Any:
    """Convert by the field's type: YAML reads `5e-4` as text, and a single layer may be written without a list."""
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):
        return _one_of(raw, typing.get_args(wanted))
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _nested(raw, wanted)
    if typing.get_origin(wanted) is tuple:
        items = raw if isinstance(raw, (list, tuple)) else [raw]
        return tuple(_converted(item, typing.get_args(wanted)[0]) for item in items)
    if typing.get_origin(wanted) is dict:
        if isinstance(raw, dict):
            return {str(k): _converted(v, str) for k, v in raw.items()}
        raise TypeError(f"got {raw!r}; allowed: a mapping")
    return _scalar(raw, wanted)


def _nested(raw: Any, wanted: type[Any]) -> Any:
    if isinstance(raw, wanted):
        return raw
    if raw is True or isinstance(raw, Mapping):
        return from_mapping(wanted, {} if raw is True else raw, "its keys")
    raise TypeError(f"got {raw!r}; allowed: a mapping, true or false")


def _one_of(raw: Any, options: tuple[Any, ...]) -> Any:
    if raw is None and type(None) in options:
        return None
    if raw is False and any(dataclasses.is_dataclass(option) for option in options):
        return None
    reasons = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _converted(raw, option)
        except (TypeError, ValueError) as error:
            reasons.append(str(error))
    raise TypeError("; or ".join(reasons))


def _scalar(raw: Any, wanted: type) -> Any:
    if wanted is float and isinstance(raw, (int, str)) and not isinstance(raw, bool):
        try:
            return float(raw)
        except ValueError:
            raise TypeError(f"got {raw!r}; allowed: a number") from None
    if type(raw) is wanted:
        return raw
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    raise TypeError(f"got {raw!r}; allowed: {names.get(wanted, wanted.__name__)}")


def _check_limits(item: Any, limits: Mapping[str, Any]) -> None:
    for one in item if isinstance(item, tuple) else (item,):
        if "choices" in limits and one not in limits["choices"]:
            hint = near_names(str(one), map(str, limits["choices"]))
            raise ValueError(f"got {one!r}; allowed: {', '.join(map(str, limits['choices']))}. {hint}")
        if not isinstance(one, (int, float)) or isinstance(one, bool):
            continue
        low, high, above = limits.get("low"), limits.get("high"), limits.get("above")
        if not math.isfinite(one):
            raise ValueError(f"got {one!r}; allowed: a finite number")
        if (low is not None and one < low) or (high is not None and one > high) or (above is not None and one <= above):
            parts = [f"at least {low}"] if low is not None else []
            parts += [f"above {above}"] if above is not None else []
            parts += [f"at most {high}"] if high is not None else []
            raise ValueError(f"got {one!r}; allowed: {' and '.join(parts)}")
