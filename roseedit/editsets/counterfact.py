"""CounterFact (Meng et al. 2022): the original schema, its copies with paraphrases alone, and EasyEdit's flat form."""

from __future__ import annotations

from roseedit.editsets.fields import (
    Record,
    old_answer,
    one_probe,
    optional_text,
    required_text,
    section,
    text_list,
)
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
    if not rewrite and not {"paraphrase_prompts", "target_new"} <= record.keys():
        remedy = "For the flat form with 'locality_prompt' use the edit set 'counterfact-flat'."
        raise DataError(refusal("no 'requested_rewrite'", "an object with prompt, subject and targets", remedy))
    subject, prompt, target_new, target_true = read_rewrite(rewrite or _as_rewrite(record))
    return EditRequest(
        prompt=prompt,
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


def _as_rewrite(record: Record) -> Record:
    """The copies with paraphrases alone have the same fields at the top, and targets without Wikidata item."""
    targets = {key: {"str": required_text(record, key)} for key in ("target_new", "target_true")}
    return {**record, **targets}


def read_rewrite(rewrite: Record) -> tuple[str, str, str, str]:
    """Read one `requested_rewrite`, which MQuAKE has too.

    Args:
        rewrite: The object.

    Returns:
        Subject, prompt with the subject filled in, new target and true target.

    Raises:
        DataError: A field is missing or has the wrong form.
    """
    subject = required_text(rewrite, "subject")
    target_new = required_text(section(rewrite, "target_new"), "str").strip()
    target_true = required_text(section(rewrite, "target_true"), "str").strip()
    return subject, _filled(required_text(rewrite, "prompt"), subject), target_new, target_true


def parse_flat(record: Record) -> EditRequest:
    """Turn one record of EasyEdit's flat CounterFact into a request.

    Its `rephrase_prompt` is mostly one of the original's open generation prompts, which the edited answer need not
    follow. So it becomes the portability group `easyedit_rephrase`, a column of its own, and not a rephrase.

    Args:
        record: The raw record.

    Returns:
        The request; `source` is left to the caller.

    Raises:
        DataError: A field is missing or has the wrong form.
    """
    target_new = required_text(record, "target_new").strip()
    return EditRequest(
        prompt=required_text(record, "prompt"),
        target_new=target_new,
        subject=required_text(record, "subject"),
        target_true=old_answer(text_list(record, "ground_truth"), target_new),
        locality=one_probe(
            "neighborhood", optional_text(record, "locality_prompt"), record.get("locality_ground_truth")
        ),
        portability=one_probe("easyedit_rephrase", optional_text(record, "rephrase_prompt"), target_new),
    )


def _filled(template: str, subject: str) -> str:
    # not str.format: a template or subject may hold other braces
    if template.count("{}") != 1:
        allowed = "a template with {} once, in the subject's place"
        raise DataError(refusal(f"the template {template!r}", allowed, "Repair the record."))
    return template.replace("{}", subject)


def _probes(group: str, prompts: tuple[str, ...], answer: str) -> tuple[Probe, ...]:
    return tuple(Probe(group, prompt, ((answer,),)) for prompt in prompts)
