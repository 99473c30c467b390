"""The networks by the names that they have in the papers, at the papers' sizes.

python -m segjax.models.variants writes their figures anew to variants.json, which the verb `models`
shows: to compute them takes seconds, and they change only with the networks.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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

FIGURES = Path(__file__).with_name("variants.json")


def figures(variant: Variant) -> dict[str, Any]:
    """What `models` tells of a network: classes, input, parameters, GFLOPs, stride and halo.

    GFLOPs are of one prediction, two for each multiplication and addition, without auxiliary heads;
    a halo of None means that the network sees the whole picture.
    """
    network, side, channels = variant
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    return {
        "classes": network.num_classes,
        "input": [side, side, channels],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "gflops": round(_flops(network, variables, images) / 1e9, 1),
        "stride": network.geometry.stride,
        "halo": network.geometry.halo,
    }


def _flops(network: Any, variables: Any, images: jax.ShapeDtypeStruct) -> float:
    """Of a prediction, as it stands before compilation."""
    if hasattr(network, "scan"):
        network = network.clone(scan=False)  # XLA counts the body of a loop once
    logits = jax.jit(lambda variables, images: network.apply(variables, images).logits)
    found: Any = logits.lower(variables, images).cost_analysis()
    return float(found["flops"])


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(figures(VARIANTS[name]))}" for name in VARIANTS)
    FIGURES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
