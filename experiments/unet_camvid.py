"""U-Net on the road scenes of CamVid, 11 classes."""

from dataclasses import dataclass
from pathlib import Path

import jax
import optax

from segjax import optimizers
from segjax.data.augment import random_flip, random_scale_crop
from segjax.data.folder import Folder
from segjax.data.labels import CAMVID_CLASSES, CAMVID_PALETTE
from segjax.experiment import Recipe, Split, main
from segjax.models import UNet


@dataclass(frozen=True, kw_only=True)
class UNetCamVid(Recipe):
    """Road scenes of 480×360 pixels, trained on random crops at random scales.

    python experiments/unet_camvid.py train --data FOLDER

    FOLDER holds images/{train,val} and masks/{train,val}; masks hold 0 to 10, and 11 = unlabelled.
    """

    data: Path
    """Folder with images/ and masks/."""
    steps: int = 1000
    batch_size: int = 8
    canvas: tuple[int, int] = (360, 480)
    crop: tuple[int, int] = (192, 192)
    evaluate_every: int = 250
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Channels of the U-Net's levels."""
    learning_rate: float = 2e-3
    """At its highest, after the warm-up."""
    scale: tuple[float, float] = (0.5, 1.5)
    """Least and greatest factor of resizing in training."""

    def model(self) -> UNet:
        return UNet(len(CAMVID_CLASSES), widths=self.widths, dtype=self.compute)

    def source(self, split: Split) -> Folder:
        return Folder(self.data, CAMVID_CLASSES, CAMVID_PALETTE, split=split, values=((11, 255),))

    def schedule(self) -> optimizers.Schedule:
        return optimizers.cosine(self.learning_rate, steps=self.steps, warmup=self.steps // 20)

    def optimizer(self) -> optax.GradientTransformation:
        return optimizers.adamw(weight_decay=1e-3)

    def augment(
        self, key: jax.Array, image: jax.Array, label: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        crop, flip = jax.random.split(key)
        image, label = random_scale_crop(crop, image, label, size=self.crop, scale=self.scale)
        return random_flip(flip, image, label)


if __name__ == "__main__":
    main(UNetCamVid)
