"""The built-in data set: pictures of textured shapes, drawn from a seed and an index, no files.

For trying a network, a recipe or an installation without a download. Six shapes are told apart by
outline and, but for two, by pattern, never by colour: colour, size and light are drawn alike for
all. It knows NumPy and nothing of augmentation, batches or JAX.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segjax.errors import SegjaxError

# Every platform must draw the same bytes. So: randomness only from Philox's raw stream, which NumPy
# guarantees, and arithmetic only with what IEEE 754 rounds exactly: + - * / sqrt, comparison,
# floor, abs, min, max. No sin, exp, matmul or float sum: those differ between CPUs and versions.

Array = NDArray[Any]
_Function = Callable[[Array, Array], Array]

_VOID = 255
_SMALLEST = 32  # pixels; below it the 2-pixel void line leaves nothing of the smaller shapes

# The corners of a five-pointed star in the unit circle: cos and sin of 90° + k · 72°.
_POINTS = (
    (0.0, 1.0),
    (-0.9510565162951535, 0.3090169943749474),
    (-0.5877852522924731, -0.8090169943749474),
    (0.5877852522924731, -0.8090169943749474),
    (0.9510565162951535, 0.3090169943749474),
)


def _star(x: Array, y: Array) -> Array:
    """Five lines, each across one point, make a pentagram; its inside is beyond at most one."""
    beyond = [a * x + b * y > 0.3090169943749474 for a, b in _POINTS]
    return np.add.reduce(beyond, axis=0, dtype=np.uint8) < 2


# Patterns: (u, v) -> how far to mix a surface's two colours, clipped to [-1, 1] later; u and v are
# two triangle waves in [-1, 1] at right angles.


def _dots(u: Array, v: Array) -> Array:
    return 4 * (0.8 - np.square(1 - u) - np.square(1 - v))


def _checks(u: Array, v: Array) -> Array:
    return 8 * u * v


def _stripes(u: Array, v: Array) -> Array:
    return 4 * u


def _grid(u: Array, v: Array) -> Array:
    return 6 * (np.maximum(u, v) - 0.5)


def _plain(u: Array, v: Array) -> Array:
    return 0 * u


# A class: its outline, (x, y) -> inside, bool, within the unit circle; and its pattern, which ring
# and triangle share. The largest area is twice the smallest.
_SHAPES: dict[str, tuple[_Function, _Function]] = {
    "disc": (lambda x, y: x * x + y * y < 0.64, _dots),
    "square": (lambda x, y: np.maximum(abs(x), abs(y)) < 0.7, _checks),
    "triangle": (
        lambda x, y: np.maximum(-y, 0.5 * y + 0.8660254037844386 * abs(x)) < 0.5,
        _stripes,
    ),
    "star": (_star, _grid),
    "ring": (lambda x, y: abs(x * x + y * y - 0.64) < 0.36, _stripes),
    "cross": (
        lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.95),
        _plain,
    ),
}

CLASSES: tuple[str, ...] = ("background", *_SHAPES)
PALETTE: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
)


@dataclass(frozen=True)
class Shapes:
    """A source of `length` pictures of 3 to 8 shapes, which overlap and may leave the picture.

    A pixel's label is the class of the uppermost shape, or 255 on either side of a border between
    two shapes or a shape and the background. The index alone decides the picture, not the length;
    a larger size draws the same shapes finer. Another seed gives other pictures.

    Args:
      length: number of pictures, at least 1.
      size: height and width in pixels, each at least 32.
      seed: in [0, 2⁶⁴).

    Returns of `[index]`:
      `{"image": uint8 (H, W, 3), "label": uint8 (H, W), "id": str}`; -1 is the last picture.

    Raises:
      SegjaxError: an argument is outside its range.
      IndexError: the index is outside [-length, length).
    """

    length: int = 10_000
    size: tuple[int, int] = (96, 96)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 1:
            raise SegjaxError(
                f"Shapes: length must be at least 1, got {self.length}; the default is 10000."
            )
        if np.shape(self.size) != (2,) or min(self.size) < _SMALLEST:
            raise SegjaxError(
                f"Shapes: size must be (height, width) of at least {_SMALLEST} pixels each, got "
                f"{self.size}; draw larger pictures and shrink them if you need smaller ones."
            )
        if not 0 <= self.seed < 2**64:
            raise SegjaxError(
                f"Shapes: seed must lie in [0, 2**64), got {self.seed}; take 0, 1, 2, …"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names; a label is an index into them, or 255."""
        return CLASSES

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """One RGB colour, 0–255, for each class."""
        return PALETTE

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is out of range for {self.length} pictures")
        index %= self.length
        image, owner, kinds = _draw(_Random(self.seed, index), *self.size)
        label = _label(owner, kinds)
        return {"image": image, "label": label, "id": f"shapes-{self.seed}-{index:06}"}


