"""U-Net (Ronneberger, Fischer and Brox 2015)."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.models.layers import Geometry, Output, UpConv, crop, he_normal, max_pool


class UNet(nn.Module):
    """A contracting and an expanding path with a skip between them at each level.

    As in the paper: two 3×3 convolutions with ReLU a level, 2×2 max-pooling, 2×2 up-convolutions
    that halve the channels (without ReLU), and a 1×1 convolution at the end. The upsampled map
    comes first in the concatenation, as in the authors' released network.

    Fields:
        num_classes: N.
        widths: channels of each level, as many levels as there are widths, the last one lowest.
        padding: of the 3×3 convolutions: "same", or "valid" as in the paper, where the output is
            smaller (572 -> 388) and the skips are cropped at the centre.
        norm: "batch" normalises between convolution (then without bias) and ReLU; "none" as in the
            paper.
        dropout: rate after each of the two lowest levels of the contracting path (0.5 in the
            authors' released network); needs a "dropout" key in training.
        dtype: of the computation; parameters, batch statistics and logits are float32.

    The paper's network is UNet(2, padding="valid", norm="none", dropout=0.5): 31,030,658 parameters
    with one input channel.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    padding: Literal["same", "valid"] = "same"
    norm: Literal["batch", "none"] = "batch"
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    @property
    def geometry(self) -> Geometry:
        """Sides such that every pooling sees an even size; valid ones lose a margin too."""
        stride = 2 ** (len(self.widths) - 1)
        if self.padding == "same":
            return Geometry(stride, minimum=stride)
        # 4 pixels are left at the lowest level; each one above doubles them and adds 4 for its two
        # convolutions: 12·stride - 4 (188 at four poolings), whose output is 4 pixels wide.
        return Geometry(stride, minimum=12 * stride - 4, margin=6 * stride - 4)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Output:
        """(B, H, W, C) normalised images -> logits (B, H - 2 margin, W - 2 margin, N)."""
        self.geometry.check(*images.shape[1:3])
        level = partial(_Level, padding=self.padding, norm=self.norm, train=train, dtype=self.dtype)
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        lowest = len(self.widths) - 1

        x, skips = images, []
        for depth, width in enumerate(self.widths):
            x = level(width, name=f"down_{depth}")(x)
            if depth >= lowest - 1:
                x = dropout(x)
            if depth < lowest:
                skips.append(x)
                x = max_pool(x)
        for depth in reversed(range(lowest)):
            x = UpConv(self.widths[depth], dtype=self.dtype, name=f"upconv_{depth}")(x)
            skip = crop(skips[depth], *x.shape[1:3])
            x = level(self.widths[depth], name=f"up_{depth}")(jnp.concatenate([x, skip], axis=-1))
        x = nn.Conv(self.num_classes, (1, 1), kernel_init=he_normal, name="logits")(x)
        return Output(x.astype(jnp.float32))


class _Level(nn.Module):
    """[3×3 convolution, batch norm or none, ReLU] twice."""

    features: int
    padding: str
    norm: str
    train: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = nn.Conv(
                self.features,
                (3, 3),
                padding=self.padding,
                use_bias=self.norm == "none",
                dtype=self.dtype,
                kernel_init=he_normal,
                name=f"conv_{i}",
            )(x)
            if self.norm == "batch":
                # No axis_name: under jit the batch is the global one, which is sync-BN.
                x = nn.BatchNorm(
                    use_running_average=not self.train,
                    momentum=0.9,
                    dtype=self.dtype,
                    name=f"norm_{i}",
                )(x)
            x = nn.relu(x)
        return x
