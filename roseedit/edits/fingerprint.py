"""Which base model an edit belongs to."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from roseedit.edits.live import live_edits
from roseedit.models.load import LoadedModel

_IRRELEVANT = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation_autoset")
_SERVED: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], str]] = weakref.WeakKeyDictionary()
SAMPLED = 8  # values per parameter


def base_fingerprint(loaded: LoadedModel, weight_names: Iterable[str]) -> str:
    """Hash of a base model as far as an edit is concerned, whatever is applied to it right now.

    Args:
        loaded: The model.
        weight_names: The matrices that the edit changes.

    Returns:
        64 hex digits over the configuration, the vocabulary, and names, shapes, dtypes and unedited bytes of these
        matrices.
    """
    digest = _of_the_config(loaded)
    live = live_edits(loaded.model)
    for name in sorted(weight_names):
        weight = live.pristine(name)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_bytes(weight))
    return digest.hexdigest()


def served_fingerprint(loaded: LoadedModel) -> str:
    """Hash of a model as it is served right now, live edits included.

    The parameters are hashed again only after one of them was replaced or written to. Writes through `.data` are not
    counted by torch; a few values of each parameter are compared to notice those that change many entries.

    Args:
        loaded: The model.

    Returns:
        64 hex digits over the configuration, the vocabulary, and names, shapes, dtypes and bytes of all parameters.
    """
    state = tuple((name, p.data_ptr(), p._version, _some_values(p)) for name, p in loaded.model.named_parameters())
    known = _SERVED.get(loaded.model)
    if known is not None and known[0] == state:
        return known[1]
    digest = _of_the_config(loaded)
    for name, weight in sorted(loaded.model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_bytes(weight))
    _SERVED[loaded.model] = (state, digest.hexdigest())
    return digest.hexdigest()


def _some_values(weight: Tensor) -> tuple[float, ...]:
    flat = weight.detach().view(-1) if weight.is_contiguous() else weight.detach().reshape(-1)
    return tuple(flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].tolist())


def _of_the_config(loaded: LoadedModel) -> hashlib._Hash:
    digest = hashlib.sha256()
    config = {k: v for k, v in loaded.model.config.to_dict().items() if k not in _IRRELEVANT}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(json.dumps(sorted(loaded.tokenizer.get_vocab().items())).encode())
    return digest


def _bytes(weight: Tensor) -> bytes:
    return weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
