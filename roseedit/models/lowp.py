"""Run a model's matrix products in bfloat16 while everything else stays in float32.

On processors that multiply bfloat16 natively this is about four times faster than float32. Autocast would be the
obvious tool; it casts the frozen weights anew in every pass and moves the attention kernel to bfloat16 too, whose
backward pass is several times slower for short rows. Here the weights are cast once and only products change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from roseedit.models.anatomy import Anatomy
from roseedit.models.load import LoadedModel

ARITHMETIC = ("auto", "weights", "bfloat16")


class Bfloat16Products:
    """bfloat16 copies of the projections from one layer up and of the head.

    Args:
        model: The model, weights in float32 and frozen.
        anatomy: Its parts.
        layer: First layer that gets copies.
    """

    def __init__(self, model: Any, anatomy: Anatomy, layer: int) -> None:
        upper = [p for p in anatomy.projections if p.layer >= layer]
        named = [(p.module_name, p.transposed) for p in upper] + [(anatomy.head, False)]
        modules = [(model.get_submodule(name), transposed) for name, transposed in named]
        self.forwards = [(module, Bfloat16Product(module, transposed)) for module, transposed in modules]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block the modules multiply in bfloat16; input and output keep their dtype."""
        try:
            for module, forward in self.forwards:
                module.forward = forward
            yield
        finally:
            for module, _ in self.forwards:
                module.__dict__.pop("forward", None)


class Bfloat16Product:
    """Stands in for a linear module's forward.

    Args:
        module: The module, its weight frozen.
        transposed: The weight is (d_in, d_out).

    Attributes:
        weight: (d_out, d_in), bfloat16.
        bias: (d_out,) in its own dtype, or None.
    """

    def __init__(self, module: Any, transposed: bool) -> None:
        weight: Tensor = module.weight.detach()
        self.weight = (weight.t() if transposed else weight).to(torch.bfloat16).contiguous()
        self.bias: Tensor | None = module.bias

    def __call__(self, x: Tensor) -> Tensor:
        """As `low_product`."""
        return low_product(x, self.weight, self.bias)


def low_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear map multiplied in the dtype of its weight.

    Args:
        x: (..., d_in).
        weight: (d_out, d_in).
        bias: (d_out,) or None.

    Returns:
        (..., d_out), in the dtype of `x`.
    """
    out = nn.functional.linear(x.to(weight.dtype), weight).to(x.dtype)
    return out if bias is None else out + bias


def native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones on this device.

    Args:
        device: The device.

    Returns:
        True for AVX512-BF16 or AMX processors, and for GPUs with bfloat16.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def products_in(loaded: LoadedModel, wanted: str, layer: int = 0) -> Callable[[], AbstractContextManager[None]]:
    """The arithmetic of training.

    Args:
        loaded: The model, its weights frozen as long as the result is used.
        wanted: `"weights"` for the weights' own, `"bfloat16"`, or `"auto"`: bfloat16 where the processor multiplies it
            natively. Weights that are not float32 keep their own.
        layer: First layer concerned.

    Returns:
        Makes a context inside which the model's products run so.
    """
    is_float = loaded.model.dtype == torch.float32
    if is_float and (wanted == "bfloat16" or (wanted == "auto" and native_bfloat16(loaded.device))):
        return Bfloat16Products(loaded.model, loaded.anatomy, layer).active
    return nullcontext
