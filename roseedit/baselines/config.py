"""Settings of the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from roseedit.errors import HparamsError, refusal
from roseedit.hparams import Hparams, from_mapping, value
from roseedit.models.anatomy import Anatomy
from roseedit.models.place import indices_of, place_faults

H = TypeVar("H", bound=Hparams)
A = TypeVar("A", bound=Hparams)


@dataclass(frozen=True)
class TrainedHparams(Hparams):
    """What all methods that train weights have: where they work and for how long."""

    layers: str | tuple[int, ...] = value("auto", "layer indices, 'all', or 'auto' (by depth)", low=0)
    depth: tuple[float, ...] = value(
        (0.69, 0.69), "first and last layer of 'auto', as shares of depth", low=0.0, high=1.0
    )
    modules: tuple[str, ...] = value(("mlp.down",), "roles (mlp.down, attn.q, ...) or exact module names")
    steps: int = value(25, "most training steps", low=1, high=10_000)
    lr: float = value(5e-4, "Adam's learning rate", above=0.0, high=10.0)
    weight_decay: float = value(0.0, "Adam's pull of the change towards zero", low=0.0)
    stop_loss: float = value(1e-2, "stop below this mean loss of the target's tokens (0: never)", low=0.0)
    end_mark: bool = value(True, "train the end of the answer too (EOS)")
    joint_batch: int = value(16, "requests per step of a joint run", low=1, high=1024)

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise HparamsError("; ".join(faults))

    def _faults(self) -> list[str]:
        return list(place_faults(self.layers, self.depth, self.modules))

    def layer_indices(self, anatomy: Anatomy) -> tuple[int, ...]:
        """The layers to adapt, as indices.

        Args:
            anatomy: The model's parts.

        Returns:
            Indices in rising order.
        """
        return indices_of(self.layers, self.depth, anatomy)


@dataclass(frozen=True)
class BankedHparams(TrainedHparams):
    """Of methods that train many edits side by side."""

    edits_per_bank: int = value(0, "most edits trained side by side (0: from free memory)", low=0)
    batch_tokens: int = value(0, "most tokens in one training pass (0: from free memory)", low=0)


@dataclass(frozen=True)
class FineTuneHparams(BankedHparams):
    """Fine-tuning of whole matrices, by default a single one."""

    norm_constraint: str = value("none", "limit on the change of a matrix", choices=("none", "frobenius", "entry"))
    norm_limit: float = value(1.0, "largest entry of the change, or (frobenius) its root mean square", above=0.0)


@dataclass(frozen=True)
class FTMHparams(FineTuneHparams):
    """FT-M: each token of the answer is asked for after the ones before it."""

    method: ClassVar[str] = "FT-M"


@dataclass(frozen=True)
class FTLHparams(FineTuneHparams):
    """FT-L: every token of the answer is asked for at the last token of the prompt."""

    method: ClassVar[str] = "FT-L"


@dataclass(frozen=True)
class LoRAHparams(BankedHparams):
    """LoRA with dense factors."""

    method: ClassVar[str] = "LoRA"

    layers: str | tuple[int, ...] = value("all", "layer indices, 'all', or 'auto' (by depth)", low=0)
    modules: tuple[str, ...] = value(("attn.q", "attn.v"), "roles (mlp.down, attn.q, ...) or exact module names")
    steps: int = value(70, "most training steps", low=1, high=10_000)
    lr: float = value(1e-3, "Adam's learning rate", above=0.0, high=10.0)
    rank: int = value(8, "outer products per matrix (r)", low=1, high=512)
    alpha: float = value(32.0, "the product is scaled by alpha / rank", above=0.0)
    dropout: float = value(0.0, "dropout on the factors' input while training", low=0.0, high=0.9)


@dataclass(frozen=True)
class AdaLoRAHparams(TrainedHparams):
    """AdaLoRA: ranks are handed out to matrices by importance while it trains."""

    method: ClassVar[str] = "AdaLoRA"

    layers: str | tuple[int, ...] = value("all", "layer indices, 'all', or 'auto' (by depth)", low=0)
    modules: tuple[str, ...] = value(("attn.q", "attn.v"), "roles (mlp.down, attn.q, ...) or exact module names")
    steps: int = value(70, "most training steps", low=3, high=10_000)
    lr: float = value(5e-3, "Adam's learning rate", above=0.0, high=10.0)
    rank: int = value(4, "mean outer products per matrix in the end", low=1, high=512)
    init_rank: int = value(8, "outer products per matrix at the start", low=2, high=512)
    alpha: int = value(32, "the product is scaled by alpha / init_rank", low=1)
    dropout: float = value(0.0, "dropout on the factors' input while training", low=0.0, high=0.9)
    orthogonality: float = value(0.5, "weight of the term that keeps the factors orthogonal", low=0.0)
    allocate: bool = value(True, "hand ranks out; false keeps init_rank everywhere")
    allocate_start: int = value(5, "last step before ranks are taken away", low=0)
    allocate_end: int = value(30, "step at which the final ranks are reached; no edit stops before it", low=1)

    def _faults(self) -> list[str]:
        out = super()._faults()
        if not self.allocate:
            return out
        if not self.allocate_start < self.allocate_end < self.steps:
            got = f"allocate_start {self.allocate_start}, allocate_end {self.allocate_end}, steps {self.steps}"
            out.append(f"got {got}; allowed: rising numbers. Change them")
        if self.rank >= self.init_rank:
            out.append(f"got rank {self.rank}; allowed: below init_rank ({self.init_rank}). Lower it")
        return out


@dataclass(frozen=True)
class InContextHparams(Hparams):
    """The fact before the prompt."""

    method: ClassVar[str] = "InContext"

    template: str = value(
        "New Fact: {prompt} {target}\nPrompt: ", "text put before every prompt; {prompt} and {target} are filled in"
    )

    def __post_init__(self) -> None:
        try:
            filled = self.template.format(prompt="\x01", target="\x02")
        except (KeyError, IndexError, ValueError):
            filled = ""
        if "\x01" not in filled or "\x02" not in filled:
            got = f"template {self.template!r}"
            raise HparamsError(refusal(got, "a text with {prompt} and {target}, and no other braces", "Mend it."))


def read_as(cls: type[H], values: Mapping[str, Any], where: str) -> H:
    """Build the settings of one method.

    Args:
        cls: Its dataclass.
        values: Keys and values as read from YAML.
        where: How to name the source in a message.

    Returns:
        The checked settings.

    Raises:
        HparamsError: Faults, all in one message; also values of another method.
    """
    if values.get("method", cls.method) != cls.method:
        message = refusal(f"method {values['method']!r}", cls.method, "Use the reader of that method.")
        raise HparamsError(f"{where}: {message}")
    try:
        return from_mapping(cls, values, where)
    except HparamsError as error:
        text = str(error)
        raise HparamsError(text if text.startswith(where) else f"{where}: {text}") from None


def own(cls: type[A], hparams: Hparams) -> A:
    """The settings as the method's own type.

    Args:
        cls: That type.
        hparams: What a caller passed.

    Returns:
        The same settings.

    Raises:
        HparamsError: They are those of another method.
    """
    if not isinstance(hparams, cls):
        got = type(hparams).__name__
        raise HparamsError(refusal(got, cls.__name__, f"Read the file with method: {cls.method}."))
    return hparams
