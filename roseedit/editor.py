"""The Editor: the façade that a user meets. It checks, delegates and keeps the list of live edits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from roseedit.edits.bank import bank_of
from roseedit.edits.edit import Edit
from roseedit.edits.files import check_base, load_edit, save_edit
from roseedit.edits.fingerprint import base_fingerprint
from roseedit.edits.live import live_edits
from roseedit.errors import HparamsError, RequestError, refusal
from roseedit.evaluation.generation import MAX_NEW_TOKENS, STOP_STRINGS
from roseedit.evaluation.table import Question, Reading, compare, questions, readings
from roseedit.hadskip.decode import Decoder
from roseedit.hadskip.files import find_profiles
from roseedit.hadskip.profile import SkipProfiles
from roseedit.hadskip.response import Contract, DecodeSettings, Piece
from roseedit.hadskip.sampling import Sampling
from roseedit.hparams import Hparams, as_mapping, read_yaml
from roseedit.methods import MadeDelta, find_method, read_hparams
from roseedit.models.load import LoadedModel, load_model, wrap_model
from roseedit.progress import bar
from roseedit.requests import EditRequest, check_requests, check_tokens, make_requests
from roseedit.shipped import shipped_hparams

if TYPE_CHECKING:
    import pandas

Mode = Literal["joint", "independent", "sequential"]
MODES = ("joint", "independent", "sequential")


@dataclass(frozen=True)
class EditResult:
    """What one call of `Editor.edit` did.

    Attributes:
        edits: The edits made: one in joint mode, else one per request.
        metrics: The before/after table (see `evaluation.table.compare`), or None when it was not asked for.
        mode: How they were made.
        applied: True when they are live on the model now; independent edits are measured and taken off again.
        seconds: Time for making them, measuring left out.
    """

    edits: tuple[Edit, ...]
    metrics: pandas.DataFrame | None
    mode: Mode
    applied: bool
    seconds: float

    @property
    def edit_id(self) -> str:
        """The id of the only edit.

        Raises:
            RequestError: There are several; use `edits`.
        """
        if len(self.edits) != 1:
            message = refusal(f"edit_id of {len(self.edits)} edits", "a result with one edit", "Use result.edits.")
            raise RequestError(message)
        return self.edits[0].edit_id


class Editor:
    """Changes facts in a model, and changes them back.

    Args:
        loaded: The model.
        hparams: Settings of an editing method.
        show_progress: Draw progress bars on a terminal.
    """

    def __init__(self, loaded: LoadedModel, hparams: Hparams, *, show_progress: bool = True) -> None:
        self.loaded = loaded
        self.hparams = hparams
        self.show_progress = show_progress
        self._method = find_method(hparams.method)
        self._method.check(loaded, hparams)
        self._edits: dict[str, Edit] = {}

    @classmethod
    def from_hparams(cls, hparams: str | Path | Hparams | Mapping[str, Any], **options: Any) -> Editor:
        """Load the model that an hparams file names.

        Args:
            hparams: A YAML file, a mapping, or ready settings.
            **options: `show_progress`; `trust_remote_code`, handed to `load_model`.

        Returns:
            The editor.

        Raises:
            HparamsError: Faulty settings, found before the model is loaded.
            ModelError: The model cannot be loaded.
        """
        settings = _settings(hparams)
        show = options.pop("show_progress", True)
        return cls(_load(settings, **options), settings, show_progress=show)

    @classmethod
    def from_pretrained(
        cls, model: Any, tokenizer: Any = None, hparams: str | Path | Hparams | Mapping[str, Any] | None = None
    ) -> Editor:
        """Wrap a model that is loaded already, or load one by name.

        Args:
            model: A transformers causal LM, or anything `load_model` takes.
            tokenizer: Its tokenizer, with a model object.
            hparams: Settings; left out: the file that ships for the model, else defaults by depth.

        Returns:
            The editor.

        Raises:
            HparamsError: A model object without a tokenizer, or faulty settings.
            ModelError: The model cannot be loaded or understood.
        """
        by_name = isinstance(model, (str, Path))
        name = str(model) if by_name else str(getattr(model, "name_or_path", "") or "model")
        settings = _settings(hparams if hparams is not None else shipped_hparams(name) or {})
        settings = settings.replaced(model=name)
        if by_name:
            return cls(_load(settings), settings)
        if tokenizer is None:
            message = refusal("a model object without its tokenizer", "both", "Pass tokenizer=...")
            raise HparamsError(message)
        return cls(wrap_model(model, tokenizer, name, settings.anatomy), settings)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits that are live on the model, oldest first."""
        return tuple(self._edits.values())

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

        Returns:
            The edits and what the model says before and after.

        Raises:
            RequestError: A request that cannot be carried out; nothing has been done then.
        """
        if subject is not None and subjects is not None:
            raise RequestError(refusal("subject and subjects", "one of the two", "Leave one out."))
        requests = make_requests(
            prompts,
            targets,
            subjects=subjects if subject is None else subject,
            targets_true=targets_true,
            rephrase=rephrase,
            locality=locality,
            portability=portability,
        )
        self._check(requests, mode)
        self._check_repeats(requests, mode)
        asked = questions(requests) if evaluate else []
        before = readings(self.loaded, asked)
        started = time.perf_counter()
        edits = self._make(requests, mode)
        seconds = time.perf_counter() - started
        table = self._measured(asked, before, edits, mode) if evaluate else None
        return EditResult(tuple(edits), table, mode, mode != "independent", seconds)

    def apply(self, edit: Edit) -> None:
        """Put an edit on the model, e.g. one that was made independently, reverted or loaded.

        Args:
            edit: The edit.

        Raises:
            RequestError: It is live already.
            DeltaError: It was made for another base.
        """
        if edit.edit_id in self._edits:
            raise RequestError(refusal(f"edit {edit.edit_id}, which is live", "one that is not", "Revert it first."))
        check_base(edit, self.loaded)
        self._put_on(edit)

    def revert(self, edit_id: str | None = None) -> Edit:
        """Take an edit off; every entry that no other edit touches has its original bytes again.

        Args:
            edit_id: Which; left out: the newest.

        Returns:
            The edit, which can be applied again.

        Raises:
            RequestError: No such live edit.
        """
        known = list(self._edits)
        wanted = edit_id if edit_id is not None else known[-1] if known else "the newest"
        if wanted not in self._edits:
            message = refusal(f"edit {wanted}, which is not live", ", ".join(known) or "no edit is live", "See .edits.")
            raise RequestError(message)
        edit = self._edits[wanted]
        edit.delta.revert(self.loaded.model)
        del self._edits[wanted]
        return edit

    @contextmanager
    def trial(self, *args: Any, **kwargs: Any) -> Iterator[EditResult]:
        """As `edit`, for the length of a block: whatever happens inside, the edits are taken off at its end.

        Args:
            *args: As for `edit`.
            **kwargs: As for `edit`.

        Yields:
            The result.
        """
        result = self.edit(*args, **kwargs)
        try:
            yield result
        finally:
            self._take_off(result.edits)

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
            gates: Folder of fitted gates, or loaded profiles; left out: those that ship for the model.
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
        if edit_id not in self._edits:
            known = ", ".join(self._edits) or "no edit is live"
            raise RequestError(refusal(f"edit {edit_id}, which is not live", known, "See .edits."))
        return save_edit(self._edits[edit_id], folder)

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

    def _check(self, requests: Sequence[EditRequest], mode: str) -> None:
        if mode not in MODES:
            raise RequestError(refusal(f"mode {mode!r}", ", ".join(MODES), "Choose one of them."))
        check_requests(requests)
        check_tokens(requests, self.loaded.tokenizer, self.loaded.anatomy.window)

    def _check_repeats(self, requests: Sequence[EditRequest], mode: str) -> None:
        """What is live already need not be made again; independent edits do not meet, so there it is no harm."""
        if mode == "independent":
            return
        live = {request.request_id for edit in self._edits.values() for request in edit.requests}
        for i, request in enumerate(requests):
            if request.request_id in live:
                message = refusal(
                    f"the request {request.prompt!r} -> {request.target_new!r}, which is live or stands twice",
                    "each request once",
                    "Leave it out, or revert the live edit first.",
                )
                raise RequestError(f"request {i}: {message}")
            live.add(request.request_id)

    def _make(self, requests: Sequence[EditRequest], mode: str) -> list[Edit]:
        with bar(len(requests), "editing", self.show_progress) as progress:
            if mode == "sequential":
                return self._in_sequence(requests, progress)
            made = self._method.fit(self.loaded, requests, self.hparams, joint=mode == "joint", progress=progress)
        groups = [tuple(requests)] if mode == "joint" else [(request,) for request in requests]
        edits = [self._wrapped(m, group) for m, group in zip(made, groups, strict=True)]
        if mode == "joint":
            self._put_on(edits[0])
        return edits

    def _in_sequence(self, requests: Sequence[EditRequest], progress: Any) -> list[Edit]:
        """One after another on the edited model; if one fails, those before it are taken off again."""
        edits: list[Edit] = []
        try:
            for request in requests:
                made = self._method.fit(self.loaded, [request], self.hparams, joint=False, progress=progress)
                edits.append(self._wrapped(made[0], (request,)))
                self._put_on(edits[-1])
        except BaseException:
            self._take_off(edits)
            raise
        return edits

    def _wrapped(self, made: MadeDelta, requests: tuple[EditRequest, ...]) -> Edit:
        fingerprint = base_fingerprint(self.loaded, [m.weight_name for m in made.delta.matrices])
        return Edit(made.delta, requests, as_mapping(self.hparams), fingerprint, self.loaded.name, made.report)

    def _put_on(self, edit: Edit) -> None:
        if edit.edit_id in self._edits:
            message = refusal(f"the edit {edit.edit_id} a second time", "an edit that is not live", "Revert it first.")
            raise RequestError(message)
        live_edits(self.loaded.model).apply(edit.delta)
        self._edits[edit.edit_id] = edit

    def _measured(
        self, asked: Sequence[Question], before: Sequence[Reading], edits: Sequence[Edit], mode: str
    ) -> pandas.DataFrame:
        """The table; if measuring fails, the edits are taken off, for the caller would have no handle on them."""
        try:
            return compare(asked, before, self._after(asked, edits, mode))
        except BaseException:
            self._take_off(edits)
            raise

    def _take_off(self, edits: Sequence[Edit]) -> None:
        for edit in reversed(edits):
            if edit.edit_id in self._edits:
                self.revert(edit.edit_id)

    def _after(self, asked: Sequence[Question], edits: Sequence[Edit], mode: str) -> list[Reading]:
        if mode != "independent":
            return readings(self.loaded, asked)
        bank = bank_of(self.loaded, [edit.delta for edit in edits])
        return readings(self.loaded, asked, edits=bank, own_edit=True)


def _settings(hparams: str | Path | Hparams | Mapping[str, Any]) -> Hparams:
    if isinstance(hparams, Hparams):
        return hparams
    if isinstance(hparams, Mapping):
        return read_hparams(hparams)
    return read_hparams(read_yaml(hparams), str(hparams))


def _decoding(
    max_new_tokens: int = MAX_NEW_TOKENS,
    contract: Contract = "full",
    budget: float | None = None,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = STOP_STRINGS,
) -> DecodeSettings:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    return DecodeSettings(contract, budget, max_new_tokens, stops, sampling or Sampling())


def _load(settings: Hparams, **options: Any) -> LoadedModel:
    return load_model(
        settings.model,
        dtype=None if settings.dtype == "default" else settings.dtype,
        device=None if settings.device == "auto" else settings.device,
        revision=settings.revision,
        anatomy=settings.anatomy,
        **options,
    )
