"""Which base model an edit belongs to."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roseedit.edits.live import live_edits
from roseedit.models.load import LoadedModel

_IRRELEVANT = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation_autoset")


@dataclass(frozen=True)
class _Known:
    """A fingerprint, and what must still be the same for it to hold: objects by identity, and counts of writes."""

    weights: tuple[weakref.ref[nn.Parameter], ...]
    stamps: tuple[Any, ...]
    tokenizer: Any
    n_tokens: int
    config: str
    fingerprint: str

    def holds(self, loaded: LoadedModel, stamps: tuple[Any, ...], names: Iterable[str], config: str) -> bool:
        """True when nothing but edits can have written to the weights since."""
        same = all(r() is loaded.model.get_parameter(name) for r, name in zip(self.weights, names, strict=True))
        unchanged = None not in stamps and self.stamps == stamps and self.config == config
        return same and unchanged and self.tokenizer is loaded.tokenizer and self.n_tokens == len(loaded.tokenizer)


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, ...], _Known]] = weakref.WeakKeyDictionary()


def base_fingerprint(loaded: LoadedModel, weight_names: Iterable[str]) -> str:
    """Hash of a base model as far as an edit is concerned, whatever is applied to it right now.

    The hash is kept until something other than an edit writes to one of these matrices (`LiveEdits.stamp`).

    Args:
        loaded: The model.
        weight_names: The matrices that the edit changes.

    Returns:
        64 hex digits over the configuration, the vocabulary, and names, shapes, dtypes and unedited bytes of these
        matrices.
    """
    names = tuple(sorted(weight_names))
    live, config = live_edits(loaded.model), _config_text(loaded)
    stamps = tuple(live.stamp(name) for name in names)
    known = _KNOWN.setdefault(loaded.model, {})
    if names in known and known[names].holds(loaded, stamps, names, config):
        return known[names].fingerprint
    found = _hashed(loaded, names, config)
    weights = tuple(weakref.ref(loaded.model.get_parameter(name)) for name in names)
    known[names] = _Known(weights, stamps, loaded.tokenizer, len(loaded.tokenizer), config, found)
    return found


def _config_text(loaded: LoadedModel) -> str:
    config = {k: v for k, v in loaded.model.config.to_dict().items() if k not in _IRRELEVANT}
    return json.dumps(config, sort_keys=True, default=str)


def _hashed(loaded: LoadedModel, names: tuple[str, ...], config: str) -> str:
    digest = hashlib.sha256(config.encode())
    digest.update(json.dumps(sorted(loaded.tokenizer.get_vocab().items())).encode())
    live = live_edits(loaded.model)
    for name in names:
        weight = live.pristine(name)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_bytes(weight))
    return digest.hexdigest()


def _bytes(weight: Tensor) -> bytes:
    return weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
