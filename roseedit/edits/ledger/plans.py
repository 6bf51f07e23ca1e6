"""What a call is going to enter: worked out, and refused, before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from roseedit.edits.ledger.chain import Standing
from roseedit.edits.ledger.conflicts import Asked, asked_in, contradict
from roseedit.errors import ConflictError, LedgerError, refusal
from roseedit.requests import EditRequest

if TYPE_CHECKING:
    from roseedit.edits.edit import Edit

States = Mapping[str, Standing]


@dataclass(frozen=True)
class Draft:
    """One entry to be.

    Attributes:
        action: What is done.
        edit_id: To which edit.
        detail: Why, and what goes with it.
        edit: The edit itself, where it may be new to the ledger.
        metrics: How well it worked, with a new edit.
    """

    action: str
    edit_id: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    edit: Edit | None = None
    metrics: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """The entries of one transaction, in order."""

    drafts: tuple[Draft, ...]

    @property
    def off(self) -> tuple[str, ...]:
        """Edits that leave the model."""
        return tuple(d.edit_id for d in self.drafts if d.action in ("reverted", "consolidated"))

    @property
    def on(self) -> tuple[str, ...]:
        """Edits that come onto it."""
        return tuple(d.edit_id for d in self.drafts if d.action == "applied")

    def noting(self, detail: Mapping[str, Any]) -> Plan:
        """The plan with something more in the entries of what comes on."""
        drafts = (replace(d, detail={**d.detail, **detail}) if d.action == "applied" else d for d in self.drafts)
        return Plan(tuple(drafts))


def plan_new(
    states: States,
    edits: Sequence[Edit],
    *,
    replaces: Sequence[str] = (),
    consolidates: Sequence[str] = (),
    metrics: Sequence[Mapping[str, Any] | None] = (),
) -> Plan:
    """Edits that were just made and are to stay.

    Args:
        states: Where every edit stands.
        edits: The new ones.
        replaces: Live edits that they contradict and that are reverted with them.
        consolidates: Live edits that the only new one stands for from now on.
        metrics: Per new edit how well it worked.

    Returns:
        The plan.

    Raises:
        LedgerError: One of them is live already.
    """
    ids = [edit.edit_id for edit in edits]
    for edit_id in ids:
        if edit_id in states and states[edit_id].live:
            raise LedgerError(refusal(f"edit {edit_id}, which is applied", "one that is not", "Revert it first."))
    drafts = [Draft("reverted", old, {"replaced_by": ids}) for old in replaces]
    drafts += [Draft("consolidated", old, {"into": ids[0]}) for old in consolidates]
    extra = {"consolidates": list(consolidates)} if consolidates else {}
    extra |= {"replaces": list(replaces)} if replaces else {}
    known = [*metrics, *[None] * (len(edits) - len(metrics))]
    for edit, scores in zip(edits, known, strict=True):
        drafts.append(Draft("applied", edit.edit_id, extra, edit, scores))
    return Plan(tuple(drafts))


def plan_rejected(edits: Sequence[Edit], figures: Mapping[str, Any], why: str) -> Plan:
    """Edits that were made, failed the health check and were taken off again.

    Args:
        edits: The edits.
        figures: What was measured.
        why: Which limit they broke.

    Returns:
        The plan.
    """
    return Plan(tuple(Draft("rejected", e.edit_id, {"why": why, "health": figures}, e) for e in edits))


def plan_apply(states: States, edit_id: str, *, replace: bool = False, checked: bool = False) -> Plan:
    """Put an edit of the ledger back.

    Args:
        states: Where every edit stands.
        edit_id: Which.
        replace: Revert live edits that contradict it.
        checked: A rejected edit has passed a health check, or its user has decided to do without.

    Returns:
        The plan.

    Raises:
        LedgerError: It is applied, consolidated or rejected, or stands for edits that are not applied.
        ConflictError: It contradicts a live edit.
    """
    standing = states[edit_id]
    if standing.live:
        raise LedgerError(refusal(f"edit {edit_id}, which is applied", "one that is not", "Revert it first."))
    if standing.state == "consolidated":
        remedy = f"Revert {standing.into}: that brings it back."
        got = f"edit {edit_id}, which lives on in edit {standing.into}"
        raise LedgerError(refusal(got, "a reverted edit", remedy))
    if standing.state == "rejected" and not checked:
        got = f"edit {edit_id}, which was rejected by the health check"
        raise LedgerError(refusal(got, "a reverted edit", "Apply it through an Editor, which checks it again."))
    gone = [m for m in standing.members if not states[m].live]
    if gone:
        got = f"edit {edit_id}, which stands for {', '.join(gone)}, not applied any more"
        raise LedgerError(refusal(got, "a consolidation of applied edits", "Apply those first, or consolidate anew."))
    asked = asked_in(standing.record.requests or "[]")
    clashing = contradicted(states, asked, replace=replace, but=standing.members)
    drafts = [Draft("reverted", old, {"replaced_by": [edit_id]}) for old in clashing]
    drafts += [Draft("consolidated", old, {"into": edit_id}) for old in standing.members]
    detail = {"replaces": list(clashing)} if clashing else {}
    return Plan((*drafts, Draft("applied", edit_id, detail)))


def plan_revert(states: States, edit_id: str, why: str | None = None) -> Plan:
    """Take an edit off; a consolidation gives back the edits it stands for.

    Args:
        states: Where every edit stands.
        edit_id: Which.
        why: Goes into the entry.

    Returns:
        The plan.

    Raises:
        LedgerError: It is not applied.
    """
    standing = states[edit_id]
    if not standing.live:
        got = f"edit {edit_id}, which is {standing.state}"
        into = f"Revert {standing.into} instead." if standing.into else "See the list of edits."
        raise LedgerError(refusal(got, "an applied edit", into))
    drafts = [Draft("reverted", edit_id, {"why": why} if why else {})]
    back = [m for m in standing.members if states[m].into == edit_id]
    return Plan((*drafts, *(Draft("applied", m, {"restored_from": edit_id}) for m in back)))


def newest_live(states: States) -> str | None:
    """The edit that was applied last, of those that are."""
    live = [s for s in states.values() if s.live]
    return max(live, key=lambda s: s.changed.seq).edit_id if live else None


def newest_reverted(states: States) -> str | None:
    """The edit that was reverted last, of those that are."""
    found = [s for s in states.values() if s.state == "reverted"]
    return max(found, key=lambda s: s.changed.seq).edit_id if found else None


def contradicted(
    states: States, requests: Iterable[EditRequest | Asked], *, replace: bool, but: Sequence[str] = ()
) -> tuple[str, ...]:
    """The live edits that requests contradict, if they may be replaced.

    Args:
        states: Where every edit stands.
        requests: What is to be asked.
        replace: They may.
        but: Live edits that do not count.

    Returns:
        Their ids.

    Raises:
        ConflictError: There are some and they may not be replaced, or replacing them would take other facts along.
    """
    live = {s.edit_id: asked_in(s.record.requests or "[]") for s in states.values() if s.live and s.edit_id not in but}
    return clashes(live, [r if isinstance(r, Asked) else Asked.of(r) for r in requests], replace=replace)


def clashes(live: Mapping[str, Sequence[Asked]], requests: Sequence[Asked], *, replace: bool) -> tuple[str, ...]:
    """As `contradicted`, for live edits given by what they ask.

    Args:
        live: Per live edit what it asks.
        requests: What is to be asked.
        replace: Contradicted edits may be replaced.

    Returns:
        Ids of the contradicted edits.

    Raises:
        ConflictError: See `contradicted`.
    """
    found: dict[str, set[int]] = {}
    for new in requests:
        for edit_id, olds in live.items():
            for i, old in enumerate(olds):
                if contradict(new, old):
                    found.setdefault(edit_id, set()).add(i)
                    if not replace:
                        raise ConflictError(_message(new, edit_id, old))
    for edit_id, hit in found.items():
        if len(hit) < len(live[edit_id]):
            others = len(live[edit_id]) - len(hit)
            message = refusal(
                f"a request that contradicts edit {edit_id}, which holds {others} other facts too",
                "replacing edits that hold nothing else",
                "Revert that edit yourself if those facts may go with it.",
            )
            raise ConflictError(message)
    return tuple(found)


def _message(new: Asked, edit_id: str, old: Asked) -> str:
    return refusal(
        f"{new.prompt!r} -> {new.answers[0]!r}, which contradicts the live edit {edit_id} "
        f"({old.prompt!r} -> {old.answers[0]!r})",
        "requests that no live edit contradicts",
        f"Pass replace=True (--replace) to revert {edit_id} in the same step, or revert it first.",
    )
