"""From probes to figures, curves of sequences, and drift: every expected value computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.errors import DataError
from roseedit.evaluation import metrics
from roseedit.evaluation.aggregate import clustered_interval, summarise, summarise_median
from roseedit.evaluation.curves import final_forgetting, forgetting_curve, fresh_scores, retention_curve
from roseedit.evaluation.drift import drift
from roseedit.evaluation.metrics import bootstrap_interval

NAN = math.nan


def test_mean_inside_each_edit_first() -> None:
    got = summarise([1, 0, 0, 0, True, None, NAN], ["a", "a", "a", "a", "b", "b", "c"], all_edits="abcd")
    assert got.mean == pytest.approx((0.25 + 1.0) / 2)  # not 2/5: edit a has four probes
    assert (got.n, got.missing_edits, got.probes, got.missing_probes) == (2, 2, 5, 2)
    assert (got.low, got.high) == bootstrap_interval([0.25, 1.0]) == (0.25, 1.0)


def test_nothing_to_sum_up_is_nan_not_zero() -> None:
    got = summarise([None], ["a"])
    assert math.isnan(got.mean) and math.isnan(got.low) and math.isnan(got.high)
    assert (got.n, got.missing_edits, got.probes, got.missing_probes) == (0, 1, 0, 1)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    draw = torch.Generator().manual_seed(3)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval((torch.rand(60, generator=draw) < 0.3).double().tolist(), draws=500)
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_large_sets_are_resampled_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [float(i % 3) for i in range(50)]
    whole = bootstrap_interval(values)
    monkeypatch.setattr(metrics, "_MOST_PICKS", 120)
    assert [len(picks) for picks in metrics.resamples(50, draws=5)] == [2, 2, 1]
    assert bootstrap_interval(values) == pytest.approx(whole, abs=0.03)


def test_clusters_of_one_edit_each_and_one_cluster_for_all() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    assert clustered_interval(values, range(6)) == bootstrap_interval(values)
    assert clustered_interval(values, ["same"] * 6) == (0.5, 0.5)
    wide = clustered_interval([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"])
    assert wide == (0.0, 1.0)
    shared = summarise(values, range(6), clusters=["a", "b", "b", "a", "b", "a"])
    assert (shared.low, shared.high) == (0.0, 1.0)
    assert all(map(math.isnan, clustered_interval([], [])))


def test_median_over_edits() -> None:
    got = summarise_median([1.0, 3.0, 1e9, 4.0, None], ["a", "a", "b", "c", "d"])
    assert (got.median, got.n, got.missing) == (4.0, 3, 1)  # of 2, 1e9, 4
    assert got.low == 2.0 and got.high == 1e9
    assert summarise_median([1.0, 2.0], "ab").median == 1.5
    assert summarise_median([math.inf, 2.0, 3.0], "abc").median == 3.0
    assert math.isnan(summarise_median([None], "a").median)


# Three edits, looked at after 1, 2 and 3 of them.
SCORES = torch.tensor([[1.0, NAN, NAN], [0.5, 1.0, NAN], [0.0, 1.0, 0.5]])
MADE = [1, 2, 3]


def test_retention() -> None:
    points = retention_curve(SCORES, MADE)
    assert [(p.x, p.mean, p.n, p.missing) for p in points] == [(1, 1.0, 1, 0), (2, 0.75, 2, 0), (3, 0.5, 3, 0)]
    assert fresh_scores(SCORES, MADE).tolist() == [1.0, 1.0, 0.5]  # 0.83 on average, where 0.5 is left


def test_forgetting_by_age() -> None:
    points = forgetting_curve(SCORES, MADE)
    assert [(p.x, p.mean, p.n) for p in points] == [(0, 0.0, 3), (1, 0.25, 2), (2, 1.0, 1)]
    assert final_forgetting(SCORES, MADE).tolist() == [1.0, 0.0, 0.0]


def test_checkpoints_may_be_sparse_and_scores_may_be_missing() -> None:
    scores = torch.tensor([[1.0, NAN, NAN, NAN], [0.0, 0.5, 1.0, 0.5]])
    points = retention_curve(scores, [2, 4])
    assert [(p.x, p.mean, p.n, p.missing) for p in points] == [(2, 1.0, 1, 1), (4, 0.5, 4, 0)]
    ages = forgetting_curve(scores, [2, 4])
    assert [(p.x, p.n, p.missing) for p in ages] == [(0, 3, 1), (2, 1, 1)]
    assert ages[1].mean == 1.0


def test_an_end_that_was_not_measured_is_missing() -> None:
    lost = final_forgetting(torch.tensor([[1.0, NAN], [NAN, 0.5]]), [1, 2])
    assert math.isnan(lost[0]) and lost[1] == 0.0


@pytest.mark.parametrize(
    ("scores", "made", "words"),
    [
        (SCORES, [1, 2], "shape"),
        (SCORES, [1, 1, 3], "rising"),
        (SCORES, [1, 2, 4], "shape"),
        (SCORES, [0, 2, 3], "shape"),
        (SCORES.nan_to_num(0.0), MADE, "comes after the first 1"),
        (SCORES[0], [1], "shape"),
    ],
)
def test_tables_that_do_not_fit_are_refused(scores: torch.Tensor, made: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        retention_curve(scores, made)


def test_drift() -> None:
    a = torch.tensor([[3.0, 0.0, 4.0, 0.0]])
    b = torch.tensor([[0.0, 2.0, 0.0]])
    matrix = MatrixDelta("w", 4, 3, False, SparseVectors.of(a), SparseVectors.of(b))
    (found,) = drift(Delta((matrix,)))
    assert (found.weight_name, found.norm, found.relative, found.rank) == ("w", 10.0, None, 1)  # 2 * |(3, 4)|
    assert found.density == pytest.approx(2 / 12)
    (found,) = drift(Delta((matrix,)), {"w": torch.full((3, 4), 5.0)})
    assert found.relative == pytest.approx(10 / (5 * math.sqrt(12)))
