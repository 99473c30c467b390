"""U-Net on photographs of nuclei that lie beside this script: the demo, which needs no download."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from segjax.data.augment import (
    Example,
    Normalise,
    at_once,
    compose,
    elastic,
    flip,
    rot90,
    scale_crop,
)
from segjax.data.colour import random_grey_values
from segjax.data.folder import Folder
from segjax.data.pipeline import Source
from segjax.data.weight_map import Weighted
from segjax.evaluation.baselines import Otsu
from segjax.models import UNet
from segjax.recipe import Recipe, Split, main

DARK = Normalise(mean=(13.0,), deviation=(20.0,))  # those of the photographs


@dataclass(frozen=True, kw_only=True)
class UNetNuclei(Recipe):
    """A small U-Net learns to find nuclei and to tell touching ones apart.

    $ python experiments/unet_nuclei.py train
    """

    data: Path = Path(__file__).parent / "nuclei"
    """Folder with images/, masks/ of instance numbers, train.txt and val.txt."""
    steps: int = 700
    batch_size: int = 8
    canvas: tuple[int, int] = (256, 256)
    crop: tuple[int, int] = (128, 128)
    evaluate_every: int = 100
    learning_rate: float = 5e-3
    channels: int = 1
    normalise: Normalise = DARK
    """Scaling of pixel values before the network."""
    widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Channels of the U-Net's levels."""

    def model(self) -> UNet:
        return UNet(2, widths=self.widths, dtype=self.compute)

    def source(self, split: Split) -> Source:
        nuclei = Folder(
            self.data,
            classes=("background", "nucleus"),
            palette=((0, 0, 0), (240, 160, 40)),
            split=split,
            channels=self.channels,
            instances=True,
        )
        return Weighted(nuclei, balance=False) if split == "train" else nuclei

    def augment(self, key: jax.Array, example: Example) -> Example:
        return compose(
            at_once(
                partial(scale_crop, size=self.crop, scale=(0.85, 1.15)),
                partial(elastic, sigma=4),
                rot90,
                flip,
                outside="mirror",
            ),
            partial(random_grey_values, brightness=3, contrast=(0.85, 1.2)),
        )(key, example)

    def baseline(self) -> Otsu:
        return Otsu()


if __name__ == "__main__":
    main(UNetNuclei)
