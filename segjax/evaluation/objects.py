"""Scores of objects: how many of a picture's are found, one by one."""

import numpy as np
from numpy.typing import NDArray

from segjax.errors import SegjaxError

THRESHOLDS = tuple(range(50, 100, 5))  # of IoU, in percent


def count_objects(truth: np.ndarray, predicted: np.ndarray) -> NDArray[np.int64]:
    """Count the objects of a picture, and those found: predicted by one with an IoU above t.

    t is 0.5, 0.55 … 0.95. Above 0.5 such a pair is the only one of both its objects, so nothing has
    to be assigned; at 0.5 itself an object could be found twice, so it does not count.

    Args:
        truth, predicted: integers (H, W), 0 or the number of an object.

    Returns:
        (T + 2,) int64: objects found at each of the T `THRESHOLDS`, then those true and predicted.
        Several pictures' in rows are for `object_scores`.

    Raises:
        SegjaxError: the shapes differ.
    """
    if truth.shape != predicted.shape:
        raise SegjaxError(
            f"The true objects are {truth.shape}, the predicted {predicted.shape}; expected (H, W) "
            "of both."
        )
    size, predicted_size = np.bincount(truth.ravel()), np.bincount(predicted.ravel())
    pairs = truth.astype(np.int64) * len(predicted_size) + predicted
    pair, common = np.unique(pairs[(truth > 0) & (predicted > 0)], return_counts=True)
    one, other = np.divmod(pair, len(predicted_size))
    either = size[one] + predicted_size[other] - common
    # In whole numbers, for 0.55 is none that a float holds.
    found = [np.count_nonzero(100 * common > percent * either) for percent in THRESHOLDS]
    numbers = [np.count_nonzero(sizes[1:]) for sizes in (size, predicted_size)]
    return np.array([*found, *numbers])


def f1_of(counts: np.ndarray) -> NDArray[np.float64]:
    """F1 of objects at each threshold: 2 TP / (true + predicted), where TP are those found.

    Args:
        counts: (…, T + 2) of `count_objects`, of a picture or added up.

    Returns:
        (…, T) float64, NaN where there is no object, true or predicted.
    """
    return _ratio(2 * counts[..., :-2], counts[..., -2:].sum(-1, keepdims=True))


def dsb_of(counts: np.ndarray) -> NDArray[np.float64]:
    """The score of a picture in the Data Science Bowl 2018: the mean over t of TP / (TP + FP + FN).

    That of a data set is the mean over its pictures, less those without any object.

    Args:
        counts: (…, T + 2) of `count_objects`, of a picture each.

    Returns:
        (…,) float64, NaN where there is no object, true or predicted.

    Reference: Caicedo et al., Nucleus segmentation across imaging experiments, 2019; the
    competition's page, "Evaluation".
    """
    found = counts[..., :-2]
    return _ratio(found, counts[..., -2:].sum(-1, keepdims=True) - found).mean(-1)


def object_scores(counts: np.ndarray) -> dict[str, NDArray[np.float64]]:
    """Scores of objects over a data set, by name: precision, recall and F1 at 0.5; the mean F1.

    The mean is over the thresholds 0.5, 0.55 … 0.95, of the F1 of all pictures' objects together.

    Args:
        counts: (…, T + 2) of `count_objects`, added up over the pictures.

    Returns:
        float64 (…) by name, NaN where nothing is in the divisor.
    """
    found, true, predicted = counts[..., 0], counts[..., -2], counts[..., -1]
    f1 = f1_of(counts)
    return {
        "object_precision": _ratio(found, predicted),
        "object_recall": _ratio(found, true),
        "object_f1": f1[..., 0],
        "object_mean_f1": f1.mean(-1),
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> NDArray[np.float64]:
    """Numerator over denominator, NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    nothing = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=nothing, where=denominator != 0)
