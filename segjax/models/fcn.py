"""Fully convolutional networks (Long, Shelhamer and Darrell 2015) on VGG16."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.models.layers import Geometry, Output, bilinear_deconv, crop, he_normal
from segjax.models.vgg import VGG16


class FCN(nn.Module):
    """FCN-32s, 16s or 8s with fixed bilinear upsampling.

    8s: score = up8(up2(up2(score_fr) + score_pool4) + score_pool3), each up a bilinear transposed
    convolution; the sums are of score maps, by 1×1 convolutions that start at zero.

    Fields:
        num_classes: N.
        stride: of the finest prediction: 32, 16 or 8.
        padding: "authors" pads the picture by 100 and crops the score maps by 5, 9 and 31 (16s: 5
            and 27; 32s: 19), so that every size is aligned, and fades towards the border as theirs
            does; "same" pads every convolution to keep its size, crops nothing, and costs less.
        widths: channels of VGG16's blocks.
        classifier_width: channels of fc6 and fc7, 4096 in the paper.
        dropout: after fc6 and fc7, 0.5 in the paper; needs a "dropout" key in training.
        dtype: of the computation; parameters, upsampling and logits are float32.

    At 21 classes 32s, 16s and 8s have 134,346,581, 134,357,354 and 134,362,751 parameters; the
    bilinear kernels are constants.

    Source: `voc-fcn{32,16,8}s/net.py` of the authors' code; crops re-derived in `_offsets`.
    """

    num_classes: int
    stride: Literal[32, 16, 8] = 8
    padding: Literal["authors", "same"] = "authors"
    widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    classifier_width: int = 4096
    dropout: float = 0.5
    dtype: DTypeLike | None = None

    @property
    def geometry(self) -> Geometry:
        """Every size: pooling rounds up and the last crop restores it."""
        return Geometry(stride=1, minimum=1)

    @property
    def _offsets(self) -> dict[int, int]:
        """Rows cropped where stride-s scores meet pool features (16, 8) and the picture (-s).

        With padding 100 and an unpadded 7×7 fc6, score_fr[i] is centred on pixel 32i + 12.5 and on
        pool4[2i + 6.5], its upsampling by 2 puts it at 2i + 1.5: pool4 is cropped by 5. The others
        follow in the same way. Padded throughout, everything is aligned after k/4 = stride/2.
        """
        if self.padding == "authors":
            return {16: 5, 8: 9, -32: 19, -16: 27, -8: 31}
        return {16: 0, 8: 0, -32: 16, -16: 8, -8: 4}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Output:
        """(B, H, W, C) normalised images -> logits (B, H, W, N)."""
        authors = self.padding == "authors"
        pool3, pool4, pool5 = VGG16(
            self.widths, pad=100 if authors else 1, dtype=self.dtype, name="vgg16"
        )(images)

        x = pool5
        for name, kernel in (("fc6", 7), ("fc7", 1)):
            x = nn.Conv(
                self.classifier_width,
                (kernel, kernel),
                padding="VALID" if authors else "SAME",
                dtype=self.dtype,
                kernel_init=he_normal,
                name=name,
            )(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))

        def score(features: jax.Array, name: str) -> jax.Array:
            conv = nn.Conv(
                self.num_classes,
                (1, 1),
                dtype=self.dtype,
                kernel_init=nn.initializers.zeros,
                name=name,
            )
            return conv(features).astype(jnp.float32)

        offsets, stride = self._offsets, 32
        scores = score(x, "score_fr")
        for pool, name in ((pool4, "score_pool4"), (pool3, "score_pool3")):
            if stride == self.stride:
                break
            stride //= 2
            skip = score(pool, name)
            if authors:
                # Unpadded: the upsampled map is 2n + 2 wide and the skip is cropped to it.
                height, width = 2 * scores.shape[1] + 2, 2 * scores.shape[2] + 2
                skip = crop(skip, height, width, offset=offsets[stride])
                scores = skip + bilinear_deconv(scores, height, width, stride=2, offset=0)
            else:
                _, height, width, _ = skip.shape
                scores = skip + bilinear_deconv(scores, height, width, stride=2, offset=1)
        _, height, width, _ = images.shape
        logits = bilinear_deconv(scores, height, width, stride=stride, offset=offsets[-stride])
        return Output(logits)
