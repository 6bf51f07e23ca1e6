"""ZsRE in the schema of MEND's editing splits, with or without the one-hop portability question."""

from __future__ import annotations

from roseedit.editsets.fields import (
    Record,
    alias_lists,
    old_answer,
    one_probe,
    optional_text,
    required_text,
    section,
    text_list,
)
from roseedit.errors import DataError, refusal
from roseedit.requests import EditRequest, Probe


def parse_zsre(record: Record) -> EditRequest:
    """Turn one ZsRE record into a request.

    Some records ask for an answer that is already true; such a one gets it as `target_true`, so that checking the
    request refuses it.

    Args:
        record: The raw record.

    Returns:
        The request; `source` is left to the caller.

    Raises:
        DataError: A field is missing or has the wrong form.
    """
    # published targets carry stray blanks, and a leading one would double the space before the answer
    target_new = required_text(record, "alt").strip()
    return EditRequest(
        prompt=required_text(record, "src"),
        target_new=target_new,
        subject=required_text(record, "subject"),
        target_true=old_answer(text_list(record, "answers"), target_new),
        rephrase=text_list(record, "rephrase"),
        locality=one_probe("nq", optional_text(record, "loc"), record.get("loc_ans")),
        portability=_portability(record),
    )


def _portability(record: Record) -> tuple[Probe, ...]:
    hop = section(record, "portability")
    if not hop:
        return ()
    answers = alias_lists(hop.get("New Answer"), "New Answer")
    if not answers:
        raise DataError(refusal("no 'New Answer'", "an answer to the portability question", "Repair the record."))
    return (Probe("one_hop", required_text(hop, "New Question"), answers),)
