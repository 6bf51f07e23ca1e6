"""MQuAKE (Zhong et al. 2023): several facts on one chain, and questions that need all of them."""

from __future__ import annotations

from roseedit.editsets.counterfact import read_rewrite
from roseedit.editsets.fields import (
    Record,
    alias_lists,
    object_list,
    optional_text,
    required_text,
    text_list,
)
from roseedit.errors import DataError, RequestError, refusal
from roseedit.requests import EditRequest, Probe, check_request


def parse_mquake(record: Record) -> tuple[EditRequest, ...]:
    """Turn one case into one request per fact.

    The facts stay apart; glued into one prompt and one target, as some evaluators have them, they are no sentences.
    The multi-hop questions are portability probes of the *last* fact: only when all are made can they be answered,
    and each is asked once per case.

    Args:
        record: The raw record.

    Returns:
        The requests in the record's order; `source` is left to the caller.

    Raises:
        DataError: A field is missing or has the wrong form, or one of the facts is no possible edit: without it the
            questions could not be answered, so the whole case is refused.
    """
    if isinstance(record.get("requested_rewrite"), dict):
        remedy = "For single facts use the edit set 'counterfact'."
        raise DataError(refusal("a single 'requested_rewrite'", "a list of facts", remedy))
    facts = object_list(record, "requested_rewrite")
    if not facts:
        raise DataError(refusal("no facts in 'requested_rewrite'", "a list of facts", "Repair the record."))
    names = _hop_aliases(record)
    hops = _questions(record)
    last = len(facts) - 1
    return tuple(_fact(fact, i, names, hops if i == last else ()) for i, fact in enumerate(facts))


def _fact(fact: Record, number: int, names: dict[str, tuple[str, ...]], hops: tuple[Probe, ...]) -> EditRequest:
    try:
        subject, prompt, target_new, target_true = read_rewrite(fact)
        request = EditRequest(
            prompt=prompt,
            target_new=target_new,
            subject=subject,
            target_true=target_true,
            rephrase=text_list(fact, "question"),
            portability=hops,
            target_aliases=names.get(f"{prompt}\n{target_new}", ()),
        )
        check_request(request, f"fact {number}")
    except DataError as error:
        raise DataError(f"fact {number}: {error}") from error
    except RequestError as error:
        raise DataError(str(error)) from error
    return request


def _questions(record: Record) -> tuple[Probe, ...]:
    answer = required_text(record, "new_answer").strip()
    if not answer:
        raise DataError(refusal("an empty 'new_answer'", "an answer to the questions", "Repair the record."))
    answers = alias_lists([answer, *text_list(record, "new_answer_alias")], "new_answer")
    return tuple(Probe("multi_hop", question, answers) for question in text_list(record, "questions"))


def _hop_aliases(record: Record) -> dict[str, tuple[str, ...]]:
    """Other names of the new targets, which stand with the single hops: by prompt and target."""
    found = {}
    for hop in object_list(record, "new_single_hops"):
        key = f"{optional_text(hop, 'cloze')}\n{optional_text(hop, 'answer')}"
        found[key] = tuple(dict.fromkeys(text_list(hop, "answer_alias")))
    return found
