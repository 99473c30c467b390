"""Scores of a segmentation, from one confusion matrix over the whole data set; and of its objects.

Rows are the truth, columns the prediction. Each score is a function of an (N, N) int64 matrix;
a class whose score has nothing in its divisor is NaN and is left out of means.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from segjax.errors import SegjaxError, held
from segjax.inference.predict import labels_of


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, *, num_classes: int, ignore_label: int = 255
) -> jax.Array:
    """Count the pixels of each (true, predicted) pair of classes, on the device.

    It waits for the count, to see whether all pixels are in it; `evaluate` does not wait. Within
    jit nothing can be raised by values: there pixels outside the classes are in no count.

    Args:
        labels: (B, H, W) integers in 0…N-1 or `ignore_label`, which is not counted.
        predictions: (B, H, W) integers in 0…N-1.
        num_classes: N.
        ignore_label: the label of pixels that do not count.

    Returns:
        (N, N) int32, which holds a batch of 2³¹ pixels; add batches up in int64, as `evaluate`.

    Raises:
        SegjaxError: the shapes differ; or a pixel is outside the classes, unless within jit.
    """
    counts = _count_pairs(labels, predictions, num_classes=num_classes, ignore_label=ignore_label)
    if not isinstance(counts, jax.core.Tracer):
        _check_inside(int(counts[-1]), num_classes, labels=labels, predictions=predictions)
    return counts[:-1].reshape(num_classes, num_classes)


@partial(jax.jit, static_argnames=("num_classes", "ignore_label"))
def _count_pairs(
    labels: jax.Array, predictions: jax.Array, *, num_classes: int, ignore_label: int
) -> jax.Array:
    """(N² + 1,) int32, the pixels of each pair of classes, and last those outside the classes."""
    if labels.shape != predictions.shape:
        raise SegjaxError(
            f"The labels are {labels.shape}, the predictions {predictions.shape}; expected (B, H, "
            "W) of both."
        )
    label, prediction = labels.astype(jnp.int32), predictions.astype(jnp.int32)
    outside, uncounted = num_classes**2, num_classes**2 + 1
    # Not left to bincount, which takes what is negative for 0.
    inside = (label >= 0) & (label < num_classes) & (prediction >= 0) & (prediction < num_classes)
    pair = jnp.where(inside, label * num_classes + prediction, outside)
    pair = jnp.where(labels == ignore_label, uncounted, pair)
    return jnp.bincount(pair.ravel(), length=uncounted + 1)[:uncounted]


def _check_inside(outside: int, num_classes: int, **arrays: Any) -> None:
    """Raise SegjaxError where pixels are outside the classes, with what the arrays hold."""
    if outside:
        told = ", ".join(f"the {name} held {held(array)}" for name, array in arrays.items())
        raise SegjaxError(
            f"{outside} pixels of a batch are of no class, expected 0 to {num_classes - 1}: "
            f"{told}. Correct them, or name the label to skip by ignore_label."
        )


def evaluate(
    predict: Callable[[Any], Any],
    batches: Iterable[Mapping[str, Any]],
    *,
    num_classes: int,
    ignore_label: int = 255,
) -> np.ndarray:
    """The confusion matrix of a whole data set, the same for any batch size, order and devices.

    Args:
        predict: uint8 images (B, H, W, C) -> logits (B, H, W, N), or (B, H, W, 1) of a sigmoid for
            two classes.
        batches: of "image" and "label" (B, H, W); rows that only fill a batch up are all ignored.
        num_classes: N.
        ignore_label: the label of pixels that do not count.

    Returns:
        (N, N) int64.

    Raises:
        SegjaxError: the network has another number of classes, or a label is outside of them.
    """
    confusion, _ = evaluate_with_loss(
        predict,
        batches,
        lambda logits, labels: 0.0,
        num_classes=num_classes,
        ignore_label=ignore_label,
    )
    return confusion


def evaluate_with_loss(
    predict: Callable[[Any], Any],
    batches: Iterable[Mapping[str, Any]],
    summed_loss: Callable[[Any, Any], Any],
    *,
    num_classes: int,
    ignore_label: int = 255,
) -> tuple[np.ndarray, float]:
    """The confusion matrix as of `evaluate` and, in the same pass, the mean of a loss.

    The mean is over the valid pixels of the whole data set. It is no mean of batch means: but for
    rounding, it is the same for any batch size, order and devices; NaN where no pixel is valid.

    Args:
        predict, batches, num_classes, ignore_label: as of `evaluate`.
        summed_loss: (logits (B, H, W, N), labels (B, H, W)) -> its sum over the valid pixels.
    """
    pairs, loss = np.zeros(num_classes**2, np.int64), 0.0

    def add(labels: Any, counts: Any, summed: Any) -> None:
        nonlocal loss
        counted = np.asarray(counts)
        _check_inside(int(counted[-1]), num_classes, labels=labels)
        pairs[:] += counted[:-1]
        loss += float(summed)

    pending = None
    for batch in batches:
        logits, labels = predict(batch["image"]), batch["label"]
        channels = logits.shape[-1]
        if max(channels, 2) != num_classes:
            means = "one channel, a sigmoid for 2" if channels == 1 else f"{channels}"
            raise SegjaxError(
                f"The network gives logits of {means} classes, expected {num_classes}; evaluate it "
                "on data of its own classes."
            )
        if pending is not None:  # fetched a batch late, so that the device never waits
            add(*pending)
        counts = _count_pairs(
            labels, labels_of(logits), num_classes=num_classes, ignore_label=ignore_label
        )
        pending = labels, counts, summed_loss(logits, labels)
    if pending is not None:
        add(*pending)
    confusion = pairs.reshape(num_classes, num_classes)
    return confusion, float(_ratio(np.asarray(loss), confusion.sum()))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Numerator over denominator as float64, NaN where the denominator is 0."""
    nothing = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=nothing, where=np.asarray(denominator) != 0)


