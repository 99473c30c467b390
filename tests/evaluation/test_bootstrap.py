"""Intervals against a slow bootstrap and the normal law; the spread of runs by hand."""

import numpy as np
import pytest

from segjax.evaluation import metrics
from segjax.evaluation.bootstrap import intervals, mean_and_deviation

RNG = np.random.default_rng(0)
MATRICES = RNG.integers(0, 50, (6, 3, 3))
ROWS = {"counts": metrics.class_counts(MATRICES)}


def scores(sums):
    return metrics.summary_of(sums["counts"])


def test_intervals_are_those_of_a_slow_bootstrap():
    rng, drawn = np.random.default_rng(7), []
    for _ in range(2):  # as they are drawn, a hundred at a time
        drawn += list(rng.integers(6, size=(100, 6)))
    each = [metrics.summary(sum(MATRICES[i] for i in pictures)) for pictures in drawn]
    got = intervals(ROWS, scores, resamples=200, seed=7)
    assert got.keys() == each[0].keys()
    for name, (low, high) in got.items():
        want = np.percentile([one[name] for one in each], [2.5, 97.5])
        np.testing.assert_allclose([low, high], want, rtol=1e-12)


def test_an_interval_is_that_of_the_normal_law_where_it_holds():
    values = np.random.default_rng(1).normal(3, 2, 400)
    rows = {"sum": values, "number": np.ones(400)}
    ((low, high),) = intervals(rows, lambda sums: {"mean": sums["sum"] / sums["number"]}).values()
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    narrow = intervals(rows, lambda sums: {"mean": sums["sum"]}, level=0.5)["mean"]
    wide = intervals(rows, lambda sums: {"mean": sums["sum"]})["mean"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_seed_alone_decides():
    one, same, other = (intervals(ROWS, scores, seed=seed) for seed in (0, 0, 1))
    assert one == same != other


def test_pictures_that_are_alike_leave_nothing_open():
    rows = {"counts": np.repeat(ROWS["counts"][:1], 4, 0)}
    want = metrics.summary(MATRICES[0])
    for name, (low, high) in intervals(rows, scores, resamples=10).items():
        assert low == pytest.approx(high) == pytest.approx(want[name])


def test_one_picture_has_no_interval():
    assert intervals({"counts": ROWS["counts"][:1]}, scores) == {}
    assert intervals({"counts": ROWS["counts"][:0]}, scores) == {}


def test_scores_that_are_nan_are_left_out():
    """Where the only picture that counts is not drawn; and where none counts."""
    counts = ROWS["counts"].copy()
    counts[1:] = 0
    low, high = intervals({"counts": counts}, scores)["mean_iou"]
    assert low == pytest.approx(high) == pytest.approx(metrics.summary(MATRICES[0])["mean_iou"])
    nothing = intervals({"counts": 0 * counts}, scores)
    assert np.isnan(list(nothing.values())).all()


def test_large_counts_stay_exact():
    rows = {"counts": ROWS["counts"] * 2**40}
    got, want = intervals(rows, scores, resamples=50), intervals(ROWS, scores, resamples=50)
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-12)


def test_mean_and_deviation_by_hand():
    runs = [{"a": 1.0, "b": 5.0}, {"a": 2.0, "c": 0.0}, {"a": 6.0, "b": 5.0}]
    assert mean_and_deviation(runs) == {"a": (3, pytest.approx(7**0.5))}
    mean, deviation = mean_and_deviation(runs[:1])["b"]
    assert mean == 5 and np.isnan(deviation)
    assert mean_and_deviation([]) == {}
