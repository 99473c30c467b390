"""The ISBI challenge's scores against slow, plain counts on small pictures, and by hand."""

import itertools

import numpy as np
import pytest

from segjax.evaluation import isbi
from segjax.evaluation.isbi import ISBI2012, THRESHOLDS

SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))
CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))


def regions_of(cells, steps=SIDES):
    """Sets of places, each a region of what is true, by flooding."""
    left, regions = {place for place in np.ndindex(cells.shape) if cells[place]}, []
    while left:
        region, new = set(), {left.pop()}
        while new:
            region |= new
            new = {(y + v, x + u) for y, x in new for v, u in steps} & left
            left -= new
        regions.append(region)
    return regions


def numbers_of(cells):
    numbers = np.zeros(cells.shape, int)
    for number, region in enumerate(regions_of(cells), start=1):
        for place in region:
            numbers[place] = number
    return numbers


def f_of(both, predicted, true):
    return 2 * both / (predicted + true)


def slow_pairs(truth, predicted):
    """Pair by pair of the pixels in the truth's regions; those in none of the prediction's are a
    region each."""
    places = [place for place in np.ndindex(truth.shape) if truth[place]]
    both = found = true = 0
    for a, b in itertools.product(places, places):
        in_truth = truth[a] == truth[b]
        in_found = a == b or (predicted[a] > 0 and predicted[a] == predicted[b])
        both += in_truth and in_found
        found += in_found
        true += in_truth
    # As theirs: a pixel that stands alone makes a pair with itself, as all others do.
    return both, found, true


def is_simple(cells, y, x):
    """Whether one region of cell and one of membrane meet the pixel, in its 3×3 neighbourhood."""
    patch = cells[y - 1 : y + 2, x - 1 : x + 2].copy()
    patch[1, 1] = False
    beside = [r for r in regions_of(patch) if r & {(1 + v, 1 + u) for v, u in SIDES}]
    patch[1, 1] = True
    return len(beside) == len(regions_of(~patch, SIDES + CORNERS)) == 1


def slow_warping(cells, shares, threshold):
    cells, target = np.pad(cells, 1), np.pad(shares > threshold, 1)
    surest = -np.abs(np.pad(shares, 1) - threshold)
    before = None
    while before is None or (cells != before).any():
        before = cells.copy()
        places = sorted(
            np.argwhere(cells != target).tolist(), key=lambda p: (surest[*p], p[1], p[0])
        )
        for y, x in places:
            if is_simple(cells, y, x):
                cells[y, x] = ~cells[y, x]
    cells, target = cells[1:-1, 1:-1], target[1:-1, 1:-1]

    def numbers_around(cells, y, x):
        numbers = numbers_of(cells)
        return {
            numbers[y + v, x + u]
            for v, u in SIDES + CORNERS
            if 0 <= y + v < cells.shape[0] and 0 <= x + u < cells.shape[1]
        }

    wrong = 0
    for y, x in np.argwhere(cells != target):
        around = numbers_around(cells, y, x)
        if len(around) == 2 and cells[y, x]:  # does the cell fall apart without it?
            without = cells.copy()
            without[y, x] = False
            around = numbers_around(without, y, x)
        elif len(around) == 2:
            continue
        wrong += len(around) > 2
    return wrong


def pictures(seed, shape=(9, 11)):
    """Cells of several pixels, and a probability that is right more often than not."""
    rng = np.random.default_rng(seed)
    cells = rng.random(shape) < 0.7
    shares = np.clip(0.5 + 0.35 * (2 * cells - 1) + rng.normal(0, 0.35, shape), 0, 1)
    return cells, shares.round(1 if seed % 2 else 3).astype(np.float32)  # with equal ones, without


def counted(cells, shares):
    return ISBI2012().count(cells.astype(np.uint8), np.stack([1 - shares, shares], -1))


