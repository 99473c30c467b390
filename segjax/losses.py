"""Losses: `(logits, labels, *, ignore_label=255, …) -> scalar`, in float32, whatever comes in."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


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
    Weights do not enter the divisor (torch's weighted mean divides by the sum of the weights).

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
