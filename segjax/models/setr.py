"""SETR (Zheng et al. 2021): a Vision Transformer with one of three decoders."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from segjax.models.geometry import Geometry
from segjax.models.layers import Output, at_least_float32, resize
from segjax.models.module import Module
from segjax.models.vit import LayerNorm, ViT, conv_init, sharding_rules


class _SETR(Module):
    """What the three have in common: the encoder's fields and the sizes they take."""

    num_classes: int
    depth: int = 24
    width: int = 1024
    heads: int = 16
    patch: int = 16
    grid: tuple[int, int] = (24, 24)
    channels: int = 256
    epsilon: float = 1e-6
    scan: bool = True
    remat: bool = False
    dtype: DTypeLike | None = None

    sharding_rules = sharding_rules

    @property
    def geometry(self) -> Geometry:
        """Whole patches; every output pixel depends on the whole picture."""
        return Geometry(self.patch, self.patch, self.patch, halo=None, context=None)

    def _vit(self, taps: tuple[int, ...], *, class_token: bool) -> ViT:
        return ViT(
            taps,
            self.depth,
            self.width,
            self.heads,
            patch=self.patch,
            grid=self.grid,
            class_token=class_token,
            epsilon=self.epsilon,
            scan=self.scan,
            remat=self.remat,
            dtype=self.dtype,
            parent=None,
        )


class SETRNaive(_SETR):
    """SETR-Naïve: one 1×1 convolution, the classifier, and one bilinear enlargement.

    head = resize(classifier([conv, batch norm, ReLU, ×scale] … (layer norm(tokens)))), where the
    classifier, 1×1, stands before the last enlargement: they commute, and it is cheaper.

    Fields:
        num_classes: N.
        depth, width, heads, patch, grid, epsilon, scan, remat: of the encoder, see `ViT`;
            ViT-Large's.
        channels: of the decoder.
        kernel: side of the decoder's convolutions.
        scales: a convolution for each number, and how much the map is enlarged after it.
        auxiliary_scales: the same, for the auxiliary heads.
        auxiliary_taps: the blocks, from 0, that have an auxiliary head.
        dtype: of the computation; parameters, batch statistics, enlargements of logits and logits
            are float32.

    ViT-Base is depth=12, width=768, heads=12, auxiliary_taps=(2, 5, 8). mmsegmentation's has
    scales=(4,), and auxiliary_scales=(4,), or (4, 4) for ADE20K.

    The paper counts 305,669,296 parameters for 150 classes at grid=(32, 32). Here are 308,824 less:
    no unused 1×1 classifier of 512 channels in each of the four heads, and no bias of 256 in the
    four convolutions before a batch norm, which takes it away again.

    Auxiliary logits are of the picture's size, as the authors' loss takes them; under jit those
    that nobody uses are not computed.

    Source: the authors' `vit_up_head.py` and `configs/SETR`.
    """

    kernel: int = 1
    scales: tuple[int, ...] = (1,)
    auxiliary_scales: tuple[int, ...] = (1,)
    auxiliary_taps: tuple[int, ...] = (9, 14, 19)

    @property
    def encoder(self) -> ViT:
        """The encoder as a module of its own; its variables lie in "vit"."""
        return self._vit((*self.auxiliary_taps, self.depth - 1), class_token=True)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Output:
        """(B, H, W, C) normalised images -> logits (B, H, W, N), auxiliary ones of that size."""
        _, height, width, _ = images.shape
        self.geometry.check(height, width)

        def logits(x: jax.Array, scales: tuple[int, ...], name: str) -> jax.Array:
            head = _UpHead(
                self.num_classes, self.channels, self.kernel, scales, train, self.dtype, name=name
            )
            return resize(head(x), height, width)

        *taps, last = self.encoder.copy(name="vit")(images)
        auxiliary = tuple(
            logits(x, self.auxiliary_scales, f"auxiliary_{i}") for i, x in enumerate(taps)
        )
        return Output(logits(last, self.scales, "head"), auxiliary)


class SETRPUP(SETRNaive):
    """SETR-PUP: progressive upsampling by 2 after each of four 3×3 convolutions.

    Fields: those of `SETRNaive`, with other defaults. An auxiliary head has one convolution, is
    enlarged by 4, classified and resized; the last block has one as well.

    ViT-Base is depth=12, width=768, heads=12 and the authors' DeiT auxiliary_taps=(4, 7, 9, 11).
    mmsegmentation's has auxiliary_taps=(9, 14, 19), and for ADE20K auxiliary_scales=(4, 4).
    The paper counts 318,307,292 parameters; here are 386,798 less, for five heads and eight
    convolutions, see `SETRNaive`.
    """

    kernel: int = 3
    scales: tuple[int, ...] = (2, 2, 2, 2)
    auxiliary_scales: tuple[int, ...] = (4,)
    auxiliary_taps: tuple[int, ...] = (9, 14, 19, 23)


