"""GoogLeNet's convolutions as FCN's trunk. This file knows no head and no pretrained weights."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.models.geometry import Span, conv_span
from segjax.models.layers import he_normal, local_response_norm, max_pool, max_pool_3x3
from segjax.models.module import Module

Variant = Literal["caffe", "torchvision"]
Inception = tuple[int, int, int, int, int, int]

# 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, pool projection: table 1 of the paper.
INCEPTIONS: tuple[Inception, ...] = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
_NAMES = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")


class GoogLeNet(Module):
    """GoogLeNet, or Inception v1 (Szegedy et al. 2015), without its classifiers.

    Fields:
        stem: channels of conv1, conv2_reduce and conv2.
        widths: channels of the nine inceptions 3a, 3b, 4a to 4e, 5a and 5b: 1×1, 3×3 reduce, 3×3,
            5×5 reduce, 5×5, pool projection.
        variant: "caffe" as in the paper, with local response normalisation in the stem.
            "torchvision" normalises each convolution by batch instead, has a 3×3 kernel where the
            5×5 should be (pytorch/vision#906), and 2×2 windows in its last pooling.
        pad: zeros around conv1.
        dtype: of the computation; parameters and batch statistics are float32.

    Pooling rounds up in both.

    Source: table 1; Caffe's `bvlc_googlenet`; torchvision's `googlenet.py`.
    """

    stem: tuple[int, int, int] = (64, 64, 192)
    widths: tuple[Inception, ...] = INCEPTIONS
    variant: Variant = "caffe"
    pad: int = 3
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """(B, H, W, C) -> the last inception's output at stride 32, 1024 channels wide."""
        caffe = self.variant == "caffe"
        conv = partial(_conv, variant=self.variant, train=train, dtype=self.dtype)
        x = conv(images, self.stem[0], 7, "conv1", stride=2, pad=self.pad)
        x = max_pool_3x3(x)
        x = local_response_norm(x) if caffe else x
        x = conv(x, self.stem[1], 1, "conv2_reduce")
        x = conv(x, self.stem[2], 3, "conv2")
        x = local_response_norm(x) if caffe else x
        x = max_pool_3x3(x)
        for name, widths in zip(_NAMES, self.widths, strict=True):
            x = _Inception(widths, self.variant, train, self.dtype, name=f"inception_{name}")(x)
            if name == "3b" or (name == "4e" and caffe):
                x = max_pool_3x3(x)
            elif name == "4e":
                x = max_pool(x, ceil=True)
        return x


def googlenet_span(out: Span, *, variant: Variant, pad: int) -> Span:
    """The input pixels that the entries `out` of the last inception depend on."""
    caffe = variant == "caffe"
    reach = 2 if caffe else 1  # of an inception's largest kernel
    for depth, window in ((2, 3 if caffe else 2), (5, 3), (2, 3)):
        out = conv_span(out, 2 * depth * reach + 1, pad=depth * reach)
        out = conv_span(out, window, stride=2)
    return conv_span(conv_span(conv_span(out, 3, pad=1), 3, stride=2), 7, stride=2, pad=pad)


def _conv(
    x: jax.Array,
    features: int,
    kernel: int,
    name: str,
    *,
    variant: Variant,
    train: bool,
    dtype: DTypeLike | None,
    stride: int = 1,
    pad: int | None = None,
) -> jax.Array:
    """Convolution, batch norm in torchvision's variant, ReLU."""
    x = nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2 if pad is None else pad,
        use_bias=variant == "caffe",
        dtype=dtype,
        kernel_init=he_normal,
        name=name,
    )(x)
    if variant == "torchvision":
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-3,  # torchvision's, after TensorFlow
            dtype=dtype,
            name=f"{name}_norm",
        )(x)
    return nn.relu(x)


class _Inception(nn.Module):
    """Four branches side by side: 1×1, 3×3, 5×5 and a 3×3 pooling, each after or before a 1×1."""

    widths: Inception
    variant: Variant
    train: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(_conv, variant=self.variant, train=self.train, dtype=self.dtype)
        one, reduce3, three, reduce5, five, pool = self.widths
        branches = (
            conv(x, one, 1, "1x1"),
            conv(conv(x, reduce3, 1, "3x3_reduce"), three, 3, "3x3"),
            conv(
                conv(x, reduce5, 1, "5x5_reduce"), five, 5 if self.variant == "caffe" else 3, "5x5"
            ),
            conv(nn.max_pool(x, (3, 3), padding="SAME"), pool, 1, "pool_proj"),
        )
        return jnp.concatenate(branches, axis=-1)
