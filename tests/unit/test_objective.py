"""What is asked of an edit."""

from __future__ import annotations

import torch

from roseedit.roselora.objective import Row, pushing


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
