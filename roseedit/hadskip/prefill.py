"""From prompts to groups that are ready to be decoded: the prompt pass, the choice of a profile, the first token.

Under `bounded` the layers below the chooser's layer run once for all prompts; the choice is made; the layers from there
up run group by group, each group with its own profile. Under the other contracts the full model reads the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from roseedit.errors import SkipError, refusal
from roseedit.hadskip.cache import SPARE, SharedCache
from roseedit.hadskip.choosing import Chooser, PromptBatch
from roseedit.hadskip.costs import now
from roseedit.hadskip.group import Group, Route, Row
from roseedit.hadskip.paths import executing
from roseedit.hadskip.response import Accounts
from roseedit.hadskip.sampling import Picker
from roseedit.models.encoding import pad_right
from roseedit.models.head import head_at
from roseedit.models.load import LoadedModel
from roseedit.models.replay import captured, positions_from_mask, replaying

FIRST_ROOM = 256  # columns for new tokens that are held ready before it is known how long the answers get


class Prefill:
    """Prepares one batch.

    Args:
        loaded: The model.
        picker: Picks tokens.
        route_of: The route of a profile index (None: all layers answer).
        chooser: Picks profiles; None under the full contract.
        budget: For the chooser.
        bounded: Whether the chosen profile reads the prompt too.
        accounts: Where time is booked.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        picker: Picker,
        *,
        route_of: Callable[[int | None, int], Route],
        chooser: Chooser | None,
        budget: float | None,
        bounded: bool,
        accounts: Accounts,
    ) -> None:
        self.loaded = loaded
        self.picker = picker
        self.route_of = route_of
        self.chooser = chooser
        self.budget = budget
        self.bounded = bounded
        self.accounts = accounts

    @torch.no_grad()
    def groups(self, rows: Sequence[Row]) -> list[Group]:
        """Read the prompts.

        Args:
            rows: The sequences, nothing said yet.

        Returns:
            One group per profile chosen, the first token of each sequence booked.
        """
        started, chosen_before = now(), self.accounts.choosing_seconds
        ids, mask = pad_right([row.pick.ids for row in rows], self.loaded.pad_id, self.loaded.device)
        new = max(row.most for row in rows)
        cache = SharedCache(self.loaded, ids.shape[1] + min(new, FIRST_ROOM) + SPARE)
        out = self._bounded(rows, ids, mask, cache) if self.bounded else self._full(rows, ids, mask, cache)
        self.accounts.prefill_seconds += now() - started - (self.accounts.choosing_seconds - chosen_before)
        return out

    def _full(self, rows: Sequence[Row], ids: Tensor, mask: Tensor, cache: SharedCache) -> list[Group]:
        layer = self.chooser.looks_at if self.chooser else None
        with executing(self.loaded, range(self.loaded.anatomy.n_layers)):
            if layer is None:
                logits, states = self._read(ids, mask, cache), None
            else:
                with captured(self.loaded.model, self.loaded.anatomy, layer) as seen:
                    logits, states = self._read(ids, mask, cache), seen
        cache.commit(ids.shape[1])
        chosen = self._choose(ids, mask, states[0] if states else None)
        return [
            self._group(profile, [rows[i] for i in places], *_taken(places, cache, mask, logits))
            for profile, places in chosen
        ]

    def _bounded(self, rows: Sequence[Row], ids: Tensor, mask: Tensor, cache: SharedCache) -> list[Group]:
        layer = self.chooser.looks_at if self.chooser else None
        states = None if layer is None else self._lower(ids, mask, cache, layer)
        out = []
        chosen = self._choose(ids, mask, states)
        for profile, places in chosen:
            at = torch.tensor(places, device=ids.device)
            width = int(mask[at].sum(1).max())
            own_ids, own_mask = ids[at, :width], mask[at, :width]
            own = cache if len(chosen) == 1 else cache.select(at)
            with self.route_of(profile, len(places)).answer, self._from(layer, states, at, width):
                logits = self._read(own_ids, own_mask, own)
            own.commit(width)
            out.append(self._group(profile, [rows[i] for i in places], own, own_mask, logits))
        return out

    def _from(self, layer: int | None, states: Tensor | None, rows: Tensor, width: int) -> AbstractContextManager[None]:
        """Passes of the block start at `layer`, from stored states."""
        if layer is None or states is None:
            return nullcontext()
        return replaying(self.loaded.model, self.loaded.anatomy, layer, states[rows, :width])

    def _lower(self, ids: Tensor, mask: Tensor, cache: SharedCache, layer: int) -> Tensor:
        """What enters `layer`; K/V of the layers below it are written, nothing is committed."""
        zero = torch.zeros(1, dtype=torch.long, device=ids.device)
        below = executing.below(self.loaded, layer)
        with below, captured(self.loaded.model, self.loaded.anatomy, layer) as seen:
            self._call(ids, mask, cache, zero, zero)
        return seen[0]

    def _read(self, ids: Tensor, mask: Tensor, cache: SharedCache) -> Tensor:
        """Logits of each row's last prompt token, (rows, vocabulary)."""
        return self._call(ids, mask, cache, torch.arange(len(ids), device=ids.device), mask.sum(1) - 1)

    def _call(self, ids: Tensor, mask: Tensor, cache: SharedCache, rows: Tensor, columns: Tensor) -> Tensor:
        padded = bool((mask == 0).any())
        with head_at(self.loaded.model, rows, columns):
            out = self.loaded.model(
                input_ids=ids,
                attention_mask=mask if padded else None,
                position_ids=positions_from_mask(mask),
                past_key_values=cache,
                use_cache=True,
            )
        logits: Tensor = out.logits[0]
        return logits

    def _choose(self, ids: Tensor, mask: Tensor, states: Tensor | None) -> list[tuple[int | None, list[int]]]:
        """Rows by profile."""
        if self.chooser is None:
            return [(None, list(range(len(ids))))]
        started = now()
        chosen = list(self.chooser.choose(self.loaded, PromptBatch(ids, mask, states), self.budget))
        self.accounts.choosing_seconds += now() - started
        if len(chosen) != len(ids):
            message = refusal(
                f"a gate's choice of {len(chosen)} profiles", f"{len(ids)}, one per row", "Mend the gate."
            )
            raise SkipError(message)
        self.accounts.gate_bytes += self.chooser.n_bytes
        return [(p, [i for i, own in enumerate(chosen) if own == p]) for p in sorted(set(chosen))]

    def _group(self, profile: int | None, rows: list[Row], cache: SharedCache, mask: Tensor, logits: Tensor) -> Group:
        first = self.picker.pick(logits[:, None], [row.pick for row in rows])[:, 0]
        for row, token in zip(rows, first.tolist(), strict=True):
            row.take([token])
            row.passes += 1
        padded = bool((mask == 0).any())
        return Group(
            self.loaded,
            self.picker,
            self.route_of(profile, len(rows)),
            rows=rows,
            cache=cache,
            mask=mask if padded else None,
            lengths=mask.sum(1),
            last=first,
        )


def _taken(places: list[int], cache: SharedCache, mask: Tensor, logits: Tensor) -> tuple[SharedCache, Tensor, Tensor]:
    """The part of a batch that belongs to some of its rows."""
    if len(places) == len(mask):
        return cache, mask, logits
    at = torch.tensor(places, device=mask.device)
    width = int(mask[at].sum(1).max())
    return cache.select(at, width), mask[at, :width], logits[at]
