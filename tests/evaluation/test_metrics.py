"""The scores against hand and a slow count; the same for any batch size, order and devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import VOID, pairs

from segjax.errors import SegjaxError
from segjax.evaluation import metrics
from segjax.training import sharding

NAN = float("nan")

# confusion -> what each score must be, by hand
EXAMPLES = {
    "two classes": (
        [[3, 1], [2, 4]],
        {
            "precision": [3 / 5, 4 / 5],
            "recall": [3 / 4, 4 / 6],
            "f1": [6 / 9, 8 / 11],
            "iou": [3 / 6, 4 / 7],
            "pixel_accuracy": 7 / 10,
            "mean_accuracy": (3 / 4 + 2 / 3) / 2,
            "mean_iou": (1 / 2 + 4 / 7) / 2,
            "mean_dice": (6 / 9 + 8 / 11) / 2,
            "frequency_weighted_iou": 0.4 * 1 / 2 + 0.6 * 4 / 7,
        },
    ),
    "a class that is neither there nor predicted": (
        [[2, 0, 0], [1, 1, 0], [0, 0, 0]],
        {
            "precision": [2 / 3, 1, NAN],
            "recall": [1, 1 / 2, NAN],
            "f1": [4 / 5, 2 / 3, NAN],
            "iou": [2 / 3, 1 / 2, NAN],
            "pixel_accuracy": 3 / 4,
            "mean_accuracy": 3 / 4,
            "mean_iou": 7 / 12,
            "mean_dice": 11 / 15,
            "frequency_weighted_iou": 7 / 12,
        },
    ),
    "a class that is predicted but not there": (
        [[2, 0, 1], [0, 1, 0], [0, 0, 0]],
        {
            "precision": [1, 1, 0],
            "recall": [2 / 3, 1, NAN],
            "f1": [4 / 5, 1, 0],
            "iou": [2 / 3, 1, 0],
            "pixel_accuracy": 3 / 4,
            "mean_accuracy": 5 / 6,
            "mean_iou": 5 / 9,
            "mean_dice": (4 / 5 + 1 + 0) / 3,
            "frequency_weighted_iou": 3 / 4,
        },
    ),
    "a class that is there but not predicted": (
        [[3, 0], [1, 0]],
        {
            "precision": [3 / 4, NAN],
            "recall": [1, 0],
            "f1": [6 / 7, 0],
            "iou": [3 / 4, 0],
            "pixel_accuracy": 3 / 4,
            "mean_accuracy": 1 / 2,
            "mean_iou": 3 / 8,
            "mean_dice": 3 / 7,
            "frequency_weighted_iou": 9 / 16,
        },
    ),
    "nothing": (
        [[0, 0], [0, 0]],
        {
            "precision": [NAN, NAN],
            "recall": [NAN, NAN],
            "f1": [NAN, NAN],
            "iou": [NAN, NAN],
            "pixel_accuracy": NAN,
            "mean_accuracy": NAN,
            "mean_iou": NAN,
            "mean_dice": NAN,
            "frequency_weighted_iou": NAN,
        },
    ),
}
CASES = [
    pytest.param(confusion, name, expected, id=f"{name}-{example}")
    for example, (confusion, scores) in EXAMPLES.items()
    for name, expected in scores.items()
]


@pytest.mark.parametrize("confusion, name, expected", CASES)
def test_score_by_hand(confusion, name, expected):
    got = getattr(metrics, name)(np.array(confusion, np.int64))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_summary_and_per_class_name_every_score():
    confusion, expected = EXAMPLES["two classes"]
    got = metrics.summary(np.array(confusion))
    assert list(got) == [
        "mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "mean_dice"
    ]  # fmt: skip
    assert all(type(score) is float for score in got.values())
    classes = metrics.per_class(np.array(confusion))
    assert list(classes) == ["iou", "precision", "recall", "f1"]
    for name, score in (got | classes).items():
        np.testing.assert_allclose(score, expected[name])


def test_counts_beyond_int32_keep_the_ratios():
    confusion = np.array([[3, 1], [2, 4]], np.int64)
    large = metrics.summary(confusion * 2**58)
    assert large == pytest.approx(metrics.summary(confusion))


# Counting


def test_confusion_by_hand():
    labels = np.array([[[0, 0, 1], [1, 1, 255]]], np.uint8)
    predictions = np.array([[[0, 1, 1], [0, 1, 0]]])
    got = metrics.confusion_matrix(labels, predictions, num_classes=2)
    np.testing.assert_array_equal(got, [[1, 1], [1, 2]])
    got = metrics.confusion_matrix(labels % 2, predictions, num_classes=2, ignore_label=0)
    np.testing.assert_array_equal(got, [[0, 0], [2, 2]])


@pytest.mark.parametrize("num_classes, ignored", [(3, 255), (3, 1), (3, 0), (20, 255), (254, 255)])
def test_confusion_is_the_slow_count(num_classes, ignored):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, (2, 5, 7)).astype(np.uint8)
    labels[0, :2] = ignored
    predictions = rng.integers(0, num_classes, labels.shape)
    want = np.zeros((num_classes, num_classes), int)
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if label != ignored:
            want[label, prediction] += 1
    got = metrics.confusion_matrix(
        labels, predictions, num_classes=num_classes, ignore_label=ignored
    )
    np.testing.assert_array_equal(got, want)


RECORDS, CLASSES = 7, 3
LABELS = np.random.default_rng(0).choice([0, 1, 2, 255], (RECORDS, 2, 3)).astype(np.uint8)
# The picture holds the network's logits, so that `predict` has nothing to do.
IMAGES = np.random.default_rng(1).integers(0, 255, (RECORDS, 2, 3, CLASSES)).astype(np.uint8)
DEVICES = [n for n in (1, 2, 4, 8) if n <= len(jax.devices())]


def batches(order, size, devices):
    """Sharded batches in the order given, the last filled up with ignored rows."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    filled = np.resize(order, -(-len(order) // size) * size)
    for start in range(0, len(filled), size):
        rows = filled[start : start + size]
        batch = {"image": IMAGES[rows], "label": LABELS[rows]}
        batch["label"][max(0, len(order) - start) :] = 255
        yield sharding.put(batch, mesh)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.permutations(range(RECORDS)), st.integers(1, 3), st.sampled_from(DEVICES))
