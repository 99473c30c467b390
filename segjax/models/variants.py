"""The networks by the names that they have in the papers, at the papers' sizes."""

from typing import Any, NamedTuple

from segjax.models.fcn import FCN, FCNAlexNet, FCNGoogLeNet
from segjax.models.setr import SETRMLA, SETRPUP, SETRNaive
from segjax.models.unet import UNet
from segjax.models.unetplusplus import UNetPlusPlus


class Variant(NamedTuple):
    """A network and the pictures that its paper gives it: side in pixels, channels."""

    network: Any
    side: int
    channels: int = 3


_BASE: dict[str, Any] = {"depth": 12, "width": 768, "heads": 12, "grid": (32, 32)}

VARIANTS: dict[str, Variant] = {
    "FCN-32s": Variant(FCN(21, stride=32), 500),
    "FCN-16s": Variant(FCN(21, stride=16), 500),
    "FCN-8s": Variant(FCN(21), 500),
    "FCN-8s at once": Variant(FCN(21, at_once=True), 500),
    "FCN-8s, same": Variant(FCN(21, padding="same"), 500),
    "FCN-32s AlexNet": Variant(FCNAlexNet(21), 500),
    "FCN-32s GoogLeNet": Variant(FCNGoogLeNet(21), 500),
    "U-Net": Variant(UNet(2, padding="valid", norm="none", dropout=0.5), 572, 1),
    "U-Net, released": Variant(
        UNet(2, padding="valid", norm="none", dropout=0.5, up="released"), 572, 1
    ),
    "U-Net, same": Variant(UNet(2), 512, 1),
    **{
        f"U-Net++ L{level}": Variant(
            UNetPlusPlus(
                1,
                widths=(32, 64, 128, 256, 512)[: level + 1],
                norm="none",
                deep_supervision=False,
                dropout=0.5,
            ),
            96,
            1,
        )
        for level in (1, 2, 3, 4)
    },
    "SETR-Naive": Variant(SETRNaive(150, grid=(32, 32)), 512),
    "SETR-PUP": Variant(SETRPUP(150, grid=(32, 32)), 512),
    "SETR-MLA": Variant(SETRMLA(150, grid=(32, 32)), 512),
    "SETR-Naive-Base": Variant(SETRNaive(150, auxiliary_taps=(2, 5, 8), **_BASE), 512),
    "SETR-PUP-Base": Variant(SETRPUP(150, auxiliary_taps=(4, 7, 9, 11), **_BASE), 512),
    "SETR-MLA-Base": Variant(SETRMLA(150, taps=(2, 5, 8, 11), **_BASE), 512),
}
