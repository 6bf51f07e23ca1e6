"""Sets of questions that insert true facts: QAEdit (Yang et al. 2025) and WikiBigEdit (Thede et al. 2025)."""

from __future__ import annotations

from roseedit.editsets.fields import (
    Record,
    object_list,
    one_probe,
    optional_text,
    required_text,
    subject_in,
    text_list,
)
from roseedit.requests import EditRequest

_EASYEDIT = ("prompt", "target_new", "rephrase_prompt", "locality_prompt", "locality_ground_truth")
_PUBLISHED = ("update", "ans", "rephrase", "loc", "loc_ans")


def parse_qaedit(record: Record) -> EditRequest:
    """Turn one QAEdit record into a request.

    Args:
        record: The raw record.

    Returns:
        The request. Its subject is a phrase of the question, not always an entity.

    Raises:
        DataError: A field is missing or has the wrong form.
    """
    prompt = required_text(record, "prompt")
    unrelated = object_list(record, "locality")
    return EditRequest(
        prompt=prompt,
        target_new=required_text(record, "target").strip(),
        subject=subject_in(prompt, optional_text(record, "subject")),
        rephrase=text_list(record, "rephrase"),
        locality=tuple(p for x in unrelated for p in one_probe("nq", required_text(x, "loc"), x.get("loc_ans"))),
    )


def parse_wikibigedit(record: Record) -> EditRequest:
    """Turn one WikiBigEdit record into a request, in the published form or in the one with EasyEdit's names.

    Args:
        record: The raw record.

    Returns:
        The request; there is no old answer.

    Raises:
        DataError: A field is missing or has the wrong form.
    """
    ask, answer, rephrase, loc, loc_answer = _EASYEDIT if "update" not in record else _PUBLISHED
    prompt = required_text(record, ask)
    target = required_text(record, answer).strip()
    hop = (
        optional_text(record, "mhop") if optional_text(record, "mhop_ans") else None
    )  # most records have no second hop
    return EditRequest(
        prompt=prompt,
        target_new=target,
        subject=subject_in(prompt, optional_text(record, "subject")),
        rephrase=text_list(record, rephrase),
        locality=one_probe("other_subject", optional_text(record, loc), record.get(loc_answer)),
        portability=(
            *one_probe("persona", optional_text(record, "personas"), target),
            *one_probe("multi_hop", hop, record.get("mhop_ans")),
        ),
    )
