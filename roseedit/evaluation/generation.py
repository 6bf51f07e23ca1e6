"""Greedy generation in batches: what the model really says, and why it stopped.

Prompts of unequal length share a batch, padded on the right with explicit positions; rows that are done leave the
batch. The model's own generation settings are ignored, so that every model is asked in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.errors import RequestError, refusal
from roseedit.evaluation.scoring import BATCH_TOKENS, Progress, RowEdits
from roseedit.models.encoding import encode_prompt, pad_right, plan_batches
from roseedit.models.load import LoadedModel
from roseedit.models.replay import head_at, positions_from_mask

MAX_NEW_TOKENS = 32
STOP_STRINGS = ("\n",)


@dataclass(frozen=True)
class Generated:
    """One greedy continuation.

    Attributes:
        text: The continuation up to the stop, without it.
        stop: `"eos"`, `"stop_string"` or `"cap"` (the token limit was reached).
        n_tokens: Tokens generated, the stop included.
    """

    text: str
    stop: str
    n_tokens: int

    @property
    def natural(self) -> bool:
        """True when the model stopped by itself."""
        return self.stop != "cap"


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
    _check_lengths(prompts, encoded, loaded.anatomy.window)
    out: list[Generated | None] = [None] * len(prompts)
    for batch in _plan(loaded, [len(ids) for ids in encoded], max_new_tokens, batch_tokens):
        run = _Run(loaded, [encoded[i] for i in batch], [rows[i] if rows else -1 for i in batch], tuple(stop_strings))
        for i, result in zip(batch, run.finish(max_new_tokens, edits), strict=True):
            out[i] = result
        if progress:
            progress(len(batch))
    return [result for result in out if result is not None]


def _check_lengths(prompts: Sequence[str], encoded: Sequence[tuple[int, ...]], window: int) -> None:
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not 0 < len(ids) < window:
            message = refusal(f"a prompt of {len(ids)} tokens ({prompt[:40]!r})", f"1 to {window - 1}", "Change it.")
            raise RequestError(message)


def _plan(loaded: LoadedModel, lengths: list[int], new: int, batch_tokens: int) -> list[list[int]]:
    """Batches by length. Padding would shift a sliding window, so beyond it only equal lengths share a batch."""
    window = getattr(loaded.model.config.get_text_config(), "sliding_window", None)
    batches = plan_batches([n + new for n in lengths], batch_tokens)
    if not window or max(lengths, default=0) + new <= window:
        return batches
    return [[i for i in batch if lengths[i] == n] for batch in batches for n in sorted({lengths[i] for i in batch})]


class _Run:
    """The state of one batch while it is decoded."""

    def __init__(
        self, loaded: LoadedModel, ids: list[tuple[int, ...]], edits: list[int], stops: tuple[str, ...]
    ) -> None:
        self.loaded = loaded
        self.stops = stops
        self.ids, self.mask = pad_right(ids, loaded.pad_id, loaded.device)
        self.edit_rows = torch.tensor(edits, dtype=torch.long)
        self.active = list(range(len(ids)))
        self.said: list[list[int]] = [[] for _ in ids]
        self.done: list[Generated | None] = [None] * len(ids)
        self.cache: Any = None
        self.ends = loaded.end_ids

    def finish(self, max_new_tokens: int, edits: RowEdits | None) -> list[Generated]:
        """Decode until every row has stopped."""
        max_new_tokens = min(max_new_tokens, self.loaded.anatomy.window - self.ids.shape[1])
        tokens = self._step(self.ids, positions_from_mask(self.mask), self.mask.sum(-1) - 1, edits)
        for n in range(1, max_new_tokens + 1):
            keep = self._take(tokens.tolist(), last=n == max_new_tokens)
            if not keep:
                break
            tokens = self._compact(tokens, keep)
            positions = self.mask.sum(-1, keepdim=True)
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
            tokens = self._step(tokens[:, None], positions, torch.zeros_like(tokens), edits)
        return [result for result in self.done if result is not None]

    def _step(self, ids: Tensor, positions: Tensor, columns: Tensor, edits: RowEdits | None) -> Tensor:
        """One forward pass; returns the most probable next token of each active row."""
        inputs = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions}
        rows = torch.arange(len(ids), device=ids.device)
        carried = nullcontext() if edits is None else edits.on_rows(self.edit_rows)
        with carried, head_at(self.loaded.model, rows, columns):
            out = self.loaded.model(**inputs, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        return out.logits[0].argmax(-1)

    def _take(self, tokens: list[int], *, last: bool) -> list[int]:
        """Book the new tokens; returns the places of the rows that go on."""
        keep = []
        for place, (row, token) in enumerate(zip(self.active, tokens, strict=True)):
            self.said[row].append(token)
            self.done[row] = self._stopped(self.said[row], last)
            if self.done[row] is None:
                keep.append(place)
        return keep

    def _stopped(self, said: list[int], last: bool) -> Generated | None:
        ended = said[-1] in self.ends
        text = self.loaded.tokenizer.decode(said[:-1] if ended else said, skip_special_tokens=True)
        cuts = [text.index(stop) for stop in self.stops if stop in text]
        if cuts:
            return Generated(text[: min(cuts)], "stop_string", len(said))
        if ended:
            return Generated(text, "eos", len(said))
        return Generated(text, "cap", len(said)) if last else None

    def _compact(self, tokens: Tensor, keep: list[int]) -> Tensor:
        if len(keep) == len(self.active):
            return tokens
        places = torch.tensor(keep, device=self.mask.device)
        self.active = [self.active[place] for place in keep]
        self.mask, self.edit_rows = self.mask[places], self.edit_rows[places.cpu()]
        self.cache.batch_select_indices(places)
        return tokens[places]
