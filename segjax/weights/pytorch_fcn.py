"""wkentaro/pytorch-fcn's checkpoints, among them the FCN authors' networks converted from Caffe.

They are Caffe's: trained on BGR pictures in 0–255 less a mean. The table turns the first kernel, so
ours are RGB, (x - MEAN) / DEVIATION.
"""

import numpy as np

from segjax.errors import SegjaxError
from segjax.models.fcn import FCN
from segjax.models.layers import bilinear_kernel
from segjax.weights.table import Entry, Table, Tensors, bgr_conv, deconv, torch_conv

MEAN = (122.67892, 116.66877, 104.00699)
DEVIATION = (1.0, 1.0, 1.0)


def fcn(model: FCN, tensors: Tensors) -> Table:
    """`FCN32s`, `FCN16s`, `FCN8s` and `FCN8sAtOnce`.

    For other classes than the checkpoint's, name "params/*score*" in `expected`.

    Args:
        model: of the same stride; at_once=True for `FCN8sAtOnce`, whose names are those of `FCN8s`.
        tensors: of the checkpoint, to see whether its upsampling has been learned.

    Raises:
        SegjaxError: it has been learned, the model's is not.

    Source: `torchfcn/models/fcn*.py`.
    """
    names = [f"conv{block}_{i}" for block in range(1, 6) for i in range(1, 3 + (block > 2))]
    entries: dict[str, Entry] = {}
    for name in names:
        entries |= torch_conv(f"vgg16/{name}", name)
    entries["params/vgg16/conv1_1/kernel"] = Entry(("conv1_1.weight",), bgr_conv, stem=True)
    scores = ("score_fr", "score_pool4", "score_pool3")[: {32: 1, 16: 2, 8: 3}[model.stride]]
    for name in ("fc6", "fc7", *scores):
        entries |= torch_conv(name, name)
    upscores = [name for name in tensors if name.startswith("upscore")]
    if model.upsampling == "learned":
        for name in upscores:
            path = name.removesuffix(".weight")
            entries[f"params/{path}/kernel"] = Entry((name,), deconv)
        return Table(entries)
    for name in upscores:
        kernel = deconv(tensors[name])
        if not np.allclose(kernel, bilinear_kernel(len(kernel), kernel.shape[-1]), atol=1e-5):
            raise SegjaxError(
                f"{name} is not the bilinear kernel: this upsampling has been learned, the "
                f'network\'s is {model.upsampling!r}. Give the network upsampling="learned".'
            )
    return Table(entries, unused=tuple(upscores))
