"""The blocks of the U-Nets: convolutions with batch norm and ReLU, and the logits.

Parameters are named and shaped as those of Flax's `nn.Conv` and `nn.BatchNorm`. These take maps in
a TPU's lanes; see `lanes`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.models import lanes
from segjax.models.layers import he_normal
from segjax.models.module import Module


class DoubleConv(Module):
    """[3×3 convolution, batch norm or none, ReLU, dropout] twice: a level of the U-Nets.

    Fields:
        widths: channels of the two convolutions.
        pad: rows and columns of zeros at each border, of each convolution.
        norm: "batch" takes the place of the convolutions' biases.
        dropout: rate.
        train: whether the batch's statistics are used, and dropout.
        dtype: of the computation.
    """

    widths: tuple[int, int]
    pad: int
    norm: Literal["batch", "none"]
    train: bool
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Maps (B, H, W, C), one behind the other -> (B, H + 4 (pad - 1), …, widths[1])."""
        for i, features in enumerate(self.widths):
            normed = self.norm == "batch"
            x = Conv(features, self.pad, not normed, dtype=self.dtype, name=f"conv_{i}")(*maps)
            if normed:
                x = BatchNorm(self.train, dtype=self.dtype, name=f"norm_{i}")(x)
            x = lanes.elementwise(nn.relu, x)
            maps = (nn.Dropout(self.dropout, deterministic=not self.train)(x),)
        return maps[0]


class Conv(nn.Module):
    """A 3×3 convolution of maps that lie one behind the other in the channels.

    Fields:
        features: channels of the result.
        pad: rows and columns of zeros at each border.
        use_bias: whether there is one.
        dtype: of the computation.
    """

    features: int
    pad: int
    use_bias: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) -> (B, H + 2 (pad - 1), W + 2 (pad - 1), features)."""
        channels = sum(m.shape[-1] for m in maps)
        kernel = self.param("kernel", he_normal, (3, 3, channels, self.features))
        *typed, kernel = nn.dtypes.promote_dtype(*maps, kernel, dtype=self.dtype)
        x = lanes.conv(typed, kernel, pad=self.pad)
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return lanes.elementwise(jnp.add, x, bias.astype(x.dtype))


class BatchNorm(nn.Module):
    """(x - E x) / √(Var x + 1e-5) · scale + bias of each channel.

    Fields:
        train: by the batch's statistics, of which the running ones take a tenth; else by those.
        dtype: of the result.
    """

    train: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> the same shape."""
        shape, momentum = x.shape[-1:], 0.9
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        dtype = self.dtype or jnp.promote_types(x.dtype, scale.dtype)

        def normalise(x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias):
            return ((x - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias).astype(dtype)

        if not self.train:
            return lanes.elementwise(normalise, x, mean.value, variance.value, scale, bias)
        # No axis_name: under jit the batch is the global one, which is sync-BN.
        y, *batch = lanes.batch_norm(x, normalise, scale, bias)
        if not self.is_initializing():
            for running, now in zip((mean, variance), batch, strict=True):
                running.value = momentum * running.value + (1 - momentum) * now
        return y


class Logits(nn.Module):
    """The 1×1 convolution that ends a network.

    On a TPU the classes come before the pixels in memory: 21 of them would fill 128 lanes each time
    that the loss reads or writes them.

    Fields:
        classes: N.
    """

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, N), float32 or finer."""
        b, h, w, c = x.shape
        kernel = self.param("kernel", he_normal, (1, 1, c, self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        dtype = jnp.promote_types(x.dtype, kernel.dtype)

        def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return lanes.convolve(x.astype(dtype), kernel.astype(dtype))

        def classes_first(x: jax.Array, kernel: jax.Array) -> jax.Array:
            pixels = lanes.sharing(h, c)
            each = lanes.of_each(kernel[0, 0].astype(dtype), pixels)
            y = jnp.einsum("bhwc,cn->bnhw", lanes.pack(x, pixels).astype(dtype), each)
            y = y.reshape(b, pixels, self.classes, h // pixels, w)
            return y.transpose(0, 3, 1, 4, 2).reshape(b, h, w, -1)

        if not isinstance(h, int):  # which an export leaves open
            return plain(x, kernel) + bias
        return jax.lax.platform_dependent(x, kernel, tpu=classes_first, default=plain) + bias
