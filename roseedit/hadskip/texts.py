"""Token sequences that gates are fitted and measured on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from roseedit.editsets import DATA_VARIABLE
from roseedit.errors import DataError, refusal
from roseedit.models.load import LoadedModel

WIKITEXT = "wikitext2"
_PARTS = {"valid": "text/wikitext2_raw_valid.txt", "test": "text/wikitext2_raw_test.txt"}


def read_text(name: str | Path, part: str = "valid") -> str:
    """A text to fit or to measure on.

    Args:
        name: `"wikitext2"`, found in the folder that ROSEEDIT_DATA names, or a text file.
        part: `"valid"` to fit, `"test"` to report; a file of the user's is taken whole for either.

    Returns:
        The text.

    Raises:
        DataError: No such file, or one that is not UTF-8 or is empty.
    """
    path = _wikitext(part) if str(name) == WIKITEXT else Path(name)
    if not path.is_file():
        message = refusal(f"the text {str(path)!r}, which does not exist", "a text file, or wikitext2", "Check it.")
        raise DataError(message)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(refusal(f"{str(path)!r}, which is not UTF-8", "plain text", "Convert it.")) from error
    if not text.strip():
        raise DataError(refusal(f"{str(path)!r}, which is empty", "text", "Name another file."))
    return text


def _wikitext(part: str) -> Path:
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        allowed = f"it in the folder that {DATA_VARIABLE} names"
        message = refusal("the text wikitext2", allowed, "Set the variable, or give a text file.")
        raise DataError(message)
    return Path(root) / _PARTS[part]


def token_rows(loaded: LoadedModel, text: str, tokens: int, rows: int | None = None, *, seed: int = 0) -> Tensor:
    """Cut a text into sequences of equal length, in an order that the seed shuffles.

    Args:
        loaded: The model, for its tokenizer.
        text: The text.
        tokens: Tokens per sequence.
        rows: How many sequences; None for all.
        seed: Of the order.

    Returns:
        (rows, tokens), on the CPU.

    Raises:
        DataError: The text is too short for the rows asked for.
    """
    ids = torch.tensor(loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
    whole = ids[: len(ids) // tokens * tokens].view(-1, tokens)
    wanted = len(whole) if rows is None else rows
    if not 0 < wanted <= len(whole):
        got = f"a text of {len(whole)} sequences of {tokens} tokens, {wanted} wanted"
        raise DataError(refusal(got, "a longer text", "Give more text, or ask for fewer or shorter sequences."))
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    return whole[order[:wanted]]


def all_real(ids: Tensor) -> Tensor:
    """The attention mask of rows without padding.

    Args:
        ids: (rows, tokens).

    Returns:
        Ones of the same shape.
    """
    return torch.ones_like(ids)


def chunks(n: int, size: int) -> Sequence[slice]:
    """Slices that cut n rows into parts.

    Args:
        n: Rows.
        size: Rows of a part, the last one may be shorter.

    Returns:
        The slices.
    """
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]
