"""Objects against hand and a slow count."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.errors import SegjaxError
from segjax.evaluation import objects
from segjax.evaluation.objects import THRESHOLDS, count_objects, object_scores


def at_half(truth, predicted):
    counts = count_objects(truth, predicted).tolist()
    return [counts[0], *counts[-2:]]


def test_objects_by_hand():
    truth = np.array([[1, 1, 1, 0, 7], [1, 0, 0, 0, 7], [0, 0, 4, 4, 7]])
    predicted = np.array([[2, 2, 2, 0, 1], [0, 0, 0, 0, 1], [0, 3, 3, 3, 0]])
    # 3 of 4 pixels; 2 of 3; 2 of a union of 3
    assert count_objects(truth, predicted).tolist() == [3, 3, 3, 3, 1, 0, 0, 0, 0, 0, 3, 3]
    predicted[2, 4] = 3  # 2 of a union of 4: half is too little
    assert at_half(truth, predicted) == [2, 3, 3]


def test_scores_by_hand():
    # Two pictures: 2 of 3 true and 4 predicted objects at 0.5 and 0.55, none above; and 1 of 1.
    counts = np.array([[2, 2, *[0] * 8, 3, 4], [*[1] * 10, 1, 1]])
    scores = object_scores(counts.sum(0))
    f1 = [6 / 9] * 2 + [2 / 9] * 8
    assert scores == pytest.approx(
        {
            "object_precision": 3 / 5,
            "object_recall": 3 / 4,
            "object_f1": 6 / 9,
            "object_mean_f1": np.mean(f1),
        }
    )
    np.testing.assert_allclose(objects.f1_of(counts.sum(0)), f1)
    # 2 / (3 + 4 - 2) at two of ten thresholds
    np.testing.assert_allclose(objects.dsb_of(counts), [2 / 5 * 2 / 10, 1])


def test_two_objects_predicted_as_one_are_one_of_them_at_most():
    truth = np.array([[1, 1, 1, 2, 2]], np.uint16)
    assert at_half(truth, truth > 0) == [1, 2, 1]
    assert at_half(np.array([[1, 1, 2, 2]]), np.ones((1, 4), int)) == [0, 2, 1]


@pytest.mark.parametrize("percent", THRESHOLDS)
def test_an_iou_at_a_threshold_is_not_above_it(percent):
    """Exactly: in floats 0.55 · 100 is above 55."""
    truth, predicted = np.ones((1, 100), int), np.zeros((1, 100), int)
    predicted[:, :percent] = 1
    below = THRESHOLDS.index(percent)
    assert count_objects(truth, predicted)[:-2].tolist() == [1] * below + [0] * (10 - below)
    predicted[:, percent] = 1
    assert count_objects(truth, predicted)[:-2].sum() == below + 1


def test_objects_of_nothing():
    nothing = np.zeros((2, 3), np.uint16)
    assert not count_objects(nothing, nothing).any()
    assert all(np.isnan(score) for score in object_scores(np.zeros(12)).values())
    assert np.isnan(objects.dsb_of(np.zeros((2, 12)))).all()
    some = nothing.copy()
    some[0, 0] = 9
    for pair in ((some, nothing), (nothing, some)):
        counts = count_objects(*pair)
        assert objects.dsb_of(counts) == object_scores(counts)["object_f1"] == 0


def test_objects_of_other_sizes_are_told():
    with pytest.raises(SegjaxError, match=r"true objects are \(2, 3\), the predicted \(3, 2\)"):
        count_objects(np.zeros((2, 3), int), np.zeros((3, 2), int))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_objects_are_those_of_a_slow_count(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, (3, 4)).astype(np.uint16)
    predicted = np.where(rng.random((3, 4)) < 0.7, truth, rng.integers(0, 4, (3, 4)))
    found = [0] * len(THRESHOLDS)
    for a in set(truth.ravel()) - {0}:
        for b in set(predicted.ravel()) - {0}:
            both, either = (truth == a) & (predicted == b), (truth == a) | (predicted == b)
            for i, percent in enumerate(THRESHOLDS):
                found[i] += 100 * both.sum() > percent * either.sum()
    numbers = [len(set(x.ravel()) - {0}) for x in (truth, predicted)]
    counts = count_objects(truth, predicted)
    assert counts.tolist() == [*found, *numbers]

    tp, fn, fp = found, [numbers[0] - n for n in found], [numbers[1] - n for n in found]
    if sum(numbers):
        each = list(zip(tp, fn, fp, strict=True))
        assert objects.dsb_of(counts) == pytest.approx(
            np.mean([t / (t + n + p) for t, n, p in each])
        )
        f1 = [2 * t / (2 * t + n + p) for t, n, p in each]
        assert object_scores(counts)["object_mean_f1"] == pytest.approx(np.mean(f1))
