"""Pictures larger than the device: tiles whose logits are those of the whole picture.

Two things make a tile exact: it lies at a multiple of the network's stride, so that poolings meet
the same pixels, and only those of its logits are kept that depend on nothing beyond it. A network
that sees everything has no exact tiles; its overlapping windows are averaged.

Source: the overlap-tile strategy of U-Net (figure 2 of Ronneberger et al. 2015), whose own 388
pixels are no multiple of the stride, 16; sliding windows as in SETR (Zheng et al. 2021).
"""

import math
from collections.abc import Callable
from itertools import product
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
    exact: stitched logits are those of the whole picture; else windows are averaged.
    """

    rows: Axis
    columns: Axis
    stride: int
    exact: bool

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
        text += "the logits are those of the whole picture"
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


def stitch(
    forward: Callable[[np.ndarray], Any],
    images: np.ndarray,
    plan: Plan,
    *,
    batch_size: int,
    gaussian: bool = False,
) -> np.ndarray:
    """The logits of pictures from those of their tiles, which are computed in batches of one shape.

    Args:
        forward: tiles (batch_size, h, w, C) -> the network's logits, any margin off.
        images: (B, H, W, C), as `forward` takes them.
        plan: for pictures of that size.
        batch_size: tiles at a time; a last batch is filled up by repeating a tile.
        gaussian: where windows are averaged, give their pixels weights that fall towards the
            border (σ an eighth of the side) instead of equal ones. No difference to exact tiles.

    Returns:
        (B, H, W, N) float32, on the host: only the tiles need fit on the device.

    Raises:
        SegjaxError: the plan is of another size.
    """
    batch, *size, _ = images.shape
    rows, columns, _, exact = plan
    if (rows.size, columns.size) != tuple(size):
        raise SegjaxError(
            f"The plan is for pictures of {rows.size}×{columns.size}, got {size[0]}×{size[1]}: "
            "make a plan for each size."
        )
    padded = np.pad(images, ((0, 0), rows.pad, columns.pad, (0, 0)), mode="reflect")
    across = [list(zip(axis.starts, axis.kept, strict=True)) for axis in (rows, columns)]
    places = list(product(range(batch), *across))
    weights = _weights(rows, gaussian)[:, None, None] * _weights(columns, gaussian)[None, :, None]
    total: Any = None
    divisor = np.zeros((*size, 1), np.float32)

    def compute(group: list[Any]) -> Any:
        filled = [*group, *[group[-1]] * (batch_size - len(group))]
        return forward(
            np.stack(
                [
                    padded[b, top : top + rows.tile, left : left + columns.tile]
                    for b, (top, _), (left, _) in filled
                ]
            )
        )

    def add(group: list[Any], logits: Any) -> None:
        nonlocal total
        logits = np.asarray(logits)
        if total is None:
            total = np.zeros((batch, *size, logits.shape[-1]), np.float32)
        for (b, (top, (a, z)), (left, (c, d))), tile in zip(group, logits, strict=False):
            above, before = rows.ahead - top, columns.ahead - left
            part = tile[a + above : z + above, c + before : d + before]
            if exact:
                total[b, a:z, c:d] = part
            else:
                weight = weights[a - top : z - top, c - left : d - left]
                total[b, a:z, c:d] += weight * part
                if b == 0:
                    divisor[a:z, c:d] += weight

    groups = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
    waiting = compute(groups[0])
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        # The device computes the next batch while the host writes this one down.
        now, waiting = waiting, compute(following) if following else None
        add(group, now)
    return total if exact else total / divisor


def _weights(axis: Axis, gaussian: bool) -> np.ndarray:
    """The weight of each row of a window, (tile,) float32."""
    if not gaussian:
        return np.ones(axis.tile, np.float32)
    away = np.arange(axis.tile) + 0.5 - axis.tile / 2
    return np.exp(-0.5 * (away / (axis.tile / 8)) ** 2).astype(np.float32)
