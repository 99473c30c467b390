"""U-Net on the nuclei of the Data Science Bowl 2018, told apart by its weight map."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from segjax.data.augment import (
    Example,
    compose,
    random_elastic,
    random_flip,
    random_rot90,
    random_scale_crop,
)
from segjax.data.colour import random_grey_values
from segjax.data.folder import Folder
from segjax.data.pipeline import Source
from segjax.data.weight_map import Weighted
from segjax.experiment import Recipe, Split, main
from segjax.models import UNet


@dataclass(frozen=True, kw_only=True)
class UNetDSB2018(Recipe):
    """Nuclei against background, with gaps between touching ones that weigh more than the rest.

    python experiments/unet_dsb2018.py train --data FOLDER

    FOLDER holds images/ and masks_instance/, 16-bit PNGs of instance numbers, and two lists of
    stems, train.txt and val.txt; of pictures of very different sizes, list those that the canvas
    fits closely. The held-out nuclei keep touching as they do in their masks.
    """

    data: Path
    """Folder with images/, masks_instance/, train.txt and val.txt."""
    steps: int = 400
    batch_size: int = 16
    canvas: tuple[int, int] = (256, 320)
    crop: tuple[int, int] = (96, 96)
    evaluate_every: int = 200
    learning_rate: float = 3e-3
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the U-Net's levels."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Least and greatest factor of resizing in training."""
    weighted: bool = True
    """Whether touching nuclei are parted and pixels weighted by U-Net's map."""

    def model(self) -> UNet:
        return UNet(2, widths=self.widths, dtype=self.compute)

    def source(self, split: Split) -> Source:
        nuclei = Folder(
            self.data,
            classes=("background", "nucleus"),
            palette=((20, 20, 40), (240, 200, 80)),
            split=split,
            masks="masks_instance",
            instances=True,
        )
        return Weighted(nuclei) if self.weighted and split == "train" else nuclei

    def augment(self, key: jax.Array, example: Example) -> Example:
        return compose(
            partial(random_scale_crop, size=self.crop, scale=self.scale),
            partial(random_elastic, sigma=4, outside="mirror"),
            random_rot90,
            random_flip,
            random_grey_values,
        )(key, example)


if __name__ == "__main__":
    main(UNetDSB2018)
