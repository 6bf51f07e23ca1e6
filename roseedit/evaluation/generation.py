"""Greedy generation in batches: what the model really says, and why it stopped.

Prompts of unequal length share a batch, padded on the right with explicit positions; rows that are done leave the
batch. The model's own generation settings are ignored, so that every model is asked in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from roseedit.errors import RequestError, refusal
from roseedit.evaluation.prompts import STOP_STRINGS, Generated, PromptBatch, RowEdits
from roseedit.evaluation.scoring import BATCH_TOKENS, Progress
from roseedit.models.encoding import encode_prompt, plan_batches
from roseedit.models.load import LoadedModel

MAX_NEW_TOKENS = 32


@torch.no_grad()
def generate(
    loaded: LoadedModel,
    prompts: Sequence[str],
    *,
    edits: RowEdits | None = None,
    rows: Sequence[int] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    stop_strings: Sequence[str] = STOP_STRINGS,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> list[Generated]:
    """Continue prompts greedily until the model stops.

    Args:
        loaded: The model.
        prompts: The prompts, used as they are.
        edits: Edits that rows may carry.
        rows: Per prompt the index of its edit, -1 for none.
        max_new_tokens: Most new tokens.
        stop_strings: Texts that end an answer beside the end mark.
        batch_tokens: Most tokens in one batch, new ones included.
        progress: Called with the number of prompts just done.

    Returns:
        One continuation per prompt, in order. A row that reaches the model's window stops there with `"cap"`.

    Raises:
        RequestError: An empty prompt, one that fills the window, or `max_new_tokens` below 1.
    """
    if max_new_tokens < 1:
        raise RequestError(refusal(f"max_new_tokens {max_new_tokens}", "1 or more", "Raise it."))
    encoded = [encode_prompt(loaded.tokenizer, prompt).ids for prompt in prompts]
    check_lengths(prompts, encoded, loaded.anatomy.window)
    out: list[Generated | None] = [None] * len(prompts)
    for batch in plan_prompts(loaded, [len(ids) for ids in encoded], max_new_tokens, batch_tokens):
        own = [rows[i] for i in batch] if rows is not None else None
        asked = PromptBatch(loaded, [encoded[i] for i in batch], edits, own, stop_strings)
        for i, result in zip(batch, asked.finish(max_new_tokens), strict=True):
            out[i] = result
        if progress:
            progress(len(batch))
    return [result for result in out if result is not None]


def check_lengths(prompts: Sequence[str], encoded: Sequence[Sequence[int]], window: int) -> None:
    """Refuse prompts to which a model can say nothing.

    Args:
        prompts: The prompts.
        encoded: Their token ids.
        window: Most tokens the model can see.

    Raises:
        RequestError: An empty prompt, or one that fills the window.
    """
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not 0 < len(ids) < window:
            message = refusal(f"a prompt of {len(ids)} tokens ({prompt[:40]!r})", f"1 to {window - 1}", "Change it.")
            raise RequestError(message)


def plan_prompts(loaded: LoadedModel, lengths: list[int], new: int, batch_tokens: int) -> list[list[int]]:
    """Batches by length. Padding would shift a sliding window, so beyond it only equal lengths share a batch.

    Args:
        loaded: The model.
        lengths: Tokens of each prompt.
        new: Most tokens that follow one.
        batch_tokens: Most tokens in a batch, new ones included.

    Returns:
        Indices of the prompts per batch.
    """
    window = getattr(loaded.model.config.get_text_config(), "sliding_window", None)
    batches = plan_batches([n + new for n in lengths], batch_tokens)
    if not window or max(lengths, default=0) + new <= window:
        return batches
    return [[i for i in batch if lengths[i] == n] for batch in batches for n in sorted({lengths[i] for i in batch})]
