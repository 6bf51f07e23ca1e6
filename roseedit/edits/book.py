"""Which edits are live on a model, kept in step with a ledger where there is one.

The model is changed first, then the ledger is written; if writing fails, the model goes back to what the ledger says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from roseedit.edits.edit import Edit
from roseedit.edits.files import check_base
from roseedit.edits.fingerprint import base_fingerprint
from roseedit.edits.ledger import Ledger, Plan
from roseedit.edits.ledger.conflicts import Asked, contradict
from roseedit.edits.ledger.plans import clashes, newest_reverted, plan_apply, plan_new, plan_rejected, plan_revert
from roseedit.edits.live import live_edits
from roseedit.edits.shared import sharing
from roseedit.errors import ConflictError, LedgerError, RejectedError, RequestError, refusal
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest

Check = Callable[[Sequence[Edit]], Mapping[str, Any]]
logger = logging.getLogger(__name__)


class Book:
    """The live edits of one model.

    Args:
        loaded: The model.
        ledger: A ledger open for writing; what is applied in it is put on the model.

    Raises:
        DeltaError: The ledger is that of another model.
        LedgerError: Files of an applied edit are missing or damaged.
    """

    def __init__(self, loaded: LoadedModel, ledger: Ledger | None = None) -> None:
        self.loaded = loaded
        self.ledger = ledger
        self._edits: dict[str, Edit] = {}
        self._unrecorded: set[str] = set()
        self._reverted: list[Edit] = []
        self.sync()

    @property
    def edits(self) -> dict[str, Edit]:
        """The live edits by id, oldest first."""
        return dict(self._edits)

    def sync(self) -> None:
        """Make the model carry what the ledger says; edits that were never to be entered stay as they are."""
        if self.ledger is None:
            return
        wanted = [s.edit_id for s in self.ledger.live]
        for edit_id in [e for e in self._edits if e not in wanted and e not in self._unrecorded]:
            self.take_off(edit_id)
        missing = [self.ledger.load(edit_id) for edit_id in wanted if edit_id not in self._edits]
        for edit in {(edit.fingerprint, _matrices(edit)): edit for edit in missing}.values():
            self._check_base(edit)
        live_edits(self.loaded.model).apply_all([edit.delta for edit in missing])
        self._edits |= {edit.edit_id: edit for edit in missing}
        order = {edit_id: i for i, edit_id in enumerate(wanted)}
        self._edits = dict(sorted(self._edits.items(), key=lambda item: order.get(item[0], len(order))))

    # -- the model alone

    def put_on(self, edit: Edit) -> None:
        """Put an edit on the model.

        Raises:
            RequestError: It is live.
        """
        if edit.edit_id in self._edits:
            message = refusal(f"the edit {edit.edit_id} a second time", "an edit that is not live", "Revert it first.")
            raise RequestError(message)
        live_edits(self.loaded.model).apply(edit.delta)
        self._edits[edit.edit_id] = edit

    def take_off(self, edit_id: str) -> Edit:
        """Take an edit off the model.

        Raises:
            RequestError: It is not live.
        """
        edit = self.get(edit_id)
        edit.delta.revert(self.loaded.model)
        del self._edits[edit_id]
        self._unrecorded.discard(edit_id)
        return edit

    def get(self, edit_id: str) -> Edit:
        """A live edit.

        Raises:
            RequestError: It is not live.
        """
        if edit_id not in self._edits:
            known = ", ".join(self._edits) or "no edit is live"
            raise RequestError(refusal(f"edit {edit_id}, which is not live", known, "See .edits."))
        return self._edits[edit_id]

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """If the block fails, the model carries again what it carried before, or what was entered in spite of that.

        Yields:
            Nothing.
        """
        before, unrecorded = dict(self._edits), set(self._unrecorded)
        try:
            yield
        except BaseException:
            kept = {e for e in before if self.ledger is None or e in unrecorded}
            for edit_id in [e for e in self._edits if e not in before]:
                self.take_off(edit_id)
            for edit_id in [e for e in before if e in kept and e not in self._edits]:
                self.put_on(before[edit_id])
            self._unrecorded = unrecorded
            self.sync()
            raise

    def recorded(self, edit_id: str) -> bool:
        """True for a live edit that the ledger knows as such."""
        return self.ledger is not None and edit_id in self._edits and edit_id not in self._unrecorded

    def not_recorded(self, edits: Iterable[Edit]) -> None:
        """These live edits are never to be entered: a trial's."""
        self._unrecorded |= {edit.edit_id for edit in edits}

    # -- model and ledger together

    def clashes(self, requests: Sequence[EditRequest], *, replace: bool) -> tuple[str, ...]:
        """The live edits that requests contradict and that are to go for them.

        Args:
            requests: What is to be asked.
            replace: Contradicted edits may go. Without a ledger, nothing is looked for unless this is set.

        Returns:
            Their ids.

        Raises:
            ConflictError: They may not go, or the requests contradict each other.
        """
        if self.ledger is None and not replace:
            return ()
        asked = [Asked.of(r) for r in requests]
        for i, one in enumerate(asked):
            for other in asked[:i]:
                if contradict(one, other):
                    got = f"{other.prompt!r} -> {other.answers[0]!r} and {one.prompt!r} -> {one.answers[0]!r}"
                    raise ConflictError(refusal(got, "requests that do not contradict each other", "Leave one out."))
        live = {edit_id: edit.asked for edit_id, edit in self._edits.items() if edit_id not in self._unrecorded}
        return clashes(live, asked, replace=replace)

    def enter(
        self,
        edits: Sequence[Edit],
        *,
        replaces: Sequence[str] = (),
        consolidates: Sequence[str] = (),
        metrics: Sequence[Mapping[str, Any] | None] = (),
        health: Mapping[str, Any] | None = None,
    ) -> None:
        """Enter edits that are on the model now and are to stay.

        Args:
            edits: The edits.
            replaces: Edits that were taken off for them.
            consolidates: Edits that the only one stands for.
            metrics: Per edit how well it worked.
            health: Figures of the health check.
        """
        states = self.ledger.states if self.ledger else {}
        plan = plan_new(states, edits, replaces=replaces, consolidates=consolidates, metrics=metrics)
        self._commit(plan, health)

    def apply(self, edit: Edit, *, replace: bool = False, check: Check | None = None) -> None:
        """Put an edit on and enter that, be it new to the ledger or not; a warning tells of shared neurons.

        Args:
            edit: The edit.
            replace: Revert live edits that it contradicts.
            check: Called when it is on the model, before anything is entered; raises if it must not stay.

        Raises:
            RequestError: It is live.
            DeltaError: It was made for another base.
            LedgerError: Its state does not allow it.
            ConflictError: It contradicts a live edit.
            RejectedError: `check` refused it.
        """
        if edit.edit_id in self._edits:
            raise RequestError(refusal(f"edit {edit.edit_id}, which is live", "one that is not", "Revert it first."))
        self._check_base(edit)
        states = self.ledger.states if self.ledger else {}
        if edit.edit_id in states:
            plan = plan_apply(states, edit.edit_id, replace=replace, checked=check is not None)
        else:
            plan = plan_new(states, [edit], replaces=self.clashes(edit.requests, replace=replace))
        with self.rejections(), self.attempt():
            self._mirror(plan, edit)
            self._commit(plan, check([edit]) if check else None)
        self._tell_of_shared(edit)

    def _tell_of_shared(self, edit: Edit) -> None:
        shared = sharing(edit, [other for other in self._edits.values() if other.edit_id != edit.edit_id])
        if shared:
            logger.warning(
                "edit %s writes %d neurons that live edits write too (%s): they may spoil each other. Make them one "
                "after another on this model, or jointly.",
                *(edit.edit_id, sum(shared.values()), ", ".join(shared)),
            )

    @contextmanager
    def rejections(self) -> Iterator[None]:
        """Edits that a health check inside the block refuses are entered as rejected; put `attempt` inside."""
        try:
            yield
        except RejectedError as error:
            if self.ledger is not None:
                self.ledger.commit(plan_rejected(error.edits, error.figures, str(error)))
            raise

    def revert(self, edit_id: str, why: str | None = None) -> Edit:
        """Take an edit off and enter that; a consolidation brings back what it stands for.

        Args:
            edit_id: Which.
            why: Goes into the ledger.

        Returns:
            The edit.
        """
        edit = self.get(edit_id)
        recorded = self.ledger is not None and edit_id not in self._unrecorded
        states = self.ledger.states if self.ledger else {}
        plan = plan_revert(states, edit_id, why) if recorded else None
        with self.attempt():
            if plan is None:
                self.take_off(edit_id)
            else:
                self._mirror(plan, None)
                self._commit(plan)
        self._reverted = [e for e in self._reverted if e.edit_id != edit_id] + [edit]
        return edit

    def newest_reverted(self) -> Edit:
        """The edit that was reverted last and is not back yet.

        Returns:
            The edit.

        Raises:
            RequestError: There is none.
        """
        if self.ledger is not None:
            found = newest_reverted(self.ledger.states)
            if found is not None:
                return self.ledger.load(found)
        left = [edit for edit in self._reverted if edit.edit_id not in self._edits]
        if self.ledger is not None or not left:
            raise RequestError(refusal("redo with nothing reverted", "a reverted edit", "See the list of edits."))
        return left[-1]

    def _mirror(self, plan: Plan, own: Edit | None) -> None:
        for edit_id in plan.off:
            self.take_off(edit_id)
        for edit_id in plan.on:
            self.put_on(own if own is not None and own.edit_id == edit_id else self._from_ledger(edit_id))

    def _from_ledger(self, edit_id: str) -> Edit:
        if self.ledger is None:
            raise LedgerError(refusal("an edit to be read without a ledger", "a ledger", "Bind one."))
        edit = self.ledger.load(edit_id)
        self._check_base(edit)
        return edit

    def _check_base(self, edit: Edit) -> None:
        """The quick way to a yes; a no is said by `check_base`, which knows what is wrong."""
        own = {name for name in _matrices(edit) if _has(self.loaded.model, name)}
        if len(own) < len(_matrices(edit)) or base_fingerprint(self.loaded, own) != edit.fingerprint:
            check_base(edit, self.loaded)

    def _commit(self, plan: Plan, health: Mapping[str, Any] | None = None) -> None:
        if self.ledger is not None:
            self.ledger.commit(plan.noting({"health": dict(health)}) if health else plan)


def _matrices(edit: Edit) -> frozenset[str]:
    return frozenset(m.weight_name for m in edit.delta.matrices)


def _has(model: Any, name: str) -> bool:
    try:
        model.get_parameter(name)
    except AttributeError:
        return False
    return True
