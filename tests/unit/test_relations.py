"""Other wordings of known relations."""

from __future__ import annotations

import random
import re

import pytest

from roseedit.requests import EditRequest
from roseedit.roselora.anchors import known_relation_prompts
from roseedit.roselora.asking import relation_words
from roseedit.roselora.relations import Relation, known_wordings, relations
from roseedit.roselora.wordings import reworded_prompts, rewritten_prompts


@pytest.mark.parametrize("relation", relations(), ids=lambda r: r.wordings[0])
def test_a_relation_is_recognised_in_its_own_words(relation: Relation) -> None:
    assert known_wordings(relation.wordings[0].format(s=" ")) == relation.wordings
    for wording in relation.wordings:
        assert wording.count("{s}") == 1
        assert wording == wording.strip()
        assert wording.format(s="X").count("X") == 1
        assert not re.fullmatch(r"The .+ of \{s\} is", wording)  # as evaluation sets ask
    assert len(set(relation.wordings)) == len(relation.wordings) >= 3


@pytest.mark.parametrize(
    ("prompt", "wording"),
    [
        ("The name of the spouse of Ada is", "Ada is married to"),
        ("Who was Ada married to?", "For Ada, the spouse is"),
        ("The place of death of Ada is", "Ada died in"),
        ("Ada passed away at", "Ada died in"),
        ("The official language of Ada is", "In Ada, people speak"),
        ("The mother tongue of Ada is", "Ada is a native speaker of"),
        ("The name of the screenwriter of Ada is", "The script of Ada is by"),
        ("Ada plays the instrument", "Which instrument does Ada play?"),
        ("The name of the field of work of Ada is", "Ada is active in the field of"),
    ],
)
def test_a_known_relation_is_asked_in_other_words(prompt: str, wording: str) -> None:
    found = reworded_prompts(EditRequest(prompt, "Rome", "Ada"), 8, random.Random(0))
    assert wording in found
    assert prompt not in found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(("prompt", "subject"), [("Ada is the colour of", "Ada"), ("Ada was born in", None)])
def test_no_wordings_without_a_relation_or_a_subject(prompt: str, subject: str | None) -> None:
    assert reworded_prompts(EditRequest(prompt, "blue", subject), 8, random.Random(0)) == []


def test_fewer_are_drawn_when_fewer_are_asked_for() -> None:
    request = EditRequest("Ada was born in", "Rome", "Ada")
    assert len(reworded_prompts(request, 2, random.Random(0))) == 2
    assert reworded_prompts(request, 2, random.Random(0)) == reworded_prompts(request, 2, random.Random(0))


def test_anchors_ask_the_subject_for_other_relations() -> None:
    found = known_relation_prompts(EditRequest("Ada was born in", "Rome", "Ada"), 1000, random.Random(0))
    assert "Ada is married to" in found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("relation", relations(), ids=lambda r: r.wordings[0])
def test_no_wording_of_a_fact_is_an_anchor_of_it(relation: Relation) -> None:
    for wording in relation.wordings:
        request = EditRequest(wording.format(s="Ada"), "Rome", "Ada")
        asked = set(reworded_prompts(request, 1000, random.Random(0)))
        assert not asked & set(known_relation_prompts(request, 1000, random.Random(0)))


def test_anchors_of_known_relations_are_drawn_by_the_seed_and_need_a_subject() -> None:
    request = EditRequest("Ada was born in", "Rome", "Ada")
    assert known_relation_prompts(request, 5, random.Random(1)) == known_relation_prompts(request, 5, random.Random(1))
    assert len(known_relation_prompts(request, 5, random.Random(1))) == 5
    assert known_relation_prompts(EditRequest("Ada was born in", "Rome", None), 5, random.Random(1)) == []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("What is the date of death for Ada?", "date of death"),
        ("Which family does Ada belong to?", "family"),
        ("What is Ada's spouse's name?", "spouse"),
        ("What is the name of university that educated Ada?", "university"),
        ("In what city was Ada born?", "city born"),  # a vague noun: the verb tells
        ("At what location did Ada die?", "location die"),
        ("Who was the designer of Ada?", "designer"),
        ("The mother of Ada is whom?", "mother"),
        ("What's the capital of Ada?", "capital"),
        ("Who is Ada by?", ""),
        ("The name of the country of citizenship of Ada is", "country of citizenship"),
    ],
)
def test_what_a_prompt_asks_for(prompt: str, words: str) -> None:
    assert relation_words(EditRequest(prompt, "Rome", "Ada")) == words


def test_a_question_is_rewritten_as_questions_and_anchored_by_questions() -> None:
    request = EditRequest("What is the place of birth of Ada?", "Rome", "Ada")
    rewritten = rewritten_prompts(request, 8, random.Random(0))
    assert len(set(rewritten)) == 8
    assert all(prompt.endswith("?") and "place of birth" in prompt and "Ada" in prompt for prompt in rewritten)
    anchors = known_relation_prompts(request, 1000, random.Random(0))
    assert anchors
    assert all(prompt.endswith("?") for prompt in anchors)


def test_a_statement_is_rewritten_as_before() -> None:
    rewritten = rewritten_prompts(EditRequest("The place of birth of Ada is", "Rome", "Ada"), 8, random.Random(0))
    assert not any(prompt.endswith("?") for prompt in rewritten)
    assert "Ada's place of birth:" in rewritten
