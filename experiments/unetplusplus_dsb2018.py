"""U-Net++ on the nuclei of the Data Science Bowl 2018, one of its paper's data sets."""

from dataclasses import dataclass
from pathlib import Path

import jax

from segjax import losses
from segjax.data.augment import random_flip, random_scale_crop
from segjax.data.folder import Folder
from segjax.experiment import Recipe, Split, main
from segjax.models import Output, UNetPlusPlus


@dataclass(frozen=True, kw_only=True)
class UNetPlusPlusDSB2018(Recipe):
    """Nuclei against background, with one loss for each of the heads, on crops of 96×96 pixels.

    python experiments/unetplusplus_dsb2018.py train --data FOLDER

    FOLDER holds images/ and masks_instance/, 16-bit PNGs of instance numbers, and two lists of
    stems, train.txt and val.txt; of pictures of very different sizes, list those that the canvas
    fits closely. The paper's widths: --widths 32 64 128 256 512.
    """

    data: Path
    """Folder with images/, masks_instance/, train.txt and val.txt."""
    steps: int = 400
    batch_size: int = 16
    canvas: tuple[int, int] = (256, 320)
    crop: tuple[int, int] = (96, 96)
    evaluate_every: int = 200
    learning_rate: float = 3e-3
    widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Channels of the levels."""
    instances: int = 1000
    """Greatest number of an instance in a mask."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Least and greatest factor of resizing in training."""

    def model(self) -> UNetPlusPlus:
        return UNetPlusPlus(2, widths=self.widths, dtype=self.compute)

    def source(self, split: Split) -> Folder:
        return Folder(
            self.data,
            classes=("background", "nucleus"),
            palette=((20, 20, 40), (240, 200, 80)),
            split=split,
            values=tuple((number, 1) for number in range(2, self.instances + 1)),
            masks="masks_instance",
        )

    def augment(
        self, key: jax.Array, image: jax.Array, label: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        crop, across, down = jax.random.split(key, 3)
        image, label = random_scale_crop(crop, image, label, size=self.crop, scale=self.scale)
        image, label = random_flip(across, image, label)
        return random_flip(down, image, label, axis=0)

    def loss(self, output: Output, labels: jax.Array) -> jax.Array:
        heads = [losses.cross_entropy(logits, labels) for logits in output.auxiliary]
        return sum(heads[1:], heads[0])


if __name__ == "__main__":
    main(UNetPlusPlusDSB2018)
