"""Text to token ids, with the boundary between prompt and answer where it really is.

Prompt, separator and target are tokenised in one go and the boundary is found by character offsets: tokenising the
prompt alone and counting goes wrong whenever a token spans the boundary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.errors import ModelError, RequestError, refusal
from roseedit.requests import answer_separator

ENOUGH_TOKENS = 256  # a pass this large keeps a processor busy; from here on padding costs more than another pass


@dataclass(frozen=True)
class Encoded:
    """Token ids with the index of the first target token.

    Attributes:
        ids: All tokens, prompt first.
        start: Index of the first target token; `len(ids)` when there is no target.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def target(self) -> tuple[int, ...]:
        """The target's tokens."""
        return self.ids[self.start :]


def encode_prompt(tokenizer: Any, prompt: str) -> Encoded:
    """Encode a prompt without a target, special tokens by the tokenizer's own rule.

    Args:
        tokenizer: A Hugging Face tokenizer.
        prompt: The text.

    Returns:
        The tokens; `start` is their number.
    """
    ids = _without_end_mark(tokenizer, tokenizer(prompt)["input_ids"])
    return Encoded(ids, len(ids))


def encode_pair(tokenizer: Any, prompt: str, target: str, *, end_mark: bool = False) -> Encoded:
    """Encode a prompt with its target.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        prompt: Text before the answer.
        target: The answer; a separating space is added unless either side has one.
        end_mark: Append the tokenizer's end-of-sequence token to the target.

    Returns:
        The tokens and the index of the first one that reaches beyond the prompt.

    Raises:
        ModelError: The tokenizer gives no character offsets.
        RequestError: The first token spans the boundary, so nothing precedes the target.
    """
    if not getattr(tokenizer, "is_fast", False):
        message = refusal("a tokenizer without character offsets", "a fast tokenizer", "Load it with use_fast=True.")
        raise ModelError(message)
    text = prompt + answer_separator(prompt, target) + target
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = _without_end_mark(tokenizer, encoded["input_ids"])
    beyond = (i for i, (_, end) in enumerate(encoded["offset_mapping"][: len(ids)]) if end > len(prompt))
    start = next(beyond, len(ids))
    if start == 0:
        message = refusal(f"the prompt {prompt!r}, which has no token of its own", "a longer prompt", "Add a word.")
        raise RequestError(message)
    return Encoded((*ids, tokenizer.eos_token_id) if end_mark else ids, start)


def ends_of(tokenizer: Any, text: str, part: str) -> tuple[int, ...]:
    """Where a part of a text ends, by token.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        text: The text.
        part: What to look for in it; all its occurrences count.

    Returns:
        Indices of the tokens that have its last character, rising.
    """
    last = [found.end() - 1 for found in re.finditer(re.escape(part), text)]
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return tuple(i for i, (start, end) in enumerate(offsets) if any(start <= at < end for at in last))


def _without_end_mark(tokenizer: Any, ids: Sequence[int]) -> tuple[int, ...]:
    """Some tokenizers append an end mark of their own, which would end the prompt before the answer."""
    ids = tuple(ids)
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack rows of unequal length.

    Args:
        rows: Token ids per row.
        pad_id: Fills up the short rows; never looked at, the mask says where.
        device: Where to put the result.

    Returns:
        ids and attention mask, both (rows, tokens).
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group rows of similar length, so that little is padded.

    Args:
        lengths: Tokens per row.
        max_tokens: Most tokens, padding included, in one batch.

    Returns:
        Row indices per batch, longest rows first; a single row longer than `max_tokens` gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        longest = lengths[batches[-1][0]] if batches else 0
        padded = (len(batches[-1]) + 1) * longest if batches else 0
        wasteful = padded > ENOUGH_TOKENS and lengths[i] < 0.8 * longest
        if batches and padded <= max_tokens and not wasteful:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
