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
    """bfloat16 copies of the projections of some layers, and of the head; what is packed stays as it is.

    Args:
        model: The model, weights in float32 and frozen.
        anatomy: Its parts.
        layers: The layers that get copies.
        head: Whether the head gets one.
    """

    def __init__(self, model: Any, anatomy: Anatomy, layers: range, *, head: bool = True) -> None:
        named = [(p.module_name, p.transposed) for p in anatomy.projections if p.layer in layers and not p.packed]
        if head:
            named.append((anatomy.head, False))
        modules = [(model.get_submodule(name), transposed) for name, transposed in named]
        sizes = [module.weight.numel() for module, _ in modules]
        # One piece of memory goes back to the system as a whole; many small ones would stay with the process.
        room = torch.empty(sum(sizes), dtype=torch.bfloat16, device=model.device).split(sizes)
        self.forwards = [(m, Bfloat16Product(m, t, own)) for (m, t), own in zip(modules, room, strict=True)]

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
        room: (d_out x d_in,), where the copy goes.

    Attributes:
        weight: (d_out, d_in), bfloat16.
        bias: (d_out,) in its own dtype, or None.
    """

    def __init__(self, module: Any, transposed: bool, room: Tensor) -> None:
        weight: Tensor = module.weight.detach()
        weight = weight.t() if transposed else weight
        self.weight = room.view(weight.shape).copy_(weight)
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
    rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
    out = nn.functional.linear(filled_up(rows), weight)[: len(rows)].to(x.dtype).view(*x.shape[:-1], -1)
    return out if bias is None else out + bias


def filled_up(rows: Tensor) -> Tensor:
    """Rows of zeros added up to a usual number.

    Args:
        rows: (n, d).

    Returns:
        (`usual_rows(n)`, d) on a processor; the same rows elsewhere.
    """
    if rows.device.type != "cpu":
        return rows
    return nn.functional.pad(rows, (0, 0, 0, usual_rows(len(rows)) - len(rows)))


def usual_rows(n: int) -> int:
    """The next size that products are made in on a processor.

    oneDNN keeps code and scratch memory, a third of a megabyte, for each shape it meets, and passes come in hundreds.

    Args:
        n: Rows wanted.

    Returns:
        As many, or a few more.
    """
    step = 8 if n <= 64 else 64
    return -(-n // step) * step


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


def products_in(
    loaded: LoadedModel, wanted: str, layer: int = 0, until: int | None = None
) -> Callable[[], AbstractContextManager[None]]:
    """The arithmetic of training.

    Args:
        loaded: The model, its weights frozen as long as the result is used.
        wanted: `"weights"` for the weights' own, `"bfloat16"`, or `"auto"`: bfloat16 where the processor multiplies it
            natively. Weights that are not float32 keep their own.
        layer: First layer concerned.
        until: First one that is not; left out: all, and the head.

    Returns:
        Makes a context inside which the model's products run so.
    """
    if products_are_low(loaded, wanted):
        layers = range(layer, loaded.anatomy.n_layers if until is None else until)
        return Bfloat16Products(loaded.model, loaded.anatomy, layers, head=until is None).active
    return nullcontext


def products_are_low(loaded: LoadedModel, wanted: str) -> bool:
    """Whether `products_in` works on copies.

    Args:
        loaded: The model.
        wanted: As there.

    Returns:
        True when the weights are float32 and bfloat16 is asked for, or `"auto"` and fast.
    """
    is_float = loaded.model.dtype == torch.float32
    return is_float and (wanted == "bfloat16" or (wanted == "auto" and native_bfloat16(loaded.device)))
