"""What is asked of an edit."""

from __future__ import annotations

import torch

from roseedit.roselora.objective import Row, pushing, taking_turns


def test_the_weight_of_a_row_goes_to_its_unsure_tokens() -> None:
    unsure = torch.tensor([True, False, True, True, False, False])
    rows = torch.tensor([0, 0, 0, 1, 1, 2])
    assert pushing(unsure, rows).tolist() == [1.5, 0.0, 1.5, 2.0, 0.0, 0.0]
    assert pushing(torch.ones(6, dtype=torch.bool), rows).tolist() == [1.0] * 6
    assert pushing(unsure[:0], rows[:0]).tolist() == []


def test_a_brief_fact_ends_where_its_answer_begins() -> None:
    row = Row(0, 0, (5, 6, 7, 8, 9), (2, 3, 4), (8, 9, 1), 0.5, turn=1, turns=3)
    assert row.brief() == Row(0, 0, (5, 6, 7), (2,), (8,), 0.5, turn=1, turns=3)
    anchor = Row(0, 0, (5, 6, 7), (2,), (), 0.5)
    assert anchor.brief() == anchor


def _rows(n: int) -> list[Row]:
    return [Row(0, 0, (5, i, 7, 8, 9), (2, 3, 4), (8, 9, 1), 0.5) for i in range(n)]


def test_all_wordings_take_turns_where_nothing_else_is_said() -> None:
    for taught in (0, 4, 7):
        assert [(row.turn, row.turns) for row in taking_turns(_rows(4), taught)] == [(t, 4) for t in range(4)]
    assert taking_turns([], 3) == []


def test_untaught_wordings_end_where_the_answer_begins_and_are_never_due() -> None:
    rows = taking_turns(_rows(7), 3)
    assert [i for i, row in enumerate(rows) if row.turns] == [0, 2, 4]
    assert [(rows[i].turn, rows[i].turns, rows[i].labels) for i in (0, 2, 4)] == [(t, 3, (8, 9, 1)) for t in range(3)]
    assert [[i for i, row in enumerate(rows) if row.due(step)] for step in range(4)] == [[0], [2], [4], [0]]
    assert all((row.columns, row.labels) == ((2,), (8,)) for row in rows if not row.turns)
