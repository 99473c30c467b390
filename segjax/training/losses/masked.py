"""Logits and labels less what is ignored: what every loss starts from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from segjax.errors import SegjaxError


class Masked(NamedTuple):
    """Logits and their truth, of pixels or of channels.

    logits: (B, H, W, N) float32, 0 where ignored.  truth: (B, H, W, N), what is there; nothing is
    where ignored.  valid: not ignored, and  wrong: labels that say no class, (B, H, W) of pixels
    or (B, H, W, N) of channels.
    """

    logits: jax.Array
    truth: jax.Array
    valid: jax.Array
    wrong: jax.Array


def of_pixels(logits: jax.Array, labels: jax.Array, ignore_label: int) -> Masked:
    """For losses over classes, of which each pixel has one; N ≥ 2, one channel s being (0, s).

    Args:
        logits: (B, H, W, N), any float type.
        labels: (B, H, W) integers.
        ignore_label: the label of pixels that do not count.

    Raises:
        SegjaxError: the labels are of another shape.
    """
    if labels.shape != logits.shape[:-1]:
        raise _shapes(logits, labels, "(B, H, W)")
    labels = jnp.asarray(labels, jnp.int32)
    valid = labels != ignore_label
    # Already here: the gradient of an ignored pixel is 0 times that of its logits, NaN for an inf.
    logits = jnp.where(valid[..., None], _at_least_float32(logits), 0)
    if logits.shape[-1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    # A comparison with all classes instead of a gather: its gradient needs no scatter.
    truth = (labels[..., None] == jnp.arange(logits.shape[-1])) & valid[..., None]
    return Masked(logits, truth, valid, valid & ~truth.any(-1))


def of_channels(logits: jax.Array, labels: jax.Array, ignore_label: int) -> Masked:
    """For losses over sigmoids, one for each channel.

    Args:
        logits: (B, H, W, N), any float type.
        labels: (B, H, W) integers in 0…N-1, or 0 and 1 where N = 1; or (B, H, W, N), 0 and 1.
        ignore_label: the label of what does not count.

    Raises:
        SegjaxError: the labels are of another shape.
    """
    if labels.shape not in (logits.shape, logits.shape[:-1]):
        raise _shapes(logits, labels, "(B, H, W) or (B, H, W, N)")
    of_each = labels.ndim == logits.ndim or logits.shape[-1] == 1
    labels = jnp.asarray(labels, jnp.int32).reshape(*logits.shape[:-1], -1)
    valid = jnp.broadcast_to(labels != ignore_label, logits.shape)
    truth = (labels == (1 if of_each else jnp.arange(logits.shape[-1]))) & valid
    wrong = valid & ~(truth | (labels == 0) if of_each else truth.any(-1, keepdims=True))
    return Masked(jnp.where(valid, _at_least_float32(logits), 0), truth, valid, wrong)


def _at_least_float32(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def mean(values: jax.Array, counted: jax.Array) -> jax.Array:
    """The mean of the values that count, 0 where none does."""
    # where, not a product: 0 times what an ignored pixel may hold, an inf, would be NaN.
    return jnp.where(counted, values, 0).sum() / jnp.maximum(counted.sum(), 1)


def _shapes(logits: jax.Array, labels: jax.Array, expected: str) -> SegjaxError:
    return SegjaxError(
        f"The labels have shape {tuple(labels.shape)}, the logits {tuple(logits.shape)}; expected "
        f"labels {expected} for logits (B, H, W, N)."
    )
