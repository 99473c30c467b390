"""The Vision Transformer as SETR's encoder. This file knows no head and no pretrained weights."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.models.layers import resize

# PyTorch's own for convolutions, U(±1/√fan_in), which the authors leave as it is.
conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# The authors' truncated normal cuts at ±2, a hundred deviations away: it is a plain one.
linear_init = nn.initializers.normal(0.02)
# Two passes as PyTorch, for the tokens of a trained network are far from centred.
LayerNorm = partial(nn.LayerNorm, use_fast_variance=False)
# Over which axis a parameter is split where devices compute a block together, as
# `training.sharding` takes it: heads and hidden units each, so that only the sums of the two
# projections back to the width are exchanged. The embedding of patches is whole.
sharding_rules = (
    ("blocks/qkv/(kernel|bias)$", -2),
    ("blocks/out/kernel$", -3),
    ("blocks/mlp_0/(kernel|bias)$", -1),
    ("blocks/mlp_1/kernel$", -2),
    ("vit/patch/kernel$", None),
)


class ViT(nn.Module):
    """The encoder of a Vision Transformer (Dosovitskiy et al. 2021) without its final norm.

    tokens = patches · kernel + bias + positions, then in each block
    x = x + out(softmax(q kᵀ / √d) v), x = x + mlp(x), both of a layer norm of x, with exact GELU.

    Fields:
        taps: the blocks, counted from 0, whose tokens are returned, in this order; blocks after the
            last one never run.
        depth: number of blocks.
        width: D, of a token.
        heads: of the attention, of D / heads each.
        mlp_ratio: hidden units of the MLP per unit of the width.
        patch: side in pixels.
        grid: rows and columns of the position embeddings that are stored; they are resized to the
            picture's. 24×24 is that of pretraining at 384 pixels.
        class_token: whether one runs along with the patches.
        epsilon: of the layer norms; 1e-12 for weights of Hugging Face.
        scan: compile one block for all between two taps, instead of each. Values are the same.
        remat: keep only a block's input for its gradient and compute the rest again. Values are
            the same.
        dtype: of the computation; parameters are float32.

    The blocks' parameters are stacked: each leaf of "blocks" has a leading axis of length depth.

    Source: `backbones/vit.py` of the SETR authors' code.
    """

    taps: tuple[int, ...] = (23,)
    depth: int = 24
    width: int = 1024
    heads: int = 16
    mlp_ratio: int = 4
    patch: int = 16
    grid: tuple[int, int] = (24, 24)
    class_token: bool = True
    epsilon: float = 1e-6
    scan: bool = True
    remat: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """(B, H, W, C) -> a map (B, H/patch, W/patch, D) of each tap, without the class token."""
        side = (self.patch, self.patch)
        x = nn.Conv(
            self.width,
            side,
            strides=side,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=conv_init,
            name="patch",
        )(images)
        b, h, w, width = x.shape
        positions = self.param("positions", linear_init, (*self.grid, width))
        x = (x + resize_positions(positions, (h, w)).astype(x.dtype)).reshape(b, h * w, width)
        if self.class_token:
            token = self.param("class_token", linear_init, (width,))
            token = token + self.param("class_position", linear_init, (width,))
            token = jnp.broadcast_to(token.astype(x.dtype), (b, 1, width))
            x = jnp.concatenate([token, x], axis=1)

        block = _Block(self.heads, self.mlp_ratio * width, self.epsilon, self.dtype, parent=None)

        def init(key: jax.Array):
            token = jnp.zeros((1, 1, width))
            keys = jax.random.split(key, self.depth)
            return jax.vmap(lambda key: block.init(key, token)["params"])(keys)

        def step(x: jax.Array, params):
            return block.apply({"params": params}, x), None

        if self.remat:
            step = jax.checkpoint(step, prevent_cse=not self.scan)
        # Boxed, where they are: each block's are opened within the loop.
        blocks = self.param("blocks", init, unbox=False)
        maps, start = {}, 0
        for tap in sorted(set(self.taps)):
            between = jax.tree.map(lambda leaf, part=slice(start, tap + 1): leaf[part], blocks)
            x, _ = jax.lax.scan(step, x, between, unroll=not self.scan)
            maps[tap] = x[:, -h * w :].reshape(b, h, w, width)
            start = tap + 1
        return tuple(maps[tap] for tap in self.taps)


class _Block(nn.Module):
    """Attention and MLP, each on a layer norm of the tokens and added to them."""

    heads: int
    hidden: int
    epsilon: float
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        linear = partial(nn.DenseGeneral, dtype=self.dtype, kernel_init=linear_init)
        qkv = linear((3, self.heads, width // self.heads), name="qkv")(norm(name="norm_0")(x))
        attended = _attention(*(qkv[:, :, i] for i in range(3)))
        x = x + linear(width, axis=(-2, -1), name="out")(attended)
        hidden = linear(self.hidden, name="mlp_0")(norm(name="norm_1")(x))
        # Not the approximation by tanh, Flax's default.
        return x + linear(width, name="mlp_1")(nn.gelu(hidden, approximate=False))


def _attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √d) v of (B, T, heads, d) each."""
    if query.dtype != jnp.float64:
        return jax.nn.dot_product_attention(query, key, value)
    # JAX's softmax is in float32 even then.
    scores = jnp.einsum("btnd,bsnd->bnts", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(scores), value)


def resize_positions(positions: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Position embeddings (h, w, D) at another grid, (*grid, D): bilinear, corners not aligned.

    The network does it at every call; to train the embeddings at the grid of the training pictures,
    as the authors do, replace the leaf "positions" by this and set the field `grid`.

    Source: `resize_pos_embed` in `backbones/vit.py` of the SETR authors' code.
    """
    return resize(positions[None], *grid)[0]
