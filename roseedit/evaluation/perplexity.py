"""Perplexity of running text: the cheapest sign that a model has lost more than a fact.

A window of fixed length slides over the text; each token is predicted once, from at least `context - stride` tokens
before it (fewer only at the text's start). Figures with another context or stride are not comparable, so both are part
of the result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from roseedit.editsets.places import data_file
from roseedit.errors import DataError, refusal
from roseedit.evaluation.scoring import BATCH_TOKENS, Progress
from roseedit.models.head import head_at
from roseedit.models.load import LoadedModel
from roseedit.models.replay import run_body

CONTEXT = 1024
WIKITEXT = {"test": "text/wikitext2_raw_test.txt", "validation": "text/wikitext2_raw_valid.txt"}


@dataclass(frozen=True)
class Perplexity:
    """What a model makes of a text.

    Attributes:
        value: exp of the mean negative log-likelihood per token; depends on the tokenizer.
        word_value: exp of the sum over the number of words; comparable across tokenizers.
        bits_per_byte: The sum in bits over the number of UTF-8 bytes; comparable across tokenizers.
        nll: Sum of negative log-likelihoods, in nats.
        n_tokens: Tokens predicted.
        n_words: Words (split at white space) of the text covered.
        n_bytes: UTF-8 bytes of the text covered.
        context: Tokens in a window.
        stride: Tokens by which it moves.
        sha256: Checksum of the whole text.
        by_window: Per window its negative log-likelihood and the tokens predicted in it.
    """

    value: float
    word_value: float
    bits_per_byte: float
    nll: float
    n_tokens: int
    n_words: int
    n_bytes: int
    context: int
    stride: int
    sha256: str
    by_window: tuple[tuple[float, int], ...]


def wikitext(split: str = "test", folder: Path | None = None) -> str:
    """WikiText-2 raw as published: blank lines kept as " ", titles as " = Title = ", no `<unk>`.

    Args:
        split: `"test"` for reporting, `"validation"` for anything that is tuned.
        folder: The data folder; left out, the one that ROSEEDIT_DATA names.

    Returns:
        The text.

    Raises:
        DataError: No such split or file, or one that is not UTF-8.
    """
    if split not in WIKITEXT:
        raise DataError(refusal(f"WikiText split {split!r}", ", ".join(WIKITEXT), "Choose one of them."))
    path = data_file(WIKITEXT[split], folder)
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        message = refusal(f"{path}, which is not UTF-8 ({error})", "the published text", "Fetch it again.")
        raise DataError(message) from error


@torch.no_grad()
def perplexity(
    loaded: LoadedModel,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = 2 * BATCH_TOKENS,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of a text under the model as it stands.

    Args:
        loaded: The model.
        text: Running text.
        context: Tokens in a window; left out, 1024 or the model's window if that is shorter.
        stride: Tokens by which the window moves; left out, half of the context.
        max_tokens: Look at this many tokens from the front only.
        batch_tokens: Most tokens in one forward pass.
        progress: Called with the number of tokens just predicted.

    Returns:
        The perplexity, with all that is needed to repeat it.

    Raises:
        DataError: A text of fewer than two tokens, or context and stride that do not fit.
    """
    window = loaded.anatomy.window
    context = min(CONTEXT, window) if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    _check(context, stride, window)
    ids, covered = _encode(loaded, text, max_tokens)
    found: list[tuple[float, int]] = []
    for batch in _batches(len(ids), context, stride, max(1, batch_tokens // context)):
        found += _window_nll(loaded, ids, batch)
        if progress:
            progress(sum(end - first for _, first, end in batch))
    return _result(found, text, covered, window=(context, stride))


def windows(n: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """Where the window stands.

    Args:
        n: Tokens in the text.
        context: Tokens in a window.
        stride: Tokens by which it moves.

    Returns:
        (start, first, end) per window: tokens start to end are read, tokens first to end are predicted. Every token
        but the text's very first is predicted exactly once.
    """
    out = []
    start, first = 0, 1
    while first < n:
        end = min(start + context, n)
        out.append((start, first, end))
        start, first = start + stride, end
    return out


def _check(context: int, stride: int, window: int) -> None:
    if not 2 <= context <= window:
        message = refusal(f"context {context}", f"2 to {window}, the model's window", "Change it.")
        raise DataError(message)
    if not 1 <= stride < context:
        raise DataError(refusal(f"stride {stride}", f"1 to {context - 1}, below the context", "Change it."))


def _encode(loaded: LoadedModel, text: str, max_tokens: int | None) -> tuple[Tensor, str]:
    """Token ids, and the part of the text that they cover."""
    ids = loaded.tokenizer(text, verbose=False)["input_ids"]  # quiet: the text is meant to be longer than a window
    ids = ids[:-1] if ids[-1:] == [loaded.tokenizer.eos_token_id] else ids
    covered = text
    if max_tokens is not None and max_tokens < len(ids):
        ids = ids[:max_tokens]
        covered = loaded.tokenizer.decode(ids, skip_special_tokens=True)
    if len(ids) < 2:
        raise DataError(refusal(f"a text of {len(ids)} tokens", "two or more", "Pass a longer text."))
    return torch.tensor(ids, dtype=torch.long, device=loaded.device), covered


def _batches(n: int, context: int, stride: int, size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Windows of equal length, `size` at a time; the last one is mostly shorter and stands alone."""
    batch: list[tuple[int, int, int]] = []
    for place in windows(n, context, stride):
        uneven = batch and place[2] - place[0] != batch[0][2] - batch[0][0]
        if len(batch) == size or uneven:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _window_nll(loaded: LoadedModel, ids: Tensor, batch: list[tuple[int, int, int]]) -> list[tuple[float, int]]:
    rows = torch.cat([torch.full((end - first,), i) for i, (_, first, end) in enumerate(batch)])
    columns = torch.cat([torch.arange(first - start - 1, end - start - 1) for start, first, end in batch])
    wanted = torch.cat([ids[first:end] for _, first, end in batch])
    inputs = torch.stack([ids[start:end] for start, _, end in batch])
    with head_at(loaded.model, rows.to(ids.device), columns.to(ids.device)):
        logits = run_body(loaded.model, inputs, torch.ones_like(inputs))[0].float()
    lost = torch.nn.functional.cross_entropy(logits, wanted.to(logits.device), reduction="none").double()
    counts = [end - first for _, first, end in batch]
    return [(float(part.sum()), count) for part, count in zip(lost.split(counts), counts, strict=True)]


def _result(found: list[tuple[float, int]], text: str, covered: str, *, window: tuple[int, int]) -> Perplexity:
    nll, n_tokens = sum(x for x, _ in found), sum(n for _, n in found)
    n_words, n_bytes = max(1, len(covered.split())), len(covered.encode())
    return Perplexity(
        value=_exp(nll / n_tokens),
        word_value=_exp(nll / n_words),
        bits_per_byte=nll / math.log(2) / max(1, n_bytes),
        nll=nll,
        n_tokens=n_tokens,
        n_words=n_words,
        n_bytes=n_bytes,
        context=window[0],
        stride=window[1],
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        by_window=tuple(found),
    )


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
