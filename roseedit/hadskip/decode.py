"""The decoder: one loop, three contracts.

`full` runs all layers, `bounded` a profile, `lossless` drafts with a profile and verifies with all layers over one
shared K/V cache.

There is no prefix cache. An engine that adds one must key it by profile under `bounded`
(`SkipProfiles.cache_salt`); full-model K/V, as under `lossless`, need no key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from roseedit.errors import RequestError, SkipError, refusal
from roseedit.hadskip.choosing import Chooser, FixedChooser, chooser_of
from roseedit.hadskip.costs import now, speed_limit
from roseedit.hadskip.group import Route, Row
from roseedit.hadskip.pace import best_drafter, pace_of
from roseedit.hadskip.paths import executing
from roseedit.hadskip.prefill import Prefill
from roseedit.hadskip.profile import SkipProfiles
from roseedit.hadskip.response import Accounts, DecodeSettings, Piece, Response
from roseedit.hadskip.sampling import Picker, PickRow
from roseedit.hadskip.stops import GrowingText
from roseedit.models.encoding import encode_prompt, plan_batches
from roseedit.models.load import LoadedModel

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class _Call:
    """One call of the decoder."""

    settings: DecodeSettings
    chooser: Chooser | None
    picker: Picker
    ends: frozenset[int]
    accounts: Accounts
    watched: bool


class Decoder:
    """Decodes with a model, all of it or a part.

    Args:
        loaded: The model, edits applied.
        profiles: Its profiles; the full contract needs none.
        chooser: Picks profiles; left out: the profiles' own gate, or the costliest profile within the budget.

    Raises:
        SkipError: The chooser looks at a layer above one that a profile skips.
    """

    def __init__(
        self, loaded: LoadedModel, profiles: SkipProfiles | None = None, chooser: Chooser | None = None
    ) -> None:
        self.loaded = loaded
        self.profiles = profiles
        self.chooser = chooser_of(profiles) if profiles is not None and chooser is None else chooser
        self._full = executing(loaded, range(loaded.anatomy.n_layers))
        self._paths: dict[int, executing] = {}
        if profiles is not None and self.chooser is not None:
            _check_looks(profiles, self.chooser)

    def generate(
        self, prompts: Sequence[str], settings: DecodeSettings | None = None, accounts: Accounts | None = None
    ) -> list[Response]:
        """Continue prompts.

        Args:
            prompts: The prompts, used as they are.
            settings: What is asked; left out: greedy, all layers.
            accounts: Gets the times added.

        Returns:
            One response per prompt, in order.

        Raises:
            RequestError: A prompt that is empty or fills the window.
            SkipError: Profiles missing, or not those of this model.
            BudgetError: No profile meets the budget.
            StaleProfilesError: The profiles were fitted on other weights.
        """
        rows = [encode_prompt(self.loaded.tokenizer, prompt).ids for prompt in prompts]
        return self.generate_ids(rows, settings, accounts=accounts)

    def stream(
        self, prompts: Sequence[str], settings: DecodeSettings | None = None, accounts: Accounts | None = None
    ) -> Iterator[Piece]:
        """As `generate`, piece by piece; everything is checked before the first piece is asked for.

        Args:
            prompts: The prompts.
            settings: What is asked.
            accounts: Gets the times added.

        Returns:
            Pieces of all prompts as they come; the last one of each carries its response.
        """
        rows = [encode_prompt(self.loaded.tokenizer, prompt).ids for prompt in prompts]
        call = self._call(rows, settings or DecodeSettings(), accounts, watched=True)
        return (piece for row in self._rows(rows, call) for piece in _pieces(row))

    def generate_ids(
        self,
        rows: Sequence[Sequence[int]],
        settings: DecodeSettings | None = None,
        *,
        accounts: Accounts | None = None,
        picker: Picker | None = None,
        ends: frozenset[int] | None = None,
    ) -> list[Response]:
        """As `generate`, for prompts that are encoded already.

        Args:
            rows: Ids per prompt.
            settings: What is asked.
            accounts: Gets the times added.
            picker: Picks tokens; left out: as `settings.sampling` says.
            ends: Ids that end an answer; left out: the model's own.

        Returns:
            One response per prompt, in order.
        """
        call = self._call(rows, settings or DecodeSettings(), accounts, picker=picker, ends=ends)
        done: list[Response | None] = [None] * len(rows)
        for row in self._rows(rows, call):
            if row.response is not None:
                done[row.index] = row.response
        return [response for response in done if response is not None]

    def stream_ids(
        self, rows: Sequence[Sequence[int]], settings: DecodeSettings, picker: Picker, ends: frozenset[int]
    ) -> Iterator[Row]:
        """The rows of prompts that are encoded already, each time one has grown.

        Args:
            rows: Ids per prompt.
            settings: What is asked.
            picker: Picks tokens.
            ends: Ids that end an answer.

        Returns:
            Rows; those that are finished carry a response.
        """
        return self._rows(rows, self._call(rows, settings, None, picker=picker, ends=ends))

    def _call(
        self,
        rows: Sequence[Sequence[int]],
        settings: DecodeSettings,
        accounts: Accounts | None,
        *,
        picker: Picker | None = None,
        ends: frozenset[int] | None = None,
        watched: bool = False,
    ) -> _Call:
        """Check everything before any model work."""
        window = self.loaded.anatomy.window
        for i, ids in enumerate(rows):
            if not 0 < len(ids) < window:
                message = refusal(f"prompt {i} of {len(ids)} tokens", f"1 to {window - 1}", "Change it.")
                raise RequestError(message)
        chooser = None
        if settings.contract != "full":
            chooser = self._checked_chooser(settings)
        picker = picker or Picker(self.loaded.model, settings.sampling.config(), settings.sampling.seed)
        ends = self.loaded.end_ids if ends is None else ends
        return _Call(settings, chooser, picker, ends, accounts or Accounts(), watched)

    def _checked_chooser(self, settings: DecodeSettings) -> Chooser:
        if self.profiles is None or self.chooser is None:
            message = refusal(
                f"contract {settings.contract} without profiles", "profiles", "Fit some, or name a folder."
            )
            raise SkipError(message)
        self.profiles.check(self.loaded, stale_is_fine=settings.stale_is_fine)
        self.profiles.within(settings.budget)
        if settings.budget is None and isinstance(self.chooser, FixedChooser) and self.chooser.index is None:
            costs = {p.name: 1 / speed_limit(self.loaded, p.layers) for p in self.profiles.profiles}
            return FixedChooser(self.profiles, best_drafter(self.profiles, costs))
        return self.chooser

    def _rows(self, rows: Sequence[Sequence[int]], call: _Call) -> Iterator[Row]:
        """Rows, each time one has grown, batch after batch; the groups of a batch take turns."""
        for batch in self._plan([len(ids) for ids in rows], call.settings):
            mine = [self._row(i, rows[i], call) for i in batch]
            groups = self._prefill(call).groups(mine)
            yield from mine
            groups = [group for group in groups if group.rows]
            while groups:
                for group in groups:
                    started = now()
                    grown = group.step()
                    call.accounts.decode_seconds += now() - started
                    yield from grown
                groups = [group for group in groups if group.rows]
            call.accounts.prompts += len(mine)
            call.accounts.tokens += sum(len(row.response.tokens) for row in mine if row.response)

    def _plan(self, lengths: list[int], settings: DecodeSettings) -> list[list[int]]:
        """Batches by length. Padding and rejected drafts shift a sliding window: beyond it rows go by themselves."""
        new = settings.max_new_tokens
        batches = plan_batches([n + new for n in lengths], BATCH_TOKENS)
        window = getattr(self.loaded.model.config.get_text_config(), "sliding_window", None)
        if not window or max(lengths, default=0) + new + (new if settings.contract == "lossless" else 0) <= window:
            return batches
        if settings.contract == "lossless":
            return [[i] for batch in batches for i in batch]
        return [[i for i in batch if lengths[i] == n] for batch in batches for n in sorted({lengths[i] for i in batch})]

    def _row(self, index: int, ids: Sequence[int], call: _Call) -> Row:
        text = GrowingText(self.loaded.tokenizer, call.settings.stop_strings, call.watched)
        most = min(call.settings.max_new_tokens, self.loaded.anatomy.window - len(ids))
        return Row(index, PickRow(call.picker, ids, index), text, call.ends, most)

    def _prefill(self, call: _Call) -> Prefill:
        settings = call.settings
        bounded = settings.contract == "bounded"

        def route_of(profile: int | None, rows: int) -> Route:
            return self._route(profile, rows, settings)

        return Prefill(
            self.loaded,
            call.picker,
            route_of=route_of,
            chooser=call.chooser,
            budget=settings.budget,
            bounded=bounded,
            accounts=call.accounts,
        )

    def _route(self, profile: int | None, rows: int, settings: DecodeSettings) -> Route:
        if profile is None or self.profiles is None:
            return Route(self._full, None, None, None, lambda row: self._response(row, settings, None))

        def describe(row: Row) -> Response:
            return self._response(row, settings, profile)

        path = self._path(profile)
        if settings.contract == "bounded":
            return Route(path, None, None, None, describe)
        chosen = self.profiles.profiles[profile]
        fixed = settings.draft_length
        expected = 1 / speed_limit(self.loaded, chosen.layers)
        pace = None if fixed else pace_of(self.loaded, chosen, rows, expected)
        return Route(self._full, path, pace, fixed, describe)

    def _path(self, profile: int) -> executing:
        if self.profiles is not None and profile not in self._paths:
            layers = self.profiles.profiles[profile].layers
            self._paths[profile] = executing(self.loaded, layers, self.profiles.healing(profile))
        return self._paths[profile]

    def _response(self, row: Row, settings: DecodeSettings, profile: int | None) -> Response:
        chosen = None if profile is None or self.profiles is None else self.profiles.profiles[profile]
        n = self.loaded.anatomy.n_layers
        return Response(
            row.text.text,
            tuple(row.pick.ids[row.pick.n_prompt :]),
            row.stop or "cap",
            settings.contract,
            None if chosen is None else chosen.name,
            tuple(range(n)) if chosen is None else chosen.layers,
            n,
            row.drafted,
            row.accepted,
            row.passes,
        )


def _pieces(row: Row) -> list[Piece]:
    text = row.text.piece() if row.response is None else row.last_piece
    return [Piece(row.index, text, row.response)] if text or row.response else []


def _check_looks(profiles: SkipProfiles, chooser: Chooser) -> None:
    layer = chooser.looks_at
    lost = sorted({i for p in profiles.profiles for i in p.skipped(profiles.n_layers) if i < (layer or 0)})
    if lost:
        message = refusal(
            f"a gate that looks at layer {layer} with profiles that skip {lost}",
            "a gate below which every profile executes all layers",
            "Fit it at a lower layer, or protect these.",
        )
        raise SkipError(message)
