"""The policy of drafting, played through on simulated machines: it pays where it can and never costs much."""

from __future__ import annotations

import random

import pytest

from roseedit.hadskip.pace import GRACE, Pace, best_drafter, expected_tokens
from roseedit.hadskip.profile import Profile, SkipProfiles


def play(pace: Pace, acceptance: float, cost: float, verify: float, tokens: int, seed: int = 0) -> float:
    """Speed relative to plain decoding; verifying g + 1 tokens costs 1 + verify * g plain steps, give or take."""
    draw = random.Random(seed)
    said, spent = 0, 0.0
    while said < tokens:
        g = pace.draft_length()
        if g == 0:
            step = draw.uniform(0.9, 1.1)
            pace.saw_plain(step)
            spent, said = spent + step, said + 1
            continue
        accepted = next((i for i in range(g) if draw.random() >= acceptance), g)
        draft, full = g * cost * draw.uniform(0.9, 1.1), (1 + verify * g) * draw.uniform(0.9, 1.1)
        pace.saw_verdicts(accepted, int(accepted < g))
        pace.saw_cycle(g, draft, full, accepted + 1)
        spent, said = spent + draft + full, said + accepted + 1
    return said / spent


@pytest.mark.parametrize("acceptance", [0.0, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("cost", [0.2, 0.5, 0.65, 0.9])
@pytest.mark.parametrize("verify", [0.02, 0.15, 0.6])
def test_never_slower_than_097_of_plain(acceptance: float, cost: float, verify: float) -> None:
    pace = Pace(cost)
    speed = play(pace, acceptance, cost, verify, 6000)
    assert speed >= 0.97 * 0.99  # the simulated machine itself trembles
    best = max(expected_tokens(acceptance, g) / (g * cost + 1 + verify * g) for g in range(1, 9))
    if best > 1.1:
        assert speed >= 0.85 * best


def test_short_answers_do_not_lose_more_than_the_grace() -> None:
    lost = 0.0
    pace = Pace(0.65)
    for seed in range(10):
        lost += 30 / play(pace, 0.3, 0.65, 0.6, 30, seed) - 30
    assert lost <= GRACE + 0.03 * 300


def test_where_even_perfect_drafts_do_not_pay_nothing_is_drafted() -> None:
    pace = Pace(1.0)
    play(pace, 0.5, 1.0, 1.0, 50)
    for _ in range(20):
        pace.saw_plain(1.0)
        assert pace.draft_length() == 0


def test_acceptance_that_rises_is_noticed() -> None:
    pace = Pace(0.3)
    play(pace, 0.1, 0.3, 0.05, 500)
    assert pace.draft_length() <= 1
    assert play(pace, 0.95, 0.3, 0.05, 3000) > 1.3


def test_plain_steps_come_first() -> None:
    assert Pace(0.5).draft_length() == 0


def test_expected_tokens() -> None:
    assert expected_tokens(0.0, 4) == 1
    assert expected_tokens(1.0, 4) == 5
    assert expected_tokens(0.5, 2) == pytest.approx(1.75)


def test_the_best_drafter_is_the_one_that_promises_most() -> None:
    def profiles(first: float, second: float) -> SkipProfiles:
        layers = (0, 1, 2, 3), (0, 1, 3)
        made = tuple(
            Profile(name, own, len(own) / 4, {"acceptance": a} if a else {})
            for name, own, a in zip("ab", layers, (first, second), strict=True)
        )
        return SkipProfiles("m", 4, (0, 1, 3), "0" * 64, made)

    costs = {"a": 0.9, "b": 0.5}
    assert best_drafter(profiles(0.95, 0.9), costs) == "b"
    assert best_drafter(profiles(0.95, 0.05), costs) == "a"
    assert best_drafter(profiles(0.0, 0.0), costs) == "b"
    assert best_drafter(profiles(0.99, 0.1), {"a": 0.2, "b": 0.5}) == "a"
