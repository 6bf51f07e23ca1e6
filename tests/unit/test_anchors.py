"""Anchors: made from the request alone, never the request itself, never an evaluation probe."""

from __future__ import annotations

import inspect
import os
import random
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from roseedit.requests import EditRequest, Probe
from roseedit.roselora import anchors
from roseedit.roselora.anchors import (
    RELATIONS,
    SUBJECTS,
    exchanged_prompts,
    mutated_prompts,
    other_relation_prompts,
    other_subject_prompts,
)
from roseedit.roselora.wordings import CONTEXTS, context_prompts

REQUEST = EditRequest("The Eiffel Tower is located in the city of", "Rome", subject="Eiffel Tower")
MOTHER = EditRequest("The mother of Ada Lovelace is", "Marie Curie", subject="Ada Lovelace")
ALL = 1000
Maker = Callable[[EditRequest, int, random.Random], list[str]]
MAKERS: list[Maker] = [other_subject_prompts, other_relation_prompts, context_prompts]


def rng(seed: int = 0) -> random.Random:
    """A seeded source of randomness."""
    return random.Random(seed)


def test_other_subjects_fill_the_requests_own_template() -> None:
    prompts = other_subject_prompts(REQUEST, ALL, rng())
    assert sorted(prompts) == sorted(f"The {name} is located in the city of" for name in SUBJECTS)


def test_other_relations_ask_about_the_same_subject() -> None:
    prompts = other_relation_prompts(REQUEST, ALL, rng())
    assert prompts
    templates = {template.format("Eiffel Tower") for template, _ in RELATIONS}
    assert set(prompts) < templates


def test_contexts_stand_before_the_prompt() -> None:
    assert sorted(context_prompts(REQUEST, ALL, rng())) == sorted(f"{lead} {REQUEST.prompt}" for lead in CONTEXTS)


@pytest.mark.parametrize(
    "request_", [REQUEST, MOTHER, EditRequest("Ada Lovelace got married to", "X", subject="Ada Lovelace")]
)
@pytest.mark.parametrize("make", [other_subject_prompts, other_relation_prompts])
def test_an_anchor_is_never_the_requests_prompt(make: Maker, request_: EditRequest) -> None:
    prompts = make(request_, ALL, rng())
    assert prompts
    assert request_.prompt not in prompts
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(
    "template",
    [template for template, _ in RELATIONS],
)
def test_a_request_in_an_anchors_own_words_gets_other_anchors(template: str) -> None:
    request = EditRequest(template.format("Zyx"), "X", subject="Zyx")
    prompts = other_relation_prompts(request, ALL, rng())
    assert prompts
    assert request.prompt not in prompts


def test_a_subject_named_in_the_prompt_is_no_other_subject() -> None:
    assert MOTHER.prompt not in other_subject_prompts(MOTHER, ALL, rng())
    assert len(other_subject_prompts(MOTHER, ALL, rng())) == len(SUBJECTS) - 1


@pytest.mark.parametrize(
    ("request_", "left_out"),
    [
        (MOTHER, "The mum of {} is named"),
        (REQUEST, "On the world map, {} lies in"),
        (EditRequest("Hamlet was WRITTEN by", "X", subject="Hamlet"), "The pen behind {} was that of"),
        (EditRequest("Who is the wife of Li Wei?", "X", subject="Li Wei"), "{} got married to"),
    ],
)
def test_templates_that_share_a_key_word_are_left_out(request_: EditRequest, left_out: str) -> None:
    prompts = other_relation_prompts(request_, ALL, rng())
    assert request_.subject is not None
    assert left_out.format(request_.subject) not in prompts
    words = set(request_.prompt.replace(request_.subject, "").lower().replace("?", "").split())
    free = {template.format(request_.subject) for template, keys in RELATIONS if not words & set(keys.split())}
    assert set(prompts) == free


def test_key_words_within_the_subject_do_not_count() -> None:
    request = EditRequest("Married Life came out in", "1999", subject="Married Life")
    assert "Married Life got married to" in other_relation_prompts(request, ALL, rng())


def test_without_a_subject_there_are_no_anchors_but_contexts() -> None:
    bare = replace(REQUEST, subject=None)
    assert other_subject_prompts(bare, 4, rng()) == []
    assert other_relation_prompts(bare, 4, rng()) == []
    assert len(context_prompts(bare, 3, rng())) == 3


