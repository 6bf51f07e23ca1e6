"""How much fits into memory, and going on with less when it did not."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil
import torch

from roseedit.errors import CapacityError, refusal
from roseedit.models.anatomy import Projection
from roseedit.models.load import LoadedModel
from roseedit.roselora.config import RoseLoRAHparams

COPIES_OF_FACTORS = 6  # factor, gradient, two moments, importance, one temporary
SHARE = 0.25  # of the free memory, for the factors and for the passes each
MOST_TOKENS = {"cpu": 512}  # in one pass: what is live between two layers then stays in a core's cache
R = TypeVar("R")
logger = logging.getLogger(__name__)


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken: of a GPU, else of the machine.

    Args:
        device: Where the work is to run.

    Returns:
        Bytes, what PyTorch holds of a GPU for later use included.
    """
    if device.type != "cuda":
        return psutil.virtual_memory().available
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def bank_size(loaded: LoadedModel, projections: Sequence[Projection], hparams: RoseLoRAHparams, n: int) -> int:
    """How many edits fit side by side.

    Args:
        loaded: The model.
        projections: The adapted matrices.
        hparams: The settings; `edits_per_bank` above 0 is taken as it is.
        n: How many are wanted.

    Returns:
        At least 1, at most `n`.
    """
    if hparams.edits_per_bank:
        return min(n, hparams.edits_per_bank)
    per_edit = sum(p.d_in + p.d_out for p in projections) * hparams.rank * 4 * COPIES_OF_FACTORS
    keys = hparams.n_anchors
    per_edit += sum(p.d_in for p in projections) * keys * hparams.preserve_tokens * 4 if hparams.preserve_weight else 0
    return max(1, min(n, 128, int(free_memory(loaded.device) * SHARE // per_edit)))


def pass_tokens(loaded: LoadedModel, projections: Sequence[Projection], hparams: RoseLoRAHparams) -> int:
    """Most tokens in one pass, from what autograd keeps of each.

    Args:
        loaded: The model.
        projections: The adapted matrices.
        hparams: The settings; `batch_tokens` above 0 is taken as it is.

    Returns:
        Tokens, padding included.
    """
    if hparams.batch_tokens:
        return hparams.batch_tokens
    layers = loaded.anatomy.n_layers - min(p.layer for p in projections)
    inner = max(p.d_in + p.d_out for p in loaded.anatomy.projections)
    kept_per_token = layers * inner * 4 * 6
    most = MOST_TOKENS.get(loaded.device.type, 2048)
    return int(max(256, min(most, free_memory(loaded.device) * SHARE // kept_per_token)))


def trim_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc).

    It keeps what is freed in pieces for later; passes of many sizes leave so many that they come to half of a small
    model's weights.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def within_memory(attempt: Callable[[int], R], tokens: int, least: int) -> R:
    """Try with ever smaller passes until one fits into memory.

    Args:
        attempt: Does the work with passes of at most that many tokens; starts from scratch each time.
        tokens: Passes of the first attempt.
        least: The longest row; a pass cannot be smaller.

    Returns:
        What `attempt` returned.

    Raises:
        CapacityError: Not even one row fits.
    """
    while True:
        try:
            return attempt(tokens)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        if tokens <= least:
            message = refusal("too little memory for one row", f"room for {least} tokens", "Use a smaller model.")
            raise CapacityError(message)
        tokens = max(least, tokens // 2)
        logger.warning("out of memory; going on with %d tokens per pass", tokens)


def _out_of_memory(error: Exception) -> bool:
    said = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in said)
