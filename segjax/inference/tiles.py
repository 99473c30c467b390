"""Pictures larger than the device: tiles whose logits are those of the whole picture.

Two things make a tile exact: it lies at a multiple of the network's stride, so that poolings meet
the same pixels, and only those of its logits are kept that depend on nothing beyond it. A network
that sees everything has no exact tiles; its overlapping windows are averaged.

Source: the overlap-tile strategy of U-Net (figure 2 of Ronneberger et al. 2015), whose own 388
pixels are no multiple of the stride, 16; sliding windows as in SETR (Zheng et al. 2021).
"""

import math
from collections.abc import Callable, Iterator
from itertools import chain, groupby, islice, pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from segjax.errors import SegjaxError


class Network(Protocol):
    """What is asked of a network here; those of `segjax.models` have it."""

    @property
    def geometry(self) -> Any: ...


class Axis(NamedTuple):
    """The tiles along one axis of a picture of `size` pixels.

    pad: rows mirrored before and after the picture.
    tile: rows of the network's input.
    starts: first row of each tile in the padded picture, multiples of the stride where exact.
    kept: for each tile the rows [first, last) of the picture that it gives.
    ahead: rows that the network's output begins before the tile does, where it grows.
    """

    size: int
    pad: tuple[int, int]
    tile: int
    starts: tuple[int, ...]
    kept: tuple[tuple[int, int], ...]
    ahead: int = 0


class Plan(NamedTuple):
    """The tiles of a picture, for `stitch`.

    stride: tiles lie at multiples of it where exact.
    exact: tiles meet, and their logits are those of the whole picture; else windows are averaged.
    inexact: what is said of tiles that meet, but do not give quite the same; of views.
    """

    rows: Axis
    columns: Axis
    stride: int
    exact: bool
    inexact: str = ""

    def __str__(self) -> str:
        axes = self.rows, self.columns
        # A tile between two others gives as much as it is moved by.
        shifts = [axis.starts[1] if len(axis.starts) > 1 else None for axis in axes]
        number = math.prod(len(axis.starts) for axis in axes)
        text = f"{number} {'tile' if number == 1 else 'tiles'} of "
        text += f"{self.rows.tile}×{self.columns.tile} pixels"
        if number > 1:
            text += f", moved by {shifts[0] or '-'} and {shifts[1] or '-'}"
        text += ": "
        if not self.exact:
            return text + (
                "averaged where they overlap. The network sees the whole picture at once, so this "
                "is not what it would give for it"
            )
        text += self.inexact or "the logits are those of the whole picture"
        given = [axis.tile - 2 * axis.pad[0] for axis in axes]
        used = [shift or axis.size for shift, axis in zip(shifts, axes, strict=True)]
        if any(shifts):
            text += (
                f". Of the {given[0]}×{given[1]} pixels that a tile gives {used[0]}×{used[1]} are "
                "used, those that depend on nothing beyond it, in whole strides: tiles lie at "
                f"multiples of {self.stride}"
            )
        times = number * math.prod(given) / (self.rows.size * self.columns.size)
        if times > 4:
            text += f". Each pixel is computed {times:.0f} times: a larger tile would cost less"
        return text


def plan(network: Network, size: tuple[int, int], tile: int) -> Plan:
    """Where the tiles of a picture lie and what is kept of each.

    Args:
        network: whose `geometry` says its sizes, stride and context.
        size: height and width of the picture, in pixels.
        tile: the greatest side of the network's input, in pixels. The next smaller side is taken
            that the network can have and that lets the last tile end with the picture.

    Returns:
        A plan that covers every pixel.

    Raises:
        SegjaxError: nothing of so small a tile could be kept; names the smallest that serves.
    """
    geometry = network.geometry
    axis = _windows if geometry.context is None else _exact
    rows, columns = (axis(geometry, side, tile) for side in size)
    return Plan(rows, columns, geometry.stride, axis is _exact)


