"""KnowEdit's JSON forms: wiki_counterfact, wiki_recent and ZsRE (Zhang et al. 2024).

One schema in several dialects: test and train files differ in which keys exist and in whether an answer is a text, a
list or a list of lists.
"""

from __future__ import annotations

from dataclasses import replace

from roseedit.editsets.fields import Record, alias_lists, object_list, old_answer, required_text, section, text_list
from roseedit.errors import DataError, refusal
from roseedit.requests import EditRequest, Probe


def parse_wikidata(record: Record) -> EditRequest:
    """Turn one KnowEdit record into a request.

    Args:
        record: The raw record, in any of the published forms.

    Returns:
        The request; `source` is left to the caller.

    Raises:
        DataError: A field is missing or has the wrong form.
    """
    target_new = required_text(record, "target_new").strip()
    truths = alias_lists(record.get("ground_truth"), "ground_truth")
    return EditRequest(
        prompt=required_text(record, "prompt"),
        target_new=target_new,
        subject=required_text(record, "subject"),
        target_true=old_answer([name for names in truths for name in names], target_new),
        rephrase=(*text_list(record, "rephrase"), *text_list(record, "rephrase_prompt")),
        locality=group_probes(record, "locality"),
        portability=_answered(group_probes(record, "portability")),
    )


def parse_recent(record: Record) -> EditRequest:
    """Turn one wiki_recent record into a request.

    Its Forgetfulness prompts read "..., which is not X, is" with X the new target, yet nearly all recorded answers
    name X. So these probes lose their answers, which leaves the only sound question: whether the model's own answer
    is unchanged.

    Args:
        record: The raw record.

    Returns:
        The request; `source` is left to the caller.

    Raises:
        DataError: A field is missing or has the wrong form.
    """
    request = parse_wikidata(record)
    locality = (replace(p, answers=()) if p.group == "Forgetfulness" else p for p in request.locality)
    return replace(request, locality=tuple(locality))


def group_probes(record: Record, key: str) -> tuple[Probe, ...]:
    """Read KnowEdit's probes: an object of groups, each a list of prompts with answers.

    Args:
        record: The raw record.
        key: `"locality"` or `"portability"`.

    Returns:
        The probes; nothing when the object is absent or empty.

    Raises:
        DataError: Something in it has the wrong form.
    """
    groups = section(record, key)
    return tuple(_probe(group, item) for group in groups for item in object_list(groups, group))


def _probe(group: str, item: Record) -> Probe:
    return Probe(group, required_text(item, "prompt"), alias_lists(item.get("ground_truth"), "ground_truth"))


def _answered(probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """Portability is scored against answers, unlike locality: a probe without one is a broken record."""
    for probe in probes:
        if not probe.answers:
            got = f"the {probe.group} prompt {probe.prompt!r} without an answer"
            raise DataError(refusal(got, "at least one answer", "Add the answer or take the prompt out."))
    return probes