def test_evaluate_is_the_same_for_any_batch_size_order_and_devices(order, rows, devices):
    size = devices * rows
    got = metrics.evaluate(lambda x: x, batches(order, size, devices), num_classes=CLASSES)
    want = np.zeros((CLASSES, CLASSES), int)
    valid = LABELS != 255
    np.add.at(want, (LABELS[valid], IMAGES.argmax(-1)[valid]), 1)
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.int64


def test_a_single_pictures_score_is_over_the_classes_that_it_has():
    confusion = np.array([[6, 0, 2], [0, 2, 0], [0, 0, 0]])
    assert metrics.mean_iou_of_present(confusion) == (6 / 8 + 1) / 2
    assert np.isnan(metrics.mean_iou_of_present(np.zeros((2, 2), int)))
    found = metrics.picture_scores(metrics.class_counts(np.stack([confusion, 0 * confusion])))
    np.testing.assert_allclose(found["mean_iou"], [(6 / 8 + 1) / 2, NAN])
    np.testing.assert_allclose(found["dice"], [(12 / 14 + 1) / 2, NAN])
    np.testing.assert_allclose(found["pixel_accuracy"], [8 / 10, NAN])


@given(pair=pairs())
@settings(max_examples=60, deadline=None)
def test_scores_are_those_of_a_slow_loop(pair):
    """Of sets of pixels, class by class, as the formulas are read aloud."""
    truth, predicted = (label.ravel().tolist() for label in pair)
    valid = [(t, p) for t, p in zip(truth, predicted, strict=True) if t != VOID]
    iou, dice, recall, weighted = [], [], [], 0.0
    for n in range(CLASSES):
        true = {i for i, (t, _) in enumerate(valid) if t == n}
        given = {i for i, (_, p) in enumerate(valid) if p == n}
        if true | given:
            iou.append(len(true & given) / len(true | given))
            dice.append(2 * len(true & given) / (len(true) + len(given)))
            weighted += len(true) / len(valid) * iou[-1]
        if true:
            recall.append(len(true & given) / len(true))
    want = {
        "mean_iou": np.mean(iou) if iou else NAN,
        "pixel_accuracy": np.mean([t == p for t, p in valid]) if valid else NAN,
        "mean_accuracy": np.mean(recall) if recall else NAN,
        "frequency_weighted_iou": weighted if valid else NAN,
        "mean_dice": np.mean(dice) if dice else NAN,
    }
    batch = [label[None] for label in pair]
    confusion = np.asarray(metrics.confusion_matrix(*batch, num_classes=CLASSES), np.int64)
    assert metrics.summary(confusion) == pytest.approx(want, nan_ok=True)


