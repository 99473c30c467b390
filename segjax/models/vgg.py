"""VGG16's convolutions as FCN's trunk. This file knows no head and no pretrained weights."""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.models import lanes
from segjax.models.blocks import Conv
from segjax.models.geometry import Span, conv_span
from segjax.models.layers import max_pool

_DEPTHS = (2, 2, 3, 3, 3)  # convolutions of each block


class VGG16(nn.Module):
    """The thirteen convolutions of VGG16 (Simonyan and Zisserman 2015, configuration D).

    Fields:
        widths: channels of the five blocks.
        pad: zeros around conv1_1; the FCN authors' 100, or 1 for "same".
        remat: keep only a block's input for its gradient and compute the rest again. Values are
            the same.
        dtype: of the computation; parameters are float32.
    """

    widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    pad: int = 1
    remat: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(B, H, W, C) -> pool3, pool4 and pool5, at strides 8, 16 and 32 (sizes rounded up)."""

        def convolved(vgg: VGG16, x: jax.Array, block: int) -> jax.Array:
            for i in range(1, _DEPTHS[block - 1] + 1):
                conv = Conv(
                    vgg.widths[block - 1],
                    vgg.pad if block == i == 1 else 1,
                    use_bias=True,
                    dtype=vgg.dtype,
                    name=f"conv{block}_{i}",
                )
                x = lanes.elementwise(nn.relu, conv(x))
            return max_pool(x, ceil=True)

        run = nn.remat(convolved, static_argnums=2) if self.remat else convolved
        x, pools = images, []
        for block in range(1, 6):
            x = run(self, x, block)
            pools.append(x)
        return pools[2], pools[3], pools[4]


def vgg16_span(out: Span, *, pad: int) -> Span:
    """The input pixels that the entries `out` of pool5 depend on."""
    for depth in reversed(_DEPTHS):
        out = conv_span(conv_span(out, 2, stride=2), 2 * depth + 1, pad=depth)
    return out[0] + 1 - pad, out[1] + 1 - pad
