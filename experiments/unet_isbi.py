"""U-Net on the electron micrographs of the ISBI 2012 challenge, its first data set."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from segjax.data.augment import (
    Example,
    at_once,
    compose,
    elastic,
    flip,
    rotate,
    scale_crop,
)
from segjax.data.colour import random_grey_values
from segjax.data.folder import Folder
from segjax.data.pipeline import Source
from segjax.data.weight_map import Weighted
from segjax.models import UNet
from segjax.recipe import Recipe, Split, main


@dataclass(frozen=True, kw_only=True)
class UNetISBI(Recipe):
    """Cells and membranes, the last 6 of the 30 slices held out, trained as in U-Net's paper.

    $ python experiments/unet_isbi.py train --data FOLDER

    FOLDER holds images/ and masks/ of 512×512 PNGs; masks are 255 in cells, 0 on membranes.
    """

    data: Path
    """Folder with images/ and masks/."""
    steps: int = 400
    batch_size: int = 4
    canvas: tuple[int, int] = (512, 512)
    crop: tuple[int, int] = (256, 256)
    channels: int = 1
    evaluate_every: int = 100
    held_out: int = 6
    """Slices held out, the last ones."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the U-Net's levels."""
    scale: tuple[float, float] = (0.8, 1.25)
    """Least and greatest factor of resizing in training."""
    weighted: bool = True
    """Whether pixels are weighted by U-Net's map, of balanced classes and borders between cells."""

    elastic: float = 10.0
    """Deviation of the elastic deformation's displacements, in pixels; 0 for none."""

    def model(self) -> UNet:
        return UNet(2, widths=self.widths, dtype=self.compute)

    def source(self, split: Split) -> Source:
        slices = Folder(
            self.data,
            classes=("membrane", "cell"),
            palette=((220, 50, 47), (238, 232, 213)),
            part=(None, -self.held_out) if split == "train" else (-self.held_out, None),
            values=((255, 1),),
            channels=self.channels,
        )
        return Weighted(slices) if self.weighted and split == "train" else slices

    def augment(self, key: jax.Array, example: Example) -> Example:
        return compose(
            at_once(
                partial(elastic, sigma=self.elastic),
                rotate,
                partial(scale_crop, size=self.crop, scale=self.scale),
                flip,
                outside="mirror",
            ),
            random_grey_values,
        )(key, example)


if __name__ == "__main__":
    main(UNetISBI)
