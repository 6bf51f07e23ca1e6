"""Edits that were made apart may write the same neuron, and then spoil each other when both are live.

An edit of whole neurons takes each one's column for itself: an outer product whose row has a single entry. Two edits
that were made one after another, or jointly, never take the same; two that were each made on the bare model may.
"""

from __future__ import annotations

from collections.abc import Iterable

from roseedit.edits.edit import Edit


def sharing(edit: Edit, live: Iterable[Edit]) -> dict[str, int]:
    """Live edits that write the same columns as another.

    Args:
        edit: The other.
        live: The live edits.

    Returns:
        How many columns, by the edit's id; those that share none are left out.
    """
    own = edit.delta.own_columns
    counts = {other.edit_id: len(own & other.delta.own_columns) for other in live} if own else {}
    return {edit_id: n for edit_id, n in counts.items() if n}
