"""KnowEdit's WikiBio: the next sentence of a biography, corrected.

Judge it by likelihood: a sentence of eighteen words is hardly ever generated word for word, so exact match says
nothing.
"""

from __future__ import annotations

from roseedit.editsets.fields import Record, optional_text, required_text, subject_in
from roseedit.editsets.wikidata import group_probes
from roseedit.requests import EditRequest


def parse_wikibio(record: Record) -> EditRequest:
    """Turn one WikiBio record into a request.

    Args:
        record: The raw record.

    Returns:
        The request. The subject is the concept as the passage spells it; without one when it is not there.

    Raises:
        DataError: A field is missing or has the wrong form.
    """
    # a blank at the passage's end would take the place of the one that belongs to the sentence's first word
    prompt = required_text(record, "text").rstrip()
    return EditRequest(
        prompt=prompt,
        target_new=required_text(record, "labels").strip(),
        subject=subject_in(prompt, optional_text(record, "concept")),
        locality=group_probes(record, "locality"),
    )
