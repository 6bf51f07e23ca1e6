"""Brief looks at answers whose rest is sure."""

from __future__ import annotations

import torch

from roseedit.roselora.glances import Glances, brief
from roseedit.roselora.objective import Row

ROW = Row(0, 0, (5, 6, 7, 8, 9), (2, 3, 4), (8, 9, 1), 0.5, turn=1, turns=3)
SHORT = Row(1, 1, (5, 6), (1,), (3,), 0.5)


def glances(every: int = 4) -> Glances:
    return Glances(2, enough=0.8, first=0.5, every=every, device=torch.device("cpu"))


def book(known: Glances, sure: list[float], *, whole: bool = True) -> None:
    n = len(sure)
    first = torch.tensor([True] + [False] * (n - 1))
    known.book(torch.tensor(sure), torch.zeros(n, dtype=torch.long), first, torch.full((n,), whole))


def test_nothing_is_brief_before_the_rest_is_sure() -> None:
    known = glances()
    assert known.chosen(1, [ROW, SHORT]) == [False, False]
    book(known, [0.1, 0.9, 0.7])
    assert known.chosen(1, [ROW]) == [False]


def test_brief_once_the_rest_is_sure_but_never_in_the_steps_of_whole_looks() -> None:
    known = glances()
    book(known, [0.1, 0.9, 0.8])
    assert [known.chosen(step, [ROW, SHORT])[0] for step in range(1, 9)] == [True, True, True, False] * 2
    assert known.chosen(1, [SHORT]) == [False]
    assert glances(every=1).chosen(3, [ROW]) == [False]


def test_a_sure_first_token_calls_for_the_whole() -> None:
    known = glances()
    book(known, [0.1, 0.9, 0.9])
    book(known, [0.6], whole=False)
    assert known.chosen(1, [ROW]) == [False]
    book(known, [0.4], whole=False)
    assert known.chosen(1, [ROW]) == [True]


def test_a_rest_that_is_lost_is_noticed_at_the_next_whole_look() -> None:
    known = glances()
    book(known, [0.1, 0.9, 0.9])
    book(known, [0.1, 0.9, 0.2])
    assert known.chosen(1, [ROW]) == [False]


def test_the_brief_row_ends_where_the_answer_begins() -> None:
    cut = brief(ROW)
    assert (cut.ids, cut.columns, cut.labels, cut.brief) == ((5, 6, 7), (2,), (8,), True)
    assert (cut.edit, cut.request, cut.weight, cut.turn, cut.turns) == (0, 0, 0.5, 1, 3)
