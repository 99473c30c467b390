"""Narrow maps on a TPU: neighbouring pixels of a column share its 128 lanes.

A TPU lays an array's channels out in rows of 128: a map of 64 channels is stored, read and written
as if it had 128. So there the operations of this file take 2 pixels of 64 channels as one of 128,
or 4 of 32. To a network a map stays (B, H, W, C): each operation packs what it is given and unpacks
what it gives, and XLA cancels the two where operations meet. Where it cannot, as between a map's
two readers, whose gradients are added up unpacked, the packing would cost more than it saves: hence
`fork`.

Other platforms compile the plain form. Values are the same; the order of sums is not. A packed
convolution multiplies by zeros too, half of its kernel or three quarters: products that a matrix
unit of 128 rows has room for.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LANES = 128


def sharing(height: Any, channels: int) -> int:
    """How many pixels of a column share the lanes: 2 of 64 channels, 4 of 32, else 1."""
    pixels = LANES // channels if channels in (32, 64) else 1
    # An export leaves sizes open, and then nothing is known to divide.
    return pixels if isinstance(height, int) and height % pixels == 0 else 1


def pack(x: jax.Array, pixels: int) -> jax.Array:
    """(B, H, W, C) -> (B, H / pixels, W, pixels · C)."""
    if pixels == 1:
        return x
    b, h, w, c = x.shape
    return x.reshape(b, h // pixels, pixels, w, c).swapaxes(2, 3).reshape(b, -1, w, pixels * c)


def unpack(x: jax.Array, pixels: int) -> jax.Array:
    """The inverse of `pack`."""
    if pixels == 1:
        return x
    b, h, w, c = x.shape
    return x.reshape(b, h, w, pixels, -1).swapaxes(2, 3).reshape(b, -1, w, c // pixels)


def on_tpu(form: Callable[..., Any], pixels: int, *arguments: Any) -> Any:
    """form(*arguments, pixels=pixels) where it is compiled for a TPU, elsewhere pixels=1."""
    plain = partial(form, pixels=1)
    if pixels == 1:
        return plain(*arguments)
    packed = partial(form, pixels=pixels)
    return jax.lax.platform_dependent(*arguments, tpu=packed, default=plain)


def elementwise(f: Callable[..., jax.Array], x: jax.Array, *vectors: jax.Array) -> jax.Array:
    """f(x, *vectors) of a map (B, H, W, C) and vectors (C,), entry by entry."""

    def form(x: jax.Array, vectors: Sequence[jax.Array], *, pixels: int) -> jax.Array:
        return unpack(f(pack(x, pixels), *(jnp.tile(v, pixels) for v in vectors)), pixels)

    return on_tpu(form, sharing(*x.shape[1::2]), x, vectors)


def fork(x: jax.Array, readers: int = 2) -> tuple[jax.Array, ...]:
    """x for each of its readers, whose gradients are added up packed."""

    def form(x: jax.Array, *, pixels: int) -> tuple[jax.Array, ...]:
        x = pack(x, pixels)
        return tuple(unpack(x, pixels) for _ in range(readers))  # not one for all: see above

    return on_tpu(form, sharing(*x.shape[1::2]), x)


def conv(maps: Sequence[jax.Array], kernel: jax.Array, *, pad: int) -> jax.Array:
    """Convolution at stride 1 of maps that lie one behind the other in the channels.

    Args:
        maps: (B, H, W, C) each, of as many channels together as the kernel takes.
        kernel: (k, k, C, F).
        pad: rows and columns of zeros at each border.

    Returns:
        (B, H + 2 pad - k + 1, W + 2 pad - k + 1, F).
    """
    height, (side, _, _, features) = maps[0].shape[1], kernel.shape
    pixels = sharing(height, features)
    if sharing(height + 2 * pad - side + 1, features) != pixels:
        pixels = 1
    if any(m.shape[-1] > features for m in maps):  # which are wide enough, and not packed
        pixels = 1

    def form(kernel: jax.Array, maps: Sequence[jax.Array], *, pixels: int) -> jax.Array:
        # The packed row j of the result reads the packed rows j + first to j + last.
        first, last = -pad // pixels, (side - pad + pixels - 2) // pixels
        if pixels > 1:
            ends = np.cumsum([m.shape[-1] for m in maps])[:-1]
            packed = partial(_packed, pad=pad, taps=range(first, last + 1), pixels=pixels)
            kernel = jnp.concatenate([packed(part) for part in jnp.split(kernel, ends, 2)], 2)
        rows = (-first, (2 * pad - side + 1) // pixels + last)
        x = jnp.concatenate([pack(m, pixels) for m in maps], axis=-1)
        return unpack(convolve(x, kernel, padding=(rows, (pad, pad))), pixels)

    return on_tpu(form, pixels, kernel, maps)


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
) -> jax.Array:
    """A plain convolution at stride 1 of (B, H, W, C), between whose pixels zeros may lie."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=padding,
        lhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def of_each(kernel: jax.Array, pixels: int) -> jax.Array:
    """(…, C, F) as the kernel of as many pixels, each by itself: (…, pixels · C, pixels · F)."""
    one = np.eye(pixels, dtype=kernel.dtype)
    wide = jnp.einsum("pq,...cf->...pcqf", one, kernel, precision="highest")
    *before, c, f = kernel.shape
    return wide.reshape(*before, pixels * c, pixels * f)


def _packed(kernel: jax.Array, *, pad: int, taps: range, pixels: int) -> jax.Array:
    """(k, k, C, F) as the kernel of packed maps, (len(taps), k, pixels · C, pixels · F).

    Of pixel r in the input that lies t packed rows further, pixel q of the output sees by the row
    pixels · t + r - q + pad of the kernel.
    """
    side, columns, c, f = kernel.shape
    t, r, q = np.ix_(taps, range(pixels), range(pixels))
    one = (pixels * t + r - q + pad)[..., None] == np.arange(side)
    kernel = jnp.einsum("trqd,dwcf->twrcqf", one.astype(kernel.dtype), kernel, precision="highest")
    return kernel.reshape(len(taps), columns, pixels * c, pixels * f)


def batch_norm(
    x: jax.Array, normalise: Callable[..., jax.Array], *vectors: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A map normalised by its own statistics, and these.

    Args:
        x: (B, H, W, C).
        normalise: (x, mean, variance, *vectors) -> x normalised, entry by entry.
        vectors: (C,) each.

    Returns:
        The map, and mean and variance of its channels, (C,) each in float32 or finer.
    """

    def form(x: jax.Array, vectors: Sequence[jax.Array], *, pixels: int) -> Any:
        x = pack(x, pixels)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # Both in one pass over x, as Flax's and PyTorch's fast ones.
        moments = [m.mean((0, 1, 2)) for m in (wide, jnp.square(wide))]
        mean, square = (m.reshape(pixels, -1).mean(0) for m in moments)
        variance = jnp.maximum(0, square - jnp.square(mean))
        tiled = (jnp.tile(v, pixels) for v in (mean, variance, *vectors))
        return unpack(normalise(x, *tiled), pixels), mean, variance

    return on_tpu(form, sharing(*x.shape[1::2]), x, vectors)