def _mean(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN where nothing is left."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def precision(confusion: np.ndarray) -> np.ndarray:
    """(N,) share of the pixels predicted as a class that are of it: n_ii / Σ_j n_ji."""
    return _ratio(np.diag(confusion), confusion.sum(0))


def recall(confusion: np.ndarray) -> np.ndarray:
    """(N,) share of the pixels of a class that are found, its accuracy: n_ii / Σ_j n_ij."""
    return _ratio(np.diag(confusion), confusion.sum(1))


def f1(confusion: np.ndarray) -> np.ndarray:
    """(N,) harmonic mean of precision and recall, Dice: 2 n_ii / (Σ_j n_ij + Σ_j n_ji)."""
    return _ratio(2 * np.diag(confusion), confusion.sum(0) + confusion.sum(1))


def iou(confusion: np.ndarray) -> np.ndarray:
    """(N,) intersection over union: n_ii / (Σ_j n_ij + Σ_j n_ji - n_ii)."""
    hits = np.diag(confusion)
    return _ratio(hits, confusion.sum(0) + confusion.sum(1) - hits)


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of the pixels that are right: Σ_i n_ii / Σ_ij n_ij (FCN, section 5)."""
    return float(_ratio(np.trace(confusion), confusion.sum()))


def mean_accuracy(confusion: np.ndarray) -> float:
    """Mean of the classes' recall (FCN, section 5)."""
    return _mean(recall(confusion))


def mean_iou(confusion: np.ndarray) -> float:
    """Mean of the classes' IoU, mIoU (FCN, section 5); a class predicted but absent counts as 0."""
    return _mean(iou(confusion))


def mean_iou_of_present(confusion: np.ndarray) -> float:
    """Mean IoU of the classes that the truth has: the score of a single picture.

    Where a class is predicted but absent, a stray pixel of it would cost as much as a whole class.
    """
    return _mean(iou(confusion)[confusion.sum(1) > 0])


def frequency_weighted_iou(confusion: np.ndarray) -> float:
    """IoU weighted by the classes' share of the pixels (FCN, section 5)."""
    share = _ratio(confusion.sum(1), confusion.sum())
    return float(np.nansum(share * iou(confusion))) if confusion.any() else float("nan")


def summary(confusion: np.ndarray) -> dict[str, float]:
    """The overall scores by name, mIoU first."""
    scores = (mean_iou, pixel_accuracy, mean_accuracy, frequency_weighted_iou)
    return {score.__name__: score(confusion) for score in scores}


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of each class by name, (N,) each."""
    return {score.__name__: score(confusion) for score in (iou, precision, recall, f1)}


def count_objects(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Count the objects of a picture, and those found: predicted by one with an IoU above 0.5.

    Such a pair is the only one of both its objects, so nothing has to be assigned.

    Args:
        truth, predicted: integers (H, W), 0 or the number of an object.

    Returns:
        (3,) int64, objects found, true and predicted; add pictures up for `object_scores`.
    """
    size, predicted_size = np.bincount(truth.ravel()), np.bincount(predicted.ravel())
    pairs = truth.astype(np.int64) * len(predicted_size) + predicted
    pair, common = np.unique(pairs[(truth > 0) & (predicted > 0)], return_counts=True)
    one, other = np.divmod(pair, len(predicted_size))
    found = 2 * common > size[one] + predicted_size[other] - common
    return np.array([found.sum(), np.count_nonzero(size[1:]), np.count_nonzero(predicted_size[1:])])


def object_scores(counts: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of objects by name, of the counts (found, true, predicted)."""
    found, true, predicted = counts
    return {
        "object_precision": float(_ratio(found, predicted)),
        "object_recall": float(_ratio(found, true)),
        "object_f1": float(_ratio(2 * found, true + predicted)),
    }
