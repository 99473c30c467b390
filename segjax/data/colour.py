"""Augmentation of a picture's values: brightness, contrast, saturation, hue.

No pixel moves, so labels and weights stay as they are. Values are 0-255 and are computed in
float32, without rounding to whole ones on the way; mmsegmentation, whose PhotoMetricDistortion
this is, rounds down after each change.
"""

import functools

import jax
import jax.numpy as jnp

from segjax.data.augment import Example
from segjax.errors import SegjaxError


def scale_values(
    image: jax.Array, contrast: jax.Array | float, brightness: jax.Array | float
) -> jax.Array:
    """contrast · image + brightness, clipped to 0-255: (H, W, …) -> float32."""
    return jnp.clip(image.astype(jnp.float32) * contrast + brightness, 0, 255)


def adjust_saturation(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """HSV's saturation S times a factor, 1 at most; hue and value stay: (H, W, 3) -> float32.

    With V = max c and S = (V - min c) / V, each channel is c = V - V S f for an f of the hue, so
    the new one is V - min(factor, 1 / S) (V - c).
    """
    return jnp.stack(_saturated(_planes(image), factor), -1)


def shift_hue(image: jax.Array, turns: jax.Array | float) -> jax.Array:
    """HSV's hue turned, saturation and value kept: (H, W, 3), whole turns -> float32."""
    return jnp.stack(_turned(_planes(image), turns), -1)


def _planes(image: jax.Array) -> list[jax.Array]:
    """Red, green and blue apart, float32: on a CPU their maxima over an axis of three are slow."""
    return [image[..., i].astype(jnp.float32) for i in range(3)]


def _value_and_chroma(planes: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """HSV's value V = max c, and V - min c."""
    value = functools.reduce(jnp.maximum, planes)
    return value, value - functools.reduce(jnp.minimum, planes)


def _saturated(planes: list[jax.Array], factor: jax.Array | float) -> list[jax.Array]:
    value, chroma = _value_and_chroma(planes)
    most = value / jnp.where(chroma > 0, chroma, 1)  # of a grey pixel, V - c is 0 anyway
    return [value - jnp.minimum(factor, most) * (value - plane) for plane in planes]


def _turned(planes: list[jax.Array], turns: jax.Array | float) -> list[jax.Array]:
    value, chroma = _value_and_chroma(planes)
    red, green, blue = planes
    # In sixths of a turn: 0 red, 2 green, 4 blue.
    sixths = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, 2 * chroma + blue - red, 4 * chroma + red - green),
    ) / jnp.where(chroma > 0, chroma, 1)

    def turned(plane: jax.Array, first: int) -> jax.Array:
        place = first + sixths + 6 * turns
        place = place - 6 * jnp.floor(place / 6)  # mod, which is a call for each pixel
        shifted = value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
        return jnp.where(turns == 0, plane, shifted)  # exactly, not to rounding

    return [turned(plane, first) for plane, first in zip(planes, (5, 3, 1), strict=True)]


def distort(
    image: jax.Array,
    *,
    brightness: jax.Array | float,
    contrast: jax.Array | float,
    saturation: jax.Array | float,
    hue: jax.Array | float,
    contrast_last: jax.Array | bool,
) -> jax.Array:
    """Brightness, contrast, saturation and hue changed in this order, or with contrast last.

    Args:
        image: (H, W, 3), red, green, blue.
        brightness: added; 0 changes nothing.
        contrast, saturation: factors; 1 changes nothing.
        hue: added, in OpenCV's unit, 180 to the whole turn; 0 changes nothing.
        contrast_last: whether contrast comes after hue.

    Returns:
        (H, W, 3) float32 in 0-255.
    """
    planes = [scale_values(plane, 1, brightness) for plane in _planes(image)]
    planes = [scale_values(plane, jnp.where(contrast_last, 1, contrast), 0) for plane in planes]
    planes = _turned(_saturated(planes, saturation), jnp.asarray(hue) / 180)
    image = jnp.stack(planes, -1)
    return scale_values(image, jnp.where(contrast_last, contrast, 1), 0)


def random_grey_values(
    key: jax.Array,
    example: Example,
    *,
    brightness: float = 25.0,
    contrast: tuple[float, float] = (0.8, 1.25),
) -> Example:
    """Vary the grey values: `scale_values` with random numbers, the same for all channels.

    U-Net's paper names grey-value variations, but no numbers.

    Args:
        key: JAX key.
        example: of any size and number of channels.
        brightness: greatest number added or subtracted, of 255.
        contrast: least and greatest factor. Both are drawn uniformly.
    """
    offsets, factors = jax.random.split(key)
    factor = jax.random.uniform(factors, minval=contrast[0], maxval=contrast[1])
    offset = jax.random.uniform(offsets, minval=-brightness, maxval=brightness)
    return example._replace(image=scale_values(example.image, factor, offset))


def random_photometric(
    key: jax.Array,
    example: Example,
    *,
    brightness: float = 32.0,
    contrast: tuple[float, float] = (0.5, 1.5),
    saturation: tuple[float, float] = (0.5, 1.5),
    hue: float = 18.0,
) -> Example:
    """Distort brightness, contrast, saturation and hue, each with probability ½, as SETR does.

    In this order, but for the contrast, which in half of the pictures comes last.

    Args:
        key: JAX key.
        example: of three channels, red, green, blue.
        brightness: greatest number added or subtracted, of 255.
        contrast: least and greatest factor.
        saturation: least and greatest factor.
        hue: greatest turn in OpenCV's unit, 180 to the whole. All are drawn uniformly.

    Raises:
        SegjaxError: the picture has not three channels.

    Reference: mmsegmentation, PhotoMetricDistortion, of which these are the defaults.
    """
    if example.image.shape[-1] != 3:
        raise SegjaxError(
            f"random_photometric: got pictures of {example.image.shape[-1]} channels, expected 3 "
            "(red, green, blue): use random_grey_values."
        )

    def draw(number: int, low: float, high: float, *, neutral: float) -> jax.Array:
        switch, value = jax.random.split(jax.random.fold_in(key, number))
        drawn = jax.random.uniform(value, minval=low, maxval=high)
        return jnp.where(jax.random.bernoulli(switch), drawn, neutral)

    image = distort(
        example.image,
        brightness=draw(0, -brightness, brightness, neutral=0),
        contrast=draw(1, *contrast, neutral=1),
        saturation=draw(2, *saturation, neutral=1),
        hue=draw(3, -hue, hue, neutral=0),
        contrast_last=jax.random.bernoulli(jax.random.fold_in(key, 4)),
    )
    return example._replace(image=image)
