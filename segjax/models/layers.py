"""What several networks are built from, each operation once and in its fast form.

The plain forms (`nn.max_pool`, `nn.ConvTranspose`, a dense bilinear deconvolution) are the same
mathematics and stand in the tests. This file knows no network.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.core import max_dim
from jax.typing import DTypeLike

from segjax.models import lanes
from segjax.models.geometry import Span, deconv_span

# N(0, sqrt(2 / fan_in)): U-Net, section 3, after He et al. 2015.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Output(NamedTuple):
    """What every network returns.

    logits: (B, H, W, N) float32 scores of the N classes.
    auxiliary: logits of the extra heads, each (B, h, w, N) float32; empty for a network without.
    """

    logits: jax.Array
    auxiliary: tuple[jax.Array, ...] = ()


def max_pool(x: jax.Array, *, ceil: bool = False) -> jax.Array:
    """Maximum over 2×2 windows at stride 2.

    Args:
        x: (B, H, W, C).
        ceil: keep a last odd row or column as a window of its own, as Caffe does; else drop it.

    Returns:
        (B, H/2, W/2, C), rounded up with `ceil` and down without. Among equal entries of a window
        the first one in row order takes the gradient, and a NaN is handed on, as in `nn.max_pool`
        and PyTorch.
    """
    sides = x.shape[1:3]
    # Without a remainder: of sizes that an export leaves open, it would double their expressions.
    padding = tuple(2 * ((n + 1) // 2) - n for n in sides) if ceil else (0, 0)

    def compared(x: jax.Array) -> jax.Array:
        if ceil:
            x = jnp.pad(x, _behind(padding), constant_values=-jnp.inf)
        else:
            x = x[:, : 2 * (sides[0] // 2), : 2 * (sides[1] // 2)]
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c)
        x = _larger(x[:, :, :, :, 0], x[:, :, :, :, 1])
        return _larger(x[:, :, 0], x[:, :, 1])

    return _pool(x, compared, 2, padding)


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """Maximum over 3×3 windows at stride 2, a last incomplete window kept as Caffe does.

    (B, H, W, C), H and W at least 2, -> (B, ⌊H/2⌋, ⌊W/2⌋, C); equal entries and NaN as `max_pool`.
    """

    def compared(x: jax.Array) -> jax.Array:
        for axis in (2, 1):
            n = x.shape[axis]
            windows = n // 2
            padding = [(0, 0)] * 4
            padding[axis] = (0, 2 * windows + 2 - n)
            x = jnp.pad(x, padding, constant_values=-jnp.inf)
            x = x.reshape(*x.shape[:axis], windows + 1, 2, *x.shape[axis + 1 :])
            even, odd = (jax.lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in (0, 1))
            part = partial(jax.lax.slice_in_dim, axis=axis)
            x = _larger(part(even, 0, windows), part(odd, 0, windows))
            x = _larger(x, part(even, 1, windows + 1))  # the first of the next pair
        return x

    return _pool(x, compared, 3, tuple(2 * (n // 2) + 1 - n for n in x.shape[1:3]))


def _pool(
    x: jax.Array,
    compared: Callable[[jax.Array], jax.Array],
    side: int,
    padding: tuple[int, ...],
) -> jax.Array:
    """The maximum over windows at stride 2, in the form that the platform is fast at.

    On a CPU by comparisons of shifted maps; a TPU or GPU has an instruction for it, which needs
    less memory and traffic there, but for maps that are packed. Only that of the platform compiled
    for is compiled.
    """

    def windows(x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (side, side), (2, 2), padding=_behind(padding)[1:3])

    if any(not isinstance(n, int) for n in x.shape[1:3]):  # which an export leaves open
        return compared(x)
    pixels = lanes.sharing(*x.shape[1::2]) if side == 2 and not any(padding) else 1
    packed = windows if pixels == 1 else partial(_pool_packed, pixels=pixels)
    return jax.lax.platform_dependent(x, cpu=compared, tpu=packed, default=windows)


def _pool_packed(x: jax.Array, *, pixels: int) -> jax.Array:
    """The maximum over 2×2 windows of a map of an even height, in the lanes of a TPU."""
    features = x.shape[-1]
    x = lanes.pack(x[:, :, : 2 * (x.shape[2] // 2)], pixels)
    x = x.reshape(*x.shape[:2], -1, 2, x.shape[3])
    x = _larger(x[:, :, :, 0], x[:, :, :, 1])
    rows = [x[..., i * features : (i + 1) * features] for i in range(pixels)]
    pairs = [_larger(*pair) for pair in zip(rows[::2], rows[1::2], strict=True)]
    return lanes.unpack(jnp.concatenate(pairs, axis=-1), pixels // 2)


def _behind(padding: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Rows and columns below and to the right."""
    return ((0, 0), (0, padding[0]), (0, padding[1]), (0, 0))


