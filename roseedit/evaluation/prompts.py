"""A batch of prompts that goes through the model once, and all that is read off the model from there.

Prompts of unequal length share a batch, padded on the right with explicit positions. The keys and values of the prompts
are kept: answers are fed in behind a copy of them, and decoding goes on from them, so that a prompt is never run twice.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from roseedit.models.encoding import pad_right
from roseedit.models.head import head_at
from roseedit.models.load import LoadedModel
from roseedit.models.replay import positions_from_mask

STOP_STRINGS = ("\n",)


class RowEdits(Protocol):
    """Edits that can be switched on row by row without touching the weights."""

    def on_rows(self, edits: Tensor) -> AbstractContextManager[None]:
        """Switch edit `edits[i]` on for row i of every forward pass in the block; -1 for none."""
        ...


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


class PromptBatch:
    """Prompts behind which the model has come to stand.

    Args:
        loaded: The model.
        ids: Token ids of each prompt.
        edits: Edits that rows may carry.
        rows: Per prompt the index of its edit, -1 for none; without `edits` it is not looked at.
        stops: Texts that end an answer beside the end mark.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        ids: Sequence[Sequence[int]],
        edits: RowEdits | None = None,
        rows: Sequence[int] | None = None,
        stops: Sequence[str] = STOP_STRINGS,
    ) -> None:
        self.loaded, self.edits, self.stops = loaded, edits, tuple(stops)
        tokens, self.mask = pad_right(ids, loaded.pad_id, loaded.device)
        self.edit_rows = torch.tensor(rows if rows is not None else [-1] * len(ids), dtype=torch.long)
        self.active = list(range(len(ids)))
        self.said: list[list[int]] = [[] for _ in ids]
        self.done: list[Generated | None] = [None] * len(ids)
        self.cache: Any = None
        self.logits = self._step(tokens, positions_from_mask(self.mask), self.mask.sum(-1) - 1)

    def following(self) -> Tensor:
        """Log-probabilities of the token after each prompt, (prompts, vocabulary) in float32; before `finish` only."""
        return self.logits.float().log_softmax(-1)

    def answers(self, places: Sequence[int], targets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Feed answers in behind their prompts; before `finish` only. The prompts stay as they are.

        Args:
            places: Per answer its prompt; a prompt may have several.
            targets: Token ids per answer, one or more.

        Returns:
            Log-probability of each target token and the model's own first choice there, both (target tokens of all
            answers, one after another,).
        """
        chosen = torch.tensor(places, device=self.mask.device)
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(t) for t in targets], batch_first=True, padding_value=-1)
        tokens = tokens.to(chosen.device)
        real, logits = tokens >= 0, self.logits[chosen].float()
        found, first = torch.zeros(tokens.shape, device=tokens.device), torch.zeros_like(tokens)
        found[:, 0], first[:, 0] = _logprobs(logits, tokens[:, 0]), logits.argmax(-1)
        later = real[:, 1:]
        if bool(later.any()):
            logits = self._behind(chosen, tokens[:, :-1], later)
            found[:, 1:][later], first[:, 1:][later] = _logprobs(logits, tokens[:, 1:][later]), logits.argmax(-1)
        return found[real], first[real]

    def _behind(self, chosen: Tensor, tokens: Tensor, later: Tensor) -> Tensor:
        """Logits where `later` says, after the tokens fed in behind a copy of the prompts' keys and values."""
        cache = copy.deepcopy(self.cache)
        cache.batch_select_indices(chosen)
        mask = torch.cat([self.mask[chosen], (tokens >= 0).long()], 1)
        positions = positions_from_mask(mask)[:, -tokens.shape[1] :]  # padding behind a long prompt stays in the window
        inputs = {"input_ids": tokens.clamp(min=0), "attention_mask": mask, "position_ids": positions}
        with self._carrying(self.edit_rows[chosen.cpu()]), head_at(self.loaded.model, *later.nonzero(as_tuple=True)):
            out = self.loaded.model(**inputs, past_key_values=cache, use_cache=True)
        return out.logits[0].float()

    def _carrying(self, edit_rows: Tensor) -> AbstractContextManager[None]:
        return nullcontext() if self.edits is None else self.edits.on_rows(edit_rows)

    def finish(self, max_new_tokens: int) -> list[Generated]:
        """Decode greedily until every row has stopped; rows that are done leave the batch.

        Args:
            max_new_tokens: Most new tokens; the model's window may end a row before.

        Returns:
            One continuation per prompt.
        """
        max_new_tokens = min(max_new_tokens, self.loaded.anatomy.window - self.mask.shape[1])
        tokens = self.logits.argmax(-1)
        for n in range(1, max_new_tokens + 1):
            keep = self._take(tokens.tolist(), last=n == max_new_tokens)
            if not keep:
                break
            tokens = self._compact(tokens, keep)
            positions = self.mask.sum(-1, keepdim=True)
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
            tokens = self._step(tokens[:, None], positions, torch.zeros_like(tokens)).argmax(-1)
        return [result for result in self.done if result is not None]

    def _step(self, ids: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
        """One forward pass over the active rows; returns the logits of the next token, (rows, vocabulary)."""
        inputs = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions}
        rows = torch.arange(len(ids), device=ids.device)
        with self._carrying(self.edit_rows), head_at(self.loaded.model, rows, columns):
            out = self.loaded.model(**inputs, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        return out.logits[0]

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
        ended = said[-1] in self.loaded.end_ids
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


def _logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