def _exact(geometry: Any, size: int, tile: int) -> Axis:
    """Tiles that meet without overlap in what is kept of them."""
    step, stride, margin = geometry.step, geometry.stride, geometry.margin
    before, ahead = max(margin, 0), max(-margin, 0)
    whole = geometry.fit(size)
    pad = (before, whole - size - before)

    # Exact are the cells, in whole strides from the tile's start, that see nothing beyond it: of
    # valid convolutions all that they give.
    left, right = geometry.context
    inset = -(-max(left - before, 0) // stride) * stride

    def keeps(side: int) -> tuple[int, int]:
        return inset, (side - before - right) // stride * stride

    # The last tile starts a multiple of the stride before the end of the padded picture.
    unit = math.lcm(step, stride)
    side = whole - -(-max(whole - tile, 0) // unit) * unit
    if side == whole:
        return Axis(size, pad, whole, (0,), ((0, size),), ahead)
    least = geometry.minimum + (whole - geometry.minimum) % unit
    while keeps(least)[1] <= inset:
        least += unit
    if side < least:
        raise SegjaxError(
            f"A tile of {tile} pixels is too small: the network's output depends on "
            f"{max(left, right)} pixels around it, and nothing would be left. Take "
            f"{min(least, whole)} or more for a side of {size} pixels."
        )
    first, last = keeps(side)
    starts = (*range(0, whole - side, last - first), whole - side)
    ends = [*(min(start + last, size) for start in starts[:-1]), size]
    if len(ends) > 1 and ends[-2] == size:  # the last tile would give what is only padding
        starts, ends = starts[:-1], ends[:-1]
    kept = tuple(zip([0, *ends[:-1]], ends, strict=True))
    return Axis(size, pad, side, starts, kept, ahead)


def _windows(geometry: Any, size: int, tile: int) -> Axis:
    """Windows moved by two thirds of their side, as SETR's authors do; all of each is kept."""
    whole = geometry.fit(size)
    below = (tile - geometry.minimum) // geometry.step * geometry.step + geometry.minimum
    if below < geometry.minimum:
        raise SegjaxError(
            f"A tile of {tile} pixels is too small for the network: take {geometry.minimum} or "
            "more."
        )
    side = min(below, whole)
    shift = max(2 * side // 3, 1)
    starts = (*range(0, whole - side, shift), whole - side)
    kept = tuple((start, min(start + side, size)) for start in starts)
    return Axis(size, (0, whole - size), side, starts, kept)


def strips(
    forward: Callable[[np.ndarray], Any],
    read: Callable[[int, int], np.ndarray],
    plan: Plan,
    *,
    batch_size: int,
    of: Callable[[Any], Any] = lambda logits: logits,
    gaussian: bool = False,
    start: int = 0,
) -> Iterator[tuple[int, np.ndarray]]:
    """The logits of pictures, or what is made of them, in strips of rows from top to bottom.

    Held on the host are the rows that lie under a row of tiles, one or two batches of tiles, and a
    strip of what is given; of windows that are averaged, a strip of logits. Never whole pictures.

    Args:
        forward: tiles (batch_size, h, w, C) -> the network's logits, any margin off.
        read: (first, last) -> these rows of the pictures, (B, last - first, W, C), as `forward`
            takes them.
        plan: for pictures of that size.
        batch_size: tiles at a time; a last batch is filled up by repeating a tile.
        of: logits (…, N) -> what is given of each pixel, (…) or (…, M), such as its label.
        gaussian: where windows are averaged, give their pixels weights that fall towards the
            border (σ an eighth of the side) instead of equal ones. No difference to exact tiles.
        start: the first row that is wanted. The rows below are computed as if all were.

    Yields:
        The first row of a strip, and what is given of it, (B, rows, W, …).
    """
    rows, columns = plan.rows, plan.columns
    down = [place for place in zip(rows.starts, rows.kept, strict=True) if place[1][1] > start]
    across = list(zip(columns.starts, columns.kept, strict=True))
    if not down:
        return

    def cut() -> Iterator[tuple[Any, np.ndarray]]:
        for top, kept in down:
            band = _band(read, plan, top)
            for b, left_to_right in enumerate(band):
                for left, (c, d) in across:
                    tile = left_to_right[:, left : left + columns.tile]
                    yield ((top, kept), b, left, (c, d)), tile

    def wanted(first: int, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        above = max(start - first, 0)
        if above < values.shape[1]:
            yield first + above, values[:, above:]

    compute = (lambda batch: of(forward(batch))) if plan.exact else forward
    by_row = groupby(_computed(compute, cut(), batch_size), key=lambda made: made[0][0])
    if plan.exact:
        for (top, (a, z)), made in by_row:
            above = rows.ahead - top
            parts: dict[int, list[np.ndarray]] = {}  # of each picture, from left to right
            for (_, b, left, (c, d)), tile in made:
                before = columns.ahead - left
                part = tile[a + above : z + above, c + before : d + before]
                parts.setdefault(b, []).append(part)
            yield from wanted(a, np.stack([np.concatenate(met, 1) for met in parts.values()]))
        return

    weights = _weights(rows, gaussian)[:, None, None] * _weights(columns, gaussian)[None, :, None]
    total: dict[int, np.ndarray] = {}  # of each picture, the rows from `begun` on
    divisor = np.zeros((rows.tile, columns.size, 1), np.float32)
    begun = down[0][0]

    def complete(until: int) -> Iterator[tuple[int, np.ndarray]]:
        done = until - begun
        mean = np.stack([one[:done] for one in total.values()]) / divisor[:done]
        yield from wanted(begun, np.asarray(of(mean)))
        for array in (divisor, *total.values()):
            array[:-done], array[-done:] = array[done:], 0

    for (top, (_, z)), made in by_row:
        if top > begun:
            yield from complete(top)
            begun = top
        for (_, b, left, (c, d)), tile in made:
            part, weight = tile[: z - top, : d - left], weights[: z - top, : d - left]
            if b not in total:
                total[b] = np.zeros((rows.tile, columns.size, tile.shape[-1]), np.float32)
            total[b][: z - top, c:d] += weight * part
            if b == 0:
                divisor[: z - top, c:d] += weight
    yield from complete(rows.size)


def stitch(
    forward: Callable[[np.ndarray], Any],
    images: np.ndarray,
    plan: Plan,
    *,
    batch_size: int,
    gaussian: bool = False,
) -> np.ndarray:
    """The logits of pictures from those of their tiles: all of `strips`.

    Args:
        forward: tiles (batch_size, h, w, C) -> the network's logits, any margin off.
        images: (B, H, W, C), as `forward` takes them.
        plan: for pictures of that size.
        batch_size: tiles at a time; a last batch is filled up by repeating a tile.
        gaussian: as of `strips`.

    Returns:
        (B, H, W, N) float32, on the host: only the tiles need fit on the device.

    Raises:
        SegjaxError: the plan is of another size.
    """
    batch, *size, _ = images.shape
    if (plan.rows.size, plan.columns.size) != tuple(size):
        raise SegjaxError(
            f"The plan is for pictures of {plan.rows.size}×{plan.columns.size}, got "
            f"{size[0]}×{size[1]}: make a plan for each size."
        )
    whole: Any = None
    for first, strip in strips(
        forward, lambda a, z: images[:, a:z], plan, batch_size=batch_size, gaussian=gaussian
    ):
        if whole is None:
            whole = np.empty((batch, *size, strip.shape[-1]), np.float32)
        whole[:, first : first + strip.shape[1]] = strip
    return whole


def _band(read: Callable[[int, int], np.ndarray], plan: Plan, top: int) -> np.ndarray:
    """The rows under a row of tiles that begins at `top` of the padded pictures, all columns."""
    rows, columns = plan.rows, plan.columns
    below = _mirrored(np.arange(top, top + rows.tile) - rows.pad[0], rows.size)
    first, last = below.min(), below.max() + 1
    band = read(int(first), int(last))
    if rows.tile > last - first:  # or it lies within the picture
        band = band[:, below - first]
    if any(columns.pad):
        across = np.arange(-columns.pad[0], columns.size + columns.pad[1])
        band = band[:, :, _mirrored(across, columns.size)]
    return band


def _mirrored(places: np.ndarray, size: int) -> np.ndarray:
    """Where places beyond an axis lie when it is mirrored at its ends, as `np.pad` does."""
    if size == 1:
        return np.zeros_like(places)
    places = places % (2 * size - 2)
    return np.minimum(places, 2 * size - 2 - places)


def _computed(
    compute: Callable[[np.ndarray], Any], cut: Iterator[tuple[Any, np.ndarray]], batch_size: int
) -> Iterator[tuple[Any, np.ndarray]]:
    """Each place with what is computed of its tile, in batches of one shape."""

    def batches() -> Iterator[tuple[Any, Any]]:
        while group := list(islice(cut, batch_size)):
            places, tiles = zip(*group, strict=True)
            filled = [*tiles, *tiles[-1:] * (batch_size - len(tiles))]
            yield places, compute(np.stack(filled))

    now: Any
    # The device computes the next batch while the host writes this one down.
    for now, _ in pairwise(chain(batches(), [None])):
        yield from zip(now[0], np.asarray(now[1]), strict=False)


def _weights(axis: Axis, gaussian: bool) -> np.ndarray:
    """The weight of each row of a window, (tile,) float32."""
    if not gaussian:
        return np.ones(axis.tile, np.float32)
    away = np.arange(axis.tile) + 0.5 - axis.tile / 2
    return np.exp(-0.5 * (away / (axis.tile / 8)) ** 2).astype(np.float32)
