"""Layouts of SETR: the authors' and mmsegmentation's checkpoints.

They take RGB pictures, (x - MEAN) / DEVIATION of values in 0–255: ImageNet's, though the encoder
they started from has those of `weights.vit`. For other classes than the checkpoint's, name
"params/*logits/*" in `expected`, of an MLA also "params/auxiliary_*"; an MLA leaves
"backbone.cls_token" over.
"""

import numpy as np

from segjax.models.setr import SETRMLA, SETRNaive
from segjax.weights import vit
from segjax.weights.table import Entry, Table, conv, same, torch_conv, torch_norm
from segjax.weights.torchvision import DEVIATION as DEVIATION
from segjax.weights.torchvision import MEAN as MEAN

COUNTERS = "*.num_batches_tracked"


def authors(model: SETRNaive | SETRMLA) -> Table:
    """The `.pth` files of fudan-zvg/SETR, of all three decoders.

    The bias that theirs have before a batch norm is taken from its mean. Their heads hold a second
    classifier that nothing uses and that is left over: "*_head.*conv_seg.*".
    """
    encoder = vit.timm(model.encoder, path="params/vit", prefix="backbone.")
    entries = dict(encoder.entries)
    if isinstance(model, SETRMLA):
        for i in range(len(model.taps)):
            p = i + 2
            entries |= (
                _layer_norm(f"norm_{i}", f"backbone.norm_{i}")
                | _conv_norm(
                    f"project_{i}", f"backbone.mla.mla_p{p}_1x1.0", f"backbone.mla.mla_p{p}_1x1.1"
                )
                | _conv_norm(f"mix_{i}", f"backbone.mla.mla_p{p}.0", f"backbone.mla.mla_p{p}.1")
            )
            head = f"decode_head.mlahead.head{p}"
            for k in range(2):
                entries |= _conv_norm(f"stream_{i}_{k}", f"{head}.{3 * k}", f"{head}.{3 * k + 1}")
            auxiliary = f"auxiliary_head.{i}.aux"
            entries |= torch_conv(f"auxiliary_{i}", auxiliary, bias=False)
            entries[f"params/auxiliary_{i}/bias"] = Entry(
                (f"{auxiliary}.weight",), lambda kernel: np.zeros(len(kernel))
            )
        entries |= torch_conv("logits", "decode_head.cls")
    else:
        for ours, theirs, scales in _heads(model):
            entries |= _layer_norm(f"{ours}/norm", f"{theirs}.norm")
            for i in range(len(scales)):
                entries |= _conv_norm(
                    f"{ours}/conv_{i}", f"{theirs}.conv_{i}", f"{theirs}.syncbn_fc_{i}", bias=True
                )
            entries |= torch_conv(f"{ours}/logits", f"{theirs}.conv_{len(scales)}")
    return Table(entries, unused=(COUNTERS,))


def mmsegmentation(model: SETRNaive | SETRMLA) -> Table:
    """The `.pth` files of mmsegmentation, of all three decoders; see `vit.mmsegmentation`.

    The fields of the network that they need stand in its description.
    """
    encoder = vit.mmsegmentation(model.encoder, path="params/vit")
    entries = dict(encoder.entries)
    if isinstance(model, SETRMLA):
        last = len(model.taps) - 1
        for i in range(last + 1):
            # Trap: from the neck's second convolutions on, theirs are counted from the deepest tap.
            j = last - i
            entries |= _layer_norm(f"norm_{i}", f"neck.norm.{i}")
            entries |= _conv_module(f"project_{i}", f"neck.mla.channel_proj.{i}")
            entries |= _conv_module(f"mix_{i}", f"neck.mla.feat_extract.{j}")
            for k in range(2):
                entries |= _conv_module(f"stream_{i}_{k}", f"decode_head.up_convs.{j}.{k}")
            entries |= torch_conv(f"auxiliary_{i}", f"auxiliary_head.{j}.conv_seg")

        def reverse(kernel: np.ndarray) -> np.ndarray:
            """The classifier, whose input channels are their streams one after the other."""
            return np.concatenate(np.split(conv(kernel), last + 1, axis=2)[::-1], axis=2)

        entries["params/logits/kernel"] = Entry(("decode_head.conv_seg.weight",), reverse)
        entries["params/logits/bias"] = Entry(("decode_head.conv_seg.bias",), same)
    else:
        for ours, theirs, scales in _heads(model):
            entries |= _layer_norm(f"{ours}/norm", f"{theirs}.norm")
            for i in range(len(scales)):
                entries |= _conv_module(f"{ours}/conv_{i}", f"{theirs}.up_convs.{i}.0")
            entries |= torch_conv(f"{ours}/logits", f"{theirs}.conv_seg")
    return Table(entries, unused=(COUNTERS,))


def _heads(model: SETRNaive) -> list[tuple[str, str, tuple[int, ...]]]:
    """Our name, theirs, and the scales of every head."""
    return [("head", "decode_head", model.scales)] + [
        (f"auxiliary_{i}", f"auxiliary_head.{i}", model.auxiliary_scales)
        for i in range(len(model.auxiliary_taps))
    ]


def _layer_norm(ours: str, theirs: str) -> dict[str, Entry]:
    return {
        f"params/{ours}/scale": Entry((f"{theirs}.weight",), same),
        f"params/{ours}/bias": Entry((f"{theirs}.bias",), same),
    }


def _conv_norm(ours: str, conv: str, norm: str, *, bias: bool = False) -> dict[str, Entry]:
    """A convolution, with a bias or not, and its batch norm."""
    entries = torch_conv(f"{ours}/conv", conv, bias=False) | torch_norm(f"{ours}/norm", norm)
    if bias:  # norm(x + bias; mean) = norm(x; mean - bias)
        entries[f"batch_stats/{ours}/norm/mean"] = Entry(
            (f"{norm}.running_mean", f"{conv}.bias"), np.subtract
        )
    return entries


def _conv_module(ours: str, theirs: str) -> dict[str, Entry]:
    """mmcv's ConvModule."""
    return _conv_norm(ours, f"{theirs}.conv", f"{theirs}.bn")
