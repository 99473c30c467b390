"""U-Net's checkpoints: milesial/Pytorch-UNet. They take RGB pictures, (x - MEAN) / DEVIATION of
values in 0–255.
"""

import numpy as np

from segjax.models.unet import UNet
from segjax.weights.table import Entry, Table, conv, deconv, same, torch_conv, torch_norm

MEAN = (0.0, 0.0, 0.0)
DEVIATION = (255.0, 255.0, 255.0)


def milesial(model: UNet) -> Table:
    """The state dict of milesial/Pytorch-UNet, for UNet(N) or UNet(N, up="bilinear_corners").

    Theirs takes every size, because it pads the upsampled map; at the sizes that ours takes they
    are equal. For other classes than the checkpoint's, name "params/logits/*" in `expected`.

    Args:
        model: of "same" padding and batch norm.

    Source: `unet/unet_parts.py` and `unet/unet_model.py`; `mask_values` is put into the state dict
    by its `train.py`.
    """
    lowest = len(model.widths) - 1
    levels = {"down_0": "inc"}
    levels |= {f"down_{depth}": f"down{depth}.maxpool_conv.1" for depth in range(1, lowest + 1)}
    levels |= {f"up_{depth}": f"up{lowest - depth}.conv" for depth in range(lowest)}
    entries = torch_conv("logits", "outc.conv")
    for ours, theirs in levels.items():
        for i in range(2):
            block = f"{theirs}.double_conv"
            entries |= torch_conv(f"{ours}/conv_{i}", f"{block}.{3 * i}", bias=False)
            entries |= torch_norm(f"{ours}/norm_{i}", f"{block}.{3 * i + 1}")
    for depth, skip in enumerate(model.widths[:-1]):

        def up_first(tensor: np.ndarray, skip: int = skip) -> np.ndarray:
            """Theirs concatenates the skip first, ours the upsampled map."""
            return np.roll(conv(tensor), -skip, axis=2)

        level = f"up{lowest - depth}"
        first = Entry((f"{level}.conv.double_conv.0.weight",), up_first)
        entries[f"params/up_{depth}/conv_0/kernel"] = first
        if model.up == "upconv":
            entries[f"params/upconv_{depth}/kernel"] = Entry((f"{level}.up.weight",), deconv)
            entries[f"params/upconv_{depth}/bias"] = Entry((f"{level}.up.bias",), same)
    stem = Entry(("inc.double_conv.0.weight",), conv, stem=True)
    entries["params/down_0/conv_0/kernel"] = stem
    return Table(entries, unused=("mask_values", "*.num_batches_tracked"))
