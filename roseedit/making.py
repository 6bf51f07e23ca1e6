"""What `Editor.edit` is made of: the modes, the result, and the steps between a request and a table."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from roseedit.edits.bank import bank_of
from roseedit.edits.book import Book
from roseedit.edits.edit import Edit
from roseedit.edits.fingerprint import base_fingerprint
from roseedit.edits.health import HealthGate
from roseedit.errors import RequestError, refusal
from roseedit.evaluation.table import Question, Reading, compare, questions, readings
from roseedit.hparams import Hparams, as_mapping, read_yaml
from roseedit.methods import EditingMethod, GrowingMethod, MadeDelta, changes_weights, read_hparams
from roseedit.models.load import LoadedModel, load_model
from roseedit.progress import bar
from roseedit.requests import EditRequest, check_requests, check_tokens, make_requests

if TYPE_CHECKING:
    import pandas

logger = logging.getLogger(__name__)
Mode = Literal["joint", "independent", "sequential"]
MODES = ("joint", "independent", "sequential")
KINDS = {"prompt": "reliability", "rephrase": "generality", "locality": "locality", "portability": "portability"}


@dataclass(frozen=True)
class EditResult:
    """What one call of `Editor.edit` did.

    Attributes:
        edits: The edits made: one in joint mode, else one per request.
        metrics: The before/after table (see `evaluation.table.compare`), or None when it was not asked for.
        mode: How they were made.
        applied: True when they are live on the model now; independent edits are measured and taken off again.
        seconds: Time for making them, measuring left out.
        replaced: Ids of the edits that were reverted because these contradict them.
        health: Figures of the health check, where it is on.
    """

    edits: tuple[Edit, ...]
    metrics: pandas.DataFrame | None
    mode: Mode
    applied: bool
    seconds: float
    replaced: tuple[str, ...] = ()
    health: Mapping[str, Any] = field(default_factory=dict)

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


def settings_of(hparams: str | Path | Hparams | Mapping[str, Any]) -> Hparams:
    """Settings from whatever a caller has: a YAML file, a mapping, or the settings themselves."""
    if isinstance(hparams, Hparams):
        return hparams
    if isinstance(hparams, Mapping):
        return read_hparams(hparams)
    return read_hparams(read_yaml(hparams), str(hparams))


def loaded_for(settings: Hparams, **options: Any) -> LoadedModel:
    """The model that settings name, in the precision and on the device that they name."""
    return load_model(
        settings.model,
        dtype=None if settings.dtype == "default" else settings.dtype,
        device=None if settings.device == "auto" else settings.device,
        revision=settings.revision,
        anatomy=settings.anatomy,
        quantize=settings.quantize,
        whole=getattr(settings, "written_indices", getattr(settings, "layer_indices", lambda _: ())),
        **options,
    )


def requests_of(
    prompts: Any, targets: Any = None, *, subject: str | None = None, subjects: Any = None, **more: Any
) -> list[EditRequest]:
    """The arguments of `Editor.edit` as requests; see `make_requests`.

    Raises:
        RequestError: Arguments that do not fit each other.
    """
    if subject is not None and subjects is not None:
        raise RequestError(refusal("subject and subjects", "one of the two", "Leave one out."))
    return make_requests(prompts, targets, subjects=subjects if subject is None else subject, **more)


def check_method(hparams: Hparams) -> None:
    """Refuse a method whose edits cannot be applied.

    Args:
        hparams: Settings of the method.

    Raises:
        RequestError: It works through the prompt.
    """
    if not changes_weights(hparams.method):
        message = refusal(
            f"an edit by {hparams.method}, which changes no weights, so that there is nothing to apply",
            "a method that changes weights",
            "Put the fact before your prompts yourself; `roseedit evaluate` measures the method.",
        )
        raise RequestError(message)


def check_call(loaded: LoadedModel, requests: Sequence[EditRequest], mode: str, live: Sequence[Edit]) -> None:
    """Refuse what cannot be carried out, before any model work.

    Args:
        loaded: The model.
        requests: What is asked.
        mode: How it is to be made.
        live: Edits that are live. What is live already need not be made again; independent edits do not meet, so there
            it is no harm.

    Raises:
        RequestError: An unknown mode, a faulty request, or one that is live or stands twice.
    """
    if mode not in MODES:
        raise RequestError(refusal(f"mode {mode!r}", ", ".join(MODES), "Choose one of them."))
    check_requests(requests)
    check_tokens(requests, loaded.tokenizer, loaded.anatomy.window)
    if mode == "independent":
        return
    known = {request.request_id for edit in live for request in edit.requests}
    for i, request in enumerate(requests):
        if request.request_id in known:
            message = refusal(
                f"the request {request.prompt!r} -> {request.target_new!r}, which is live or stands twice",
                "each request once",
                "Leave it out, or revert the live edit first.",
            )
            raise RequestError(f"request {i}: {message}")
        known.add(request.request_id)


@dataclass(frozen=True)
class Maker:
    """Makes edits with one method and puts on the model what is to be live.

    Attributes:
        method: The method.
        hparams: Its settings.
        book: The live edits.
        gate: The health check, if it is on.
        show_progress: Draw progress bars on a terminal.
    """

    method: EditingMethod
    hparams: Hparams
    book: Book
    gate: HealthGate | None
    show_progress: bool

    def carry_out(
        self,
        requests: Sequence[EditRequest],
        mode: Mode,
        *,
        evaluate: bool,
        enter: bool = True,
        replaces: tuple[str, ...] = (),
        consolidates: tuple[str, ...] = (),
        kept: Edit | None = None,
    ) -> EditResult:
        """Look, make, look again, check the model's health, enter; a failure on the way leaves nothing.

        Args:
            requests: What is asked.
            mode: How it is made.
            evaluate: Look, before and after.
            enter: The edits are to stay: check the health, and tell the ledger. Independent edits never are.
            replaces: Live edits to be reverted for them.
            consolidates: Live edits whose place the only new one takes.
            kept: One of these whose facts may stay as they are, the first of the requests.

        Returns:
            What was done.
        """
        loaded, book = self.book.loaded, self.book
        stays = mode != "independent"
        gate = self.gate if stays and enter else None
        asked = questions(requests) if evaluate else []
        before = readings(loaded, asked)
        if gate:
            gate.prepare()
        with book.rejections(), book.attempt():
            for edit_id in (*replaces, *consolidates):
                book.take_off(edit_id)
            started = time.perf_counter()
            edits = self.make(requests, mode, kept)
            seconds = time.perf_counter() - started
            table = compare(asked, before, readings_after(loaded, asked, edits, mode)) if evaluate else None
            health = gate.check(edits) if gate else {}
            if stays and enter:
                found = scores(table, edits)
                book.enter(edits, replaces=replaces, consolidates=consolidates, metrics=found, health=health)
            elif stays:
                book.not_recorded(edits)
        return EditResult(tuple(edits), table, mode, stays, seconds, replaces, health)

    def make(self, requests: Sequence[EditRequest], mode: str, kept: Edit | None = None) -> list[Edit]:
        """Make edits; a failure on the way leaves those before it on the model, for the caller to take off.

        Args:
            requests: What is asked.
            mode: How it is made.
            kept: As of `carry_out`.

        Returns:
            The edits; live, but for independent ones.
        """
        loaded = self.book.loaded
        with bar(len(requests), "editing", self.show_progress) as progress:
            if mode == "sequential":
                return self._in_sequence(requests, progress)
            grown = self._grown(requests, kept, progress) if kept else None
            made = (
                self.method.fit(loaded, requests, self.hparams, joint=mode == "joint", progress=progress)
                if grown is None
                else [grown]
            )
        groups = [tuple(requests)] if mode == "joint" else [(request,) for request in requests]
        edits = [self._wrapped(m, group) for m, group in zip(made, groups, strict=True)]
        if mode == "joint":
            self.book.put_on(edits[0])
        return edits

    def _grown(self, requests: Sequence[EditRequest], kept: Edit, progress: Any) -> MadeDelta | None:
        """One delta in which the facts of an edit stay as they are; None where the method cannot go on from it."""
        grown, rest = None, requests[len(kept.requests) :]
        alike = json.dumps(dict(kept.hparams), sort_keys=True) == json.dumps(self._settings, sort_keys=True)
        if alike and isinstance(self.method, GrowingMethod):
            more = chain([len(kept.requests)], repeat(0))  # those kept are done as soon as anything is
            grown = self.method.grow(
                self.book.loaded, kept, rest, self.hparams, progress=lambda done: progress(done + next(more))
            )
        if grown is None:
            logger.info("edit %s is none to go on from with these settings: all facts are fitted anew", kept.edit_id)
        return grown

    def _in_sequence(self, requests: Sequence[EditRequest], progress: Any) -> list[Edit]:
        """One after another on the edited model."""
        edits: list[Edit] = []
        for request in requests:
            made = self.method.fit(self.book.loaded, [request], self.hparams, joint=False, progress=progress)
            edits.append(self._wrapped(made[0], (request,)))
            self.book.put_on(edits[-1])
        return edits

    @property
    def _settings(self) -> dict[str, Any]:
        """What an edit says of its making; how it is checked is no part of that."""
        return {name: v for name, v in as_mapping(self.hparams).items() if name not in ("health", "strict")}

    def _wrapped(self, made: MadeDelta, requests: tuple[EditRequest, ...]) -> Edit:
        loaded = self.book.loaded
        names = [m.weight_name for m in made.delta.matrices]
        fingerprint = base_fingerprint(loaded, names, strict=self.hparams.strict)
        return Edit(made.delta, requests, self._settings, fingerprint, loaded.name, made.report)


def readings_after(loaded: LoadedModel, asked: Sequence[Question], edits: Sequence[Edit], mode: str) -> list[Reading]:
    """Look at the model with the edits: all of them on it, or each request with its own independent edit."""
    if mode != "independent":
        return readings(loaded, asked)
    bank = bank_of(loaded, [edit.delta for edit in edits])
    return readings(loaded, asked, edits=bank, own_edit=True)


def scores(table: pandas.DataFrame | None, edits: Sequence[Edit]) -> list[dict[str, Any] | None]:
    """The table in short, per edit, for the ledger.

    Args:
        table: The before/after table of one call.
        edits: The edits of that call: one for all its requests, or one per request.

    Returns:
        Per edit `{"reliability": {"rate": ..., "n": ...}, ...}`: the share of probes that are as they should be.
    """
    if table is None:
        return [None] * len(edits)
    out: list[dict[str, Any] | None] = []
    for i in range(len(edits)):
        own = table if len(edits) == 1 else table[table.request == i]
        short: dict[str, Any] = {}
        for kind, name in KINDS.items():
            verdicts = [bool(v) for v in own[own.kind == kind].after_ok if v is not None]
            if verdicts:
                short[name] = {"rate": sum(verdicts) / len(verdicts), "n": len(verdicts)}
        out.append(short)
    return out
