"""Augmentation and scaling of pictures on the device, inside jit.

An augmentation is a pure function `(key, image, label, …) -> (image, label)` of one example; vmap
makes it one of a batch. The label is never interpolated, and what lies outside the picture is
ignored. This file knows no batch and no data set.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from segjax.errors import SegjaxError


@dataclass(frozen=True)
class Normalise:
    """uint8 pictures -> float32 (image - mean) / deviation, a channel.

    Fields:
        mean, deviation: a value per channel, or one for all, in 0–255.
    """

    mean: tuple[float, ...] = (127.5,)
    deviation: tuple[float, ...] = (127.5,)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(…, C) in 0–255 -> (…, C) float32."""
        scale = 1 / jnp.asarray(self.deviation, jnp.float32)
        return (images.astype(jnp.float32) - jnp.asarray(self.mean, jnp.float32)) * scale


def record_key(key: jax.Array, epoch: jax.Array, record: jax.Array) -> jax.Array:
    """The key of one record in one epoch, whatever batch, device or worker it comes through."""
    return jax.random.fold_in(jax.random.fold_in(key, epoch), record)


def random_crop(
    key: jax.Array, image: jax.Array, label: jax.Array, *, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Cut a window at a random place.

    Args:
        key: JAX key.
        image: (H, W, C).
        label: (H, W).
        size: height and width of the window, at most H and W.

    Raises:
        SegjaxError: the window is larger than the picture.
    """
    (height, width), (h, w) = label.shape, size
    if h > height or w > width:
        raise SegjaxError(
            f"A crop of {h}×{w} does not fit into pictures of {height}×{width}; "
            "make the crop smaller or the canvas larger."
        )
    rows, columns = jax.random.split(key)
    top = jax.random.randint(rows, (), 0, height - h + 1)
    left = jax.random.randint(columns, (), 0, width - w + 1)
    image = jax.lax.dynamic_slice(image, (top, left, 0), (h, w, image.shape[-1]))
    return image, jax.lax.dynamic_slice(label, (top, left), (h, w))


def random_scale_crop(
    key: jax.Array,
    image: jax.Array,
    label: jax.Array,
    *,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.5, 2.0),
    ignore_label: int = 255,
) -> tuple[jax.Array, jax.Array]:
    """Resize by a random factor and cut a window at a random place, in one resampling.

    Pixel o of the window lies at (o + ½ + offset) / factor - ½ of the picture, where the picture is
    bilinear and the label nearest. A picture smaller than the window lies at a random place in it;
    around it the edge is repeated and the label is ignored.

    Args:
        key: JAX key.
        image: (H, W, C), uint8 or float.
        label: (H, W).
        size: height and width of the window.
        scale: least and greatest factor, drawn uniformly; (1, 1) resamples nothing.
        ignore_label: of pixels outside the picture.

    Returns:
        image (h, w, C) float32, label (h, w).
    """
    factors, rows, columns = jax.random.split(key, 3)
    factor = jax.random.uniform(factors, minval=scale[0], maxval=scale[1])

    def axis(key: jax.Array, length: int, window: int) -> jax.Array:
        """Where the window's pixel centres lie along one axis of the picture."""
        room = jnp.floor(length * factor) - window  # negative: the picture moves in the window
        offset = jnp.round(jax.random.uniform(key) * room)
        return (jnp.arange(window) + 0.5 + offset) / factor - 0.5

    y, x = axis(rows, label.shape[0], size[0]), axis(columns, label.shape[1], size[1])
    image = _lerp(_lerp(image.astype(jnp.float32), y, axis=0), x, axis=1)
    i, inside_y = _nearest(y, label.shape[0])
    j, inside_x = _nearest(x, label.shape[1])
    inside = inside_y[:, None] & inside_x[None, :]
    return image, jnp.where(inside, label[i][:, j], jnp.asarray(ignore_label, label.dtype))


def _lerp(image: jax.Array, at: jax.Array, *, axis: int) -> jax.Array:
    """Linear interpolation at positions along an axis, the edge repeated beyond it."""
    below = jnp.floor(at)
    weight = jnp.expand_dims(at - below, tuple(i for i in range(image.ndim) if i != axis))
    last = image.shape[axis] - 1
    low = jnp.take(image, jnp.clip(below, 0, last).astype(jnp.int32), axis=axis)
    high = jnp.take(image, jnp.clip(below + 1, 0, last).astype(jnp.int32), axis=axis)
    return low + weight * (high - low)


def _nearest(at: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Index of the nearest pixel, and whether the position lies within the picture."""
    index = jnp.floor(at + 0.5).astype(jnp.int32)
    return jnp.clip(index, 0, length - 1), (index >= 0) & (index < length)


def random_flip(
    key: jax.Array, image: jax.Array, label: jax.Array, *, axis: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Mirror with probability ½.

    Args:
        key: JAX key.
        image: (H, W, C).
        label: (H, W).
        axis: 1 mirrors left and right, 0 top and bottom.
    """
    flip = jax.random.bernoulli(key)
    return (
        jnp.where(flip, jnp.flip(image, axis), image),
        jnp.where(flip, jnp.flip(label, axis), label),
    )
