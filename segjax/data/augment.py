"""Augmentation on the device, inside jit: examples, their composition, and what moves pixels.

An augmentation is a pure function `(key, example, *, …) -> Example` of one example; vmap makes it
one of a batch, `functools.partial` binds its options, `compose` chains several. What moves pixels
says where each pixel of the result lies in the picture, and `warp` reads it there; what changes
their values is in `colour`. This file knows no batch and no data set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from segjax.errors import SegjaxError

IGNORE = 255
TRIES = 10  # windows that `random_scale_crop` looks at, as mmsegmentation's RandomCrop

Outside = Literal["ignore", "mirror"]


class Example(NamedTuple):
    """A picture with its truth; of a batch, each field has a leading axis B.

    image: (H, W, C), values in 0-255, uint8 or float32.
    label: (H, W), class index or 255 = ignore.
    weight: (H, W) float32, each pixel's factor in the loss, or None.
    """

    image: jax.Array
    label: jax.Array
    weight: jax.Array | None = None


Augmentation = Callable[[jax.Array, Example], Example]


def compose(*augmentations: Augmentation) -> Augmentation:
    """One augmentation out of several, applied in order, each with a key of its own."""

    def composed(key: jax.Array, example: Example) -> Example:
        for number, augmentation in enumerate(augmentations):
            example = augmentation(jax.random.fold_in(key, number), example)
        return example

    return composed


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


# What the others are made of: nothing here is random.


def warp(example: Example, y: jax.Array, x: jax.Array, *, outside: Outside = "ignore") -> Example:
    """Read an example at other places: pixel (r, c) of the result lies at (y[r, c], x[r, c]).

    The picture is bilinear there. The label is the nearest pixel's, and so is the weight, for it
    belongs to its label: between a class's weight and another's lies neither. Beyond its edge,
    the picture is mirrored about its outermost pixels, as `numpy.pad` does by "reflect".

    Args:
        example: of any size.
        y, x: float rows and columns of (h, w), or of shapes that broadcast to it; pixel centres
            are whole numbers, so that whole numbers copy pixels exactly.
        outside: what the label is where y or x is farther than ½ from every pixel centre: 255,
            or "mirror", the mirrored one.

    Returns:
        image (h, w, C) float32, label and weight (h, w).
    """
    height, width = example.label.shape
    inside = (y >= -0.5) & (y < height - 0.5) & (x >= -0.5) & (x < width - 0.5)
    y, x = _mirrored(y, height - 1), _mirrored(x, width - 1)

    def read(pixels: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        index = row.astype(jnp.int32) * width + column.astype(jnp.int32)
        flat = jnp.asarray(pixels).reshape(height * width, *pixels.shape[2:])
        return flat.at[index].get(mode="promise_in_bounds")

    top, left = jnp.floor(y), jnp.floor(x)
    below, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    down, across = (y - top)[..., None], (x - left)[..., None]

    def along(row: jax.Array) -> jax.Array:
        first, second = (read(example.image, row, column) for column in (left, right))
        return (1 - across) * first + across * second  # in float32, exact where `across` is 0

    nearest = jnp.floor(y + 0.5), jnp.floor(x + 0.5)
    label = read(example.label, *nearest)
    if outside == "ignore":
        label = jnp.where(inside, label, jnp.asarray(IGNORE, label.dtype))
    return Example(
        (1 - down) * along(top) + down * along(below),
        label,
        None if example.weight is None else read(example.weight, *nearest),
    )


def _mirrored(at: jax.Array, last: int) -> jax.Array:
    """Positions reflected about 0 and `last` until they lie between."""
    period = max(2 * last, 1)  # of a single pixel, everything is its mirror image
    return jnp.clip(last - jnp.abs(jnp.mod(at, period) - last), 0, last)


def mirror_pad(example: Example, margin: int, *, outside: Outside = "ignore") -> Example:
    """Add a mirrored margin on all sides: the overlap-tile strategy of U-Net.

    Args:
        example: of (H, W) pixels.
        margin: pixels a side.
        outside: what the label is there, 255 or "mirror", the mirrored one.

    Returns:
        An example of (H + 2 margin, W + 2 margin) pixels, of unchanged types.
    """
    around = ((margin, margin), (margin, margin))
    mirrored = jax.tree.map(
        lambda x: jnp.pad(x, (*around, (0, 0))[: x.ndim], mode="reflect"), example
    )
    if outside == "mirror":
        return mirrored
    return mirrored._replace(label=jnp.pad(example.label, around, constant_values=IGNORE))


def rotation(
    size: tuple[int, ...], degrees: jax.Array | float, shift: jax.Array | tuple[float, float]
) -> tuple[jax.Array, jax.Array]:
    """Where to read, for a picture that is turned about its centre and then shifted.

    Args:
        size: height and width.
        degrees: counter-clockwise, as numpy.rot90 turns.
        shift: pixels down and to the right.

    Returns:
        y and x (H, W) for `warp`.
    """
    angle = jnp.deg2rad(degrees)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    middle_y, middle_x = (size[0] - 1) / 2, (size[1] - 1) / 2
    down = (jnp.arange(size[0]) - middle_y - shift[0])[:, None]
    right = (jnp.arange(size[1]) - middle_x - shift[1])[None]
    return middle_y + cos * down + sin * right, middle_x - sin * down + cos * right


def spread(vectors: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Vectors on a coarse grid -> one for each pixel, by bicubic interpolation.

    The grid spans the picture: its corners lie on those of the picture. (U-Net's paper does not
    say where its 3×3 lie.) The kernel is Keys' with a = -½; near the edge, what is left of it is
    normalised.

    Args:
        vectors: (m, n, 2) float, m and n at least 2.
        size: height and width.

    Returns:
        (H, W, 2) float32.
    """
    scale = jnp.asarray([(o - 1) / (i - 1) for o, i in zip(size, vectors.shape[:2], strict=True)])
    return jax.image.scale_and_translate(
        vectors, (*size, 2), (0, 1), scale, 0.5 - 0.5 * scale, "cubic", antialias=False
    )


