"""What several networks are built from, each operation once and in its fast form.

The plain forms (`nn.max_pool`, `nn.ConvTranspose`, a dense bilinear deconvolution) are the same
mathematics and stand in the tests. This file knows no network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.errors import SegjaxError

# N(0, sqrt(2 / fan_in)): U-Net, section 3, after He et al. 2015.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Output(NamedTuple):
    """What every network returns.

    logits: (B, H, W, N) float32 scores of the N classes.
    auxiliary: logits of the extra heads, each (B, h, w, N) float32; empty for a network without.
    """

    logits: jax.Array
    auxiliary: tuple[jax.Array, ...] = ()


class Geometry(NamedTuple):
    """The sizes that a network takes and the size that it gives, the same for height and width.

    It takes n = minimum, minimum + stride, minimum + 2 stride, … and gives n - 2 margin.
    """

    stride: int
    minimum: int
    margin: int = 0

    def fit(self, size: int) -> int:
        """The smallest input side whose output covers `size` pixels."""
        beyond = max(size + 2 * self.margin - self.minimum, 0)
        return self.minimum + -(-beyond // self.stride) * self.stride

    def check(self, height: int, width: int) -> None:
        """Raise SegjaxError where a side is not one that the network takes, naming the nearest."""

        def nearest(side: int) -> list[int]:
            above = self.fit(side - 2 * self.margin)
            below = above - self.stride
            return [side] if above == side else [n for n in (below, above) if n >= self.minimum]

        good = nearest(height), nearest(width)
        if good != ([height], [width]):
            step = f"{self.minimum} + any multiple of {self.stride}"
            raise SegjaxError(
                f"The network takes sides of {step} pixels; got {height}×{width}. Nearest heights: "
                f"{' or '.join(map(str, good[0]))}; widths: {' or '.join(map(str, good[1]))}. "
                "Crop training pictures to one of them; prediction pads and crops by itself."
            )


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
    _, height, width, _ = x.shape
    if ceil:
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), constant_values=-jnp.inf)
    else:
        x = x[:, : height - height % 2, : width - width % 2]
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)

    def larger(first: jax.Array, second: jax.Array) -> jax.Array:
        # Not jnp.max: it shares the gradient between equal entries, and padding makes many.
        return jnp.where((second > first) | jnp.isnan(second), second, first)

    x = larger(x[:, :, :, :, 0], x[:, :, :, :, 1])
    return larger(x[:, :, 0], x[:, :, 1])


class UpConv(nn.Module):
    """U-Net's up-convolution: a 2×2 transposed convolution at stride 2, as one matrix product.

    out[2i + a, 2j + b] = kernel[a, b]ᵀ x[i, j] + bias, so `kernel` (2, 2, C, features) is
    PyTorch's ConvTranspose2d weight (C, features, 2, 2) transposed, not flipped.
    """

    features: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, 2H, 2W, features)."""
        shape = (2, 2, x.shape[-1], self.features)
        # fan_in of the product is C: each output pixel sees one input pixel.
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal", batch_axis=(0, 1))
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        b, h, w, c = x.shape
        y = x @ kernel.transpose(2, 0, 1, 3).reshape(c, -1) + jnp.tile(bias, 4)
        y = y.reshape(b, h, w, 2, 2, self.features).swapaxes(2, 3)
        return y.reshape(b, 2 * h, 2 * w, self.features)


def crop(x: jax.Array, height: int, width: int, *, offset: int | None = None) -> jax.Array:
    """(B, H, W, …) -> (B, height, width, …), from `offset` on both axes, by default the centre."""
    top, left = ((x.shape[1] - height) // 2, (x.shape[2] - width) // 2)
    if offset is not None:
        top = left = offset
    return x[:, top : top + height, left : left + width]


def bilinear_matrix(inputs: int, outputs: int, *, stride: int, offset: int) -> np.ndarray:
    """(outputs, inputs) float32 matrix of Caffe's bilinear deconvolution along one axis.

    Kernel side 2·stride, no padding, the first `offset` outputs cropped:
    M[o, i] = max(0, 1 - |o + offset - stride·i - (stride - ½)| / stride). Missing neighbours count
    as zero, so the outermost outputs fade where a resize would repeat the edge.

    Source: `surgery.py` (upsample_filt) and `crop` layers of the FCN authors' code.
    """
    o = np.arange(outputs)[:, None] + offset
    i = np.arange(inputs)[None, :]
    return np.maximum(0, 1 - np.abs(o - stride * i - (stride - 0.5)) / stride).astype(np.float32)


def bilinear_deconv(
    x: jax.Array, height: int, width: int, *, stride: int, offset: int
) -> jax.Array:
    """Fixed bilinear transposed convolution of kernel 2·stride, cropped from `offset`.

    The kernel is separable, so it is two small matrix products instead of a convolution of
    side 2·stride with zeros between the inputs.

    Args:
        x: (B, H, W, N), computed in float32.
        height, width: of the result, in pixels.
        stride: enlargement.
        offset: rows and columns cropped from the top and the left.

    Returns:
        (B, height, width, N) float32.
    """
    rows = bilinear_matrix(x.shape[1], height, stride=stride, offset=offset)
    columns = bilinear_matrix(x.shape[2], width, stride=stride, offset=offset)
    x = jnp.einsum("oh,bhwn->bown", rows, x.astype(jnp.float32), precision="highest")
    return jnp.einsum("pw,bown->bopn", columns, x, precision="highest")
