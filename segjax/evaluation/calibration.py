"""Calibration: whether a network that is sure to 80 % is right 80 times of 100."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from segjax.inference.predict import probabilities_of

BINS = 15
_UNIT = 2**16  # confidence is added up in whole parts of it: the same sum in any order


def histogram(
    logits: jax.Array, labels: jax.Array, *, bins: int = BINS, ignore_label: int = 255
) -> jax.Array:
    """Count the pixels of each picture by their confidence, on the device.

    Confidence is the probability of the class that is predicted, the greatest of softmax; of one
    channel, of the likelier of its two. Bin k holds those in (k / K, (k + 1) / K].

    Args:
        logits: (B, H, W, N), or (B, H, W, 1) of a sigmoid.
        labels: (B, H, W) integers in 0…N-1, or `ignore_label`, which is not counted.
        bins: K.
        ignore_label: the label of pixels that do not count.

    Returns:
        (B, 4, K) uint32: pixels; those predicted rightly; and the sum of the confidence in two
        parts, for `counts_of` on the host.
    """
    probabilities = probabilities_of(logits)
    confidence = probabilities.max(-1)
    right = probabilities.argmax(-1) == labels
    number = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    number = jnp.where(labels == ignore_label, bins, number)
    inside = number[..., None] == jnp.arange(bins)  # (B, H, W, K)
    whole = jnp.round(confidence * _UNIT).astype(jnp.uint32)

    def add(values: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return values.sum(axes, dtype=jnp.uint32)

    # Of a row below 2³² up to 65535 pixels; of all rows so only in two parts.
    rows = add(jnp.where(inside, whole[..., None], 0), (2,))
    parts = add(rows // _UNIT, (1,)), add(rows % _UNIT, (1,))
    return jnp.stack([add(inside, (1, 2)), add(inside & right[..., None], (1, 2)), *parts], 1)


def counts_of(histograms: np.ndarray) -> NDArray[np.float64]:
    """`histogram` (…, 4, K) -> float64 (…, 3, K): pixels, those right, their summed confidence."""
    count, right, high, low = np.moveaxis(np.asarray(histograms, np.float64), -2, 0)
    return np.stack([count, right, high + low / _UNIT], -2)


def reliability(counts: np.ndarray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean confidence and accuracy of each bin, (…, K) each, NaN where it is empty.

    Args:
        counts: (…, 3, K) of `counts_of`, of a picture or added up.
    """
    count, right, confidence = np.moveaxis(counts, -2, 0)
    nothing = np.full(count.shape, np.nan)
    share = [
        np.divide(values, count, out=nothing.copy(), where=count > 0)
        for values in (confidence, right)
    ]
    return share[0], share[1]


def ece(counts: np.ndarray) -> NDArray[np.float64]:
    """Expected calibration error: Σ_k |B_k| / n · |acc(B_k) - conf(B_k)| over the bins B_k.

    Args:
        counts: (…, 3, K) of `counts_of`, of a picture or added up; n are its pixels.

    Returns:
        (…,) float64, NaN where there is no pixel.

    Reference: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, 2017,
    equation 3, with 15 bins.
    """
    count, right, confidence = np.moveaxis(counts, -2, 0)
    pixels = count.sum(-1)
    nothing = np.full(pixels.shape, np.nan)
    return np.divide(abs(right - confidence).sum(-1), pixels, out=nothing, where=pixels > 0)


def mce(counts: np.ndarray) -> NDArray[np.float64]:
    """Maximum calibration error: max_k |acc(B_k) - conf(B_k)| over the bins that hold pixels.

    A bin with one pixel counts as much as one with millions: look at the plot beside it.

    Args and returns as of `ece`.

    Reference: Guo et al., 2017, equation 5.
    """
    confidence, accuracy = reliability(counts)
    gap = abs(accuracy - confidence)
    empty = np.isnan(gap).all(-1)
    return np.where(empty, np.nan, np.nan_to_num(gap, nan=0).max(-1))
