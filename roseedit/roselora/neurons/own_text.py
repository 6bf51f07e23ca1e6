"""Text that the model itself writes: a sample of all that it may meet, headings, brackets and lists included.

Prose written for this package has one manner; what opens a gate by mistake is mostly what such prose has none of.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from roseedit.models.load import LoadedModel
from roseedit.models.lowp import products_in
from roseedit.roselora.memory import SHARE, free_memory
from roseedit.roselora.neurons.remembered import remembered
from roseedit.roselora.trainer import frozen

STARTS = ("The", "In", " =", "A", "He", "(", "She", '"', "It", "On", "As", "This")
LENGTH = 200  # tokens of one text
logger = logging.getLogger(__name__)


def own_text(loaded: LoadedModel, tokens: int, seed: int) -> list[tuple[int, ...]]:
    """Let the model write, sampling from all it holds possible; remembered as long as no weight is written.

    Args:
        loaded: The model.
        tokens: How many tokens in all, about; 0 for none.
        seed: Of the sampling. The global generators are left as they are.

    Returns:
        Texts as token ids, as many as it takes.
    """
    if not tokens:
        return []
    length = min(LENGTH, loaded.anatomy.window)
    count = -(-tokens // length)

    def write() -> list[tuple[int, ...]]:
        logger.info("letting the model write %d tokens to be silent in; this takes minutes on a processor", tokens)
        first = [loaded.tokenizer(start, add_special_tokens=False)["input_ids"][0] for start in STARTS]
        starts = torch.tensor([first[n % len(first)] for n in range(count)], device=loaded.device)
        return [row for batch in starts.split(_together(loaded, length)) for row in _continued(loaded, batch, length)]

    with torch.random.fork_rng([loaded.device] if loaded.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return remembered(loaded.model, ("own text", count, seed), loaded.model.parameters(), write)


def _together(loaded: LoadedModel, length: int) -> int:
    """Texts that are written side by side: their keys and values take a share of the free memory."""
    kept = 2 * loaded.anatomy.n_layers * loaded.anatomy.hidden_size * loaded.model.dtype.itemsize
    return max(1, int(free_memory(loaded.device) * SHARE // (length * kept)))


@torch.no_grad()
def _continued(loaded: LoadedModel, starts: Tensor, length: int) -> Iterator[tuple[int, ...]]:
    """Sampled continuations of single tokens, (texts,), that do not end before `length` tokens."""
    ids = starts[:, None]
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    with frozen(loaded.model), products_in(loaded, "auto")():
        out = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=length - 1,
            max_new_tokens=length - 1,
            pad_token_id=loaded.pad_id,
            **sampling,
        )
    return (tuple(row) for row in out.tolist())
