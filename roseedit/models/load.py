"""One way to get a model: hub id, local folder, GGUF file or embedded alias."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from roseedit.errors import ModelError, refusal
from roseedit.models.anatomy import Anatomy, find_anatomy
from roseedit.models.embedded import EMBEDDED, embedded_folder, load_gguf
from roseedit.models.quantized import KINDS, Whole, quantization, settled

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
logger = logging.getLogger(__name__)


@dataclass
class LoadedModel:
    """A model with everything roseedit needs to know of it.

    Attributes:
        name: What the user called it.
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer, with a pad token.
        anatomy: Its parts.
    """

    name: str
    model: Any
    tokenizer: Any
    anatomy: Anatomy

    @property
    def device(self) -> torch.device:
        """Where the embeddings lie, which is where ids must go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def pad_id(self) -> int:
        """Token id that fills up short rows."""
        return int(self.tokenizer.pad_token_id)

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer: the tokenizer's end mark and those of the model's generation settings."""
        eos = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ends = eos if isinstance(eos, list) else [eos]
        return frozenset({self.tokenizer.eos_token_id, *(end for end in ends if end is not None)})


def wrap_model(
    model: Any, tokenizer: Any, name: str | None = None, anatomy: Mapping[str, str] | None = None
) -> LoadedModel:
    """Make a `LoadedModel` of objects the caller has already.

    Args:
        model: A transformers causal LM; put into evaluation mode.
        tokenizer: Its tokenizer; gets the end mark as pad token if it has none.
        name: What to call it; the model's own path if left out.
        anatomy: Overrides for `find_anatomy`.

    Returns:
        The bundle.

    Raises:
        ModelError: The tokenizer has neither a pad nor an end token, or the anatomy is unknown.
    """
    if tokenizer.eos_token_id is None:
        message = refusal("a tokenizer without an end-of-sequence token", "one that has it", "Set tokenizer.eos_token.")
        raise ModelError(message)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    settled(model.eval())
    return LoadedModel(name or str(model.name_or_path), model, tokenizer, find_anatomy(model, anatomy))


def load_model(
    name: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    anatomy: Mapping[str, str] | None = None,
    quantize: str | None = None,
    whole: Whole = lambda _: (),
) -> LoadedModel:
    """Load a causal LM and its tokenizer.

    Args:
        name: Hub id, local folder, path of a `.gguf` file, or an embedded alias (`roseedit models` lists them).
        dtype: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"` (as stored). Left out: float32 on a CPU, as stored
            elsewhere.
        device: `"cpu"`, `"cuda"`, `"mps"`, ...; left out: a GPU where there is one.
        device_map: Handed to transformers, e.g. `"auto"` for a model that needs several devices.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Allow code from the model's repository to run. Off unless asked.
        anatomy: Overrides for `find_anatomy`.
        quantize: `"nf4"` stores the layers in 4 bit, through bitsandbytes.
        whole: With `quantize`, from the model's anatomy the layers that keep their precision: edits write to no others.

    Returns:
        The bundle, in evaluation mode.

    Raises:
        ModelError: Nothing under that name, weights only as pickle, an unknown dtype or kind of quantisation, or one
            that cannot be done.
    """
    _check_options(name, dtype, quantize)
    place = device or default_device()
    precision = DTYPES[dtype] if dtype else (torch.float32 if place == "cpu" else "auto")
    if name.endswith(".gguf"):
        model, tokenizer = _load_gguf_file(name, precision)
    else:
        source = str(embedded_folder(name)) if name in EMBEDDED else name
        options: dict[str, Any] = {"dtype": precision, "device_map": device_map}
        if quantize:  # what is packed cannot be moved later
            device_map = options["device_map"] = device_map or {"": place}
            options["packing"] = partial(quantization, source, whole, precision, anatomy=anatomy)
        hub = {"revision": revision, "trust_remote_code": trust_remote_code}
        model, tokenizer = _from_pretrained(source, name, hub, **options)
    if device_map is None:
        model.to(place)
    logger.info("loaded %s on %s as %s", name, place, model.dtype)
    return wrap_model(model, tokenizer, name, anatomy)


def _check_options(name: str, dtype: str | None, quantize: str | None) -> None:
    for what, got, allowed in (("dtype", dtype, tuple(DTYPES)), ("quantize", quantize, KINDS)):
        if got is not None and got not in allowed:
            raise ModelError(refusal(f"{what} {got!r}", ", ".join(allowed), "Choose one of them."))
    if quantize and name.endswith(".gguf"):
        do = "Name the model that it was made of, or leave `quantize` out."
        raise ModelError(refusal(f"quantize: {quantize} for a GGUF file", "a hub id, a folder or an alias", do))


def default_device() -> str:
    """`"cuda"` or `"mps"` where there is one, else `"cpu"`."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _load_gguf_file(name: str, precision: Any) -> tuple[Any, Any]:
    if not Path(name).is_file():
        raise ModelError(refusal(f"the GGUF path {name!r}", "a file that exists", "Check the path."))
    model, tokenizer = load_gguf(Path(name))
    return (model if precision == "auto" else model.to(precision)), tokenizer


def _from_pretrained(
    source: str, name: str, hub: Mapping[str, Any], packing: Callable[..., Any] | None = None, **options: Any
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    known = {key: value for key, value in hub.items() if value is not None}
    known["local_files_only"] = Path(source).exists()
    keep = {key: value for key, value in options.items() if value is not None}
    try:
        if packing:
            keep["quantization_config"] = packing(**known)
        tokenizer = AutoTokenizer.from_pretrained(source, **known)
        model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **known, **keep)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError) as error:
        aliases = ", ".join(EMBEDDED)
        remedy = f"Check the name, the network and that its weights are safetensors. It said: {_first_line(error)}"
        allowed = f"a hub id, a local folder, a .gguf file or one of {aliases}"
        raise ModelError(refusal(f"the model {name!r}, which could not be loaded", allowed, remedy)) from error
    return model, tokenizer


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
