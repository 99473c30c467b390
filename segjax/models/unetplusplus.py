"""U-Net++ (Zhou, Siddiquee, Tajbakhsh and Liang 2018)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.errors import SegjaxError
from segjax.models import lanes
from segjax.models.blocks import DoubleConv, Logits
from segjax.models.geometry import Geometry, Span, conv_span, find_reach
from segjax.models.layers import (
    Output,
    Up,
    max_pool,
    upsample,
    upsample_span,
)
from segjax.models.module import Module


class UNetPlusPlus(Module):
    """U-Nets of every depth in one: each level is convolved again and again, with dense skips.

    x[i, 0] = H(pool(x[i-1, 0])) and x[i, j] = H([up(x[i+1, j-1]), x[i, 0], …, x[i, j-1]]), H two
    3×3 convolutions; head j is a 1×1 convolution of x[0, j]. With L poolings there are L heads, and
    all that head j depends on is a network L_j of its own: see `prune`.

    Fields:
        num_classes: N; with 1 a logit is of a sigmoid, else of a softmax.
        widths: channels of each level, as many levels as there are widths, at least two.
        norm: "batch" normalises between convolution (then without bias) and ReLU; "none" as in the
            authors' network.
        up: "upconv", a 2×2 transposed convolution without ReLU, as in the authors' network;
            "transposed", one of 4×4; "bilinear", "bilinear_corners" (with align_corners) or
            "nearest", which have no parameters and keep the channels.
        deep_supervision: with L heads, all of them auxiliary logits, one loss for each; else head L
            alone and no auxiliary ones.
        head: which head gives the logits, 1 to L (fast mode); None is the accurate mode, `average`
            of all. Compiled prediction computes no more than the logits need.
        dropout: rate after every 3×3 convolution (0.5 in the authors' network); needs a "dropout"
            key in training.
        remat: keep for the gradient only what goes into a level's two convolutions, and compute the
            rest again. Values are the same.
        dtype: of the computation; parameters, batch statistics and logits are float32.

    The authors' network is UNetPlusPlus(1, norm="none", dropout=0.5): 9,041,700 parameters with one
    input channel, 9,041,601 with one head.

    Source: equation 1; `keras/helper_functions.py` (UNetPlusPlus) of the authors' code.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    norm: Literal["batch", "none"] = "batch"
    up: Up = "upconv"
    deep_supervision: bool = True
    head: int | None = None
    dropout: float = 0.0
    remat: bool = False
    dtype: DTypeLike | None = None

    @property
    def heads(self) -> range:
        """The heads that there are: 1 to L, or L alone."""
        lowest = len(self.widths) - 1
        return range(1 if self.deep_supervision else lowest, lowest + 1)

    @property
    def geometry(self) -> Geometry:
        """Sides such that every pooling sees an even size."""
        lowest = len(self.widths) - 1
        stride = 2**lowest

        def needs(span: Span) -> Span:
            """Through the lowest level, which sees farther than any way along the dense skips."""
            for _ in range(lowest):
                span = upsample_span(conv_span(span, 5, pad=2), self.up)
            for _ in range(lowest):
                span = conv_span(conv_span(span, 5, pad=2), 2, stride=2)
            return conv_span(span, 5, pad=2)

        reach = (None, None) if self.up == "bilinear_corners" else find_reach(needs, stride)
        return Geometry(stride, stride, stride, *reach)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Output:
        """(B, H, W, C) normalised images -> logits, and those of each head, (B, H, W, N)."""
        self.geometry.check(*images.shape[1:3])
        if len(self.widths) < 2 or self.head not in (None, *self.heads):
            raise SegjaxError(
                f"U-Net++ of {len(self.widths)} widths has heads {[*self.heads]}; got head "
                f"{self.head}. Give at least two widths, and one of these heads or None."
            )

        block = nn.remat(DoubleConv) if self.remat else DoubleConv

        def node(i: int, j: int, *maps: jax.Array) -> jax.Array:
            return block(
                (self.widths[i],) * 2,
                pad=1,
                norm=self.norm,
                train=train,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f"x_{i}_{j}",
            )(*maps)

        def up(i: int, j: int, x: jax.Array) -> jax.Array:
            return upsample(x, self.widths[i], self.up, dtype=self.dtype, name=f"up_{i}_{j}")

        def head(j: int) -> jax.Array:
            return Logits(self.num_classes, name=f"head_{j}")(read(0, j))

        def read(i: int, j: int) -> jax.Array:
            x, rows[i][j] = lanes.fork(rows[i][j])
            return x

        rows: list[list[jax.Array]] = []  # rows[i][j] is x[i, j]
        for depth in range(len(self.widths)):
            rows.append([node(depth, 0, max_pool(read(depth - 1, 0)) if depth else images)])
            for j, i in enumerate(reversed(range(depth)), 1):  # up the diagonal i + j = depth
                below = up(i, j, read(i + 1, j - 1))
                rows[i].append(node(i, j, below, *(read(i, k) for k in range(j))))
        heads = {j: head(j) for j in self.heads}
        auxiliary = tuple(heads.values()) if self.deep_supervision else ()
        if self.head is None and auxiliary:
            return Output(average(auxiliary), auxiliary)
        return Output(heads[self.head or self.heads[-1]], auxiliary)


def average(heads: Sequence[jax.Array]) -> jax.Array:
    """Logits whose probabilities are the mean of the heads' probabilities.

    The paper averages the heads' outputs, which are sigmoids; the mean of the logits would be
    another number.

    Args:
        heads: (B, H, W, N) logits, of a softmax, or of a sigmoid where N = 1.

    Returns:
        (B, H, W, N): log (1/K) Σ softmax(heads), or of sigmoids the logit of their mean.
    """

    def log_mean(log_p: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(log_p, axis=0) - np.log(len(heads))

    x = jnp.stack(heads)
    if x.shape[-1] == 1:
        return log_mean(jax.nn.log_sigmoid(x)) - log_mean(jax.nn.log_sigmoid(-x))
    return log_mean(jax.nn.log_softmax(x))


def prune(
    model: UNetPlusPlus, variables: Mapping[str, Any], level: int
) -> tuple[UNetPlusPlus, dict[str, Any]]:
    """L_level of a trained network: head `level` and the nodes x[i, j], i + j ≤ level, it rests on.

    Args:
        model: the whole network, that has this head.
        variables: its parameters and batch statistics.
        level: 1 to L.

    Returns:
        The smaller network and its variables; its logits are those of the whole network's head.

    Raises:
        SegjaxError: there is no such head.

    Source: section 3.2 of the paper, figure 1 (c).
    """
    if level not in model.heads:
        raise SegjaxError(
            f"The network is pruned to one of its heads, {[*model.heads]}; got {level}. Other "
            "heads exist only where it was trained with deep_supervision=True."
        )
    nodes = [f"{i}_{j}" for i in range(level + 1) for j in range(level + 1 - i)]
    kept = {f"{kind}_{node}" for kind in ("x", "up") for node in nodes} | {f"head_{level}"}
    smaller = model.clone(widths=model.widths[: level + 1], deep_supervision=False, head=None)
    return smaller, {
        collection: {name: leaf for name, leaf in tree.items() if name in kept}
        for collection, tree in variables.items()
    }
