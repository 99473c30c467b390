"""U-Net on the electron micrographs of the ISBI 2012 challenge, as published."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import optax

from segjax.data import layouts
from segjax.data.augment import Example, compose, random_elastic, random_rotation, random_scale_crop
from segjax.data.colour import random_grey_values
from segjax.data.pipeline import Source
from segjax.data.weight_map import Weighted
from segjax.evaluation.isbi import ISBI2012
from segjax.models import UNet
from segjax.recipe import Published, Recipe, Split, main
from segjax.training import optimizers


@dataclass(frozen=True, kw_only=True)
class UNetISBI(Recipe):
    """Cells and membranes, one tile of 572×572 a step, of which the middle 388×388 are predicted.

    $ python experiments/papers/unet_isbi.py train --data FOLDER
    $ python -m segjax evaluate runs/unet_isbi --views flip,rotations

    FOLDER holds train-volume.tif and train-labels.tif, as the challenge hands them out. The paper
    trains on all 30 slices and is scored on 30 others, whose truth is secret: here the last 6 are
    held out. It leaves open the learning rate, its schedule and the number of steps (10 hours on
    a Titan), how large shifts and changes of grey values are, where the 3×3 grid lies, and by what
    angles the 7 versions are rotated that its test averages: the second command averages 8.
    """

    published = tuple(
        Published(
            value=value,
            metric=f"isbi_{error}_error",
            split="the challenge's 30 test slices",
            source="Ronneberger, Fischer and Brox 2015, table 1",
        )
        for error, value in {"warping": 0.000353, "rand": 0.0382, "pixel": 0.0611}.items()
    )

    data: Path
    """Folder with train-volume.tif and train-labels.tif."""
    steps: int = 60_000
    batch_size: int = 1
    canvas: tuple[int, int] = (512, 512)
    crop: tuple[int, int] = (572, 572)
    channels: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    evaluate_every: int = 1000
    held_out: int = 6
    """Slices held out, the last ones."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels of the levels."""
    momentum: float = 0.99
    """Of the gradient descent."""
    dropout: float = 0.5
    """Rate after the two lowest levels of the contracting path."""
    weighted: bool = True
    """Whether pixels are weighted by the map of balanced classes and borders between cells."""
    elastic: float = 10.0
    """Deviation of the displacements on the 3×3 grid, in pixels; 0 for none."""

    def model(self) -> UNet:
        return UNet(
            2,
            widths=self.widths,
            padding="valid",
            norm="none",
            dropout=self.dropout,
            dtype=self.compute,
        )

    def source(self, split: Split) -> Source:
        train = split == "train"
        part = (None, -self.held_out) if train else (-self.held_out, None)
        slices = layouts.isbi(self.data, part)
        return Weighted(slices) if self.weighted and train else slices

    def augment(self, key: jax.Array, example: Example) -> Example:
        return compose(
            partial(random_elastic, sigma=self.elastic),
            random_rotation,
            partial(random_scale_crop, size=self.crop, scale=(1, 1)),
            random_grey_values,
        )(key, example)

    def schedule(self) -> optimizers.Schedule:
        return optimizers.polynomial(self.learning_rate, steps=self.steps, power=0.9)

    def optimizer(self) -> optax.GradientTransformation:
        return optimizers.sgd(momentum=self.momentum, weight_decay=self.weight_decay)

    def measure(self) -> ISBI2012:
        return ISBI2012()


if __name__ == "__main__":
    main(UNetISBI)
