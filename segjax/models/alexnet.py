"""AlexNet's convolutions as FCN's trunk. This file knows no head and no pretrained weights."""

from typing import Literal

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.models.geometry import Span, conv_span
from segjax.models.layers import he_normal, local_response_norm, max_pool_3x3
from segjax.models.module import Module


class AlexNet(Module):
    """The five convolutions of AlexNet (Krizhevsky, Sutskever and Hinton 2012).

    Fields:
        widths: channels of the convolutions; torchvision's are (64, 192, 384, 256, 256).
        variant: "caffe" is CaffeNet, of which the FCN authors made theirs: convolutions 2, 4 and 5
            in two groups, and local response normalisation after (not before) the first two
            poolings. "torchvision" has neither.
        pad: zeros around conv1: CaffeNet 0, the FCN authors 100, torchvision 2.
        dtype: of the computation; parameters are float32.

    Pooling rounds up as Caffe does. torchvision's rounds down, which is the same wherever each map
    is odd, as at its own 224 pixels.

    Source: `voc-fcn-alexnet/net.py` of the FCN authors' code; torchvision's `alexnet.py`.
    """

    widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    variant: Literal["caffe", "torchvision"] = "caffe"
    pad: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) -> pool5 at stride 32."""
        caffe, x = self.variant == "caffe", images
        for i, (width, kernel) in enumerate(zip(self.widths, (11, 5, 3, 3, 3), strict=True), 1):
            conv = nn.Conv(
                width,
                (kernel, kernel),
                strides=4 if i == 1 else 1,
                padding=self.pad if i == 1 else kernel // 2,
                feature_group_count=2 if caffe and i in (2, 4, 5) else 1,
                dtype=self.dtype,
                kernel_init=he_normal,
                name=f"conv{i}",
            )
            x = nn.relu(conv(x))
            if i in (1, 2, 5):
                x = max_pool_3x3(x)
            if caffe and i in (1, 2):
                x = local_response_norm(x)
        return x


def alexnet_span(out: Span, *, pad: int) -> Span:
    """The input pixels that the entries `out` of pool5 depend on."""
    out = conv_span(conv_span(out, 3, stride=2), 7, pad=3)  # conv3 to conv5
    out = conv_span(conv_span(out, 3, stride=2), 5, pad=2)
    return conv_span(conv_span(out, 3, stride=2), 11, stride=4, pad=pad)