def smooth(field: jax.Array, sigma: float) -> jax.Array:
    """A field (H, W, …) convolved with a Gaussian of σ pixels, normalised at the edges."""

    def gaussian(length: int) -> jax.Array:
        place = jnp.arange(length) / sigma
        return jax.nn.softmax(-0.5 * (place[:, None] - place) ** 2)

    # As two matrix products, which are faster than a convolution this wide.
    rows, columns = (gaussian(length) for length in field.shape[:2])
    return jnp.einsum("yi,ij...,xj->yx...", rows, field, columns, precision="highest")


def displace(example: Example, by: jax.Array, *, outside: Outside) -> Example:
    """Read each pixel (r, c) at (r, c) + by[r, c]; `by` is (H, W, 2), in pixels, as of `warp`."""
    height, width = example.label.shape
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    return warp(example, rows + by[..., 0], columns + by[..., 1], outside=outside)


# The augmentations.


def random_scale_crop(
    key: jax.Array,
    example: Example,
    *,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.5, 2.0),
    max_share: float = 1.0,
    outside: Outside = "ignore",
) -> Example:
    """Resize by a random factor and cut a window at a random place, in one resampling.

    Pixel o of the window lies at (o + ½ + offset) / factor - ½ of the picture. A picture smaller
    than the window lies at a random place in it.

    Args:
        key: JAX key.
        example: of any size.
        size: height and width of the window.
        scale: least and greatest factor, drawn uniformly; (1, 1) resamples nothing.
        max_share: windows in which one class has this share of the valid pixels or more, or none
            is valid, are drawn anew, ten times at most: mmsegmentation's cat_max_ratio, 0.75 in
            SETR's recipe. 1 takes any window.
        outside: the label beyond the picture, see `warp`.

    Returns:
        An example of the window's size, image in float32.
    """
    factors, places = jax.random.split(key)
    factor = jax.random.uniform(factors, minval=scale[0], maxval=scale[1])
    # Negative where the picture is the smaller one: then it moves in the window.
    room = jnp.floor(jnp.asarray(example.label.shape) * factor) - jnp.asarray(size)

    def window(number: jax.Array | int, example: Example) -> Example:
        offset = jnp.round(jax.random.uniform(jax.random.fold_in(places, number), (2,)) * room)
        y, x = ((jnp.arange(n) + 0.5 + o) / factor - 0.5 for n, o in zip(size, offset, strict=True))
        return warp(example, y[:, None], x[None], outside=outside)

    if max_share >= 1:
        return window(0, example)
    no_image = example._replace(image=jnp.zeros((*example.label.shape, 0)), weight=None)

    def one_sided(number: jax.Array) -> jax.Array:
        label = window(number, no_image).label
        counts = jnp.bincount(label.reshape(-1), length=IGNORE + 1)[:IGNORE]
        return counts.max() >= max_share * counts.sum()

    # As there, a last one after ten that do not do is taken unseen.
    first = jnp.zeros((), jnp.int32)
    number = jax.lax.while_loop(lambda n: (n < TRIES) & one_sided(n), lambda n: n + 1, first)
    return window(number, example)


