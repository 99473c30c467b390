"""torchvision's ImageNet classifiers as the trunks and dense layers of the FCNs.

They take RGB pictures, (x - MEAN) / DEVIATION of values in 0–255; GoogLeNet GOOGLENET_MEAN and
GOOGLENET_DEVIATION, which is what torchvision's `transform_input` makes of the others.

They tell ImageNet's 1000 classes apart. For other classes `fill` needs `expected` to name our score
layers and learned enlargements, "params/*score*", and the last dense layer that is left over.
"""

from typing import Literal

from segjax.models.fcn import FCN, FCNAlexNet, FCNGoogLeNet
from segjax.models.layers import dense_to_conv
from segjax.weights.table import (
    Entry,
    Table,
    bgr_conv,
    conv,
    linear,
    same,
    torch_conv,
    torch_norm,
)

MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)
GOOGLENET_MEAN = (127.5, 127.5, 127.5)
GOOGLENET_DEVIATION = (127.5, 127.5, 127.5)


def vgg16(model: FCN, *, order: Literal["rgb", "bgr"] = "rgb") -> Table:
    """`vgg16`: trunk, fc6 and fc7; with 1000 classes score_fr too.

    Usually left over: "classifier.6.*"; with classifier_width=None "classifier.*".

    Args:
        model: of the weights' widths.
        order: of the colours that the weights were trained on. "bgr" is that of Caffe's weights in
            this layout, pytorch-fcn's `vgg16_from_caffe.pth`, with the normalisation of
            `weights.pytorch_fcn`.
    """
    entries: dict[str, Entry] = {}
    index = 0
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(1, depth + 1):
            entries |= torch_conv(f"vgg16/conv{block}_{i}", f"features.{index}")
            index += 2  # a convolution and its ReLU
        index += 1  # the pooling
    convert = conv if order == "rgb" else bgr_conv
    entries["params/vgg16/conv1_1/kernel"] = Entry(("features.0.weight",), convert, stem=True)
    if model.classifier_width is not None:
        entries |= _dense("fc6", "classifier.0", 7) | _dense("fc7", "classifier.3")
        entries |= _scores(model, "classifier.6")
    return Table(entries)


def alexnet(model: FCNAlexNet) -> Table:
    """`alexnet`: trunk, fc6 and fc7; with 1000 classes score_fr too.

    Usually left over: "classifier.6.*".

    Args:
        model: with variant="torchvision" and widths=(64, 192, 384, 256, 256).
    """
    entries = _dense("fc6", "classifier.1", 6) | _dense("fc7", "classifier.4")
    for i, index in enumerate((0, 3, 6, 8, 10), 1):
        entries |= torch_conv(f"alexnet/conv{i}", f"features.{index}")
    entries["params/alexnet/conv1/kernel"] = Entry(("features.0.weight",), conv, stem=True)
    return Table(entries | _scores(model, "classifier.6"))


def googlenet(model: FCNGoogLeNet) -> Table:
    """`googlenet`: trunk; with 1000 classes score_fr too.

    Usually left over: "fc.*", and the auxiliary classifiers, "aux?.*".

    Args:
        model: with variant="torchvision".
    """
    branches = {
        "1x1": "branch1",
        "3x3_reduce": "branch2.0",
        "3x3": "branch2.1",
        "5x5_reduce": "branch3.0",
        "5x5": "branch3.1",
        "pool_proj": "branch4.1",
    }
    names = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"} | {
        f"inception_{i}/{ours}": f"inception{i}.{theirs}"
        for i in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
        for ours, theirs in branches.items()
    }
    entries: dict[str, Entry] = {}
    for ours, theirs in names.items():
        entries |= torch_conv(f"googlenet/{ours}", f"{theirs}.conv", bias=False)
        entries |= torch_norm(f"googlenet/{ours}_norm", f"{theirs}.bn")
    entries["params/googlenet/conv1/kernel"] = Entry(("conv1.conv.weight",), conv, stem=True)
    return Table(entries | _scores(model, "fc"), unused=("*.num_batches_tracked",))


def _dense(ours: str, theirs: str, side: int = 1) -> dict[str, Entry]:
    """A dense layer on a side × side map, as a convolution."""
    return {
        f"params/{ours}/kernel": Entry(
            (f"{theirs}.weight",), lambda t: dense_to_conv(linear(t), side, side, order="chw")
        ),
        f"params/{ours}/bias": Entry((f"{theirs}.bias",), same),
    }


def _scores(model: FCN | FCNAlexNet | FCNGoogLeNet, last: str) -> dict[str, Entry]:
    """The last dense layer tells ImageNet's 1000 classes apart, of no use for others."""
    return _dense("score_fr", last) if model.num_classes == 1000 else {}