class _Random:
    """Numbers from the raw stream of a counter-based generator, one stream per seed and index."""

    def __init__(self, seed: int, index: int):
        self._raw = np.random.Philox(key=np.array([seed, index], np.uint64)).random_raw

    def below(self, n: int) -> int:
        return self._raw() % n

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * ((self._raw() >> 11) * 2.0**-53)

    def uniforms(self, low: float, high: float, n: int) -> list[float]:
        return [self.uniform(low, high) for _ in range(n)]

    def direction(self) -> tuple[float, float]:
        """A rational point of the right half circle, which needs no sine."""
        t = self.uniform(-1, 1)
        return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)

    def bytes(self, n: int) -> Array:
        return self._raw(-(-n // 8)).astype("<u8").view(np.uint8)[:n]


def _draw(random: _Random, height: int, width: int) -> tuple[Array, Array, Array]:
    """Draws a scene from the bottom up.

    Returns:
      The image, uint8 (H, W, 3); the owner of each pixel, uint8 (H, W), 0 for the background or
      the shape's number; the class of each owner, uint8 (1 + shapes,).
    """
    side = min(height, width)  # the unit of all lengths
    x = (np.arange(width, dtype=np.float32) + 0.5) / side
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / side
    owner = np.zeros((height, width), np.uint8)
    mix = _ground(random, x, y)
    kinds = [0]
    colours = [random.uniforms(0, 1, 3)]
    for number in range(1, 4 + random.below(6)):
        kinds.append(1 + random.below(len(_SHAPES)))
        radius = random.uniform(0.14, 0.3)
        column, row = random.uniform(0, width / side), random.uniform(0, height / side)
        beneath = colours[owner[int(row * side), int(column * side)]]
        colours.append(_apart(random.uniforms(0, 1, 3), beneath))

        # Only the pixels around the shape are computed.
        rows, columns = _span(row, radius, side), _span(column, radius, side)
        cos, sin = random.direction()
        right, down = (x[columns] - column) / radius, (y[rows] - row) / radius
        outline, pattern = _SHAPES[CLASSES[kinds[number]]]
        inside = outline(cos * right + sin * down, cos * down - sin * right)
        np.copyto(owner[rows, columns], number, where=inside)
        surface = _texture(random, x[columns], y[rows], pattern)
        np.copyto(mix[rows, columns], surface, where=inside)

    # Colour planes come first until the end: NumPy is slow over an innermost axis of 3. `take`
    # keeps that order in memory, indexing does not.
    swings = [
        [(0.1 + 0.12 * u) * (1 - 2 * random.below(2)) for u in random.uniforms(0, 1, 3)]
        for _ in colours
    ]
    middle, swing = 0.15 + 0.7 * np.array(colours, np.float32).T, np.array(swings, np.float32).T
    image = np.take(middle, owner, axis=1) + np.take(swing, owner, axis=1) * mix
    image *= 255 * _light(random, x, y)
    noise = random.bytes(image.size).reshape(image.shape)
    # Two dice of 16 sides in each byte: triangular around 15.
    image += (((noise & 15) + (noise >> 4)).astype(np.float32) - 15) * random.uniform(0.3, 1.6)
    pixels = np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(pixels), owner, np.array(kinds, np.uint8)


def _span(centre: float, radius: float, side: int) -> slice:
    """The pixels that a shape can cover along one axis."""
    low, high = (centre - radius) * side, (centre + radius) * side
    return slice(max(0, math.floor(low)), math.ceil(high))


def _label(owner: Array, kinds: Array) -> Array:
    """The class of each pixel's owner, and 255 where a 4-neighbour has another owner."""
    label = kinds[owner]
    across = owner[:, 1:] != owner[:, :-1]
    down = owner[1:] != owner[:-1]
    for side in (label[:, 1:], label[:, :-1]):
        side[across] = _VOID
    for side in (label[1:], label[:-1]):
        side[down] = _VOID
    return label


def _apart(colour: list[float], other: list[float]) -> list[float]:
    """The colour, or where it is too near to the other the one half a turn away on each axis.

    The turn maps [0, 1) onto itself, so colours stay evenly spread.
    """
    distance = sum(abs(a - b) for a, b in zip(colour, other, strict=True))
    return [(a + 0.5) % 1 for a in colour] if distance < 0.6 else colour


def _texture(random: _Random, x: Array, y: Array, pattern: _Function) -> Array:
    """A shape's surface: values in [-1, 1], float32 (h, w), at columns x (w,) and rows y (h, 1)."""
    frequency = random.uniform(7, 13)
    cos, sin = random.direction()
    along, across = random.uniforms(0, 8, 2)
    u = _wave((cos * frequency) * x + ((sin * frequency) * y + along))
    v = _wave((cos * frequency) * y - ((sin * frequency) * x + across))
    return np.clip(pattern(u, v), -1, 1)


def _ground(random: _Random, x: Array, y: Array) -> Array:
    """The background's surface, clouds or a plain slope: as `_texture`."""
    along, across = random.uniforms(0, 8, 2)
    if random.below(2):
        frequency = random.uniform(3, 6)
        grid = random.bytes(64).reshape(8, 8).astype(np.float32) / 64 - 2
        rows = _between(grid, frequency * y[:, 0] + along)
        return np.clip(_between(rows.T, frequency * x + across).T, -1, 1)
    cos, sin = random.direction()
    return _wave((cos * x + sin * y) * random.uniform(0.3, 1) + along)


def _wave(phase: Array) -> Array:
    """A triangle wave of period 1 in [-1, 1]."""
    return 4 * np.abs(phase - np.floor(phase) - 0.5) - 1


def _between(grid: Array, position: Array) -> Array:
    """Rows of the grid (n, m) at fractional positions (h,), smooth, repeating after n: (h, m)."""
    below = np.floor(position)
    t = (position - below)[:, None]
    t = t * t * (3 - 2 * t)
    index = below.astype(np.intp)
    low, high = grid[index % len(grid)], grid[(index + 1) % len(grid)]
    return low + (high - low) * t


def _light(random: _Random, x: Array, y: Array) -> Array:
    """A factor around 1, (h, w): a slope across the picture and a soft bright spot."""
    width, height = float(x[-1]), float(y[-1, 0])
    slope_x, slope_y = random.uniforms(-0.4, 0.4, 2)
    spot_x, spot_y = random.uniform(0, width), random.uniform(0, height)
    spot = random.uniform(0.1, 0.6) / ((1 + 6 * np.square(x - spot_x)) + 6 * np.square(y - spot_y))
    return (0.8 + slope_x * (x / width - 0.5)) + slope_y * (y / height - 0.5) + spot
