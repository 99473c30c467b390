"""Contours against hand, and against slow references written from the papers' formulas."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from masks import ADVERSARIAL, CLASSES, VOID, pairs

from segjax.errors import SegjaxError
from segjax.evaluation import metrics
from segjax.evaluation.boundary import boundary_counts, contour_distance, trimap_counts


def eroded(mask):
    """A pixel stays that has all its eight neighbours, none of which are outside the picture."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    near = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.all(near, axis=0)


def slow_boundary_iou(truth, predicted, ratio):
    """|(G_d ∩ G) ∩ (P_d ∩ P)| and |(G_d ∩ G) ∪ (P_d ∩ P)| of each class, one mask at a time."""
    d = max(1, round(ratio * (truth.shape[0] ** 2 + truth.shape[1] ** 2) ** 0.5))
    found = []
    for n in range(CLASSES):
        bands = []
        for mask in (truth == n, (predicted == n) & (truth != VOID)):
            inner = mask
            for _ in range(d):
                inner = eroded(inner)
            bands.append(mask & ~inner)
        found.append((np.sum(bands[0] & bands[1]), np.sum(bands[0] | bands[1])))
    return found


@given(pair=pairs())
@settings(max_examples=60, deadline=None)
def test_boundary_iou_is_that_of_the_papers_formula(pair):
    check_boundary(*pair)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_boundary_iou_of_mean_masks(name):
    check_boundary(*ADVERSARIAL[name])


def check_boundary(truth, predicted):
    for ratio in (0.02, 0.1, 0.25, 2.0):
        counts = boundary_counts(truth, predicted, num_classes=CLASSES, ratio=ratio)
        want = slow_boundary_iou(truth, predicted, ratio)
        got = [(hits, true + given - hits) for hits, true, given in counts.T]
        assert got == want
        ious = [both / either if either else np.nan for both, either in want]
        np.testing.assert_allclose(metrics.iou_of(counts), ious)


def test_boundary_iou_by_hand():
    """A square of 4 in 6, moved by one: of the rings of one pixel 12 and 12, 6 and 6 are common."""
    truth, predicted = np.zeros((2, 6, 6), np.uint8)
    truth[1:5, 1:5] = 1
    predicted[2:6, 2:6] = 1
    hits, true, given = boundary_counts(truth, predicted, num_classes=2)[:, 1]
    assert (hits, true, given) == (2, 12, 12)  # the rings cross in two pixels
    # Thick enough, it is the IoU itself.
    counts = boundary_counts(truth, predicted, num_classes=2, ratio=1)
    np.testing.assert_array_equal(counts[:, 1], [9, 16, 16])


def test_the_edge_of_the_picture_is_a_boundary_but_no_trimap():
    label = np.zeros((5, 6), np.uint8)
    assert boundary_counts(label, label, num_classes=1).tolist() == [[18], [18], [18]]
    assert not trimap_counts(label, label, num_classes=1, widths=(1, 9)).any()


@pytest.mark.parametrize("diagonal, width", [((30, 40), 1), ((90, 120), 3), ((300, 400), 10)])
def test_a_boundary_is_a_fiftieth_of_the_diagonal_wide(diagonal, width):
    label = np.zeros(diagonal, np.uint8)
    (_, (pixels,), _) = boundary_counts(label, label, num_classes=1)
    inner = (diagonal[0] - 2 * width) * (diagonal[1] - 2 * width)
    assert pixels == np.prod(diagonal) - inner


def slow_trimap(truth, predicted, width):
    """(3, N), by looking at every pixel's surroundings."""
    counts = np.zeros((3, CLASSES), int)
    for y, x in np.argwhere(truth != VOID):
        rows = slice(max(0, y - width), y + width + 1)
        columns = slice(max(0, x - width), x + width + 1)
        if (truth[rows, columns] != truth[y, x]).any():
            counts[0, truth[y, x]] += truth[y, x] == predicted[y, x]
            counts[1, truth[y, x]] += 1
            counts[2, predicted[y, x]] += 1
    return counts


@given(pair=pairs())
@example(pair=ADVERSARIAL["stripes"])
@example(pair=ADVERSARIAL["all ignored"])
@example(pair=ADVERSARIAL["one pixel"])
@example(pair=ADVERSARIAL["a pixel between void"])
@settings(max_examples=40, deadline=None)
def test_a_trimap_holds_what_is_near_another_label(pair):
    widths = (1, 2, 3, 20)
    got = trimap_counts(*pair, num_classes=CLASSES, widths=widths)
    want = [slow_trimap(*pair, width) for width in widths]
    np.testing.assert_array_equal(got, want)


def test_distance_to_a_contour_by_hand():
    label = np.array([[0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(contour_distance(label), [[4, 3, 2, 1, 1]])
    corner = np.zeros((3, 4), int)
    corner[0, 3] = 7
    want = [[3, 2, 1, 1], [3, 2, 1, 1], [3, 2, 2, 2]]
    np.testing.assert_array_equal(contour_distance(corner), want)
    assert (contour_distance(np.zeros((2, 3), int)) > 10**9).all()


@pytest.mark.parametrize("count", [boundary_counts, trimap_counts])
def test_what_is_void_does_not_depend_on_the_prediction(count):
    truth = np.zeros((8, 8), np.uint8)
    truth[2:6, 2:6], truth[3:5, 3:5] = 1, VOID
    one = truth % VOID
    other = np.where(truth == VOID, 2, one)
    got = [count(truth, predicted, num_classes=CLASSES) for predicted in (one, other)]
    np.testing.assert_array_equal(*got)
    assert got[0][..., 1, 1].all()
    hidden = count(np.where(truth == VOID, 7, truth), one, num_classes=CLASSES, ignore_label=7)
    np.testing.assert_array_equal(hidden, got[0])


@pytest.mark.parametrize("count", [boundary_counts, trimap_counts])
def test_other_shapes_are_told(count):
    with pytest.raises(SegjaxError, match=r"truth is \(2, 3\), the prediction \(3, 2\); expected"):
        count(np.zeros((2, 3), int), np.zeros((3, 2), int), num_classes=2)


@pytest.mark.parametrize("count", [boundary_counts, trimap_counts])
@pytest.mark.parametrize("wrong, told", [(3, "0 and 3"), (-1, "-1–0"), (254, "0 and 254")])
def test_labels_outside_the_classes_are_told(count, wrong, told):
    good, bad = np.zeros((2, 2, 3), int)
    bad[0, 1] = wrong
    with pytest.raises(SegjaxError, match=f"The truth held {told}; expected classes, 0 to 2"):
        count(bad, good, num_classes=3)
    with pytest.raises(SegjaxError, match=f"The prediction held {told}; expected"):
        count(good, bad, num_classes=3)
    count(np.where(bad == wrong, VOID, bad), bad, num_classes=3)  # ignored there
