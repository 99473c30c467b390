"""U-Net (Ronneberger, Fischer and Brox 2015)."""

from functools import partial
from typing import Literal

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.models import lanes
from segjax.models.blocks import DoubleConv, Logits
from segjax.models.geometry import Geometry, Span, conv_span, find_reach
from segjax.models.layers import (
    Output,
    Up,
    crop,
    max_pool,
    upsample,
    upsample_span,
)
from segjax.models.module import Module


class UNet(Module):
    """A contracting and an expanding path with a skip between them at each level.

    As in the paper: two 3×3 convolutions with ReLU a level, 2×2 max-pooling, 2×2 up-convolutions
    that halve the channels (without ReLU), and a 1×1 convolution at the end. The upsampled map
    comes first in the concatenation, as in the authors' released network.

    Fields:
        num_classes: N.
        widths: channels of each level, as many levels as there are widths, the last one lowest.
        padding: of the 3×3 convolutions: "same"; "valid" as in the paper, where the output is
            smaller (572 -> 388); "full", where it is larger (564 -> 572). Where a skip and the
            upsampled map differ in size, the larger one is cropped at the centre.
        norm: "batch" normalises between convolution (then without bias) and ReLU; "none" as in the
            paper.
        up: how the next higher level is reached: "upconv", a 2×2 transposed convolution;
            "released", the same with ReLU, the topmost of which does not halve the channels;
            "transposed", a 4×4 transposed convolution; or "bilinear", "bilinear_corners" (with
            align_corners) or "nearest", which have no parameters: there the second convolution of
            the level below halves the channels, in the lowest level both do.
        dropout: rate after each of the two lowest levels of the contracting path (0.5 in the
            authors' released network); needs a "dropout" key in training.
        remat: keep for the gradient only what goes into a level's two convolutions, and compute the
            rest again. Values are the same.
        dtype: of the computation; parameters, batch statistics and logits are float32.

    The paper's network is UNet(2, padding="valid", norm="none", dropout=0.5): 31,030,658 parameters
    with one input channel; with up="released" it is the authors' file: 31,100,354.

    Source: section 2 and figure 1; the authors' `u-net-release-2015-10-02` (phseg_v5); the halving
    without parameters from milesial/Pytorch-UNet, 17,263,042 at 3 channels and 2 classes.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    padding: Literal["same", "valid", "full"] = "same"
    norm: Literal["batch", "none"] = "batch"
    up: Literal[Up, "released"] = "upconv"
    dropout: float = 0.0
    remat: bool = False
    dtype: DTypeLike | None = None

    @property
    def geometry(self) -> Geometry:
        """Sides such that every pooling sees an even size; valid and full ones have a margin."""
        lowest = len(self.widths) - 1
        stride = 2**lowest
        minimum, margin = {
            "same": (stride, 0),
            # 4 pixels are left at the lowest level; each one above doubles them and adds 4 for its
            # two convolutions: 12·stride - 4 (188 at four poolings), whose output is 4 pixels wide.
            "valid": (12 * stride - 4, 6 * stride - 4),
            # Two convolutions add 4, and n + 4 can be halved, plus 4, halved, … only where n - 4 is
            # a multiple of the stride. The skip n + 4 decides the last level's size: n + 8.
            "full": (min(stride, 4), -4 if lowest else -2),
        }[self.padding]

        def needs(span: Span) -> Span:
            """Down and up again through the lowest level, which sees farthest."""
            # Valid: output pixel i lies on input pixel i + margin. Full: pixel i of the picture,
            # from whose start tiles are counted, is output pixel i - margin.
            span = span[0] - min(margin, 0), span[1] - min(margin, 0)
            for depth in range(lowest):
                first, last = conv_span(span, 5, pad=2 * self._pad)
                # What full convolutions add to the upsampled map beyond the skip is cropped.
                cropped = 0 if self._pad < 2 else 4 if depth == lowest - 1 else 8
                span = upsample_span((first + cropped, last + cropped), self._upsampling)
            for _ in range(lowest):
                span = conv_span(conv_span(span, 5, pad=2 * self._pad), 2, stride=2)
            first, last = conv_span(span, 5, pad=2 * self._pad)
            return first - max(margin, 0), last - max(margin, 0)

        if self.up == "bilinear_corners":
            return Geometry(stride, minimum, stride, None, None, margin)
        return Geometry(stride, minimum, stride, *find_reach(needs, stride), margin)

    @property
    def _pad(self) -> int:
        """Of each 3×3 convolution, at each border."""
        return {"valid": 0, "same": 1, "full": 2}[self.padding]

    @property
    def _upsampling(self) -> Up:
        return "upconv" if self.up == "released" else self.up

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Output:
        """(B, H, W, C) normalised images -> logits (B, H - 2 margin, W - 2 margin, N)."""
        self.geometry.check(*images.shape[1:3])
        block = nn.remat(DoubleConv) if self.remat else DoubleConv
        level = partial(block, pad=self._pad, norm=self.norm, train=train, dtype=self.dtype)
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        released = self.up == "released"
        lowest, widths = len(self.widths) - 1, self.widths
        handed = widths  # channels that each level gives to the one above
        if self.up in ("bilinear", "bilinear_corners", "nearest"):
            handed = (widths[0], *widths[:-1])
            widths = (*widths[:-1], handed[-1])

        x, skips = images, []
        for depth, width in enumerate(widths):
            x = level((width, width), name=f"down_{depth}")(x)
            if depth >= lowest - 1:
                x = dropout(x)
            if depth < lowest:
                skip, x = lanes.fork(x)
                skips.append(skip)
                x = max_pool(x)
        for depth in reversed(range(lowest)):
            features = widths[depth + (released and depth == 0)]
            x = upsample(x, features, self._upsampling, dtype=self.dtype, name=f"upconv_{depth}")
            x = nn.relu(x) if released else x
            height, width = map(min, x.shape[1:3], skips[depth].shape[1:3])
            maps = [crop(m, height, width) for m in (x, skips[depth])]
            x = level((widths[depth], handed[depth]), name=f"up_{depth}")(*maps)
        return Output(Logits(self.num_classes, name="logits")(x))
