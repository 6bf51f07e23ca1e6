"""The cubic budget schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseedit.roselora.schedule import keep_at


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (0, 1.0),
        (3, 1.0),
        (4, 0.842),
        (6, 0.581),
        (8, 0.384),
        (10, 0.243),
        (12, 0.149),
        (15, 0.074),
        (18, 0.052),
        (20, 0.05),
    ],
)
def test_the_check_values_of_the_reference(step: int, kept: float) -> None:
    assert keep_at(step, keep=0.05, start=3, end=20) == pytest.approx(kept, abs=5e-4)


def test_it_is_exact_at_both_ends() -> None:
    assert keep_at(3, 0.05, 3, 20) == 1.0
    assert keep_at(20, 0.05, 3, 20) == 0.05
    assert keep_at(1000, 0.05, 3, 20) == 0.05


@given(keep=st.floats(1e-3, 1.0), start=st.integers(0, 30), length=st.integers(1, 50), step=st.integers(0, 100))
def test_it_never_rises_and_stays_between_keep_and_one(keep: float, start: int, length: int, step: int) -> None:
    now, then = (keep_at(t, keep, start, start + length) for t in (step, step + 1))
    assert keep <= then <= now <= 1.0


@given(start=st.integers(0, 30), length=st.integers(1, 50), step=st.integers(0, 100))
def test_keeping_all_prunes_at_no_step(start: int, length: int, step: int) -> None:
    assert keep_at(step, 1.0, start, start + length) == 1.0
