"""Augmentation on the device, inside jit: examples, their composition, and what moves pixels.

An augmentation is a pure function `(key, example, *, …) -> Example` of one example; vmap makes it
one of a batch, `functools.partial` binds its options, `compose` chains several. What moves pixels
is a move, `(key, size, *, …) -> Moved`, which says where each pixel of the result lies in the
picture, and reads none; `at_once` puts several together and reads the picture once. What changes
values is in `colour`. This file knows no batch and no data set.
"""

from collections.abc import Callable, Iterable
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
Size = tuple[int, ...]  # height and width
Places = tuple[jax.Array, jax.Array]  # rows and columns, floats of shapes that broadcast


class Moved(NamedTuple):
    """What a move makes of pictures of some size.

    size: height and width of the result.
    place: places in the result -> where these lie in the picture; both may be between pixels.
    """

    size: Size
    place: Callable[[jax.Array, jax.Array], Places]


Move = Callable[[jax.Array, Size], Moved]


def compose(*augmentations: Augmentation) -> Augmentation:
    """One augmentation out of several, applied in order, each with a key of its own."""

    def composed(key: jax.Array, example: Example) -> Example:
        for number, augmentation in enumerate(augmentations):
            example = augmentation(jax.random.fold_in(key, number), example)
        return example

    return composed


def at_once(*moves: Move, outside: Outside = "ignore") -> Augmentation:
    """One augmentation out of several moves, applied in order, that reads the picture once.

    at_once(partial(scale_crop, size=(256, 256)), elastic, flip) blurs less than to compose
    `random_scale_crop` and `random_elastic`, for it is bilinear once, and takes the time of one.
    Between the moves nothing has an edge: what a crop has cut off, a deformation finds.

    Args:
        moves: each with a key of its own.
        outside: the label beyond the picture, see `warp`.
    """

    def moved(key: jax.Array, example: Example) -> Example:
        size, places = example.label.shape, []
        for number, move in enumerate(moves):
            size, place = move(jax.random.fold_in(key, number), size)
            places.append(place)

        def back(y: jax.Array, x: jax.Array) -> Places:
            for place in reversed(places):
                y, x = place(y, x)
            return y, x

        return _read(example, Moved(size, back), outside)

    return moved


def _read(example: Example, moved: Moved, outside: Outside) -> Example:
    return warp(example, *moved.place(*_grid(moved.size)), outside=outside)


def _copied(example: Example, moved: Moved) -> Example:
    """Read at places that are whole: of unchanged types.

    Not as a choice among flipped arrays: of these XLA for CPUs computes each, and in a chain all
    that leads to it anew.
    """
    places = moved.place(*_grid(moved.size))
    return jax.tree.map(lambda x: _pixels(x, *places), example)


def _grid(size: Size) -> Places:
    """The places of all pixels: rows (H, 1) and columns (1, W)."""
    rows, columns = (jnp.arange(length, dtype=jnp.float32) for length in size)
    return rows[:, None], columns[None]


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
    nearest = jnp.floor(y + 0.5), jnp.floor(x + 0.5)
    label = _pixels(example.label, *nearest)
    if outside == "ignore":
        label = jnp.where(inside, label, jnp.asarray(IGNORE, label.dtype))
    return Example(
        _between(example.image, y, x),
        label,
        None if example.weight is None else _pixels(example.weight, *nearest),
    )


