"""The pure parts of HadSkip: schedules, gates, catalogue, calibration, closed-form healing, baselines."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roseedit.errors import SkipError
from roseedit.hadskip.baselines import baseline_set
from roseedit.hadskip.catalogue import calibration_curve, centred, members_of, nested_sets, shares_of
from roseedit.hadskip.distil import lr_at
from roseedit.hadskip.gate import Gates, entry_features, profile_values, straight_through
from roseedit.hadskip.healing import fit_low_rank, fit_scale
from roseedit.hadskip.homotopy import Homotopy, budget_hinge


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 300), st.floats(0.05, 1.0))
def test_the_budget_falls_cubically_from_one_to_its_goal(steps: int, budget: float) -> None:
    plan = Homotopy(steps, budget)
    path = [plan.budget_at(t) for t in range(steps + 1)]
    assert path[0] == 1.0
    assert path[-1] == pytest.approx(budget)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(path))


def test_the_schedules_at_known_steps() -> None:
    plan = Homotopy(100, 0.5)
    assert plan.budget_at(40) == pytest.approx(0.5 + 0.5 * 0.5**3)
    assert [plan.temperature_at(t) for t in (0, 10, 70, 99)] == pytest.approx([2.0, 2.0, 0.3, 0.3])
    assert plan.temperature_at(40) == pytest.approx(math.sqrt(2.0 * 0.3))
    assert [plan.penalty_at(t) for t in (0, 5, 10, 50)] == pytest.approx([0, 10, 20, 20])
    assert [plan.noisy_at(t) for t in (0, 89, 90)] == [True, True, False]


def test_without_homotopy_the_last_problem_is_solved_from_the_start() -> None:
    plan = Homotopy(100, 0.5, on=False)
    assert (plan.budget_at(0), plan.temperature_at(0), plan.penalty_at(0)) == (0.5, pytest.approx(0.3), 20.0)


@pytest.mark.parametrize(("steps", "budget", "start"), [(0, 0.5, 0.1), (10, 0.0, 0.1), (10, 1.1, 0.1), (10, 0.5, 0.8)])
def test_a_faulty_schedule_is_refused(steps: int, budget: float, start: float) -> None:
    with pytest.raises(SkipError, match="allowed: steps >= 1"):
        Homotopy(steps, budget, start)


def test_the_hinge_is_silent_inside_and_pushes_down_harder_than_up() -> None:
    cost = torch.tensor([0.7, 0.74, 0.75, 0.8])
    found = torch.stack([budget_hinge(c, 0.75) for c in cost])
    torch.testing.assert_close(found, torch.tensor([0.003, 0.0, 0.0, 0.05]))


def test_gates_are_hard_forward_and_soft_backward() -> None:
    scores = torch.tensor([-1.0, 0.5, 3.0], requires_grad=True)
    values = straight_through(scores, 0.7)
    assert values.tolist() == [0.0, 1.0, 1.0]
    values.sum().backward()
    q = torch.sigmoid(scores.detach() / 0.7)
    torch.testing.assert_close(scores.grad, q * (1 - q) / 0.7)


def test_noise_is_logistic_and_comes_from_the_generator_alone() -> None:
    scores = torch.full((20_000,), 1.0)
    state = torch.get_rng_state()
    drawn = straight_through(scores, 0.3, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn, straight_through(scores, 0.3, torch.Generator().manual_seed(1)))
    assert float(drawn.mean()) == pytest.approx(float(torch.sigmoid(torch.tensor(1.0))), abs=0.01)


def test_features_ignore_padding_and_the_size_of_states() -> None:
    states, mask = seeded(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = entry_features(states, mask)
    other = states.clone()
    other[0, 3:] = 1e4
    other[:, 0] *= 500  # one token with a huge state must not drown the rest
    torch.testing.assert_close(entry_features(other, mask), found, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[0, 8:], states[0, 2] * states[0, 2].pow(2).mean().rsqrt(), atol=1e-4, rtol=1e-4)


def test_new_gates_are_open_and_see_standardised_components() -> None:
    features = seeded(40, 12) * 3 + 1
    gates = Gates.for_features((2, 3, 5), features, 6)
    assert gates(features).tolist() == [[3.0] * 3] * 40
    spread = gates.components(features)
    torch.testing.assert_close(spread.T @ spread / 40, torch.eye(6), atol=1e-4, rtol=0)


def test_the_profile_that_agrees_best_with_the_gates_wins() -> None:
    members = members_of([[0], [0, 1], [0, 1, 2]], 3)
    scores = torch.tensor([[4.0, -1.0, -2.0], [3.0, 2.0, -1.0], [3.0, 2.0, 1.0], [-5.0, -5.0, -5.0]])
    picked = profile_values(scores, members, torch.ones(3) / 3, 0.0).argmax(1)
    assert picked.tolist() == [0, 1, 2, 0]
    dearer = profile_values(scores, members, torch.ones(3) / 3, 1.5).argmax(1)
    assert dearer.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("budget", [0.4, 0.55, 0.75, 0.9])
def test_profiles_are_nested_and_bracket_the_budget(budget: float) -> None:
    scores, costs = seeded(60, 10) + torch.linspace(2, -2, 10), torch.full((10,), 0.08)
    theta = centred(scores, costs, 0.2, budget)
    assert 0.2 + float(((scores > theta) * costs).sum(1).mean()) == pytest.approx(budget, abs=0.01)
    sets = nested_sets(scores - theta, costs, 0.2, budget, 4)
    assert 2 <= len(sets) <= 4
    assert all(set(a) < set(b) for a, b in itertools.pairwise(sets))
    reached = [0.2 + 0.08 * len(own) for own in sets]
    assert min(reached) <= budget + 1e-6
    assert max(reached) >= budget - 1e-6


def test_calibration_meets_the_budget_and_the_curve_falls() -> None:
    scores, costs = seeded(200, 10) + torch.linspace(2, -2, 10), torch.full((10,), 0.08)
    members = members_of([list(range(k)) for k in (3, 5, 7, 9)], 10)
    curve = calibration_curve(scores, members, costs, 0.2)
    means = [cost for _, cost in curve]
    assert means == sorted(means, reverse=True)
    theta = min(t for t, cost in curve if cost <= 0.6)
    shares = torch.tensor(shares_of(scores, members, costs, theta))
    mean = float(shares @ (0.2 + members @ costs))
    assert 0.58 < mean <= 0.6 + 1e-6
    assert sum(s > 0 for s in shares) >= 2


def test_the_scale_is_the_weighted_least_squares_one() -> None:
    x, wanted = seeded(200, 6), torch.linspace(0.5, 1.5, 6)
    torch.testing.assert_close(fit_scale(x, x * wanted), wanted, atol=1e-5, rtol=1e-5)


def test_a_map_of_low_rank_is_found_again() -> None:
    a, b = seeded(3, 16, seed=1), seeded(16, 3, seed=2)
    x = seeded(4000, 16)
    change = x @ a.T @ b.T
    found_a, found_b = fit_low_rank(x, x + change, 3, ridge=1e-6)
    assert (found_a.shape, found_b.shape) == ((3, 16), (16, 3))
    torch.testing.assert_close(found_b @ found_a, b @ a, atol=1e-2, rtol=1e-2)


def test_a_token_with_a_huge_state_does_not_decide_the_map() -> None:
    x, a = seeded(500, 8), seeded(8, 8, seed=3) * 0.1
    change = x @ a.T
    x[0], change[0] = x[0] * 1e3, seeded(8, seed=4) * 1e3
    found_a, found_b = fit_low_rank(x, x + change, 8, ridge=1e-6)
    torch.testing.assert_close(found_b @ found_a, a, atol=0.05, rtol=0.2)


def test_static_choices() -> None:
    layers, importance = (2, 3, 4, 5, 6), torch.tensor([0.5, 0.1, 0.9, 0.2, 0.3])
    assert baseline_set("influence", 8, layers, 6, importance=importance) == (0, 1, 2, 4, 6, 7)
    assert baseline_set("even", 8, layers, 6) == (0, 1, 2, 4, 6, 7)
    assert baseline_set("prefix-exit", 8, layers, 3) == (0, 1, 2)
    drawn = baseline_set("random", 8, layers, 5, seed=3)
    assert drawn == baseline_set("random", 8, layers, 5, seed=3)
    assert len(drawn) == 5
    assert {0, 1, 7} <= set(drawn)
    assert baseline_set("even", 8, layers, 8) == tuple(range(8))
    with pytest.raises(SkipError, match="at most 5 dropped"):
        baseline_set("even", 8, layers, 2)


def test_the_step_size_warms_up_and_falls_to_a_tenth() -> None:
    rates = [lr_at(t, 100, 1.0) for t in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) > 0.98
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
