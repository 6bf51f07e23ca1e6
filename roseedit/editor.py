"""The Editor: the façade that a user meets. It checks, delegates and keeps the list of live edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from roseedit.edits.book import Book
from roseedit.edits.edit import Edit
from roseedit.edits.files import load_edit, save_edit
from roseedit.edits.health import HealthGate
from roseedit.edits.ledger import Ledger
from roseedit.errors import HparamsError, RequestError, refusal
from roseedit.evaluation.generation import MAX_NEW_TOKENS
from roseedit.evaluation.prompts import STOP_STRINGS
from roseedit.hadskip.contract import Contract, DecodeSettings, Sampling
from roseedit.hadskip.decode import Decoder
from roseedit.hadskip.files import find_profiles
from roseedit.hadskip.profile import SkipProfiles
from roseedit.hadskip.response import Piece
from roseedit.hparams import Hparams
from roseedit.making import (
    MODES,
    EditResult,
    Maker,
    Mode,
    check_call,
    check_method,
    loaded_for,
    requests_of,
    settings_of,
)
from roseedit.methods import find_method
from roseedit.models.load import LoadedModel, wrap_model
from roseedit.requests import EditRequest
from roseedit.shipped import shipped_hparams

__all__ = ["MODES", "EditResult", "Editor", "Mode"]


class Editor:
    """Changes facts in a model, and changes them back.

    Args:
        loaded: The model.
        hparams: Settings of an editing method.
        show_progress: Draw progress bars on a terminal.
        ledger: Folder of a ledger, made if it is not there, or a ledger open for writing. Edits that are applied in it
            are put on the model, and everything done from now on is entered; `close` (or the end of a `with` block)
            lets go of it.

    Raises:
        LedgerError: The ledger cannot be used; `LedgerBusyError` when somebody else writes to it.
        DeltaError: The ledger is that of another model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        hparams: Hparams,
        *,
        show_progress: bool = True,
        ledger: str | Path | Ledger | None = None,
    ) -> None:
        self.loaded = loaded
        self.hparams = hparams
        self.show_progress = show_progress
        self.ledger = _opened(ledger)
        try:
            self._method = find_method(hparams.method)
            self._method.check(loaded, hparams)
            self._gate = HealthGate(loaded, hparams.health) if hparams.health else None
            self._book = Book(loaded, self.ledger)
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_hparams(cls, hparams: str | Path | Hparams | Mapping[str, Any], **options: Any) -> Editor:
        """Load the model that an hparams file names.

        Args:
            hparams: A YAML file, a mapping, or ready settings.
            **options: `show_progress`, `ledger`; `trust_remote_code`, handed to `load_model`.

        Returns:
            The editor.

        Raises:
            HparamsError: Faulty settings, found before the model is loaded.
            ModelError: The model cannot be loaded.
        """
        settings = settings_of(hparams)
        show, ledger = options.pop("show_progress", True), _opened(options.pop("ledger", None))
        try:  # a ledger that is busy or broken is refused before the model is loaded
            loaded = loaded_for(settings, **options)
        except BaseException:
            if ledger is not None:
                ledger.close()
            raise
        return cls(loaded, settings, show_progress=show, ledger=ledger)

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        tokenizer: Any = None,
        hparams: str | Path | Hparams | Mapping[str, Any] | None = None,
        *,
        ledger: str | Path | Ledger | None = None,
    ) -> Editor:
        """Wrap a model that is loaded already, or load one by name.

        Args:
            model: A transformers causal LM, or anything `load_model` takes.
            tokenizer: Its tokenizer, with a model object.
            hparams: Settings; left out: the file that ships for the model, else defaults by depth.
            ledger: A ledger or its folder; see the class. One that is open for reading only serves what is applied in
                it, and refuses changes.

        Returns:
            The editor.

        Raises:
            HparamsError: A model object without a tokenizer, or faulty settings.
            ModelError: The model cannot be loaded or understood.
        """
        by_name = isinstance(model, (str, Path))
        name = str(model) if by_name else str(getattr(model, "name_or_path", "") or "model")
        settings = settings_of(hparams if hparams is not None else shipped_hparams(name) or {})
        settings = settings.replaced(model=name)
        if by_name:
            return cls.from_hparams(settings, ledger=ledger)
        if tokenizer is None:
            message = refusal("a model object without its tokenizer", "both", "Pass tokenizer=...")
            raise HparamsError(message)
        return cls(wrap_model(model, tokenizer, name, settings.anatomy), settings, ledger=ledger)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits that are live on the model, oldest first."""
        return tuple(self._book.edits.values())

    def edit(
        self,
        prompts: str | EditRequest | Sequence[str] | Sequence[EditRequest],
        targets: str | Sequence[str] | None = None,
        *,
        subjects: str | Sequence[str | None] | None = None,
        subject: str | None = None,
        targets_true: str | Sequence[str | None] | None = None,
        rephrase: Any = None,
        locality: Any = None,
        portability: Any = None,
        mode: Mode = "joint",
        evaluate: bool = True,
        replace: bool = False,
    ) -> EditResult:
        """Make the model say `targets` after `prompts`.

        Args:
            prompts: One prompt, a list, or ready requests.
            targets: One new answer per prompt, without leading space.
            subjects: What each fact is about; must occur in its prompt. Anchors are built from it, so give it.
            subject: The same for a single prompt.
            targets_true: Old answers, for the table.
            rephrase: Other wordings, per prompt; only looked at, never trained on.
            locality: Probes that must not change, per prompt: strings or `Probe`.
            portability: Probes that must follow, per prompt: (prompt, answer) or `Probe`.
            mode: `joint`: all in one delta, live afterwards. `sequential`: one after another, live afterwards.
                `independent`: each alone on the model as it is, measured, not live afterwards.
            evaluate: Fill `metrics` (generates before and after).
            replace: Revert live edits that the requests contradict. With a ledger a contradiction is refused
                otherwise; without one nobody looks for it.

        Returns:
            The edits and what the model says before and after.

        Raises:
            RequestError: A request that cannot be carried out; nothing has been done then. `ConflictError` when it
                contradicts a live edit.
            RejectedError: The health check refused what was made; the model is as before.
        """
        requests = requests_of(
            prompts,
            targets,
            subjects=subjects,
            subject=subject,
            targets_true=targets_true,
            rephrase=rephrase,
            locality=locality,
            portability=portability,
        )
        return self._edit(requests, mode, evaluate=evaluate, replace=replace, enter=True)

    def _edit(
        self, requests: list[EditRequest], mode: Mode, *, evaluate: bool, replace: bool, enter: bool
    ) -> EditResult:
        check_method(self.hparams)
        check_call(self.loaded, requests, mode, self.edits)
        looked_for = mode != "independent" and (enter or replace)
        gone = self._book.clashes(requests, replace=replace) if looked_for else ()
        return self._maker.carry_out(requests, mode, evaluate=evaluate, enter=enter, replaces=gone)

    def consolidate(self, *, evaluate: bool = False, keep: bool = False) -> EditResult:
        """Fit what all live edits ask anew, jointly, into one edit that takes their place.

        Args:
            keep: The facts of the oldest live edit stay as they are and only the others are fitted, onto it; where
                it is no joint edit by these settings that the method can go on from (RoseLoRA with `many_at: subject`),
                all are fitted anew. The edit's report says how many were `kept`.
            evaluate: Fill `metrics`: the model with the old edits against the model with the new one.

        Returns:
            The new edit; the old ones are `consolidated`. Reverting it brings them back, bit for bit.

        Raises:
            RequestError: No ledger, or fewer than two live edits.
            RejectedError: The health check refused the new edit; the old ones are live as before.
        """
        old = [edit for edit in self.edits if self._book.recorded(edit.edit_id)]
        if self.ledger is None or len(old) < 2:
            got = "consolidate without a ledger" if self.ledger is None else f"consolidate with {len(old)} live edits"
            message = refusal(got, "a ledger with two live edits or more", "Bind one: Editor(..., ledger=FOLDER).")
            raise RequestError(message)
        requests = list({r.request_id: r for edit in old for r in edit.requests}.values())
        ids = tuple(edit.edit_id for edit in old)
        kept = old[0] if keep else None
        return self._maker.carry_out(requests, "joint", evaluate=evaluate, consolidates=ids, kept=kept)

    def apply(self, edit: Edit, *, replace: bool = False) -> None:
        """Put an edit on the model, e.g. one that was made independently, reverted or loaded.

        Args:
            edit: The edit.
            replace: Revert live edits that it contradicts; see `edit`.

        Raises:
            RequestError: It is live already, or (`ConflictError`) contradicts a live edit.
            DeltaError: It was made for another base.
            LedgerError: Its state in the ledger does not allow it.
            RejectedError: The health check refused it; the model is as before.
        """
        if self._gate:
            self._gate.prepare()
        self._book.apply(edit, replace=replace, check=self._gate.check if self._gate else None)

    def revert(self, edit_id: str | Edit | None = None) -> Edit:
        """Take an edit off; every entry that no other edit touches has its original bytes again.

        Args:
            edit_id: Which, by its id or as it was made; left out: the newest.

        Returns:
            The edit, which can be applied again. A consolidation gives its place back to what it stands for.

        Raises:
            RequestError: No such live edit.
        """
        known = [edit.edit_id for edit in self.edits]
        if isinstance(edit_id, Edit):
            edit_id = edit_id.edit_id
        return self._book.revert(edit_id if edit_id is not None else known[-1] if known else "the newest")

    def redo(self, edit_id: str | None = None, *, replace: bool = False) -> Edit:
        """Put a reverted edit back.

        Args:
            edit_id: Which, from the ledger; left out: the one that was reverted last.
            replace: Revert live edits that it contradicts; see `edit`.

        Returns:
            The edit, live again.

        Raises:
            RequestError: Nothing was reverted, or an id without a ledger.
            LedgerError: The ledger has no such edit, or its state does not allow it.
        """
        if edit_id is None:
            edit = self._book.newest_reverted()
        elif self.ledger is None:
            raise RequestError(refusal("redo of an id without a ledger", "redo()", "Or apply the edit that you have."))
        else:
            edit = self.ledger.load(edit_id)
        self.apply(edit, replace=replace)
        return edit

    @contextmanager
    def trial(self, *args: Any, **kwargs: Any) -> Iterator[EditResult]:
        """As `edit`, for the length of a block: whatever happens inside, the edits are taken off at its end.

        A ledger does not hear of it, nor does the health check; edits that the trial replaces come back at its end.

        Args:
            *args: As for `edit`.
            **kwargs: As for `edit`.

        Yields:
            The result.
        """
        mode, evaluate, replace = (
            kwargs.pop("mode", "joint"),
            kwargs.pop("evaluate", True),
            kwargs.pop("replace", False),
        )
        requests, before = requests_of(*args, **kwargs), self._book.edits
        result = self._edit(requests, mode, evaluate=evaluate, replace=replace, enter=False)
        try:
            yield result
        finally:
            for edit in reversed(result.edits):
                if edit.edit_id in self._book.edits:
                    self._book.take_off(edit.edit_id)
            for edit_id in result.replaced:
                self._book.put_on(before[edit_id])

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        contract: Contract = "full",
        budget: float | None = None,
        gates: str | Path | SkipProfiles | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = STOP_STRINGS,
        detailed: bool = False,
    ) -> Any:
        """Continue prompts with the model as it is, up to an end mark or a stop string.

        Args:
            prompts: One prompt or a list.
            max_new_tokens: Most new tokens.
            contract: `"full"`: all layers run. `"lossless"`: fewer layers draft, all verify; the same text.
                `"bounded"`: fewer layers answer; the text may differ within the quality measured for the profile.
            budget: Share of layer cost that a profile may execute.
            gates: Folder of fitted gates, name of shipped ones, or loaded profiles; left out: those that ship for
                model and budget.
            sampling: How tokens are picked; left out: greedily.
            stop: Texts that end an answer beside the end mark.
            detailed: Return `Response` objects, which tell contract, profile, layers run and acceptance.

        Returns:
            For one prompt the text, or its response; for a list a list of them.

        Raises:
            SkipError: No profiles, stale ones, or a budget that none meets.
        """
        settings = _decoding(max_new_tokens, contract, budget, sampling, stop)
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        said: list[Any] = self.decoder(contract, gates, budget).generate(asked, settings)
        if not detailed:
            said = [response.text.strip() for response in said]
        return said[0] if isinstance(prompts, str) else said

    def stream(
        self, prompts: str | Sequence[str], *, gates: str | Path | SkipProfiles | None = None, **options: Any
    ) -> Iterator[Piece]:
        """As `generate`, piece by piece.

        Args:
            prompts: One prompt or a list.
            gates: As for `generate`.
            **options: As for `generate`.

        Returns:
            Pieces of all prompts as they come; the last one of each carries its response.
        """
        settings = _decoding(**options)
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        return self.decoder(settings.contract, gates, settings.budget).stream(asked, settings)

    def decoder(
        self,
        contract: Contract = "full",
        gates: str | Path | SkipProfiles | None = None,
        budget: float | None = None,
    ) -> Decoder:
        """The decoder behind `generate`.

        Args:
            contract: Under `"full"` no gates are needed.
            gates: As for `generate`.
            budget: Picks among the gates that ship.

        Returns:
            The decoder.

        Raises:
            SkipError: No gates ship for the model.
        """
        if contract == "full" and gates is None:
            return Decoder(self.loaded)
        return Decoder(self.loaded, find_profiles(self.loaded, gates, budget))

    def save(self, edit_id: str, folder: str | Path) -> Path:
        """Write a live edit to a folder.

        Args:
            edit_id: Which.
            folder: A new or empty folder.

        Returns:
            The folder.
        """
        return save_edit(self._book.get(edit_id), folder)

    def load(self, folder: str | Path) -> Edit:
        """Read an edit from a folder and put it on the model.

        Args:
            folder: Where it was saved.

        Returns:
            The edit, live now.
        """
        edit = load_edit(folder, self.loaded)
        self.apply(edit)
        return edit

    def close(self) -> None:
        """Let go of the ledger; the model keeps what is on it."""
        if self.ledger is not None:
            self.ledger.close()

    def __enter__(self) -> Editor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def _maker(self) -> Maker:
        return Maker(self._method, self.hparams, self._book, self._gate, self.show_progress)


def _opened(ledger: str | Path | Ledger | None) -> Ledger | None:
    return Ledger(ledger, write=True) if isinstance(ledger, (str, Path)) else ledger


def _decoding(
    max_new_tokens: int = MAX_NEW_TOKENS,
    contract: Contract = "full",
    budget: float | None = None,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = STOP_STRINGS,
) -> DecodeSettings:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    return DecodeSettings(contract, budget, max_new_tokens, stops, sampling or Sampling())
