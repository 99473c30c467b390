"""The one pass: the same for any batches and devices, and equal to slow counts."""

import dataclasses
import itertools
from functools import partial
from threading import Event

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import ADVERSARIAL, CLASSES, VOID

from segjax.errors import SegjaxError
from segjax.evaluation import calibration, evaluator, metrics, objects
from segjax.evaluation.boundary import boundary_counts, trimap_counts
from segjax.training import losses, sharding

RECORDS, SIZE = 7, (4, 5)
RNG = np.random.default_rng(0)
LABELS = RNG.choice([0, 1, 2, VOID], (RECORDS, *SIZE)).astype(np.uint8)
LABELS[3] = VOID  # a picture that is all ignored
LABELS[4] = 1  # one of a single class
# The picture holds the network's logits.
IMAGES = RNG.integers(0, 255, (RECORDS, *SIZE, CLASSES)).astype(np.uint8)
PREDICTED = IMAGES.argmax(-1).astype(np.uint8)
DEVICES = [n for n in (1, 2, 4, 8) if n <= len(jax.devices())]
SUMMED = partial(losses.cross_entropy, reduction="sum")
NUMBERED = LABELS % VOID, (PREDICTED + 1) % CLASSES


@jax.jit
def predict(images):
    return images.astype(jnp.float32) / 30


def inspect(record, predicted):
    """Its objects are made up."""
    return evaluator.contours_and_objects(
        LABELS[record],
        predicted,
        num_classes=CLASSES,
        numbered=(NUMBERED[0][record], NUMBERED[1][record]),
    )


