"""Sequences that are decoded together because they have the same profile: plain steps, and drafts with verification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roseedit.hadskip.cache import SharedCache, columns_of
from roseedit.hadskip.costs import now
from roseedit.hadskip.pace import LONGEST_DRAFT, Pace
from roseedit.hadskip.response import Response
from roseedit.hadskip.sampling import Picker, PickRow
from roseedit.hadskip.stops import GrowingText
from roseedit.models.load import LoadedModel

Path = AbstractContextManager[object]
HOLES = 32  # columns of rejected drafts that a batch may carry before its rows are moved together
HOLE_SHARE = 0.25


class Row:
    """One sequence while it is decoded.

    Args:
        index: Number of its prompt within the call.
        pick: What picking knows of it.
        text: Its text so far.
        ends: Ids that end it.
        most: Most new tokens.
    """

    def __init__(self, index: int, pick: PickRow, text: GrowingText, ends: frozenset[int], most: int) -> None:
        self.index = index
        self.pick = pick
        self.text = text
        self.ends = ends
        self.most = most
        self.drafted = self.accepted = self.passes = 0
        self.stop: str | None = None
        self.last_piece = ""
        self.response: Response | None = None

    @property
    def left(self) -> int:
        """New tokens that may still come."""
        return self.most - (len(self.pick.ids) - self.pick.n_prompt)

    def take(self, tokens: Sequence[int]) -> int:
        """Book tokens up to the stop; returns how many were taken."""
        for n, token in enumerate(tokens, start=1):
            self.pick.append(token)
            ended = token in self.ends
            if not ended and self.text.push(token):
                self.stop = "stop_string"
            elif ended:
                self.stop = "eos"
            elif self.left <= 0:
                self.stop = "cap"
            if self.stop:
                self.last_piece = self.text.finish(cut=self.stop == "stop_string")
                return n
        return len(tokens)


@dataclass(frozen=True)
class Route:
    """How a group's tokens come about.

    Attributes:
        answer: Layers whose pass gives the answer.
        draft: Layers that draft, under the lossless contract; None otherwise.
        pace: How far to draft.
        fixed_draft: Tokens per draft if the caller fixed it.
        describe: Makes the response of a finished row.
    """

    answer: Path
    draft: Path | None
    pace: Pace | None
    fixed_draft: int | None
    describe: Callable[[Row], Response]


class Group:
    """The state of one group.

    Args:
        loaded: The model.
        picker: Picks tokens.
        route: How tokens come about.
        rows: The sequences, the first token of each booked.
        cache: K/V of their prompts.
        mask: (rows, columns) which cached columns are real; None when all are.
        lengths: (rows,) real tokens cached.
        last: (rows,) the newest token of each, not cached yet.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        picker: Picker,
        route: Route,
        *,
        rows: list[Row],
        cache: SharedCache,
        mask: Tensor | None,
        lengths: Tensor,
        last: Tensor,
    ) -> None:
        self.loaded = loaded
        self.picker = picker
        self.route = route
        self.rows = rows
        self.cache = cache
        self.mask = mask
        self.lengths = lengths
        self.last = last
        self._ahead = torch.arange(1 + max(LONGEST_DRAFT, route.fixed_draft or 0), device=lengths.device)
        self._keep(None)

    @torch.no_grad()
    def step(self) -> list[Row]:
        """One pass, or one draft with its verification; returns the rows, those that are finished with a response."""
        g = self._draft_length()
        rows = self.rows
        if g:
            self._cycle(g)
        else:
            self._plain()
        return rows

    def _pass(self, ids: Tensor, path: Path) -> Tensor:
        width = ids.shape[1]
        end = self.cache.length + width
        mask = None if self.mask is None else self._mask_up_to(end)
        positions = self.lengths[:, None] if width == 1 else self.lengths[:, None] + self._ahead[:width]
        with path:
            out = self.loaded.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
            )
        logits: Tensor = out.logits
        return logits

    def _mask_up_to(self, end: int) -> Tensor:
        """The mask; columns to come count as real. It grows by halves, so that most steps only slice it."""
        mask: Any = self.mask
        if mask.shape[1] < end:
            more = mask.new_ones(len(mask), max(end - mask.shape[1], mask.shape[1] // 2, 32))
            self.mask = mask = torch.cat([mask, more], 1)
        return mask[:, :end]

    def _plain(self) -> None:
        pace = self.route.pace
        started = now() if pace else 0.0
        tokens = self.picker.pick(self._pass(self.last[:, None], self.route.answer), [row.pick for row in self.rows])
        self.cache.commit(1)
        self.lengths = self.lengths + 1
        self.last = tokens[:, 0]
        for row, token in zip(self.rows, self.last.tolist(), strict=True):
            row.take([token])
            row.passes += 1
        if pace:
            pace.saw_plain(now() - started)
        self._keep([i for i, row in enumerate(self.rows) if row.stop is None])

    def _draft_length(self) -> int:
        """Tokens to draft: never beyond the model's window, nor beyond what all rows may still say."""
        if self.route.draft is None:
            return 0
        wanted = self.route.fixed_draft or (self.route.pace.draft_length() if self.route.pace else 0)
        longest = max(len(row.pick.ids) for row in self.rows)
        most = max(row.left for row in self.rows)
        return max(0, min(wanted, self.loaded.anatomy.window - longest, most - 1))

    def _cycle(self, g: int) -> None:
        before = self.cache.length, self.lengths
        started = now() if self.route.pace else 0.0
        drafts, doubted = self._drafts(g)
        self.cache.length, self.lengths = before  # nothing of a draft is kept; the full pass writes its columns anew
        between = now() if self.route.pace else 0.0
        picks = [row.pick for row in self.rows]
        said = self.picker.pick(
            self._pass(torch.cat([self.last[:, None], drafts], 1), self.route.answer), picks, drafts
        )
        right = (said[:, :-1] == drafts).long().cumprod(1).sum(1)
        table = torch.cat([right[:, None], said], 1).tolist()  # one trip from the device
        taken = [row.take(said_by[: n + 1]) for row, (n, *said_by) in zip(self.rows, table, strict=True)]
        self._book(drafts.shape[1], [n for n, *_ in table], taken)
        self._commit(right, said, [n for n, *_ in table])
        if pace := self.route.pace:
            seconds = between - started, now() - between
            pace.saw_cycle(drafts.shape[1], *seconds, sum(taken) / len(taken))
            pace.saw_doubt(doubted)

    def _drafts(self, g: int) -> tuple[Tensor, bool]:
        """Up to g tokens per row by the drafting layers; fewer when all rows doubt their newest one."""
        path: Any = self.route.draft
        picks = [row.pick for row in self.rows]
        token, drafts = self.last[:, None], self.last[:, None][:, :0]
        for j in range(g):
            logits = self._pass(token, path)
            self.cache.commit(1)
            self.lengths = self.lengths + 1
            token = self.picker.pick(logits, picks, drafts, j)
            drafts = torch.cat([drafts, token], 1)
            if j + 1 < g and self.route.fixed_draft is None and self._doubtful(logits):
                return drafts, True
        return drafts, False

    def _doubtful(self, logits: Tensor) -> bool:
        pace: Any = self.route.pace
        return bool((logits[:, -1].float().softmax(-1).amax(-1) < pace.threshold).all())

    def _book(self, drafted: int, right: Sequence[int], taken: Sequence[int]) -> None:
        for row, n, used in zip(self.rows, right, taken, strict=True):
            row.drafted += drafted
            row.accepted += n
            row.passes += 1
            if self.route.pace:
                self.route.pace.saw_verdicts(n, int(n < drafted and used > n))

    def _commit(self, right: Tensor, said: Tensor, counts: Sequence[int]) -> None:
        """Keep the newest token and its right drafts; what other rows have beyond a row's own count is masked."""
        going = [i for i, row in enumerate(self.rows) if row.stop is None]
        if not going:
            self._keep(going)
            return
        most = max(counts[i] for i in going)
        if any(counts[i] < most for i in going):
            self._mask_holes(right, most)
        self.cache.commit(most + 1)
        self.lengths = self.lengths + right + 1
        self.last = said.gather(1, right[:, None])[:, 0]
        self._keep(going)
        if going and self.mask is not None:
            self._close_holes()

    def _mask_holes(self, right: Tensor, most: int) -> None:
        n = self.cache.length
        if self.mask is None:
            self.mask = torch.ones(len(self.rows), n, dtype=torch.long, device=right.device)
        self._mask_up_to(n + most + 1)
        mask: Any = self.mask
        mask[:, n : n + most + 1] = (self._ahead[: most + 1] <= right[:, None]).long()

    def _close_holes(self) -> None:
        longest = max(len(row.pick.ids) for row in self.rows) - 1
        holes = self.cache.length - longest
        if holes <= max(HOLES, HOLE_SHARE * longest):
            return
        columns, mask = columns_of(self._mask_up_to(self.cache.length))
        self.cache.rearrange(columns, columns.shape[1])
        self.mask = mask

    def _keep(self, places: list[int] | None) -> None:
        """Let finished rows go; None looks for them."""
        if places is None:
            places = [i for i, row in enumerate(self.rows) if row.stop is None]
        for row in self.rows:
            if row.stop and row.response is None:
                row.response = self.route.describe(row)
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in places]
        if places:
            kept = torch.tensor(places, device=self.lengths.device)
            self.cache = self.cache.select(kept)
            self.lengths, self.last = self.lengths[kept], self.last[kept]
            self.mask = None if self.mask is None else self.mask[kept]
