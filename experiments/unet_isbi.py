"""U-Net on the electron micrographs of the ISBI 2012 challenge, its first data set."""

from dataclasses import dataclass
from pathlib import Path

import jax

from segjax.data.augment import random_flip, random_scale_crop
from segjax.data.folder import Folder
from segjax.experiment import Recipe, Split, main
from segjax.models import UNet


@dataclass(frozen=True, kw_only=True)
class UNetISBI(Recipe):
    """Cells and membranes, the last 6 of the 30 slices held out.

    python experiments/unet_isbi.py train --data FOLDER

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

    def model(self) -> UNet:
        return UNet(2, widths=self.widths, dtype=self.compute)

    def source(self, split: Split) -> Folder:
        return Folder(
            self.data,
            classes=("membrane", "cell"),
            palette=((220, 50, 47), (238, 232, 213)),
            part=(None, -self.held_out) if split == "train" else (-self.held_out, None),
            values=((255, 1),),
            channels=self.channels,
        )

    def augment(
        self, key: jax.Array, image: jax.Array, label: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        crop, across, down = jax.random.split(key, 3)
        image, label = random_scale_crop(crop, image, label, size=self.crop, scale=self.scale)
        image, label = random_flip(across, image, label)
        return random_flip(down, image, label, axis=0)


if __name__ == "__main__":
    main(UNetISBI)
