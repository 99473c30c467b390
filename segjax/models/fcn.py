"""Fully convolutional networks (Long, Shelhamer and Darrell 2015) on VGG16, AlexNet and GoogLeNet.

Each turns the trunk of a classifier and its dense layers, as convolutions, into a map of scores at
stride 32, and enlarges that; on VGG16 finer maps join on the way.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.models.alexnet import AlexNet, alexnet_span
from segjax.models.geometry import Geometry, Span, conv_span, deconv_span, find_reach
from segjax.models.googlenet import INCEPTIONS, GoogLeNet, Inception, googlenet_span
from segjax.models.layers import (
    Method,
    Output,
    at_least_float32,
    bilinear_deconv,
    bilinear_kernel,
    crop,
    deconv,
    he_normal,
)
from segjax.models.module import Module
from segjax.models.vgg import VGG16, vgg16_span

Upsampling = Literal[Method, "learned"]


class FCN(Module):
    """FCN-32s, 16s or 8s on VGG16.

    8s: score = up8(up2(up2(score_fr) + score_pool4) + score_pool3), each up a bilinear transposed
    convolution; the sums are of score maps, by 1×1 convolutions that start at zero.

    Fields:
        num_classes: N.
        stride: of the finest prediction: 32, 16 or 8.
        padding: "authors" pads the picture by 100 and crops the score maps by 5, 9 and 31 (16s: 5
            and 27; 32s: 19), so that every size is aligned, and fades towards the border as theirs
            does; "same" pads every convolution to keep its size, and costs less.
        widths: channels of VGG16's blocks.
        classifier_width: channels of fc6 and fc7, 4096 in the paper; None scores pool5 directly.
        dropout: after fc6 and fc7, 0.5 in the paper; needs a "dropout" key in training.
        upsampling: "fixed", constant bilinear transposed convolutions, as in the authors' code;
            "learned", transposed convolutions of all classes with all, which start as those; or
            "bilinear" and "nearest", resizes in their places, which do not fade at the border.
        fusion: "sum" as above; or "concat", where the enlarged scores and the features of the pool
            lie side by side under the 1×1 convolution, which starts by handing the scores on.
        at_once: multiplies pool4 by 0.01 and pool3 by 0.0001 before they are scored, so that 8s can
            be trained without 32s and 16s before it.
        remat: of VGG16's blocks keep only the input for the gradient, and compute the rest again.
            Values are the same.
        dtype: of the computation; parameters, upsampling and logits are float32.

    At 21 classes 32s, 16s and 8s have 134,346,581, 134,357,354 and 134,362,751 parameters. A score
    sees 404 pixels.

    Source: `voc-fcn{32,16,8}s/net.py`, `voc-fcn8s-atonce/net.py` of the authors' code; crops
    re-derived in `_offsets`.
    """

    num_classes: int
    stride: Literal[32, 16, 8] = 8
    padding: Literal["authors", "same"] = "authors"
    widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    classifier_width: int | None = 4096
    dropout: float = 0.5
    upsampling: Upsampling = "fixed"
    fusion: Literal["sum", "concat"] = "sum"
    at_once: bool = False
    remat: bool = False
    dtype: DTypeLike | None = None

    @property
    def geometry(self) -> Geometry:
        """Every size: pooling rounds up and the last crop restores it."""
        skips, last = self._offsets

        def needs(span: Span) -> Span:
            """Through score_fr, which sees farthest."""
            # At a border a resize repeats a score that is up to one step away: no less than the
            # bilinear kernel, though "nearest" sees less elsewhere.
            span = deconv_span(span, 2 * self.stride, stride=self.stride, pad=last)
            for offset in reversed(skips):
                span = deconv_span(span, 4, stride=2, pad=max(-offset, 0))
            if self.classifier_width is not None:
                span = conv_span(span, 7, pad=0 if self.padding == "authors" else 3)
            return vgg16_span(span, pad=self._pad)

        return Geometry(1, 1, 32, *find_reach(needs, 32))

    @property
    def _pad(self) -> int:
        return 100 if self.padding == "authors" else 1

    @property
    def _offsets(self) -> tuple[list[int], int]:
        """By how much each skip is cropped, pool4 and then pool3, and the last scores.

        With padding 100 and an unpadded 7×7 fc6, score_fr[i] is centred on pixel 32i + 12.5.
        Enlarging by s with kernel 2s begins s - ½ of the finer entries before the first centre.
        Where that is before the skip begins, the number is negative and the scores are cropped.
        """

        def centre(stride: int) -> float:
            """The pixel on which the first entry of a pool is centred."""
            return (stride - 1) / 2 + 1 - self._pad

        unpadded = self.padding == "authors" and self.classifier_width is not None
        begin, stride, skips = centre(32) + (3 * 32 if unpadded else 0), 32, []
        while stride > self.stride:
            stride //= 2
            begin -= 1.5 * stride
            skips.append(round((begin - centre(stride)) / stride))
            begin = max(begin, centre(stride))
        return skips, round(stride - 0.5 - begin)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Output:
        """(B, H, W, C) normalised images -> logits (B, H, W, N)."""
        pool3, pool4, x = VGG16(
            self.widths, pad=self._pad, remat=self.remat, dtype=self.dtype, name="vgg16"
        )(images)
        if self.classifier_width is not None:
            padding = "VALID" if self.padding == "authors" else "SAME"
            x = _classify(x, self, 7, self.classifier_width, padding, train)
        scores = _score(x, self, "score_fr")

        skips, last = self._offsets
        pools = ((pool4, "pool4", "upscore2", 0.01), (pool3, "pool3", "upscore_pool4", 0.0001))
        for offset, (pool, name, up, scale) in zip(skips, pools, strict=False):
            if offset > 0:
                # Unpadded: the enlarged map is 2n + 2 wide and the skip is cropped to it.
                height, width = 2 * scores.shape[1] + 2, 2 * scores.shape[2] + 2
                pool = crop(pool, height, width, offset=offset)
            _, height, width, _ = pool.shape
            upscore = _Upscore(2, 4, self.upsampling, name=up)
            scores = upscore(scores, height, width, max(-offset, 0))
            pool = pool * scale if self.at_once else pool
            if self.fusion == "concat":
                pool = jnp.concatenate([scores.astype(pool.dtype), pool], axis=-1)
                scores = _score(pool, self, f"score_{name}", init=_hand_on)
            else:
                scores += _score(pool, self, f"score_{name}")
        up = "upscore" if self.stride == 32 else f"upscore{self.stride}"
        upscore = _Upscore(self.stride, 2 * self.stride, self.upsampling, name=up)
        _, height, width, _ = images.shape
        return Output(upscore(scores, height, width, last))


class FCNAlexNet(Module):
    """FCN-32s on AlexNet.

    Fields:
        num_classes: N.
        widths: channels of AlexNet's convolutions.
        variant: of AlexNet: "caffe" as the authors', or "torchvision" for its pretrained weights.
        classifier_width: channels of fc6 and fc7, 4096 in the paper.
        dropout: after fc6 and fc7, 0.5 in the paper; needs a "dropout" key in training.
        upsampling: as `FCN`'s.
        dtype: of the computation; parameters, upsampling and logits are float32.

    The picture is padded by 100 and the enlarged scores are cropped by 18: their kernel has 63
    entries, for a 6×6 fc6 centres each score on a whole pixel, 32i + 13. At 21 classes it has
    56,954,261 parameters. A score sees 355 pixels.

    Source: `voc-fcn-alexnet/net.py` of the authors' code.
    """

    num_classes: int
    widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    variant: Literal["caffe", "torchvision"] = "caffe"
    classifier_width: int = 4096
    dropout: float = 0.5
    upsampling: Upsampling = "fixed"
    dtype: DTypeLike | None = None

    @property
    def geometry(self) -> Geometry:
        """Every size: pooling rounds up and the crop restores it."""

        def needs(span: Span) -> Span:
            span = deconv_span(span, 63, stride=32, pad=18)
            return alexnet_span(conv_span(span, 6), pad=100)

        return Geometry(1, 1, 32, *find_reach(needs, 32))

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Output:
        """(B, H, W, C) normalised images -> logits (B, H, W, N)."""
        trunk = AlexNet(self.widths, self.variant, pad=100, dtype=self.dtype, name="alexnet")
        x = _classify(trunk(images), self, 6, self.classifier_width, "VALID", train)
        upscore = _Upscore(32, 63, self.upsampling, name="upscore")
        _, height, width, _ = images.shape
        return Output(upscore(_score(x, self, "score_fr"), height, width, 18))


class FCNGoogLeNet(Module):
    """FCN-32s on GoogLeNet, whose last inception is scored: no average pooling, no dense layer.

    Fields:
        num_classes: N.
        stem, widths: channels of GoogLeNet's convolutions.
        variant: of GoogLeNet: "caffe" as in the paper, or "torchvision" for its pretrained weights.
        dropout: before the scores; needs a "dropout" key in training. GoogLeNet's is 0.4.
        upsampling: as `FCN`'s.
        dtype: of the computation; parameters, batch statistics, upsampling and logits are float32.

    The authors reported this network and never released it, so the padding is ours: 19, and 11 in
    torchvision's variant, centre the scores on pixel 32i + 14 and cover every size. Kernel 63 and
    crop 17 follow as on AlexNet. At 21 classes it has 5,995,077 parameters. A score sees 715 pixels
    (torchvision's variant: 379; the paper's 907 are with the average pooling).

    Source: section 4.1 and table 1 of the FCN paper.
    """

    num_classes: int
    stem: tuple[int, int, int] = (64, 64, 192)
    widths: tuple[Inception, ...] = INCEPTIONS
    variant: Literal["caffe", "torchvision"] = "caffe"
    dropout: float = 0.4
    upsampling: Upsampling = "fixed"
    dtype: DTypeLike | None = None

    @property
    def geometry(self) -> Geometry:
        """Every size: pooling rounds up and the crop restores it."""

        def needs(span: Span) -> Span:
            span = deconv_span(span, 63, stride=32, pad=17)
            return googlenet_span(span, variant=self.variant, pad=self._pad)

        return Geometry(1, 1, 32, *find_reach(needs, 32))

    @property
    def _pad(self) -> int:
        return 19 if self.variant == "caffe" else 11

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Output:
        """(B, H, W, C) normalised images -> logits (B, H, W, N)."""
        trunk = GoogLeNet(
            self.stem, self.widths, self.variant, self._pad, self.dtype, name="googlenet"
        )
        x = nn.Dropout(self.dropout, deterministic=not train)(trunk(images, train=train))
        upscore = _Upscore(32, 63, self.upsampling, name="upscore")
        _, height, width, _ = images.shape
        return Output(upscore(_score(x, self, "score_fr"), height, width, 17))


def _classify(
    x: jax.Array, net: FCN | FCNAlexNet, kernel: int, width: int, padding: str, train: bool
) -> jax.Array:
    """fc6 and fc7 as convolutions, each with ReLU and dropout."""
    for name, side in (("fc6", kernel), ("fc7", 1)):
        conv = nn.Conv(
            width,
            (side, side),
            padding=padding,
            dtype=net.dtype,
            kernel_init=he_normal,
            name=name,
        )
        x = nn.Dropout(net.dropout, deterministic=not train)(nn.relu(conv(x)))
    return x


def _score(
    x: jax.Array,
    net: FCN | FCNAlexNet | FCNGoogLeNet,
    name: str,
    init: nn.initializers.Initializer = nn.initializers.zeros,
) -> jax.Array:
    """(B, h, w, C) -> (B, h, w, N) float32."""
    conv = nn.Conv(net.num_classes, (1, 1), dtype=net.dtype, kernel_init=init, name=name)
    return at_least_float32(conv(x))


def _hand_on(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The first N input channels as they are, nothing of the others.

    All zero, as where scores are added, would be a dead start: neither the scores below nor their
    weights here would ever have a gradient.
    """
    return jnp.eye(shape[2], shape[3], dtype=dtype)[None, None]


class _Upscore(nn.Module):
    """Scores enlarged by `step`, by a transposed convolution of side `kernel` or in its place."""

    step: int
    kernel: int
    upsampling: Upsampling

    @nn.compact
    def __call__(self, scores: jax.Array, height: int, width: int, offset: int) -> jax.Array:
        """(B, h, w, N) -> (B, height, width, N) float32, from `offset` of the uncropped map."""
        if self.upsampling == "learned":
            start = bilinear_kernel(self.kernel, scores.shape[-1])
            kernel = self.param("kernel", lambda _: jnp.asarray(start))
            return deconv(scores, kernel, height, width, stride=self.step, offset=offset)
        return bilinear_deconv(
            scores,
            height,
            width,
            stride=self.step,
            offset=offset,
            kernel=self.kernel,
            method=self.upsampling,
        )
