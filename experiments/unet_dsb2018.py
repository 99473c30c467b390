"""U-Net on the nuclei of the Data Science Bowl 2018, told apart by its weight map."""

from dataclasses import dataclass
from functools import partial

import jax
from dsb2018 import DSB2018

from segjax.data.augment import (
    Example,
    at_once,
    compose,
    elastic,
    flip,
    rot90,
    scale_crop,
)
from segjax.data.colour import random_grey_values
from segjax.data.pipeline import Source
from segjax.data.weight_map import Weighted
from segjax.models import UNet
from segjax.recipe import Split, main


@dataclass(frozen=True, kw_only=True)
class UNetDSB2018(DSB2018):
    """Nuclei against background, with gaps between touching ones that weigh more than the rest.

    $ python experiments/unet_dsb2018.py train --data FOLDER

    FOLDER holds images/ and masks_instance/, 16-bit PNGs of instance numbers, and two lists of
    stems, train.txt and val.txt; of pictures of very different sizes, list those that the canvas
    fits closely. The held-out nuclei keep touching as they do in their masks.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the U-Net's levels."""
    weighted: bool = True
    """Whether touching nuclei are parted and pixels weighted by U-Net's map."""

    def model(self) -> UNet:
        return UNet(2, widths=self.widths, dtype=self.compute)

    def source(self, split: Split) -> Source:
        nuclei = super().source(split)
        return Weighted(nuclei) if self.weighted and split == "train" else nuclei

    def augment(self, key: jax.Array, example: Example) -> Example:
        return compose(
            at_once(
                partial(scale_crop, size=self.crop, scale=self.scale),
                partial(elastic, sigma=4),
                rot90,
                flip,
            ),
            random_grey_values,
        )(key, example)


if __name__ == "__main__":
    main(UNetDSB2018)
