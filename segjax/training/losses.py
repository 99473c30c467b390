"""Losses: `(logits, labels, *, ignore_label=255, …) -> scalar`, in float32, whatever comes in."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from segjax.errors import SegjaxError


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    class_weights: ArrayLike | None = None,
    pixel_weights: ArrayLike | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> jax.Array:
    """Softmax cross-entropy over the pixels that are not ignored.

    L = Σ_x c[y(x)] · w(x) · (log Σ_n exp s_n(x) - s_{y(x)}(x)), divided for the mean by the number
    of valid pixels x of the whole batch. Under jit that batch is the global one, on all devices.
    Weights do not enter the divisor (torch's weighted mean divides by the sum of the weights), so a
    weight map keeps its meaning: a pixel of weight 10 counts as ten pixels, in any batch.

    Args:
        logits: (B, H, W, N) scores s.
        labels: (B, H, W) integers y in 0…N-1, or `ignore_label`. Any other value gives NaN, rather
            than a loss that looks right.
        ignore_label: the label of pixels that do not count.
        class_weights: (N,) factors c, by default 1.
        pixel_weights: (B, H, W) factors w, by default 1 (U-Net's weight map, equation 1).
        reduction: "mean", or "sum" as in the FCN authors' code.

    Returns:
        A float32 scalar; 0, with zero gradients, where no pixel is valid.
    """
    valid = labels != ignore_label
    # Already here: the gradient of an ignored pixel is 0 times that of its logits, NaN for an inf.
    logits = jnp.where(valid[..., None], logits.astype(jnp.float32), 0)
    # A comparison with all classes instead of a gather: its gradient needs no scatter.
    chosen = labels[..., None] == jnp.arange(logits.shape[-1])
    per_pixel = jax.nn.logsumexp(logits, axis=-1) - jnp.where(chosen, logits, 0).sum(-1)
    per_pixel = jnp.where(valid & ~chosen.any(-1), jnp.nan, per_pixel)
    if class_weights is not None:
        weights = jnp.asarray(class_weights, jnp.float32)
        per_pixel *= jnp.where(chosen, weights, 0).sum(-1)
    if pixel_weights is not None:
        per_pixel *= jnp.asarray(pixel_weights, jnp.float32)
    # where, not a product: 0 times a weight of inf at an ignored pixel would be NaN.
    total = jnp.where(valid, per_pixel, 0).sum()
    return total if reduction == "sum" else total / jnp.maximum(valid.sum(), 1)


def class_weights(counts: ArrayLike) -> np.ndarray:
    """Class weights by median frequency, for `cross_entropy`: rare classes count for more.

    c_n = median(f) / f_n, where f_n is class n's share of the valid pixels of those pictures that
    it occurs in, and the median is over the classes that occur.

    Args:
        counts: (pictures, N) pixels of each class in each picture. (N,) of all pictures together
            takes each class for occurring in all of them.

    Returns:
        (N,) float32; 0 for a class that never occurs.

    Raises:
        SegjaxError: there is no pixel at all.

    Reference: Eigen, Fergus, 2015, section 3.3; used by SegNet (Badrinarayanan et al., 2015).
    """
    counts = np.atleast_2d(counts)
    pixels = counts.sum(0)
    if not pixels.any():
        raise SegjaxError(
            "class_weights: got no pixel of any class, expected counts of the training data."
        )
    among = ((counts > 0) * counts.sum(1, keepdims=True)).sum(0)
    share = np.divide(pixels, among, where=pixels > 0, out=np.zeros(pixels.shape))
    median = np.median(share[pixels > 0])
    return np.divide(median, share, where=pixels > 0, out=np.zeros(share.shape)).astype(np.float32)
