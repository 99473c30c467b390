"""Layouts of Vision Transformers: which of their tensors is which leaf of our encoder.

Each function takes the encoder (`ViT`, or the property `encoder` of a SETR) and two names: `path`,
where its leaves lie in our variables ("params/vit" within a SETR), and `prefix`, what stands in
front of the foreign names. Position embeddings keep the grid of the file: set the field `grid` to
it, or resize the leaf afterwards by `resize_positions`.

They take RGB pictures, (x - MEAN) / DEVIATION of values in 0–255, save DeiT's and those within a
SETR, which have the numbers of `weights.setr`.

Ours ends before the final norm: `expected` names what a file has behind it, as each function says;
the file's class token, where the encoder has none; and, within a SETR, our heads.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from segjax.errors import SegjaxError
from segjax.models.vit import ViT
from segjax.weights.table import Entry, Table, conv, linear, same

MEAN = (127.5, 127.5, 127.5)
DEVIATION = (127.5, 127.5, 127.5)


class _Names(NamedTuple):
    """What a layout calls the parts; those of a block with {} for its number."""

    patch: str
    norm_0: str
    qkv: tuple[str, ...]  # one tensor for all three, or one for each
    out: str
    norm_1: str
    mlp_0: str
    mlp_1: str
    class_token: str
    positions: str


class _Style(NamedTuple):
    """How a framework ends the names and lays out the axes; `qkv` take as many as names say."""

    scale: str
    kernel: str
    conv: Callable[..., np.ndarray]
    linear: Callable[..., np.ndarray]
    qkv_kernel: Callable[..., np.ndarray]
    qkv_bias: Callable[..., np.ndarray]
    out_kernel: Callable[..., np.ndarray]


def _torch(heads: int) -> _Style:
    """Rows of a linear weight are outputs: all of q, then k, then v, each head after head."""

    def split(tensor: np.ndarray) -> np.ndarray:
        return tensor.reshape(*tensor.shape[:-1], 3, heads, -1)

    return _Style(
        scale="weight",
        kernel="weight",
        conv=conv,
        linear=linear,
        qkv_kernel=lambda *tensors: split(np.concatenate(tensors).T),
        qkv_bias=lambda *tensors: split(np.concatenate(tensors)),
        out_kernel=lambda tensor: tensor.T.reshape(heads, -1, len(tensor)),
    )


_FLAX = _Style(
    scale="scale",
    kernel="kernel",
    conv=same,
    linear=same,
    qkv_kernel=lambda *tensors: np.stack(tensors, axis=1),
    qkv_bias=lambda *tensors: np.stack(tensors),
    out_kernel=same,
)


def _entries(vit: ViT, path: str, names: _Names, style: _Style) -> dict[str, Entry]:
    """The entries of the patches and the blocks."""
    entries = {
        f"{path}/patch/kernel": Entry((names.patch + style.kernel,), style.conv, stem=True),
        f"{path}/patch/bias": Entry((names.patch + "bias",), same),
    }

    def add(leaf: str, parts: tuple[str, ...], convert: Callable[..., np.ndarray]) -> None:
        def stack(*tensors: np.ndarray) -> np.ndarray:
            if "{}" not in parts[0]:  # stacked in the file, as ours
                return np.stack([convert(*block) for block in zip(*tensors, strict=True)])
            n = len(parts)
            return np.stack([convert(*tensors[i : i + n]) for i in range(0, len(tensors), n)])

        every = [part.format(i) for i in range(vit.depth) for part in parts]
        entries[f"{path}/blocks/{leaf}"] = Entry(tuple(dict.fromkeys(every)), stack)

    for leaf, part in (("norm_0", names.norm_0), ("norm_1", names.norm_1)):
        add(f"{leaf}/scale", (part + style.scale,), same)
        add(f"{leaf}/bias", (part + "bias",), same)
    add("qkv/kernel", tuple(part + style.kernel for part in names.qkv), style.qkv_kernel)
    add("qkv/bias", tuple(part + "bias" for part in names.qkv), style.qkv_bias)
    for leaf, part, convert in (
        ("out", names.out, style.out_kernel),
        ("mlp_0", names.mlp_0, style.linear),
        ("mlp_1", names.mlp_1, style.linear),
    ):
        add(f"{leaf}/kernel", (part + style.kernel,), convert)
        add(f"{leaf}/bias", (part + "bias",), same)
    return entries


def _table(
    vit: ViT, path: str, names: _Names, style: _Style, *, class_position: bool = True
) -> Table:
    """The whole table; `class_position`: the first of the file's positions is the class token's."""
    first = int(class_position)

    def to_grid(tensor: np.ndarray) -> np.ndarray:
        """(1, N, D) -> (rows, columns, D); the file does not say its grid: square where it can."""
        tokens = tensor[0, first:]
        side = math.isqrt(len(tokens))
        if side**2 == len(tokens) and vit.grid != (side, side):
            raise SegjaxError(
                f"a {side}×{side} grid: build the network with grid=({side}, {side}); it resizes "
                "positions itself"
            )
        return tokens.reshape(*vit.grid, -1)

    entries = _entries(vit, path, names, style)
    entries[f"{path}/positions"] = Entry((names.positions,), to_grid)
    if vit.class_token:
        entries[f"{path}/class_token"] = Entry((names.class_token,), lambda tensor: tensor[0, 0])
        entries[f"{path}/class_position"] = Entry(
            (names.positions,), lambda tensor: tensor[0, 0] * first
        )
    return Table(entries)


def timm(vit: ViT, *, path: str = "params", prefix: str = "") -> Table:
    """timm's, DeiT's and, with prefix "backbone.", the SETR authors' `.pth`.

    Usually left over: "norm.*", "pre_logits.*", "head.*".
    """
    block = prefix + "blocks.{}."
    names = _Names(
        patch=prefix + "patch_embed.proj.",
        norm_0=block + "norm1.",
        qkv=(block + "attn.qkv.",),
        out=block + "attn.proj.",
        norm_1=block + "norm2.",
        mlp_0=block + "mlp.fc1.",
        mlp_1=block + "mlp.fc2.",
        class_token=prefix + "cls_token",
        positions=prefix + "pos_embed",
    )
    return _table(vit, path, names, _torch(vit.heads))


def mmsegmentation(vit: ViT, *, path: str = "params", prefix: str = "backbone.") -> Table:
    """mmsegmentation's `VisionTransformer`.

    Trap: its releases from 1.0 build the patches without a bias by default. For weights that were
    trained so, name our leaf "params/vit/patch/bias" in `expected`: it starts at zero.
    """
    block = prefix + "layers.{}."
    names = _Names(
        patch=prefix + "patch_embed.projection.",
        norm_0=block + "ln1.",
        qkv=(block + "attn.attn.in_proj_",),
        out=block + "attn.attn.out_proj.",
        norm_1=block + "ln2.",
        mlp_0=block + "ffn.layers.0.0.",
        mlp_1=block + "ffn.layers.1.",
        class_token=prefix + "cls_token",
        positions=prefix + "pos_embed",
    )
    return _table(vit, path, names, _torch(vit.heads))


def hugging_face(vit: ViT, *, path: str = "params", prefix: str = "vit.") -> Table:
    """The files of Hugging Face's ViT, whose layer norms have epsilon=1e-12.

    The prefix is "vit." for a classifier and empty for the bare model. In memory the tensors have
    other names from transformers 5 on; `save_pretrained` writes these. Usually left over:
    "vit.layernorm.*", "vit.pooler.*", "classifier.*".
    """
    block = prefix + "encoder.layer.{}."
    attention = block + "attention.attention."
    names = _Names(
        patch=prefix + "embeddings.patch_embeddings.projection.",
        norm_0=block + "layernorm_before.",
        qkv=(attention + "query.", attention + "key.", attention + "value."),
        out=block + "attention.output.dense.",
        norm_1=block + "layernorm_after.",
        mlp_0=block + "intermediate.dense.",
        mlp_1=block + "output.dense.",
        class_token=prefix + "embeddings.cls_token",
        positions=prefix + "embeddings.position_embeddings",
    )
    return _table(vit, path, names, _torch(vit.heads))


def vision_transformer(vit: ViT, *, path: str = "params", prefix: str = "") -> Table:
    """The `.npz` files of google-research/vision_transformer.

    Usually left over: "Transformer/encoder_norm/*", "pre_logits/*", "head/*".

    Trap: the Flax networks approximate GELU by tanh; ours, as SETR, does not.
    """
    block = prefix + "Transformer/encoderblock_{}/"
    names = _flax_names(prefix, block, attention=1, norm=2, mlp=3)
    names = names._replace(positions=prefix + "Transformer/posembed_input/pos_embedding")
    return _table(vit, path, names, _FLAX)


def big_vision(
    vit: ViT, *, path: str = "params", prefix: str = "params/", scan: bool = False
) -> Table:
    """The `.npz` files of google-research/big_vision; those with `scan` are stacked over depth.

    The position of the class token is added to it in the file, so that our leaf of that position is
    zero. Files without a class token need ours in `expected`. Usually left over:
    "params/Transformer/encoder_norm/*", "params/pre_logits/*", "params/head/*",
    "params/MAPHead_0/*". GELU is as above.
    """
    block = prefix + ("Transformer/encoderblock/" if scan else "Transformer/encoderblock_{}/")
    names = _flax_names(prefix, block, attention=0, norm=1, mlp=0)
    return _table(vit, path, names, _FLAX, class_position=False)


def _flax_names(prefix: str, block: str, *, attention: int, norm: int, mlp: int) -> _Names:
    """Modules are numbered by their kind in big_vision and through all kinds in the older one."""
    attend = f"{block}MultiHeadDotProductAttention_{attention}/"
    return _Names(
        patch=prefix + "embedding/",
        norm_0=block + "LayerNorm_0/",
        qkv=(attend + "query/", attend + "key/", attend + "value/"),
        out=attend + "out/",
        norm_1=f"{block}LayerNorm_{norm}/",
        mlp_0=f"{block}MlpBlock_{mlp}/Dense_0/",
        mlp_1=f"{block}MlpBlock_{mlp}/Dense_1/",
        class_token=prefix + "cls",
        positions=prefix + "pos_embedding",
    )
