"""Calibration: whether a network that is sure to 80 % is right 80 times of 100."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from segjax.inference.predict import labels_of

BINS = 15
_UNIT = 2**16 - 1  # confidence is added up in whole parts of it: the same sum in any order
_GROUP = 2**16  # pixels whose confidence a uint32 holds


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
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] == 1:
        confidence = jax.nn.sigmoid(abs(logits[..., 0]))
    else:
        confidence = jnp.exp(logits.max(-1) - jax.nn.logsumexp(logits, -1))
    right = labels_of(logits) == labels
    number = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    values = jnp.stack([jnp.ones_like(right), right, jnp.round(confidence * _UNIT)], -1)
    size, pixels = len(labels), labels[0].size
    groups = -(-pixels // _GROUP)
    place = jnp.arange(pixels) // _GROUP * bins + number.reshape(size, pixels)
    place = jnp.where(labels.reshape(size, pixels) == ignore_label, groups * bins, place)

    def add(place: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.zeros((groups * bins + 1, 3), jnp.uint32).at[place].add(values)

    sums = jax.vmap(add)(place, values.astype(jnp.uint32).reshape(size, pixels, 3))
    count, of_right, summed = jnp.moveaxis(sums[:, :-1].reshape(size, groups, bins, 3), -1, 0)
    parts = [count, of_right, summed // _GROUP, summed % _GROUP]
    return jnp.stack([part.sum(1, dtype=jnp.uint32) for part in parts], 1)


def counts_of(histograms: np.ndarray) -> NDArray[np.float64]:
    """`histogram` (…, 4, K) -> float64 (…, 3, K): pixels, those right, their summed confidence."""
    count, right, high, low = np.moveaxis(np.asarray(histograms, np.float64), -2, 0)
    return np.stack([count, right, (high * _GROUP + low) / _UNIT], -2)


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
