"""Which requests contradict each other: the rule, by example."""

from __future__ import annotations

import pytest

from roseedit.edits.ledger.conflicts import Asked, contradict

TOWER = "Eiffel Tower"
CONTRADICT: list[tuple[tuple[str, str | None], tuple[str, str | None]]] = [
    (("The Eiffel Tower is in", TOWER), ("The Eiffel Tower is in", TOWER)),
    (("The Eiffel Tower is in", None), ("the eiffel tower is in", None)),
    (("The Eiffel Tower is located in the city of", TOWER), ("Eiffel Tower is located in city of:", TOWER)),
    (("The Eiffel Tower is in the city of", TOWER), ("In which city is the Eiffel Tower?", TOWER)),
    (("The Eiffel Tower is in the city of", TOWER), ("In which city is the Eiffel Tower?", None)),
    (("Who is the author of Emma?", "Emma"), ("The author of Emma is", "Emma")),
    (("Emma's author is", "Emma"), ("Who is the author of Emma?", "Emma")),
    (("The favourite colour of Ann Lee is", "Ann Lee"), ("The favorite colours of Ann Lee are", "Ann Lee")),
    (("Ann Lee was born in", "Ann Lee"), ("Ann Lee was born in", "Ann Lee")),
    (("Ann Lee is in", "Ann Lee"), ("Ann Lee is in the", "Ann Lee")),
]
AGREE: list[tuple[tuple[str, str | None], tuple[str, str | None]]] = [
    (("The capital of France is", "France"), ("The capital of Spain is", "Spain")),
    (("The capital of France is", None), ("The capital of Spain is", None)),
    (("The Eiffel Tower is in the city of", TOWER), ("The Eiffel Tower is in the country of", TOWER)),
    (("The mother of Ann is", "Ann"), ("The father of Ann is", "Ann")),
    (("The mother of Ann is", "Ann"), ("Ann is the mother of", "Ann")),
    (("Ann was born in", "Ann"), ("Ann was born on", "Ann")),
    (("In 1971 Ann lived in", "Ann"), ("In 1972 Ann lived in", "Ann")),
    (("Paris is the capital of", "Paris"), ("Paris Hilton is the capital of", "Paris Hilton")),
    (("Annabel was born in", None), ("Ann was born in", "Ann")),
    (("Ann is in", "Ann"), ("Ann is at", "Ann")),
]


@pytest.mark.parametrize("pair", CONTRADICT, ids=str)
def test_the_same_question_with_another_answer(pair: tuple[tuple[str, str | None], tuple[str, str | None]]) -> None:
    one, other = (Asked(prompt, subject, (answer,)) for (prompt, subject), answer in zip(pair, "xy", strict=True))
    assert contradict(one, other)
    assert contradict(other, one)


@pytest.mark.parametrize("pair", AGREE, ids=str)
def test_another_question(pair: tuple[tuple[str, str | None], tuple[str, str | None]]) -> None:
    one, other = (Asked(prompt, subject, (answer,)) for (prompt, subject), answer in zip(pair, "xy", strict=True))
    assert not contradict(one, other)
    assert not contradict(other, one)


def test_answers_that_agree_are_no_contradiction() -> None:
    one = Asked("The Eiffel Tower is in", TOWER, ("Rome",))
    assert not contradict(one, Asked("The Eiffel Tower is in", TOWER, ("rome!",)))
    assert not contradict(one, Asked("The Eiffel Tower is in", TOWER, ("Roma", "Rome")))
    assert contradict(one, Asked("The Eiffel Tower is in", TOWER, ("Roma",)))
