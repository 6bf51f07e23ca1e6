"""The places of one request at which its neurons are asked."""

from __future__ import annotations

import torch
from torch import Tensor

from roseedit.roselora.neurons.facts import ANCHOR_ENDS, ANCHOR_REST, FIRST, OWN_REST, Points, elsewhere, points_of
from roseedit.roselora.neurons.gates import separators
from roseedit.roselora.objective import Row, taking_turns

FAR = elsewhere(torch.full((5, 8), 9.0))


def fact(*ids: int, turns: int = 1) -> Row:
    """A wording whose answer is the tokens 8 and 9 and an end mark."""
    return Row(0, 0, (*ids, 8, 9), tuple(range(len(ids) - 1, len(ids) + 2)), (8, 9, 1), 1.0, 0, turns)


def anchor(*ids: int) -> Row:
    return Row(0, 0, ids, (len(ids) - 1,), (), 1.0)


def inputs_of(rows: list[Row]) -> list[Tensor]:
    """What is before a token decides what enters there."""
    inputs = []
    for row in rows:
        beginnings = [hash(row.ids[: end + 1]) % 2**31 for end in range(len(row.ids))]
        inputs.append(torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(b)) for b in beginnings]))
    return inputs


def found(rows: list[Row], count: int = 3) -> Points:
    return points_of(rows, inputs_of(rows), count, FAR)


def mass_of(points: Points, token: int) -> list[float]:
    return sorted(round(m, 4) for m in points.fact_mass[points.token == token].tolist())


def test_the_own_prompt_has_half_of_each_tokens_mass_and_the_others_that_have_it_share_the_rest() -> None:
    others = taking_turns([fact(n, 6, 7, turns=4) for n in range(2, 6)], 2)
    points = found([fact(1, 6, 7), *others])
    assert mass_of(points, 0) == [(1 - FIRST) / 4] * 4 + [FIRST]
    assert mass_of(points, 1) == mass_of(points, 2) == [(1 - FIRST) / 2] * 2 + [FIRST]
    alone = found([fact(1, 6, 7)])
    assert [mass_of(alone, t) for t in range(3)] == [[1.0]] * 3
    untaught = found([fact(1, 6, 7), fact(2, 6, 7).brief()])
    assert (mass_of(untaught, 0), mass_of(untaught, 1)) == ([1 - FIRST, FIRST], [1.0])


def test_places_with_the_same_tokens_before_them_count_once_with_all_their_mass() -> None:
    rows = [fact(1, 6, 7), fact(1, 6, 4), anchor(1, 6, 5), anchor(1, 6, 5, 3)]
    points = found(rows)
    # 1 and 1 6; then 7 8 9 and 4 8 9; then 5, and 3 behind it.
    assert len(points.x) == len(points.token) == len(points.mass) == 2 + 6 + 2
    assert torch.isclose(points.mass.sum(), torch.tensor(OWN_REST + ANCHOR_ENDS + ANCHOR_REST))
    assert len(points.x.unique(dim=0)) == len(points.x)


def test_counting_once_opens_neurons_as_counting_each_did() -> None:
    rows = [fact(1, 6, 7), fact(1, 6, 4), anchor(1, 6, 5), anchor(1, 6, 5, 3)]
    once, inputs = found(rows), inputs_of(rows)
    x = torch.cat([*inputs[:2], *(own[-1:] for own in inputs[2:]), *(own[:-1] for own in inputs[2:])])
    token = torch.tensor([-1, -1, 0, 1, 2] * 2 + [-1] * 7)
    mass = torch.tensor([OWN_REST / 10] * 10 + [ANCHOR_ENDS / 2] * 2 + [ANCHOR_REST / 5] * 5)
    shares = torch.tensor([FIRST] * 5 + [1 - FIRST] * 5 + [0.0] * 7)

    def solved(x: Tensor, token: Tensor, mass: Tensor, shares: Tensor) -> Tensor:
        here = token[None] == torch.arange(3)[:, None]
        wanted = torch.where(here, 1.0, -1.0)
        return separators(x, wanted, torch.where(here, shares, mass), FAR, 0.8, ridge=0.05, rounds=6)

    each = solved(x, token, mass, shares)
    assert torch.allclose(solved(once.x, once.token, once.mass, once.fact_mass), each, atol=1e-4)
    assert float(each.abs().max()) > 0.1
