"""The networks that `segjax train` offers: their fields small for a CPU, and as in the papers."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from segjax.errors import SegjaxError


class Option(NamedTuple):
    """A field of a network that its script may change: its type, what it is, two values of it.

    argument: its name as the network's argument, where that is another.
    """

    type: str
    what: str
    small: Any
    paper: Any
    argument: str = ""


class Network(NamedTuple):
    """A network as a script is to make it.

    title: its name in the paper.
    about: it in a line.
    cls: its class in `segjax.models`.
    options: by name.
    rates: AdamW's learning rate of the small one and of the paper's.
    fixed: arguments that are no options, as Python.
    heads: further logits: none; "every", a loss for each and all alike; "auxiliary", 0.4 of each.
    """

    title: str
    about: str
    cls: str
    options: Mapping[str, Option]
    rates: tuple[float, float]
    fixed: str = ""
    heads: Literal["", "every", "auxiliary"] = ""


_VGG = {
    "widths": Option(
        "tuple[int, int, int, int, int]",
        "Channels of VGG16's blocks.",
        (16, 32, 64, 128, 128),
        (64, 128, 256, 512, 512),
    ),
    "classifier_width": Option("int", "Channels of fc6 and fc7.", 256, 4096),
}
_VIT = {
    "width": Option("int", "Of a token.", 128, 1024),
    "depth": Option("int", "Transformer blocks.", 6, 24),
    "heads": Option("int", "Of the attention.", 4, 16),
    "decoder_channels": Option("int", "Of the decoder's convolutions.", 64, 256, "channels"),
}
_GRID = "grid=(self.crop[0] // 16, self.crop[1] // 16)"
_RATES = {"norm": (2e-3, 1e-3), "none": (1e-3, 1e-4), "vit": (1e-3, 1e-4)}


def _levels(small: tuple[int, ...], paper: tuple[int, ...]) -> dict[str, Option]:
    return {"widths": Option("tuple[int, ...]", "Channels of the levels.", small, paper)}


def _fcn(stride: int) -> Network:
    about = {
        32: "VGG16 as convolutions, its scores enlarged 32 times: the coarsest",
        16: "FCN-32s with the finer scores of pool4",
        8: "FCN-16s with those of pool3 too: the finest FCN",
    }[stride]
    fixed = f'stride={stride}, padding="same"'
    return Network(f"FCN-{stride}s", about, "FCN", _VGG, _RATES["none"], fixed)


def _setr(kind: str, about: str, taps: tuple[str, Any, Any]) -> Network:
    name, small, paper = taps
    what = "Blocks, from 0, with an auxiliary head." if name == "auxiliary_taps" else "Blocks used."
    options = {**_VIT, name: Option("tuple[int, ...]", what, small, paper)}
    cls = f"SETR{kind}"
    return Network(f"SETR-{kind}", about, cls, options, _RATES["vit"], _GRID, "auxiliary")


NETWORKS: dict[str, Network] = {
    "unet": Network(
        "U-Net",
        "skips at every level; the one to begin with",
        "UNet",
        _levels((16, 32, 64, 128, 256), (64, 128, 256, 512, 1024)),
        _RATES["norm"],
    ),
    "unetplusplus": Network(
        "U-Net++",
        "U-Nets of every depth in one, with a loss for each; twice as slow",
        "UNetPlusPlus",
        _levels((8, 16, 32, 64, 128), (32, 64, 128, 256, 512)),
        _RATES["norm"],
        heads="every",
    ),
    "fcn32s": _fcn(32),
    "fcn16s": _fcn(16),
    "fcn8s": _fcn(8),
    "fcn-alexnet": Network(
        "FCN-32s AlexNet",
        "AlexNet as convolutions",
        "FCNAlexNet",
        {
            "widths": Option(
                "tuple[int, int, int, int, int]",
                "Channels of AlexNet's convolutions.",
                (24, 64, 96, 96, 64),
                (96, 256, 384, 384, 256),
            ),
            "classifier_width": _VGG["classifier_width"],
        },
        _RATES["none"],
    ),
    "fcn-googlenet": Network(
        "FCN-32s GoogLeNet",
        "GoogLeNet, of one size",
        "FCNGoogLeNet",
        {},
        _RATES["none"],
    ),
    "setr-naive": _setr(
        "Naive",
        "a transformer, its tokens enlarged at once; wants many pictures",
        ("auxiliary_taps", (2, 3, 4), (9, 14, 19)),
    ),
    "setr-pup": _setr(
        "PUP",
        "a transformer, its tokens enlarged step by step; wants many pictures",
        ("auxiliary_taps", (2, 3, 4, 5), (9, 14, 19, 23)),
    ),
    "setr-mla": _setr(
        "MLA",
        "a transformer, blocks of four depths joined; wants many pictures",
        ("taps", (2, 3, 4, 5), (5, 11, 17, 23)),
    ),
}


def network(name: str) -> Network:
    """The network of a name.

    Raises:
        SegjaxError: there is none; lists all.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    lines = [f"  {key:14} {of.title}: {of.about}" for key, of in NETWORKS.items()]
    raise SegjaxError("\n".join([f"--model {name}: no such network. There are:", *lines]))