def random_flip(key: jax.Array, example: Example, *, axis: int = 1) -> Example:
    """Mirror with probability ½.

    Args:
        key: JAX key.
        example: of any size.
        axis: 1 mirrors left and right, 0 top and bottom.
    """
    flip = jax.random.bernoulli(key)
    return jax.tree.map(lambda x: jnp.where(flip, jnp.flip(x, axis), x), example)


def random_rot90(key: jax.Array, example: Example) -> Example:
    """Turn by 0, 90, 180 or 270 degrees.

    Raises:
        SegjaxError: the picture is not square; shapes are fixed under jit.
    """
    height, width = example.label.shape
    if height != width:
        raise SegjaxError(
            f"random_rot90: got pictures of {height}×{width} (height × width), expected square "
            "ones: crop them to a square first, or use random_rotation."
        )
    turns = jax.random.randint(key, (), 0, 4)

    def turn(x: jax.Array) -> jax.Array:
        x = jnp.where(turns % 2 == 1, jnp.swapaxes(x, 0, 1), x)
        x = jnp.where((turns == 1) | (turns == 2), jnp.flip(x, 0), x)
        return jnp.where(turns >= 2, jnp.flip(x, 1), x)

    return jax.tree.map(turn, example)


def random_rotation(
    key: jax.Array,
    example: Example,
    *,
    degrees: float = 180.0,
    shift: float = 0.0,
    outside: Outside = "ignore",
) -> Example:
    """Turn about the centre by an angle in ±degrees, and shift both ways by ±shift pixels.

    Args:
        key: JAX key.
        example: of any size.
        degrees: greatest angle; the angle is drawn uniformly.
        shift: greatest shift along each axis in pixels, drawn uniformly.
        outside: the label beyond the picture, see `warp`.
    """
    turn, move = jax.random.split(key)
    angle = jax.random.uniform(turn, minval=-degrees, maxval=degrees)
    offset = jax.random.uniform(move, (2,), minval=-shift, maxval=shift)
    return warp(example, *rotation(example.label.shape, angle, offset), outside=outside)


def random_elastic(
    key: jax.Array,
    example: Example,
    *,
    sigma: float = 10.0,
    outside: Outside = "ignore",
) -> Example:
    """Deform as U-Net does: random vectors on a 3×3 grid, bicubic between them.

    Args:
        key: JAX key.
        example: of any size.
        sigma: standard deviation of the vectors' normally distributed components, in pixels.
        outside: the label beyond the picture, see `warp`.

    Reference: Ronneberger, Fischer, Brox, 2015, section 3.1.
    """
    vectors = sigma * jax.random.normal(key, (3, 3, 2))
    return displace(example, spread(vectors, example.label.shape), outside=outside)


def random_elastic_field(
    key: jax.Array,
    example: Example,
    *,
    alpha: float = 34.0,
    sigma: float = 4.0,
    outside: Outside = "ignore",
) -> Example:
    """Deform as Simard does: noise for each pixel, smoothed by a Gaussian, times a factor.

    Args:
        key: JAX key.
        example: of any size.
        alpha: the factor, in pixels, of components that are uniform in ±1 before the smoothing.
            It leaves displacements of a deviation of about 0.16 alpha / sigma pixels.
        sigma: of the Gaussian, in pixels.
        outside: the label beyond the picture, see `warp`.

    Reference: Simard, Steinkraus, Platt, Best practices for convolutional neural networks, 2003,
    section 2; there the pictures have 29×29 pixels.
    """
    noise = jax.random.uniform(key, (*example.label.shape, 2), minval=-1, maxval=1)
    return displace(example, alpha * smooth(noise, sigma), outside=outside)
