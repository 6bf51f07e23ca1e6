"""Which wordings of a fact are trained on: those at which its neurons open."""

from __future__ import annotations

import torch

from roseedit.roselora.neurons.bank import HEARD, answerable
from roseedit.roselora.objective import Row

LOUD, QUIET = HEARD + 0.01, HEARD - 0.01


def row(request: int, turn: int, turns: int, columns: tuple[int, ...] = (1, 2)) -> Row:
    """A fact whose answer has as many tokens as there are columns."""
    return Row(0, request, (5, 6, 7, 8), columns, columns, 1.0, turn, turns)


def says(*loudest: float) -> torch.Tensor:
    """Three neurons at four places; the loudest of each place is given, and another is far on the other side."""
    out = torch.full((4, 3), -2.0)
    out[:, 1] = torch.tensor(loudest)
    return out


def test_a_wording_is_dropped_when_no_neuron_opens_for_one_of_its_tokens() -> None:
    rows = [row(0, 0, 1), row(0, 0, 3), row(0, 1, 3), row(0, 2, 3)]
    everywhere, at_last, elsewhere = says(0, LOUD, LOUD, 0), says(0, QUIET, LOUD, 0), says(LOUD, QUIET, QUIET, LOUD)
    found = answerable(rows, {0: everywhere, 1: everywhere, 2: at_last, 3: elsewhere})
    assert list(found) == [0, 1]


def test_the_requests_own_prompt_stays_however_quiet_it_is() -> None:
    assert list(answerable([row(0, 0, 1), row(0, 0, 2)], {i: says(0, 0, 0, 0) for i in range(2)})) == [0]


def test_those_left_share_out_the_turns_request_by_request() -> None:
    rows = [row(0, 0, 3), row(0, 1, 3), row(1, 0, 2), row(0, 2, 3), row(1, 1, 2)]
    heard, unheard = says(0, LOUD, LOUD, 0), says(0, 0, 0, 0)
    found = answerable(rows, {0: unheard, 1: heard, 2: heard, 3: heard, 4: heard})
    assert [(i, r.turn, r.turns) for i, r in found.items()] == [(1, 0, 2), (2, 0, 2), (3, 1, 2), (4, 1, 2)]


def test_anchors_are_no_facts() -> None:
    anchor = Row(0, 0, (5, 6), (1,), (), 1.0)
    assert list(answerable([row(0, 0, 1), anchor], {0: says(0, LOUD, LOUD, 0)})) == [0]