@pytest.mark.parametrize("seed", [0, 8, 9, 19])
def test_every_count_is_that_of_a_slow_plain_one(seed):
    cells, shares = pictures(seed)
    found, truth = counted(cells, shares), numbers_of(cells)
    for i, threshold in enumerate(THRESHOLDS):
        predicted = shares > threshold
        hits = sum(bool(a and b) for a, b in zip(cells.flat, predicted.flat, strict=True))
        assert found["isbi_pixels"][i].tolist() == [hits, predicted.sum(), cells.sum()]
        assert found["isbi_pairs"][i].tolist() == list(slow_pairs(truth, numbers_of(predicted)))
        wrong = slow_warping(cells, shares, threshold)
        assert found["isbi_warping"][i].tolist() == [wrong, cells.size]
        f = f_of(*slow_pairs(truth, isbi.thinned(numbers_of(predicted)))) if predicted.any() else 0
        np.testing.assert_allclose(found["isbi_thinned"][i], [f, 1])
    assert found["isbi_warping"][:, 0].any()


def test_scores_are_the_best_of_a_threshold_of_all_pictures_together():
    each = [counted(*pictures(seed)) for seed in range(3)]
    sums = {name: sum(one[name] for one in each) for name in each[0]}
    scores = ISBI2012().scores(sums)
    for error, name in (("pixel", "pixels"), ("rand", "pairs")):
        best = min(1 - f_of(*row) for row in sums[f"isbi_{name}"])
        assert scores[f"isbi_{error}_error"] == pytest.approx(best)
    assert scores["isbi_warping_error"] == min(sums["isbi_warping"][:, 0]) / (3 * 99)
    together = ISBI2012().scores({name: np.stack([x, x]) for name, x in sums.items()})
    assert {name: values.shape for name, values in together.items()} == dict.fromkeys(scores, (2,))


def test_splits_and_merges_by_hand():
    """Two cells of 3×3 pixels and a membrane between: only what joins or parts one counts."""
    truth = np.ones((5, 9), bool)
    truth[0] = truth[-1] = truth[:, 0] = truth[:, -1] = truth[:, 4] = False

    def wrong(change, value):
        shares = np.where(truth, 0.8, 0.2)
        shares[change] = value
        return isbi.count_warping(truth, shares, 0.5)

    assert wrong(np.s_[2, 4], 1) == 1  # a hole in the membrane: merged
    assert wrong(np.s_[1:4, 4], 1) == 3  # without any: the line that parts them cannot go
    assert wrong(np.s_[1:4, 2], 0) == 1  # a line through a cell: warped up to its last pixel
    assert wrong(np.s_[1:4, 1], 0) == 0  # the border elsewhere
    assert wrong(np.s_[2, 2], 0) == 0  # a hole
    assert wrong(np.s_[1:4, 1:4], 0) == 0  # a lost cell
    thick = truth.copy()
    thick[1, 4] = True  # joined above: to cross below as well closes a hole, and merges nothing
    assert isbi.count_warping(thick, np.where(thick | (np.arange(9) == 4), 0.8, 0.2), 0.5) == 0


def test_a_perfect_prediction_has_no_error_and_nothing_all_of_them():
    cells = np.array([[1, 1, 0, 1], [1, 1, 0, 1]], bool)
    scores = ISBI2012().scores(counted(cells, cells.astype(np.float32)))
    assert scores == {
        "isbi_pixel_error": 0, "isbi_rand_error": 0, "isbi_warping_error": 0, "isbi_rand_thinned": 1
    }  # fmt: skip
    nothing = ISBI2012().scores(counted(cells, np.zeros(cells.shape, np.float32)))
    assert nothing["isbi_pixel_error"] == 1 and nothing["isbi_warping_error"] == 0
    # Each of 6 pixels is alone, in a truth of 4² + 2² pairs.
    assert nothing["isbi_rand_error"] == pytest.approx(1 - f_of(6, 6, 20))


def test_regions_grow_until_they_meet():
    regions = np.array([[1, 0, 0, 0, 2], [1, 0, 0, 0, 2]])
    assert isbi.thinned(regions)[0, [0, 1, 3, 4]].tolist() == [1, 1, 2, 2]
    assert not isbi.thinned(np.zeros((2, 2), int)).any()