def test_scores_of_many_matrices_are_those_of_each():
    matrices = np.array(
        [[[[3, 1], [2, 4]], [[0, 0], [5, 1]]], [[[7, 0], [0, 0]], [[1, 1], [1, 1]]]]
    )
    found = metrics.summary_of(metrics.class_counts(matrices))
    for at in np.ndindex(2, 2):
        want = metrics.summary(matrices[at])
        assert {name: float(values[at]) for name, values in found.items()} == want


def test_evaluate_passes_the_ignored_label_on():
    batch = {"image": IMAGES, "label": LABELS % CLASSES}  # 255 becomes 0
    got = metrics.evaluate(lambda x: x, [batch], num_classes=CLASSES, ignore_label=0)
    assert got.sum() == np.isin(LABELS, (1, 2)).sum()
    assert got[0].sum() == 0


def test_evaluate_adds_up_beyond_int32(monkeypatch):
    most = np.array([2**31 - 1] * CLASSES**2 + [0], np.int32)
    monkeypatch.setattr(metrics, "_count_all", lambda *_, **__: most)
    for count in range(4):
        got = metrics.evaluate(
            lambda x: x, [{"image": IMAGES, "label": LABELS}] * count, num_classes=CLASSES
        )
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, np.full((CLASSES, CLASSES), (2**31 - 1) * count))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_labels_outside_the_classes_are_told(dtype):
    labels = LABELS.astype(dtype)
    labels[0, 0] = 7
    batch = {"image": IMAGES, "label": labels}
    told = (
        r"3 pixels of a batch are of no class, expected 0 to 2: the labels held 0–2, 7 and 255\. "
    )
    for others in ([], [{"image": IMAGES, "label": LABELS}]):
        with pytest.raises(SegjaxError, match=told):
            metrics.evaluate(lambda x: x, [batch, *others], num_classes=CLASSES)
    with pytest.raises(SegjaxError, match="the labels held 0–2, 7 and 255, the predictions held 0"):
        metrics.confusion_matrix(labels, IMAGES.argmax(-1), num_classes=CLASSES)


@pytest.mark.parametrize(
    "label, prediction, counted",
    [(3, 0, 0), (-1, 0, 0), (254, 0, 0), (1, 3, 0), (1, -1, 0), (255, 7, 0), (1, 2, 1)],
)
def test_what_is_outside_the_classes_lands_in_none(label, prediction, counted):
    """And is told, but where it is ignored."""
    count = partial(metrics.confusion_matrix, num_classes=3)
    arrays = jnp.full((1, 1, 1), label), jnp.full((1, 1, 1), prediction)
    assert jax.jit(count)(*arrays).sum() == counted
    if not counted and label != 255:
        with pytest.raises(SegjaxError, match="1 pixels of a batch are of no class"):
            count(*arrays)


def test_labels_of_another_shape_are_told():
    with pytest.raises(
        SegjaxError, match=r"labels are \(7, 2, 3, 1\), the predictions \(7, 2, 3\)"
    ):
        metrics.confusion_matrix(LABELS[..., None], IMAGES.argmax(-1), num_classes=CLASSES)


def test_a_network_of_other_classes_is_refused():
    batch = {"image": np.zeros((1, 2, 2, 3), np.uint8), "label": np.zeros((1, 2, 2), np.uint8)}
    with pytest.raises(SegjaxError, match="logits of 4 classes, expected 3"):
        metrics.evaluate(lambda images: jnp.zeros((1, 2, 2, 4)), [batch], num_classes=3)


def test_a_network_of_one_channel_is_scored_on_two_classes():
    """As a sigmoid: it was once right whatever it gave."""
    labels = np.array([[[0, 1, 1, 255, 0]]], np.uint8)
    logits = jnp.array([[[[-1.0], [1.0], [-1.0], [1.0], [1.0]]]])
    batches = [{"image": logits, "label": labels}]
    confusion = metrics.evaluate(lambda x: x, batches, num_classes=2)
    np.testing.assert_array_equal(confusion, [[1, 1], [1, 1]])
    with pytest.raises(SegjaxError, match="logits of one channel, a sigmoid for 2 classes"):
        metrics.evaluate(lambda x: x, batches, num_classes=1)
