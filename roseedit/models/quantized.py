"""A base in 4 bit, but for the layers that edits write to.

bitsandbytes stores a matrix as indices into 16 levels with a scale per 64 values (NF4, arXiv 2305.14314). Such bytes
cannot take an edit and give it back bit for bit, so the layers that the settings name keep their own precision, and so
do embeddings and head. An edit made on such a base belongs to it: its fingerprint tells it from the full one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from roseedit.errors import ExportError, ModelError, refusal
from roseedit.models.anatomy import Anatomy, find_anatomy

KINDS = ("nf4",)
Whole = Callable[[Anatomy], Sequence[int]]


def quantization(source: str, whole: Whole, dtype: Any, **options: Any) -> Any:
    """What transformers is told, from the model's outline alone: no weight is read.

    Args:
        source: Hub id or folder.
        whole: From the anatomy the layers that keep their precision.
        dtype: Of the products, and of all that is not quantised.
        **options: `anatomy`; `revision`, `trust_remote_code` and `local_files_only` for the configuration.

    Returns:
        A `BitsAndBytesConfig`.

    Raises:
        ModelError: bitsandbytes is missing, or all layers would stay whole.
    """
    if find_spec("bitsandbytes") is None:
        do = "pip install 'roseedit[4bit]', or leave `quantize` out."
        raise ModelError(refusal("quantize: nf4 without bitsandbytes", "an environment that has it", do))
    from transformers import BitsAndBytesConfig

    anatomy = outline(source, options.pop("anatomy", None), **options)
    layers = sorted(set(whole(anatomy)))
    if len(layers) == anatomy.n_layers:
        do = "Name fewer `layers`, or leave `quantize` out."
        raise ModelError(refusal("edits that may write to every layer", "a layer that can be quantised", do))
    kept = [f"{anatomy.layers_name}.{layer}" for layer in layers]
    compute = torch.bfloat16 if dtype == "auto" else dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=[*kept, anatomy.head],
    )


def outline(source: str, anatomy: Any = None, **options: Any) -> Anatomy:
    """The parts of a model that is not loaded.

    Args:
        source: Hub id or folder.
        anatomy: Overrides for `find_anatomy`.
        **options: For its configuration.

    Returns:
        Its anatomy; `tied` and `layer_returns_tuple` say nothing here.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, **options)
    with torch.device("meta"):
        remote = bool(options.get("trust_remote_code"))
        return find_anatomy(AutoModelForCausalLM.from_config(config, trust_remote_code=remote), anatomy)


def settled(model: Any) -> None:
    """See to it that a packed model stays as it was read.

    On some processors bitsandbytes repacks a matrix when it is first used, for a product that has no gradient: the
    bytes of the base would change, and nothing could be learned through its layers.

    Args:
        model: Any model.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def refuse_packed(anatomy: Anatomy) -> None:
    """Refuse to write a checkpoint of a model whose matrices are packed.

    Args:
        anatomy: The model's parts.

    Raises:
        ExportError: They are.
    """
    if any(p.packed for p in anatomy.projections):
        do = "Export an adapter (`--to peft`) or a patch, or make the edit on the full model."
        raise ExportError(refusal("a base in 4 bit", "one in floating point", do))
