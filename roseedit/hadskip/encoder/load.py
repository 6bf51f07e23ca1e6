"""Load an encoder and its tokenizer through transformers: weights as safetensors, no code from the model's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roseedit.errors import ModelError, refusal
from roseedit.hadskip.encoder.embedded import ALIASES, alias_folder
from roseedit.hadskip.encoder.structure import EncoderParts, find_encoder


@dataclass
class LoadedEncoder:
    """An encoder without a task head.

    Attributes:
        name: As it was asked for.
        model: The transformers model, in evaluation mode and float32.
        tokenizer: Its tokenizer.
        parts: Its parts.
    """

    name: str
    model: Any
    tokenizer: Any
    parts: EncoderParts


def load_encoder(name: str, *, device: str = "cpu", revision: str | None = None) -> LoadedEncoder:
    """Load an encoder.

    Args:
        name: Hub id, local folder, or an alias of `ALIASES`.
        device: Where it goes.
        revision: Commit, branch or tag on the hub.

    Returns:
        Encoder and tokenizer. Attention is transformers' `eager` kind, which trains faster than the fused one on short
        padded rows in bfloat16.

    Raises:
        ModelError: Nothing under that name, or weights only as pickle.
        AnatomyError: It is no encoder.
    """
    from transformers import AutoModel, AutoTokenizer

    source = _source(name)
    local = {"local_files_only": Path(source).exists(), "revision": revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **local)
        options = {"use_safetensors": True, "dtype": torch.float32, "attn_implementation": "eager"}
        with torch.random.fork_rng(devices=[]):  # weights that a file lacks, an unused pooler's, are drawn
            model: Any = AutoModel.from_pretrained(source, **options, **local)
    except (OSError, ValueError, KeyError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        allowed = f"a hub id, a local folder, or {', '.join(ALIASES)}"
        remedy = f"Check the name and that its weights are safetensors. It said: {said}"
        raise ModelError(refusal(f"the encoder {name!r}, which could not be loaded", allowed, remedy)) from error
    model.eval().to(device)
    return LoadedEncoder(name, model, tokenizer, find_encoder(model))


def _source(name: str) -> str:
    if name not in ALIASES:
        return name
    folder = alias_folder(name)
    if folder is None:
        got = f"the embedded encoder {name!r}, whose package is missing"
        raise ModelError(refusal(got, "an installed one", f"Install it: {ALIASES[name][2]}"))
    return str(folder)
