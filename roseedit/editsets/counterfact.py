"""CounterFact in its original schema (Meng et al. 2022)."""

from __future__ import annotations

from roseedit.editsets.fields import Record, required_text, section, text_list
from roseedit.errors import DataError, refusal
from roseedit.requests import EditRequest, Probe


def parse_counterfact(record: Record) -> EditRequest:
    """Turn one CounterFact record into a request.

    Args:
        record: The raw record.

    Returns:
        The request; `source` is left to the caller.

    Raises:
        DataError: A field is missing or has the wrong form.
    """
    rewrite = section(record, "requested_rewrite")
    if not rewrite:
        remedy = "Use the original CounterFact schema; flat copies of it lack the paraphrases."
        raise DataError(refusal("no 'requested_rewrite'", "an object with prompt, subject and targets", remedy))
    subject = required_text(rewrite, "subject")
    target_new = required_text(section(rewrite, "target_new"), "str").strip()
    target_true = required_text(section(rewrite, "target_true"), "str").strip()
    return EditRequest(
        prompt=_filled(required_text(rewrite, "prompt"), subject),
        target_new=target_new,
        subject=subject,
        target_true=target_true,
        rephrase=text_list(record, "paraphrase_prompts"),
        # both kinds must stay as they are: neighbours share the old answer, the others already have the new one
        locality=(
            *_probes("neighborhood", text_list(record, "neighborhood_prompts"), target_true),
            *_probes("attribute", text_list(record, "attribute_prompts"), target_new),
        ),
    )


def _filled(template: str, subject: str) -> str:
    # not str.format: a template or subject may hold other braces
    if template.count("{}") != 1:
        allowed = "a template with {} once, in the subject's place"
        raise DataError(refusal(f"the template {template!r}", allowed, "Repair the record."))
    return template.replace("{}", subject)


def _probes(group: str, prompts: tuple[str, ...], answer: str) -> tuple[Probe, ...]:
    return tuple(Probe(group, prompt, ((answer,),)) for prompt in prompts)