def _pixels(of: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """The pixels of (H, W, …) in whole rows and columns."""
    height, width, *rest = of.shape
    index = row.astype(jnp.int32) * width + column.astype(jnp.int32)
    flat = jnp.asarray(of).reshape(height * width, *rest)
    return flat.at[index].get(mode="promise_in_bounds")


def _between(of: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """(H, W, C) at places within it, bilinear: float32."""
    height, width, _ = of.shape
    top, left = jnp.floor(y), jnp.floor(x)
    below, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    down, across = (y - top)[..., None], (x - left)[..., None]

    def along(row: jax.Array) -> jax.Array:
        first, second = (_pixels(of, row, column) for column in (left, right))
        return (1 - across) * first + across * second  # in float32, exact where `across` is 0

    return (1 - down) * along(top) + down * along(below)


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
    size: Size, degrees: jax.Array | float, shift: jax.Array | tuple[float, float]
) -> Places:
    """Where to read, for a picture that is turned about its centre and then shifted.

    Args:
        size: height and width.
        degrees: counter-clockwise, as numpy.rot90 turns.
        shift: pixels down and to the right.

    Returns:
        y and x (H, W) for `warp`.
    """
    return _turned(size, degrees, shift).place(*_grid(size))


def _turned(
    size: Size, degrees: jax.Array | float, shift: jax.Array | tuple[float, float]
) -> Moved:
    angle = jnp.deg2rad(degrees)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    middle_y, middle_x = (size[0] - 1) / 2, (size[1] - 1) / 2

    def place(y: jax.Array, x: jax.Array) -> Places:
        down, right = y - middle_y - shift[0], x - middle_x - shift[1]
        return middle_y + cos * down + sin * right, middle_x - sin * down + cos * right

    return Moved(size, place)


def spread(vectors: jax.Array, size: Size) -> jax.Array:
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
    return jnp.stack(_spread(vectors, size, *_grid(size)), -1)


def _spread(vectors: jax.Array, size: Size, y: jax.Array, x: jax.Array) -> list[jax.Array]:
    """The two components at some places; beyond the picture those at its edge."""

    def shares(at: jax.Array, length: int, count: int) -> list[jax.Array]:
        at = jnp.clip(at, 0, length - 1) * ((count - 1) / max(length - 1, 1))
        each = [_keys(jnp.abs(at - i)) for i in range(count)]
        return [share / jnp.asarray(sum(each)) for share in each]

    def mean(values: Iterable[jax.Array], by: list[jax.Array]) -> jax.Array:
        return jnp.asarray(sum(share * value for share, value in zip(by, values, strict=True)))

    rows, columns = map(shares, (y, x), size, vectors.shape[:2])
    return [mean((mean(row, columns) for row in vectors[..., i]), rows) for i in range(2)]


def _keys(t: jax.Array) -> jax.Array:
    """Keys' cubic kernel, a = -½, at a distance t."""
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    return jnp.where(t < 1, near, jnp.where(t < 2, far, 0))


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


# The moves, for `at_once`: random, and of no pixels yet.


def scale_crop(
    key: jax.Array, of: Size, *, size: tuple[int, int], scale: tuple[float, float] = (0.5, 2.0)
) -> Moved:
    """Resize by a random factor and cut a window at a random place.

    Pixel o of the window lies at (o + ½ + offset) / factor - ½ of the picture. A picture smaller
    than the window lies at a random place in it. A reduced picture is not smoothed first: down to a
    factor of ½ bilinear reading leaves out no pixel, below that it does.

    Args:
        key: JAX key.
        of: height and width of the picture.
        size: height and width of the window.
        scale: least and greatest factor, drawn uniformly; (1, 1) resamples nothing.
    """
    return _windows(key, of, size, scale)(0)


def _windows(
    key: jax.Array, of: Size, size: tuple[int, int], scale: tuple[float, float]
) -> Callable[[jax.Array | int], Moved]:
    """By number, windows at places of their own in a picture resized by one factor."""
    factors, places = jax.random.split(key)
    factor = jax.random.uniform(factors, minval=scale[0], maxval=scale[1])
    # Negative where the picture is the smaller one: then it moves in the window.
    room = jnp.floor(jnp.asarray(of) * factor) - jnp.asarray(size)

    def window(number: jax.Array | int) -> Moved:
        top, left = jnp.round(jax.random.uniform(jax.random.fold_in(places, number), (2,)) * room)
        return Moved(
            size,
            lambda y, x: ((y + 0.5 + top) / factor - 0.5, (x + 0.5 + left) / factor - 0.5),
        )

    return window


def flip(key: jax.Array, of: Size, *, axis: int = 1) -> Moved:
    """Mirror with probability ½: left and right, or by axis=0 top and bottom."""
    mirrored, last = jax.random.bernoulli(key), of[axis] - 1

    def place(y: jax.Array, x: jax.Array) -> Places:
        at = [y, x]
        at[axis] = jnp.where(mirrored, last - at[axis], at[axis])
        return at[0], at[1]

    return Moved(of, place)


def rot90(key: jax.Array, of: Size) -> Moved:
    """Turn by 0, 90, 180 or 270 degrees.

    Raises:
        SegjaxError: the picture is not square; shapes are fixed under jit.
    """
    height, width = of
    if height != width:
        raise SegjaxError(
            f"rot90: got pictures of {height}×{width} (height × width), expected square ones: crop "
            "them to a square first, or rotate by any angle."
        )
    turns, last = jax.random.randint(key, (), 0, 4), height - 1

    def place(y: jax.Array, x: jax.Array) -> Places:
        y, x = jnp.where(turns % 2, x, y), jnp.where(turns % 2, y, x)
        return jnp.where(turns >= 2, last - y, y), jnp.where(turns % 3, last - x, x)

    return Moved(of, place)


def rotate(key: jax.Array, of: Size, *, degrees: float = 180.0, shift: float = 0.0) -> Moved:
    """Turn about the centre by an angle in ±degrees, and shift both ways by ±shift pixels.

    Args:
        key: JAX key.
        of: height and width of the picture.
        degrees: greatest angle; the angle is drawn uniformly.
        shift: greatest shift along each axis in pixels, drawn uniformly.
    """
    turn, move = jax.random.split(key)
    angle = jax.random.uniform(turn, minval=-degrees, maxval=degrees)
    return _turned(of, angle, jax.random.uniform(move, (2,), minval=-shift, maxval=shift))


def elastic(key: jax.Array, of: Size, *, sigma: float = 10.0) -> Moved:
    """Deform as U-Net does: random vectors on a 3×3 grid, bicubic between them.

    Args:
        key: JAX key.
        of: height and width of the picture.
        sigma: standard deviation of the vectors' normally distributed components, in pixels.

    Reference: Ronneberger, Fischer, Brox, 2015, section 3.1.
    """
    vectors = sigma * jax.random.normal(key, (3, 3, 2))

    def place(y: jax.Array, x: jax.Array) -> Places:
        down, right = _spread(vectors, of, y, x)
        return y + down, x + right

    return Moved(of, place)


def elastic_field(key: jax.Array, of: Size, *, alpha: float = 34.0, sigma: float = 4.0) -> Moved:
    """Deform as Simard does: noise for each pixel, smoothed by a Gaussian, times a factor.

    Args:
        key: JAX key.
        of: height and width of the picture.
        alpha: the factor, in pixels, of components that are uniform in ±1 before the smoothing.
            It leaves displacements of a deviation of about 0.16 alpha / sigma pixels.
        sigma: of the Gaussian, in pixels.

    Reference: Simard, Steinkraus, Platt, Best practices for convolutional neural networks, 2003,
    section 2; there the pictures have 29×29 pixels.
    """
    field = alpha * smooth(jax.random.uniform(key, (*of, 2), minval=-1, maxval=1), sigma)

    def place(y: jax.Array, x: jax.Array) -> Places:
        within = jnp.clip(y, 0, of[0] - 1), jnp.clip(x, 0, of[1] - 1)
        by = _between(field, *within)
        return y + by[..., 0], x + by[..., 1]

    return Moved(of, place)


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
    """Resize by a random factor and cut a window at a random place, as `scale_crop`.

    Args:
        key: JAX key.
        example: of any size.
        size, scale: as of `scale_crop`.
        max_share: windows in which one class has this share of the valid pixels or more, or none
            is valid, are drawn anew, ten times at most: mmsegmentation's cat_max_ratio, 0.75 in
            SETR's recipe. 1 takes any window.
        outside: the label beyond the picture, see `warp`.

    Returns:
        An example of the window's size, image in float32.
    """
    windows = _windows(key, example.label.shape, size, scale)
    if max_share >= 1:
        return _read(example, windows(0), outside)
    no_image = example._replace(image=jnp.zeros((*example.label.shape, 0)), weight=None)

    def one_sided(number: jax.Array) -> jax.Array:
        label = _read(no_image, windows(number), outside).label
        counts = jnp.bincount(label.reshape(-1), length=IGNORE + 1)[:IGNORE]
        return counts.max() >= max_share * counts.sum()

    # As there, a last one after ten that do not do is taken unseen.
    first = jnp.zeros((), jnp.int32)
    number = jax.lax.while_loop(lambda n: (n < TRIES) & one_sided(n), lambda n: n + 1, first)
    return _read(example, windows(number), outside)


def random_flip(key: jax.Array, example: Example, *, axis: int = 1) -> Example:
    """Mirror with probability ½.

    Args:
        key: JAX key.
        example: of any size.
        axis: 1 mirrors left and right, 0 top and bottom.
    """
    return _copied(example, flip(key, example.label.shape, axis=axis))


def random_rot90(key: jax.Array, example: Example) -> Example:
    """Turn by 0, 90, 180 or 270 degrees.

    Raises:
        SegjaxError: the picture is not square; shapes are fixed under jit.
    """
    return _copied(example, rot90(key, example.label.shape))


def random_rotation(
    key: jax.Array,
    example: Example,
    *,
    degrees: float = 180.0,
    shift: float = 0.0,
    outside: Outside = "ignore",
) -> Example:
    """Turn about the centre and shift, as `rotate`; `outside` as of `warp`."""
    return _read(example, rotate(key, example.label.shape, degrees=degrees, shift=shift), outside)


def random_elastic(
    key: jax.Array, example: Example, *, sigma: float = 10.0, outside: Outside = "ignore"
) -> Example:
    """Deform as U-Net does, as `elastic`; `outside` as of `warp`."""
    return _read(example, elastic(key, example.label.shape, sigma=sigma), outside)


def random_elastic_field(
    key: jax.Array,
    example: Example,
    *,
    alpha: float = 34.0,
    sigma: float = 4.0,
    outside: Outside = "ignore",
) -> Example:
    """Deform as Simard does, as `elastic_field`; `outside` as of `warp`."""
    return _read(
        example, elastic_field(key, example.label.shape, alpha=alpha, sigma=sigma), outside
    )