def batches(order, size, mesh=None):
    """Batches in the order given, the last filled up with ignored rows."""
    filled = np.resize(order, -(-len(order) // size) * size)
    for start in range(0, len(filled), size):
        rows = filled[start : start + size]
        record = np.where(np.arange(start, start + size) < len(order), rows, -1).astype(np.int32)
        batch = {"image": IMAGES[rows], "label": LABELS[rows], "record": record}
        batch["label"][record < 0] = VOID
        yield sharding.put(batch, mesh) if mesh else batch


def passed(order=range(RECORDS), size=3, mesh=None, **options):
    return evaluator.evaluate(predict, batches(order, size, mesh), num_classes=CLASSES, **options)


EVERYTHING = {"summed_loss": SUMMED, "inspect": inspect}


def assert_same(got, want):
    np.testing.assert_array_equal(got.records, want.records)
    np.testing.assert_array_equal(got.confusion, want.confusion)
    assert got.confusion.dtype == np.int64
    assert got.rows.keys() == want.rows.keys()
    for name, values in want.rows.items():
        if name == "loss":  # the one sum of floats
            np.testing.assert_allclose(got.rows[name], values, rtol=1e-6)
        else:
            np.testing.assert_array_equal(got.rows[name], values)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.permutations(range(RECORDS)), st.integers(1, 3), st.sampled_from(DEVICES))
def test_the_same_for_any_batch_size_order_and_devices(order, rows, devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    got = passed(order, devices * rows, mesh, **EVERYTHING)
    assert_same(got, passed(**EVERYTHING))
    assert got.scores() == pytest.approx(passed(**EVERYTHING).scores(), rel=1e-12)


class Surest:
    """Counts the probability of the predicted class: a measure, for the sums of rows."""

    def count(self, truth, probabilities):
        return {"surest": np.array([probabilities.max(-1).sum(), truth.size])}

    def scores(self, sums):
        return {"surest": sums["surest"][..., 0] / sums["surest"][..., 1]}


@pytest.mark.parametrize("devices", DEVICES[:2])
def test_a_measure_counts_probabilities_and_adds_its_scores(devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])

    def counted(record, predicted, probabilities):
        np.testing.assert_array_equal(probabilities.argmax(-1), predicted)
        return inspect(record, predicted) | Surest().count(LABELS[record], probabilities)

    found = passed([3, 0, 6, 1, 5], 2, mesh, inspect=counted, probabilities=True)
    assert "surest" not in found.scores()  # counted, but of no measure known
    found = dataclasses.replace(evaluator.joined([found]), measure=Surest())
    exp = np.exp(IMAGES[[0, 1, 3, 5, 6]] / 30)
    want = (exp / exp.sum(-1, keepdims=True)).max(-1)
    np.testing.assert_allclose(found.rows["surest"][:, 0], want.sum((1, 2)), rtol=1e-5)
    assert found.scores()["surest"] == pytest.approx(want.mean(), rel=1e-5)
    low, high = found.intervals(resamples=200)["surest"]
    assert low < found.scores()["surest"] < high


def test_every_picture_is_counted_as_by_a_slow_loop():
    found = passed(**EVERYTHING)
    np.testing.assert_array_equal(found.records, np.arange(RECORDS))
    confusion = np.zeros((CLASSES, CLASSES), int)
    for i in range(RECORDS):
        alone = np.zeros((CLASSES, CLASSES), int)
        loss = 0.0
        for at in np.ndindex(SIZE):
            if (true := LABELS[i][at]) != VOID:
                alone[true, PREDICTED[i][at]] += 1
                scores = IMAGES[i][at] / 30
                loss += np.log(np.exp(scores).sum()) - scores[true]
        want = [alone.diagonal(), alone.sum(1), alone.sum(0)]
        np.testing.assert_array_equal(found.rows["counts"][i], want)
        assert found.rows["loss"][i] == pytest.approx(loss, rel=1e-5)
        for name, count in (("boundary", boundary_counts), ("trimap", trimap_counts)):
            want = count(LABELS[i], PREDICTED[i], num_classes=CLASSES)
            np.testing.assert_array_equal(found.rows[name][i], want)
        want = objects.count_objects(NUMBERED[0][i], NUMBERED[1][i])
        np.testing.assert_array_equal(found.rows["objects"][i], want)
        confusion += alone
    np.testing.assert_array_equal(found.confusion, confusion)
    assert found.loss == pytest.approx(found.rows["loss"].sum() / confusion.sum())
    assert metrics.summary(confusion).items() <= found.scores().items()


def test_the_confusion_is_that_of_metrics_evaluate():
    want = metrics.evaluate(predict, batches(range(RECORDS), 3), num_classes=CLASSES)
    np.testing.assert_array_equal(passed().confusion, want)


def test_scores_are_those_of_their_modules():
    found = passed(**EVERYTHING)
    scores, rows = found.scores(), found.rows
    assert next(iter(scores)) == "mean_iou"
    dice = metrics.picture_scores(rows["counts"])["dice"]
    assert np.isnan(dice[3])
    assert scores["dice_per_picture"] == pytest.approx(np.nanmean(dice))
    boundary = metrics.iou_of(rows["boundary"].sum(0))
    assert scores["mean_boundary_iou"] == pytest.approx(np.nanmean(boundary))
    np.testing.assert_allclose(found.per_class()["boundary_iou"], boundary)
    bands = metrics.iou_of(rows["trimap"].sum(0))
    assert scores["trimap_iou_3px"] == pytest.approx(np.nanmean(bands[0]))
    assert scores["trimap_iou_10px"] == pytest.approx(np.nanmean(bands[1]))
    for name, value in objects.object_scores(rows["objects"].sum(0)).items():
        assert scores[name] == value
    each = objects.dsb_of(rows["objects"])
    assert scores["object_dsb2018"] == pytest.approx(np.nanmean(each))
    assert scores["calibration_ece"] == calibration.ece(rows["calibration"].sum(0))
    reliability = found.reliability()
    assert reliability["ece"] == scores["calibration_ece"]
    assert reliability["count"].sum() == (LABELS != VOID).sum()
    assert len(reliability["edges"]) == len(reliability["accuracy"]) + 1 == 16
    told = found.objects()
    assert told["true"] == rows["objects"][:, -2].sum() and len(told["f1"]) == 10
    assert passed().objects() is None


def test_pictures_are_scored_one_by_one():
    found = passed(**EVERYTHING).pictures()
    assert len(found) == RECORDS
    for i, got in enumerate(found):
        alone = evaluator.evaluate(predict, batches([i], 1), num_classes=CLASSES, inspect=inspect)
        want = {
            "mean_iou": metrics.mean_iou_of_present(alone.confusion),
            "pixel_accuracy": metrics.pixel_accuracy(alone.confusion),
            "object_f1": alone.scores()["object_f1"],
            "dice": alone.scores()["dice_per_picture"],
        }
        present = alone.confusion.sum(1) > 0
        if present.any():
            want["mean_boundary_iou"] = alone.per_class()["boundary_iou"][present].mean()
        else:
            want["mean_boundary_iou"] = np.nan
        assert got == pytest.approx(want, nan_ok=True)
    assert np.isnan(found[3]["mean_iou"]) and np.isnan(found[3]["dice"])


def test_the_device_goes_on_while_pictures_are_inspected():
    ahead, number = Event(), itertools.count()

    def predict_and_tell(images):
        if next(number) == 2:
            ahead.set()
        return predict(images)

    def inspect_late(record, label):
        assert ahead.wait(5), "the third batch waits for the first one's inspection"
        return inspect(record, label)

    got = evaluator.evaluate(
        predict_and_tell, batches(range(4), 1), num_classes=CLASSES, inspect=inspect_late
    )
    want = evaluator.evaluate(predict, batches(range(4), 4), num_classes=CLASSES, inspect=inspect)
    np.testing.assert_array_equal(got.rows["boundary"], want.rows["boundary"])


def test_intervals_hold_every_score():
    found = passed(**EVERYTHING)
    intervals, scores = found.intervals(), found.scores()
    assert intervals.keys() == scores.keys()
    assert all(low <= high for low, high in intervals.values())
    assert intervals == found.intervals() != found.intervals(seed=1)
    low, high = intervals["pixel_accuracy"]
    assert low < scores["pixel_accuracy"] < high


@pytest.mark.parametrize("parts", [[[0, 2, 5], [6, 1], [3, 4]], [[], range(RECORDS)]])
def test_the_shares_of_processes_are_joined(parts):
    """One may have had nothing but rows that fill up."""
    shares = [passed(part, 4, **EVERYTHING) for part in parts if len(part)]
    if not all(map(len, parts)):
        filling = next(batches([0], 1)) | {"record": np.array([-1], np.int32)}
        filling["label"] = np.full_like(filling["label"], VOID)
        shares.append(evaluator.evaluate(predict, [filling], num_classes=CLASSES, **EVERYTHING))
        assert len(shares[-1].records) == 0
    assert_same(evaluator.joined(shares), passed(**EVERYTHING))


@pytest.mark.parametrize("pixels", [1, 12, 2**22])
def test_logits_on_the_host_are_counted_by_strips(monkeypatch, pixels):
    monkeypatch.setattr(evaluator, "_STRIP", pixels)
    on_host = evaluator.evaluate(
        lambda images: np.asarray(predict(images)),
        batches(range(RECORDS), 3),
        num_classes=CLASSES,
        **EVERYTHING,
    )
    assert_same(on_host, passed(**EVERYTHING))


def test_labels_from_elsewhere_are_counted_alike():
    given = ((LABELS[i], PREDICTED[i], inspect(i, PREDICTED[i])) for i in range(RECORDS))
    got, want = evaluator.of_labels(given, num_classes=CLASSES), passed(**EVERYTHING)
    np.testing.assert_array_equal(got.confusion, want.confusion)
    assert got.rows.keys() == want.rows.keys() - {"loss", "calibration"}
    for name, values in got.rows.items():
        np.testing.assert_array_equal(values, want.rows[name])
    missing = {"calibration_ece", "calibration_mce"}
    assert got.scores() == {n: x for n, x in want.scores().items() if n not in missing}
    wrong = [(np.zeros((1, 2), int), np.array([[0, CLASSES]]), {})]
    with pytest.raises(SegjaxError, match=r"1 pixels of a batch are of no class.* held 0 and 3"):
        evaluator.of_labels(wrong, num_classes=CLASSES)
    with pytest.raises(SegjaxError, match=r"truth is \(1, 2\), the prediction \(2, 1\)"):
        evaluator.of_labels([(np.zeros((1, 2)), np.zeros((2, 1)), {})], num_classes=CLASSES)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_mean_masks_give_scores_in_bounds_and_no_warning(name):
    truth, predicted = ADVERSARIAL[name]
    logits = jax.nn.one_hot(predicted, CLASSES)[None] * 9
    batch = {"image": logits, "label": truth[None], "record": np.zeros(1, np.int32)}
    found = evaluator.evaluate(
        lambda x: x,
        [batch],
        num_classes=CLASSES,
        summed_loss=SUMMED,
        inspect=lambda _, label: evaluator.contours_and_objects(
            truth, label, num_classes=CLASSES, numbered=(truth % VOID, label)
        ),
    )
    assert found.confusion.sum() == (truth != VOID).sum()
    scores = found.scores()
    if (truth == VOID).all():
        scores = {n: x for n, x in scores.items() if not n.startswith("object")}
        assert np.isnan([*scores.values(), found.loss]).all()
    else:
        valid = truth != VOID
        assert scores["pixel_accuracy"] == (truth == predicted)[valid].mean()
        assert all(np.isnan(x) or 0 <= x <= 1 for x in scores.values())
    assert found.intervals() == {}
    assert len(found.pictures()) == 1


def test_a_sigmoid_is_scored_on_two_classes():
    labels = np.array([[[0, 1, 1, VOID, 0]]], np.uint8)
    logits = jnp.array([[[[-1.0], [1.0], [-1.0], [1.0], [1.0]]]])
    batch = {"image": logits, "label": labels, "record": np.zeros(1, np.int32)}
    found = evaluator.evaluate(lambda x: x, [batch], num_classes=2)
    np.testing.assert_array_equal(found.confusion, [[1, 1], [1, 1]])
    sure = 1 / (1 + np.exp(-1))
    assert found.scores()["calibration_ece"] == pytest.approx(sure - 0.5, abs=1e-4)


def test_labels_outside_the_classes_are_told():
    batch = next(batches([0, 1], 2))
    batch["label"] = np.where(batch["label"] == 2, 7, batch["label"])
    told = "pixels of a batch are of no class, expected 0 to 2: the labels held 0–1, 7 and 255"
    for others in ([], [next(batches([2, 3], 2))]):
        with pytest.raises(SegjaxError, match=told):
            evaluator.evaluate(predict, [batch, *others], num_classes=CLASSES)


def test_a_network_of_other_classes_is_refused():
    with pytest.raises(SegjaxError, match="logits of 3 classes, expected 4"):
        evaluator.evaluate(predict, batches([0], 1), num_classes=4)


def test_the_ignored_label_is_passed_on():
    labelled = ({**b, "label": b["label"] % VOID} for b in batches(range(RECORDS), 3))
    found = evaluator.evaluate(predict, labelled, num_classes=CLASSES, ignore_label=0)
    pixels = np.isin(LABELS, (1, 2)).sum()
    assert found.confusion.sum() == found.reliability()["count"].sum() == pixels


def test_what_is_kept_of_a_picture_does_not_grow_with_the_square_of_the_classes():
    classes = 150
    batch = {
        "image": np.zeros((4, 2, 2, classes), np.uint8),
        "label": np.zeros((4, 2, 2), np.uint8),
        "record": np.arange(4, dtype=np.int32),
    }
    found = evaluator.evaluate(predict, [batch], num_classes=classes)
    assert sum(values.nbytes for values in found.rows.values()) < 4 * 16 * classes
    assert metrics.mean_iou(found.confusion) == 1
