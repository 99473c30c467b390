"""Scores of a segmentation, from one confusion matrix over the whole data set.

Rows are the truth, columns the prediction. Each score is a function of an (N, N) int64 matrix;
a class whose score has nothing in its divisor is NaN and is left out of means.

All of them need only three numbers of each class, `class_counts`: pixels hit, true and predicted.
These are what is kept of each picture (`segjax.evaluation.evaluator`), and functions that end in
`_of` take them, of one picture or of any number at once.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from segjax.errors import SegjaxError, held
from segjax.inference.predict import labels_of

T = TypeVar("T")


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
    counts = _count_all(labels, predictions, num_classes=num_classes, ignore_label=ignore_label)
    if not isinstance(counts, jax.core.Tracer):
        check_inside(int(counts[-1]), num_classes, labels=labels, predictions=predictions)
    return counts[:-1].reshape(num_classes, num_classes)


def count_pairs(
    labels: jax.Array, predictions: jax.Array, *, num_classes: int, ignore_label: int = 255
) -> jax.Array:
    """Count the pixels of each pair of classes in each picture of a batch; to be used within jit.

    Args:
        labels: (B, H, W) integers in 0…N-1, or `ignore_label`, which is not counted.
        predictions: (B, H, W) integers in 0…N-1.
        num_classes: N.
        ignore_label: the label of pixels that do not count.

    Returns:
        (B, N² + 1) int32: of each picture its confusion matrix, row by row, and last the pixels
        outside the classes, for `check_inside`.

    Raises:
        SegjaxError: the shapes differ.
    """
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
    count = partial(jnp.bincount, length=uncounted + 1)
    return jax.vmap(count)(pair.reshape(len(pair), -1))[:, :uncounted]


@partial(jax.jit, static_argnames=("num_classes", "ignore_label"))
def _count_all(
    labels: jax.Array, predictions: jax.Array, *, num_classes: int, ignore_label: int
) -> jax.Array:
    """`count_pairs` of a whole batch, (N² + 1,) int32."""
    options = {"num_classes": num_classes, "ignore_label": ignore_label}
    return count_pairs(labels, predictions, **options).sum(0)


def check_inside(outside: int, num_classes: int, **arrays: Any) -> None:
    """Raise SegjaxError where pixels are outside the classes, with what the arrays hold."""
    if outside:
        told = ", ".join(f"the {name} held {held(array)}" for name, array in arrays.items())
        raise SegjaxError(
            f"{outside} pixels of a batch are of no class, expected 0 to {num_classes - 1}: "
            f"{told}. Correct them, or name the label to skip by ignore_label."
        )


def check_classes(channels: int, num_classes: int) -> None:
    """Raise SegjaxError where logits of so many channels are not of the data's classes."""
    if max(channels, 2) != num_classes:
        means = "one channel, a sigmoid for 2" if channels == 1 else f"{channels}"
        raise SegjaxError(
            f"The network gives logits of {means} classes, expected {num_classes}; evaluate it "
            "on data of its own classes."
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
    options = {"num_classes": num_classes, "ignore_label": ignore_label}

    def counted() -> Iterator[tuple[Any, jax.Array]]:
        for batch in batches:
            logits = predict(batch["image"])
            check_classes(logits.shape[-1], num_classes)
            yield batch["label"], _count_all(batch["label"], labels_of(logits), **options)

    pairs = np.zeros(num_classes**2, np.int64)
    for labels, counts in one_late(counted()):
        of_batch = np.asarray(counts)
        check_inside(int(of_batch[-1]), num_classes, labels=labels)
        pairs += of_batch[:-1]
    return pairs.reshape(num_classes, num_classes)


def one_late(made: Iterable[T]) -> Iterator[T]:
    """Each item once the next one is made too, so that the device never waits for the host."""
    for item, _ in itertools.pairwise(itertools.chain(made, [None])):
        yield cast(T, item)


def class_counts(matrices: np.ndarray) -> np.ndarray:
    """The pixels of each class, hit, true and predicted: n_ii, Σ_j n_ij and Σ_j n_ji.

    Args:
        matrices: (…, N, N), confusion matrices.

    Returns:
        (…, 3, N) integers.
    """
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    return np.stack([hits, matrices.sum(-1), matrices.sum(-2)], -2)


def precision(confusion: np.ndarray) -> np.ndarray:
    """(N,) share of the pixels predicted as a class that are of it: n_ii / Σ_j n_ji."""
    hits, _, predicted = class_counts(confusion)
    return ratio(hits, predicted)


def recall(confusion: np.ndarray) -> np.ndarray:
    """(N,) share of the pixels of a class that are found, its accuracy: n_ii / Σ_j n_ij."""
    return _recall_of(class_counts(confusion))


def f1(confusion: np.ndarray) -> np.ndarray:
    """(N,) harmonic mean of precision and recall, Dice: 2 n_ii / (Σ_j n_ij + Σ_j n_ji)."""
    return dice_of(class_counts(confusion))


def iou(confusion: np.ndarray) -> np.ndarray:
    """(N,) intersection over union: n_ii / (Σ_j n_ij + Σ_j n_ji - n_ii)."""
    return iou_of(class_counts(confusion))


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of the pixels that are right: Σ_i n_ii / Σ_ij n_ij (FCN, section 5)."""
    return summary(confusion)["pixel_accuracy"]


def mean_accuracy(confusion: np.ndarray) -> float:
    """Mean of the classes' recall (FCN, section 5)."""
    return summary(confusion)["mean_accuracy"]


def mean_iou(confusion: np.ndarray) -> float:
    """Mean of the classes' IoU, mIoU (FCN, section 5); a class predicted but absent counts as 0."""
    return summary(confusion)["mean_iou"]


def mean_iou_of_present(confusion: np.ndarray) -> float:
    """Mean IoU of the classes that the truth has: the score of a single picture.

    Where a class is predicted but absent, a stray pixel of it would cost as much as a whole class.
    """
    return float(picture_scores(class_counts(confusion))["mean_iou"])


def frequency_weighted_iou(confusion: np.ndarray) -> float:
    """IoU weighted by the classes' share of the pixels (FCN, section 5)."""
    return summary(confusion)["frequency_weighted_iou"]


def mean_dice(confusion: np.ndarray) -> float:
    """Mean of the classes' Dice over the data set; a class predicted but absent counts as 0."""
    return summary(confusion)["mean_dice"]


def summary(confusion: np.ndarray) -> dict[str, float]:
    """The overall scores by name, mIoU first."""
    return {name: float(score) for name, score in summary_of(class_counts(confusion)).items()}


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of each class by name, (N,) each."""
    return {score.__name__: score(confusion) for score in (iou, precision, recall, f1)}


def iou_of(counts: np.ndarray) -> np.ndarray:
    """`iou` of `class_counts` (…, 3, N) -> (…, N)."""
    hits, true, predicted = np.moveaxis(counts, -2, 0)
    return ratio(hits, true + predicted - hits)


def dice_of(counts: np.ndarray) -> np.ndarray:
    """`f1` of `class_counts` (…, 3, N) -> (…, N)."""
    hits, true, predicted = np.moveaxis(counts, -2, 0)
    return ratio(2 * hits, true + predicted)


def summary_of(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`summary` of `class_counts` (…, 3, N): (…) each."""
    hits, true, _ = np.moveaxis(counts, -2, 0)
    each, pixels = iou_of(counts), true.sum(-1)
    weighted = np.nansum(true * each, -1)
    return {
        "mean_iou": mean_of(each),
        "pixel_accuracy": ratio(hits.sum(-1), pixels),
        "mean_accuracy": mean_of(_recall_of(counts)),
        "frequency_weighted_iou": ratio(weighted, pixels),
        "mean_dice": mean_of(dice_of(counts)),
    }


def picture_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of single pictures: mean IoU and Dice over the classes that their truth has.

    Where a class is predicted but absent, a stray pixel of it would cost as much as a whole class.
    Such a pixel is not free: it is missing from the class that it is of.

    Args:
        counts: (…, 3, N), `class_counts` of each picture.

    Returns:
        "mean_iou", "dice" and "pixel_accuracy", (…) each; NaN of a picture that is all ignored.
    """
    hits, true, _ = np.moveaxis(counts, -2, 0)

    def of_present(scores: np.ndarray) -> np.ndarray:
        return mean_of(np.where(true > 0, scores, np.nan))

    return {
        "mean_iou": of_present(iou_of(counts)),
        "dice": of_present(dice_of(counts)),
        "pixel_accuracy": ratio(hits.sum(-1), true.sum(-1)),
    }


def mean_of(scores: np.ndarray) -> np.ndarray:
    """The mean (…) over the classes, (…, N), of what is not NaN; NaN where nothing is left."""
    present = ~np.isnan(scores)
    return ratio(np.where(present, scores, 0).sum(-1), present.sum(-1))


def _recall_of(counts: np.ndarray) -> np.ndarray:
    hits, true, _ = np.moveaxis(counts, -2, 0)
    return ratio(hits, true)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Numerator over denominator as float64, NaN where the denominator is 0."""
    nothing = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=nothing, where=np.asarray(denominator) != 0)
