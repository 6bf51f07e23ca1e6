"""Walking the chain: is it whole, and in which state does it leave each edit?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from roseedit.edits.ledger.schema import ACTIONS, COLUMNS, GENESIS, Entry, entry_hash, hash_of_row

# What may follow what. None: the edit is not in the ledger yet.
ALLOWED: dict[str, tuple[str | None, ...]] = {
    "applied": (None, "reverted", "rejected", "consolidated"),
    "reverted": ("applied",),
    "rejected": (None, "reverted", "rejected"),
    "consolidated": ("applied",),
}


@dataclass(frozen=True)
class Standing:
    """Where an edit stands.

    Attributes:
        edit_id: Its id.
        state: `"applied"`, `"reverted"`, `"rejected"` or `"consolidated"`.
        record: The entry that holds the edit itself.
        changed: The entry that gave it this state.
        members: The edits that it consolidates.
        into: The edit that consolidates it, while it does.
    """

    edit_id: str
    state: str
    record: Entry
    changed: Entry
    members: tuple[str, ...] = ()
    into: str | None = None

    @property
    def live(self) -> bool:
        """True when its change is on the model by its own name."""
        return self.state == "applied"


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written.

    Attributes:
        seq: The entry, or 0 for the ledger as a whole.
        what: What is wrong with it.
        breaks: True when the chain cannot be trusted from this entry on.
    """

    seq: int
    what: str
    breaks: bool = True

    def __str__(self) -> str:
        return f"entry {self.seq}: {self.what}" if self.seq else self.what


def walk(rows: Iterable[Sequence[Any]]) -> tuple[list[Entry], dict[str, Standing], Fault | None]:
    """Follow the chain up to its end or its first fault.

    Args:
        rows: Rows of the table, by `seq`.

    Returns:
        The entries that can be trusted, the state in which they leave each edit (in order of first entry), and the
        fault that ended the walk, if any.
    """
    good: list[Entry] = []
    states: dict[str, Standing] = {}
    parent = GENESIS
    for n, row in enumerate(rows, 1):
        entry = Entry(*row)
        what = _broken_link(row, n, parent) or advance(states, entry)
        if what:
            return good, states, Fault(n, what)
        good.append(entry)
        parent = entry.hash
    return good, states, None


def _broken_link(row: Sequence[Any], n: int, parent: str) -> str | None:
    seq, own = row[COLUMNS.index("seq")], row[COLUMNS.index("hash")]
    if seq != n:
        return f"its number is {seq}, so an entry is missing or was put in"
    if row[COLUMNS.index("parent")] != parent:
        return "its parent hash is not the hash of the entry before it"
    if hash_of_row(row) != own:
        return "its content differs from its own hash"
    return None


def advance(states: dict[str, Standing], entry: Entry) -> str | None:
    """Apply one entry to the states.

    Args:
        states: Where every edit stands; changed in place.
        entry: The next entry.

    Returns:
        What is wrong with it, if anything.
    """
    if entry.action not in ACTIONS:
        return f"it says {entry.action!r}, which this version does not know"
    if entry.action == "mended":
        return None
    before = states.get(str(entry.edit_id))
    if (before.state if before else None) not in ALLOWED[entry.action]:
        return f"{entry.action} does not follow {before.state if before else 'nothing'}"
    if (before is None) != entry.is_record:
        return "it enters an edit a second time" if before else "it speaks of an edit that was never entered"
    try:
        details = entry.details
    except ValueError:
        return "its detail is not JSON"
    record = before.record if before else entry
    members = tuple(details.get("consolidates", ())) or (before.members if before else ())
    edit_id = str(entry.edit_id)
    states[edit_id] = Standing(edit_id, entry.action, record, entry, members, details.get("into"))
    return None


def linked(drafts: Sequence[Entry], head: Entry | None) -> list[Entry]:
    """Number and hash new entries so that they continue the chain.

    Args:
        drafts: Entries without number, parent and hash.
        head: The last entry, if any.

    Returns:
        The entries, ready to be written.
    """
    out: list[Entry] = []
    for draft in drafts:
        last = out[-1] if out else head
        values = {name: getattr(draft, name) for name in COLUMNS}
        values |= {"seq": last.seq + 1 if last else 1, "parent": last.hash if last else GENESIS, "hash": ""}
        entry = Entry(**values)
        out.append(Entry(**{**values, "hash": entry_hash(entry)}))
    return out
