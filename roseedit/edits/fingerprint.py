"""Which base model an edit belongs to.

A fingerprint has three parts, so that a refusal can say which one differs: the configuration, the tokenizer, and the
bytes of the edited matrices. A strict one has a fourth: the bytes of every weight. What is hashed is meant to outlive
versions of libraries: of the configuration only what differs from its defaults, of the tokenizer its vocabulary and
what it makes of one fixed text.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.edits.live import live_edits
from roseedit.errors import RecordError, refusal
from roseedit.models.load import LoadedModel

# Neither changes what the model computes, or it is the tokenizer's business.
_IRRELEVANT = {"transformers_version", "dtype", "torch_dtype", "architectures", "use_cache", "return_dict"}
_IRRELEVANT |= {"pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "initializer_range", "pretraining_tp"}
_IRRELEVANT_V1 = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation_autoset")
_PROBE = "The naïve Łódź café's 1,234.5 kg: don't\n\tHELLO  world 東京 Здравствуйте 🗼 def f(x): return x**2"
_DIGITS = 32
SAMPLED = 8  # values per parameter that tell whether it was written to

_weights: weakref.WeakKeyDictionary[Any, dict[str, tuple[bytes, str]]] = weakref.WeakKeyDictionary()
_served: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, ...], str]] = weakref.WeakKeyDictionary()
_configs: weakref.WeakKeyDictionary[Any, tuple[str, str]] = weakref.WeakKeyDictionary()
_vocabularies: weakref.WeakKeyDictionary[Any, tuple[tuple[int, int], str]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Fingerprint:
    """A base model as far as an edit is concerned.

    Attributes:
        config: 32 hex digits over the configuration.
        tokenizer: The same over the tokenizer.
        weights: The same over names, shapes, dtypes and unedited bytes of the edited matrices.
        everything: The same over all weights, of a strict fingerprint only.
    """

    config: str
    tokenizer: str
    weights: str
    everything: str | None = None

    def __str__(self) -> str:
        parts = [self.config, self.tokenizer, self.weights]
        return ":".join(parts if self.everything is None else [*parts, self.everything])

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """The inverse of `str`.

        Args:
            text: Three or four groups of hex digits with colons between them.

        Returns:
            The fingerprint.

        Raises:
            RecordError: Something else.
        """
        parts = text.split(":")
        if len(parts) not in (3, 4) or not all(
            len(p) == _DIGITS and not set(p) - set("0123456789abcdef") for p in parts
        ):
            message = refusal(
                f"the fingerprint {text[:80]!r}", "three or four groups of 32 hex digits", "Copy it anew."
            )
            raise RecordError(message)
        return cls(*parts)


def base_fingerprint(loaded: LoadedModel, weight_names: Iterable[str], *, strict: bool = False) -> str:
    """Fingerprint of a base model, whatever is applied to it right now.

    Args:
        loaded: The model.
        weight_names: The matrices that the edit changes.
        strict: Hash every weight of the model too, about a second per gigabyte.

    Returns:
        `str` of a `Fingerprint`.
    """
    weights = _short(*(_weight_digest(loaded.model, name) for name in sorted(weight_names)))
    everything = _everything(loaded.model) if strict else None
    config, tokenizer = _config_of(loaded.model), tokenizer_digest(loaded.tokenizer)
    return str(Fingerprint(config, tokenizer, weights, everything))


def served_fingerprint(loaded: LoadedModel) -> str:
    """Fingerprint of a model as it is served right now, live edits included.

    The parameters are hashed again only after one of them was replaced or written to. Writes through `.data` are not
    counted by torch; a few values of each parameter are compared to notice those that change many entries.

    Args:
        loaded: The model.

    Returns:
        64 hex digits over the configuration, the tokenizer, and names, shapes, dtypes and bytes of all parameters.
    """
    weights = sorted(loaded.model.named_parameters())
    state = tuple((name, p.data_ptr(), p._version, _some_values(p)) for name, p in weights)
    known = _served.get(loaded.model)
    if known is None or known[0] != state:
        parts = (part for name, p in weights for part in (f"{name} {tuple(p.shape)} {p.dtype}", _bytes(p)))
        known = _served[loaded.model] = (state, _short(*parts))
    named = (_config_of(loaded.model), tokenizer_digest(loaded.tokenizer), known[1])
    return hashlib.sha256(":".join(named).encode()).hexdigest()


def _some_values(weight: Tensor) -> tuple[float, ...]:
    flat = weight.detach().view(-1) if weight.is_contiguous() else weight.detach().reshape(-1)
    return tuple(flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].tolist())


def config_digest(config: Any) -> str:
    """Hash of a configuration: all that differs from the defaults of its class and changes what is computed.

    Args:
        config: A transformers configuration.

    Returns:
        32 hex digits.
    """
    values = config.to_diff_dict() if hasattr(config, "to_diff_dict") else config.to_dict()
    kept = {k: v for k, v in values.items() if k not in _IRRELEVANT and not k.startswith("_")}
    return _short(json.dumps(kept, sort_keys=True, default=str))


def _config_of(model: Any) -> str:
    """The digest of a model's configuration, found anew when any of its values has changed."""
    state = repr(sorted(vars(model.config).items(), key=lambda item: item[0]))
    known = _configs.get(model)
    if known is None or known[0] != state:
        known = _configs[model] = (state, config_digest(model.config))
    return known[1]


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash of a tokenizer: its vocabulary, and the ids that it gives one text full of special cases.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Returns:
        32 hex digits.
    """
    return _short(_vocabulary(tokenizer), json.dumps(list(tokenizer(_PROBE)["input_ids"])))


def _vocabulary(tokenizer: Any) -> str:
    """Hashing 50,000 words takes a third of a second: once per tokenizer, and again when it has grown."""
    state = (len(tokenizer), id(getattr(tokenizer, "_tokenizer", None)))
    known = _vocabularies.get(tokenizer)
    if known is None or known[0] != state:
        words = json.dumps(sorted(tokenizer.get_vocab().items()))
        known = _vocabularies[tokenizer] = (state, _short(words))
    return known[1]


def _weight_digest(model: Any, name: str) -> str:
    """Hash of one unedited matrix, kept together with sums that change as soon as any byte does."""
    weight = live_edits(model).pristine(name)
    sums = _sums(weight)
    known = _weights.setdefault(model, {})
    if name not in known or known[name][0] != sums:
        known[name] = (sums, _short(f"{name} {tuple(weight.shape)} {weight.dtype}", _bytes(weight)))
    return known[name][1]


def _sums(weight: Tensor) -> bytes:
    """Row sums and column sums of the raw bytes, read as integers: forty times as fast as SHA-256.

    They tell whether the same tensor still holds what was hashed; they are no replacement for the hash.
    """
    raw = weight.detach().contiguous()
    head = f"{raw.dtype} {tuple(raw.shape)} ".encode()
    words = raw.view(torch.uint8).reshape(raw.shape[0], -1)
    wide = words.view(torch.int64) if words.shape[1] % 8 == 0 else words.long()
    return head + b"".join(wide.sum(axis).cpu().numpy().tobytes() for axis in (0, 1))


def _everything(model: Any) -> str:
    """Parameters and persistent buffers, by name, one at a time; a tied weight counts once."""
    digest = hashlib.sha256()
    live = live_edits(model)
    names = [name for name, _ in model.named_parameters()]
    buffers = {name: b for name, b in model.named_buffers() if name in model.state_dict()}
    for name in sorted([*names, *buffers]):
        weight = buffers[name] if name in buffers else live.pristine(name)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_bytes(weight))
    return digest.hexdigest()[:_DIGITS]


def matches_format_1(loaded: LoadedModel, weight_names: Iterable[str], fingerprint: str) -> bool:
    """Whether a model is the base of an edit of file format 1, whose fingerprint was a single hash.

    Args:
        loaded: The model.
        weight_names: The matrices that the edit changes.
        fingerprint: 64 hex digits.

    Returns:
        True when it is. A newer transformers may add keys to the configuration and make this False.
    """
    digest = hashlib.sha256()
    config = {k: v for k, v in loaded.model.config.to_dict().items() if k not in _IRRELEVANT_V1}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(json.dumps(sorted(loaded.tokenizer.get_vocab().items())).encode())
    live = live_edits(loaded.model)
    for name in sorted(weight_names):
        weight = live.pristine(name)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_bytes(weight))
    return digest.hexdigest() == fingerprint


def _short(*parts: str | bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:_DIGITS]


def _bytes(weight: Tensor) -> memoryview:
    raw = weight.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return memoryview(raw.numpy())  # type: ignore[arg-type]