def _larger(first: jax.Array, second: jax.Array) -> jax.Array:
    # Not jnp.max: it shares the gradient between equal entries, and padding makes many.
    return jnp.where((second > first) | jnp.isnan(second), second, first)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Half precision as float32; float32, and float64 where JAX is told of it, as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def local_response_norm(x: jax.Array) -> jax.Array:
    """Across channels: y_c = x_c / (1 + 1e-4/5 · Σ x_j² over |j - c| ≤ 2)^0.75.

    (B, H, W, C) -> the same shape and dtype, computed in float32. The mean over the window, not the
    sum, is multiplied by 1e-4, as Caffe and PyTorch do.

    Source: Krizhevsky et al. 2012, section 3.3; the constants of Caffe's AlexNet and GoogLeNet.
    """
    squares = jnp.pad(jnp.square(at_least_float32(x)), ((0, 0), (0, 0), (0, 0), (2, 2)))
    total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
    return (x * (1 + 1e-4 / 5 * total) ** -0.75).astype(x.dtype)


class UpConv(nn.Module):
    """A transposed convolution at stride 2; 2×2 is U-Net's up-convolution.

    out[2i + a - p, 2j + b - p] = Σ kernel[a, b]ᵀ x[i, j] + bias over all that meet there, with
    p = side / 2 - 1 rows and columns cropped at each border. So `kernel` (side, side, C, features)
    is PyTorch's ConvTranspose2d weight (C, features, side, side) transposed, not flipped.

    Fields:
        features: channels of the result.
        side: of the kernel, even.
        dtype: of the computation.
    """

    features: int
    side: int = 2
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, 2H, 2W, features)."""
        # Each output pixel sees n×n input pixels: its fan_in is n² C.
        n = self.side // 2
        init = nn.initializers.variance_scaling(2 / n**2, "fan_in", "normal", batch_axis=(0, 1))
        kernel = self.param("kernel", init, (2 * n, 2 * n, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if any(not isinstance(size, int) for size in x.shape[1:3]):  # which an export leaves open
            return _up_by_product(x, kernel, bias)
        return jax.lax.platform_dependent(
            x, kernel, bias, tpu=_up_by_dilation, default=_up_by_product
        )


def _up_by_product(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`UpConv` as one matrix product: so is its kernel's gradient, which CPUs are fast at."""
    n, (b, height, width, c) = kernel.shape[0] // 2, x.shape
    h, w = height + n - 1, width + n - 1
    # A window of n×n input pixels gives 2×2 output pixels; the kernel is split by parity.
    x = jnp.pad(x, ((0, 0), (n - 1, n - 1), (n - 1, n - 1), (0, 0)))
    x = jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(n) for j in range(n)], -1)
    kernel = kernel.reshape(n, 2, n, 2, c, -1)[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    y = x @ kernel.reshape(n * n * c, -1) + jnp.tile(bias, 4)
    y = y.reshape(b, h, w, 2, 2, bias.size).swapaxes(2, 3)
    return crop(y.reshape(b, 2 * h, 2 * w, bias.size), 2 * height, 2 * width)


def _up_by_dilation(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`UpConv` as a convolution of the dilated map: a TPU would copy the product's 2×2 pixels."""
    _, height, width, c = x.shape
    side, pixels = kernel.shape[0], lanes.sharing(height, c)
    if side != 2 or lanes.sharing(2 * height, bias.size) != 2 * pixels:
        pad = side // 2 - 1
        return bias + deconv(x, kernel, 2 * height, 2 * width, stride=2, offset=pad)
    # (2 rows, 2 columns, C, F) -> (2 columns, C, 2 rows · F): the two rows of the result that a
    # pixel gives share the lanes.
    kernel = lanes.of_each(kernel.transpose(1, 2, 0, 3).reshape(2, c, -1), pixels)
    y = lanes.convolve(
        lanes.pack(x, pixels), kernel[None, ::-1], padding=((0, 0), (1, 1)), dilation=(1, 2)
    )
    return lanes.unpack(y + jnp.tile(bias, 2 * pixels), 2 * pixels)


Up = Literal["upconv", "transposed", "bilinear", "bilinear_corners", "nearest"]


def upsample(
    x: jax.Array, features: int, up: Up, *, dtype: DTypeLike | None, name: str
) -> jax.Array:
    """Twice the height and width: (B, H, W, C) -> (B, 2H, 2W, features or C).

    Args:
        x: the map.
        features: channels of the result where it is learned; those of x stay where it is not.
        up: "upconv", a 2×2 `UpConv`; "transposed", a 4×4 one; or without parameters "bilinear",
            "bilinear_corners" (with align_corners) and "nearest".
        dtype: of the computation.
        name: of the `UpConv` in the module that calls.
    """
    if up in ("upconv", "transposed"):
        return UpConv(features, side=2 if up == "upconv" else 4, dtype=dtype, name=name)(x)
    _, h, w, _ = x.shape
    method: Literal["nearest", "bilinear"] = "nearest" if up == "nearest" else "bilinear"
    return resize(x, 2 * h, 2 * w, method=method, align_corners=up == "bilinear_corners")


def upsample_span(out: Span, up: Up) -> Span:
    """The input indices that the outputs `out` of `upsample` depend on; all, with corners."""
    side = 2 if up in ("upconv", "nearest") else 4
    return deconv_span(out, side, stride=2, pad=side // 2 - 1)


def crop(x: jax.Array, height: int, width: int, *, offset: int | None = None) -> jax.Array:
    """(B, H, W, …) -> (B, height, width, …), from `offset` on both axes, by default the centre."""
    top, left = ((x.shape[1] - height) // 2, (x.shape[2] - width) // 2)
    if offset is not None:
        top = left = offset
    return x[:, top : top + height, left : left + width]


Method = Literal["fixed", "bilinear", "nearest"]


def bilinear_matrix(
    inputs: int,
    outputs: int,
    *,
    stride: int,
    offset: int,
    kernel: int | None = None,
    method: Method = "fixed",
) -> jax.Array:
    """(outputs, inputs) float32 matrix of Caffe's bilinear deconvolution along one axis.

    Kernel side k, by default 2·stride, no padding, the first `offset` outputs cropped: output o
    lies at input p = (o + offset - (k - 1)/2) / stride, and M[o, i] = max(0, 1 - |p - i|).
    "fixed" counts missing neighbours as zero, so the outermost outputs fade; "bilinear" repeats the
    edge, as a resize does; "nearest" takes the input nearest to p. Computed on the device, so that
    an export, whose sizes come later, is the same program.

    Source: `surgery.py` (upsample_filt) and `crop` layers of the FCN authors' code.
    """
    kernel = kernel or 2 * stride
    p = (jnp.arange(outputs)[:, None] + offset - (kernel - 1) / 2) / stride
    if method == "nearest":
        p = jnp.floor(p + 0.5)
    if method != "fixed":
        p = jnp.clip(p, 0, inputs - 1)
    return jnp.maximum(0, 1 - abs(p - jnp.arange(inputs))).astype(jnp.float32)


def bilinear_deconv(
    x: jax.Array,
    height: int,
    width: int,
    *,
    stride: int,
    offset: int,
    kernel: int | None = None,
    method: Method = "fixed",
) -> jax.Array:
    """Fixed bilinear transposed convolution, cropped from `offset`; or a resize in its place.

    The kernel is separable, so it is two small matrix products instead of a convolution of
    side 2·stride with zeros between the inputs. On a TPU the classes come first.

    Args:
        x: (B, H, W, N), computed in float32.
        height, width: of the result, in pixels.
        stride: enlargement.
        offset: rows and columns cropped from the top and the left.
        kernel: its side, by default 2·stride.
        method: "fixed"; "bilinear" and "nearest" as in `bilinear_matrix`.

    Returns:
        (B, height, width, N) float32.
    """
    matrix = partial(bilinear_matrix, stride=stride, offset=offset, kernel=kernel, method=method)
    rows, columns = matrix(x.shape[1], height), matrix(x.shape[2], width)

    def plain(x: jax.Array) -> jax.Array:
        product = partial(jnp.einsum, precision="highest")
        return product("pw,bown->bopn", columns, product("oh,bhwn->bown", rows, x))

    narrow = partial(_channels_first, rows, columns)
    return jax.lax.platform_dependent(at_least_float32(x), tpu=narrow, default=plain)


def bilinear_kernel(side: int, channels: int) -> jax.Array:
    """`bilinear_deconv`'s kernel in full, (side, side, N, N) float32: zero off the diagonal."""
    line = bilinear_matrix(1, side, stride=(side + 1) // 2, offset=0, kernel=side)
    return (line * line.T)[:, :, None, None] * np.eye(channels, dtype=np.float32)


def deconv(
    x: jax.Array, kernel: jax.Array, height: int, width: int, *, stride: int, offset: int
) -> jax.Array:
    """Transposed convolution without padding or bias, cropped from `offset`.

    out[stride·i + a - offset] = Σ kernel[a]ᵀ x[i] along each axis, so `kernel` (k, k, C, F) is
    PyTorch's and Caffe's (C, F, k, k) transposed, not flipped.

    Args:
        x: (B, H, W, C).
        kernel: (k, k, C, F) in x's dtype.
        height, width: of the result, in pixels.
        stride: enlargement.
        offset: rows and columns cropped from the top and the left.

    Returns:
        (B, height, width, F).
    """
    side = kernel.shape[0]
    # A convolution's padding must be a number: of sides that an export leaves open it is what gives
    # all that there is, which is cut, and filled up with the zeros beyond.
    highs = [
        size + offset - 1 - stride * (n - 1) if isinstance(size + n, int) else side - 1
        for size, n in zip((height, width), x.shape[1:3], strict=True)
    ]
    y = lanes.convolve(
        x,
        kernel[::-1, ::-1],
        padding=[(side - 1 - offset, high) for high in highs],
        dilation=(stride, stride),
    )[:, :height, :width]
    below, right = height - y.shape[1], width - y.shape[2]
    return jnp.pad(y, ((0, 0), (0, below), (0, right), (0, 0)))


@cache
def resize_matrix(
    inputs: int,
    outputs: int,
    *,
    method: Literal["bilinear", "bicubic"],
    align_corners: bool,
    antialias: bool,
) -> np.ndarray:
    """(outputs, inputs) float32 matrix of `resize` along one axis; its rows sum to one.

    Source: Keys 1981, equation 4, for bicubic; PyTorch's `UpSample.h` for the centres.
    """
    o = np.arange(outputs)
    if align_corners:
        scale = (inputs - 1) / max(outputs - 1, 1)
        centres = o * scale
    else:
        scale = inputs / outputs
        centres = (o + 0.5) * scale - 0.5
    # Without antialiasing the edge repeats beyond the picture; with it only what is inside counts.
    beyond = 0 if antialias else 2
    distance = np.abs(np.arange(-beyond, inputs + beyond) - centres[:, None])
    if antialias:
        distance /= max(scale, 1)
    if method == "bilinear":
        weights = np.maximum(0, 1 - distance)
    else:
        a = -0.5 if antialias else -0.75  # PyTorch's own; the first is Keys' and Pillow's
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    matrix = weights[:, beyond : beyond + inputs]
    matrix[:, 0] += weights[:, :beyond].sum(axis=1)
    matrix[:, -1] += weights[:, beyond + inputs :].sum(axis=1)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def bilinear_lines(inputs: int, outputs: int, *, align_corners: bool) -> jax.Array:
    """What `resize_matrix` gives for "bilinear" without antialiasing, also for sizes left open.

    Computed on the device, so that an export, whose sizes come later, is the same program.
    """
    o = jnp.arange(outputs)[:, None]
    if align_corners:
        place, unit = o * (inputs - 1), max_dim(outputs - 1, 1)
    else:
        place, unit = (2 * o + 1) * inputs - outputs, 2 * outputs
    place = jnp.clip(place, 0, (inputs - 1) * unit)  # in units of an input's width
    weights = jnp.maximum(0, unit - abs(place - unit * jnp.arange(inputs)))
    kind = jnp.result_type(float)  # float32, or float64 where JAX is told to
    return weights.astype(kind) / jnp.asarray(unit, kind)


def _nearest(inputs: int, outputs: int) -> Any:
    """The index of the input that each output repeats; NumPy's where the sizes are known."""
    xp: Any = np if isinstance(inputs, int) and isinstance(outputs, int) else jnp
    # In float32 as PyTorch, whose rounding picks another neighbour at some sizes.
    scale = xp.asarray(inputs / outputs, np.float32)
    return (xp.arange(outputs, dtype=np.float32) * scale).astype(np.int32).clip(max=inputs - 1)


def resize(
    x: jax.Array,
    height: int,
    width: int,
    *,
    method: Literal["bilinear", "bicubic", "nearest"] = "bilinear",
    align_corners: bool = False,
    antialias: bool = False,
) -> jax.Array:
    """x at another size, as PyTorch's `interpolate`: out = rows · x · columnsᵀ.

    Args:
        x: (B, H, W, C), computed in float32.
        height, width: of the result, in pixels.
        method: "nearest" knows neither of the two options below.
        align_corners: the centres of the corner pixels stay where they are, instead of the corners
            of the picture.
        antialias: widen the kernel when shrinking, as Pillow does. With align_corners PyTorch
            shifts the picture besides, this does not.

    Returns:
        (B, height, width, C) in x's dtype.
    """
    b, h, w, c = x.shape
    if (h, w) == (height, width):
        return x
    if method == "nearest":
        return x[:, _nearest(h, height)][:, :, _nearest(w, width)]
    matrix: Callable[[int, int], Any]
    if method == "bilinear" and not antialias:
        matrix = partial(bilinear_lines, align_corners=align_corners)
    else:
        matrix = partial(
            resize_matrix, method=method, align_corners=align_corners, antialias=antialias
        )
    rows: Any = matrix(h, height)
    columns: Any = matrix(w, width)

    def plain(x: jax.Array) -> jax.Array:
        # Batched products, matrices repeated: an einsum or a broadcasting matmul would transpose
        # the large map around its products (twice the time on a CPU).
        product = partial(jnp.matmul, precision="highest")
        y = x.reshape(b * h, w, c)
        y = product(jnp.broadcast_to(columns, (b * h, width, w)), y).reshape(b, h, width * c)
        y = product(jnp.broadcast_to(rows, (b, height, h)), y)
        return y.reshape(b, height, width, c)

    wide = at_least_float32(x)
    if c % lanes.LANES == 0 or not isinstance(h, int):
        return plain(wide).astype(x.dtype)
    narrow = partial(_channels_first, rows, columns)
    return jax.lax.platform_dependent(wide, tpu=narrow, default=plain).astype(x.dtype)


def _channels_first(rows: jax.Array, columns: jax.Array, x: jax.Array) -> jax.Array:
    """rows · x · columnsᵀ of few channels, (B, h, w, C), on a TPU: see `blocks.Logits`."""
    product = partial(jnp.einsum, precision="highest")
    y = product("pw,bcow->bcop", columns, product("oh,bhwc->bcow", rows, x))
    return jnp.moveaxis(y, 1, -1)


def dense_to_conv(
    kernel: np.ndarray, height: int, width: int, *, order: Literal["hwc", "chw"]
) -> np.ndarray:
    """A dense layer on a flattened (height, width, C) map, as the convolution that slides it.

    Args:
        kernel: (height · width · C, F); the transpose of a PyTorch weight.
        height, width: of the map.
        order: in which it was flattened: "hwc" as arrays of ours are, "chw" as PyTorch's and
            Caffe's. The wrong one goes unnoticed: the shapes are the same.

    Returns:
        (height, width, C, F), for a convolution without padding.

    Source: "Adapting classifiers for dense prediction", section 3.1 of the FCN paper.
    """
    if order == "hwc":
        return kernel.reshape(height, width, -1, kernel.shape[-1])
    return kernel.reshape(-1, height, width, kernel.shape[-1]).transpose(1, 2, 0, 3)


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A pretrained first convolution of three colours, for any number of input channels.

    Fewer than three: each gets sum / channels, so that channels that are all the same grey give
    what grey colours gave. More: the three stay and every further one gets their mean. Nothing is
    rescaled: colours alone (the rest zero) give what they gave, so normalise further channels to
    zero mean and to the colours' deviation.

    Args:
        kernel: (h, w, 3, F).
        channels: of the pictures, at least 1.

    Returns:
        (h, w, channels, F).

    Source: the mean for a fourth channel is that of the FCN authors' `nyud-fcn32s-color-d`.
    """
    if channels < 3:
        return np.repeat(kernel.sum(axis=2, keepdims=True) / channels, channels, axis=2)
    more = np.repeat(kernel.mean(axis=2, keepdims=True), channels - 3, axis=2)
    return np.concatenate([kernel, more], axis=2)