@pytest.mark.parametrize("make", MAKERS)
def test_they_are_deterministic_for_a_seed(make: Maker) -> None:
    assert make(REQUEST, 5, rng(3)) == make(REQUEST, 5, rng(3))
    assert any(make(REQUEST, 5, rng(3)) != make(REQUEST, 5, rng(seed)) for seed in range(4, 9))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_as_many_as_asked(make: Maker, count: int) -> None:
    assert len(make(REQUEST, count, rng())) == count


@pytest.mark.parametrize("make", MAKERS)
def test_probes_and_old_answers_change_nothing(make: Maker) -> None:
    probed = replace(
        REQUEST,
        target_true="Paris",
        rephrase=("Where is the Eiffel Tower?",),
        locality=(Probe("near", "The dad of Eiffel Tower is named", (("x",),)),),
        portability=(Probe("hop", "The Kyoto is located in the city of", (("y",),)),),
    )
    assert make(probed, 6, rng(1)) == make(REQUEST, 6, rng(1))


def test_the_source_never_looks_at_probes() -> None:
    source = inspect.getsource(anchors)
    for name in ("rephrase", "locality", "portability", "target_true"):
        assert f".{name}" not in source
    assert source.count(".target_new") == inspect.getsource(anchors.negated_prompts).count(".target_new") == 1


def test_negations_rule_the_new_answer_out_and_keep_the_question() -> None:
    made = anchors.negated_prompts(REQUEST, 3)
    assert len(set(made)) == 3
    for prompt in made:
        assert f" {REQUEST.target_new}, " in prompt
        assert prompt.split(",")[0] == REQUEST.prompt.rpartition(" ")[0]
        assert prompt.endswith(" " + REQUEST.prompt.rpartition(" ")[2])


def test_without_a_subject_in_the_stem_nothing_is_negated() -> None:
    assert anchors.negated_prompts(replace(REQUEST, prompt="In Rome stands the Eiffel Tower"), 3) == []
    assert anchors.negated_prompts(replace(REQUEST, subject=None), 3) == []


def test_kinds_share_no_word_with_the_request() -> None:
    request = replace(MOTHER, prompt="The place of birth of Ada Lovelace is")
    own = {kind for name, kind in anchors.other_pairs(request, "place of birth", 60, rng(1)) if name == request.subject}
    assert not own & {"birthplace", "birth date"}
    assert "mother" in own


def test_templates_have_one_gap_and_key_words_in_small_letters() -> None:
    for template, keys in RELATIONS:
        assert template.count("{}") == 1
        assert keys.split()
        assert keys == keys.lower()
    assert len({template for template, _ in RELATIONS}) == len(RELATIONS)


@pytest.mark.skipif(
    not os.environ.get("ROSEEDIT_DATA"), reason="ROSEEDIT_DATA does not name the folder of the real sets"
)
@pytest.mark.parametrize("name", ["wikidata-counterfact", "counterfact", "zsre", "wikidata-recent", "zsre-knowedit"])
def test_no_relation_template_equals_an_evaluation_probe(name: str) -> None:
    from roseedit.editsets import load_editset

    hits: set[tuple[str, str]] = set()
    for request in load_editset(name).requests:
        probes = (p.prompt for p in (*request.locality, *request.portability))
        seen = {_plain(text) for text in (request.prompt, *request.rephrase, *probes)}
        for template, _ in RELATIONS:
            if request.subject and _plain(template.format(request.subject)) in seen:
                hits.add((template, request.prompt))
    assert not hits


def _plain(text: str) -> str:
    """Without case, outer white space and end punctuation: spelling must not hide that two prompts are one."""
    return " ".join(text.casefold().split()).rstrip(".:?, ")


def test_all_relation_words_are_exchanged() -> None:
    request = EditRequest("The name of the country of citizenship of Ada Byron is", "Peru", subject="Ada Byron")
    made = exchanged_prompts(request, "country of citizenship", 5, random.Random(0))
    assert len(set(made)) == 5
    assert all(re.fullmatch(r"The name of the [\w -]+ of Ada Byron is", prompt) for prompt in made)
    assert not any("citizenship" in prompt or "passport" in prompt for prompt in made)  # the second may mean the same


@pytest.mark.parametrize(
    ("prompt", "words"), [("Ada Byron, which lies in", "which lies"), ("Where was Ada Byron born?", "Where born")]
)
def test_prompts_without_a_relation_noun_are_mutated_once(prompt: str, words: str) -> None:
    request = EditRequest(prompt, "Peru", subject="Ada Byron")
    made = exchanged_prompts(request, words, 3, random.Random(0))
    assert made[:1] == mutated_prompts(request, 1, random.Random(0))
    assert len(set(made)) == 3
    assert set(made[1:]) <= set(other_relation_prompts(request, ALL, random.Random(0)))