class SETRMLA(_SETR):
    """SETR-MLA: the maps of four blocks, summed from the deepest up, meet in one classifier.

        t_i = [1×1 conv, batch norm, ReLU](layer norm(tokens_i)), m_i = t_i + m_(i+1)
        p_i = [3×3 conv, batch norm, ReLU](m_i), s_i = ×4 of [3×3 conv, batch norm, ReLU]²(p_i)
        logits = resize(classifier(s_1 … s_n concatenated))

    Each p_i has an auxiliary 1×1 classifier.

    Fields:
        num_classes: N.
        depth, width, heads, patch, grid, epsilon, scan, remat: of the encoder, see `ViT`;
            ViT-Large's. No class token.
        channels: of m_i and p_i; s_i has half of them.
        taps: the blocks, from 0, whose tokens are taken.
        classifier_kernel: side, 3 as the authors' or 1 as mmsegmentation's.
        align_corners: of the enlargement by 4, True as the authors' or False as mmsegmentation's.
        dtype: of the computation; parameters, batch statistics, and logits are float32.

    ViT-Base is depth=12, width=768, heads=12, taps=(2, 5, 8, 11).

    The paper counts 310,568,836 parameters for 150 classes at grid=(32, 32). Here are 386,198 less:
    no unused classifier in each of the five heads (5 · 513 · 150), no class token and position of
    it (2 · 1024), which the authors drop before the first block, but a bias in each auxiliary
    classifier (4 · 150), as mmsegmentation's have.

    Auxiliary logits are of the picture's size; under jit those that nobody uses are not computed.

    Source: the authors' `vit_mla.py`, `vit_mla_head.py`, `vit_mla_auxi_head.py`.
    """

    taps: tuple[int, ...] = (5, 11, 17, 23)
    classifier_kernel: int = 3
    align_corners: bool = True

    @property
    def encoder(self) -> ViT:
        """The encoder as a module of its own; its variables lie in "vit"."""
        return self._vit(self.taps, class_token=False)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Output:
        """(B, H, W, C) normalised images -> logits (B, H, W, N), auxiliary ones of that size."""
        _, height, width, _ = images.shape
        self.geometry.check(height, width)

        def conv(x: jax.Array, features: int, kernel: int, name: str) -> jax.Array:
            return _ConvNorm(features, kernel, train, self.dtype, name=name)(x)

        def classify(x: jax.Array, kernel: int, name: str) -> jax.Array:
            return resize(_classify(x, self.num_classes, kernel, self.dtype, name), height, width)

        maps = self.encoder.copy(name="vit")(images)
        total: jax.Array | float = 0.0
        streams, auxiliary = [], []
        for i in reversed(range(len(maps))):
            x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"norm_{i}")(maps[i])
            total = total + conv(x, self.channels, 1, f"project_{i}")
            x = conv(total, self.channels, 3, f"mix_{i}")
            auxiliary.append(classify(x, 1, f"auxiliary_{i}"))
            for k in range(2):
                x = conv(x, self.channels // 2, 3, f"stream_{i}_{k}")
            _, h, w, _ = x.shape
            streams.append(resize(x, 4 * h, 4 * w, align_corners=self.align_corners))
        joined = jnp.concatenate(streams[::-1], axis=-1)
        logits = classify(joined, self.classifier_kernel, "logits")
        return Output(logits, tuple(auxiliary[::-1]))


class _UpHead(nn.Module):
    """Layer norm, convolutions with an enlargement after each, and a 1×1 classifier."""

    num_classes: int
    channels: int
    kernel: int
    scales: tuple[int, ...]
    train: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h, w, D) -> (B, h · all scales, w · all scales, N) float32."""
        x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        for i, scale in enumerate(self.scales):
            x = _ConvNorm(self.channels, self.kernel, self.train, self.dtype, name=f"conv_{i}")(x)
            if i == len(self.scales) - 1:
                x = _classify(x, self.num_classes, 1, self.dtype, "logits")
            _, h, w, _ = x.shape
            x = resize(x, scale * h, scale * w)
        return x


class _ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    features: int
    kernel: int
    train: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=conv_init,
            name="conv",
        )(x)
        # No axis_name: under jit the batch is the global one, which is sync-BN.
        x = nn.BatchNorm(
            use_running_average=not self.train, momentum=0.9, dtype=self.dtype, name="norm"
        )(x)
        return nn.relu(x)


def _classify(
    x: jax.Array, num_classes: int, kernel: int, dtype: DTypeLike | None, name: str
) -> jax.Array:
    """Scores, float32, by a convolution that joins the module that is being built."""
    conv = nn.Conv(num_classes, (kernel, kernel), dtype=dtype, kernel_init=conv_init, name=name)
    return at_least_float32(conv(x))
