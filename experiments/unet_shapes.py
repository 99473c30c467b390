"""U-Net on the built-in data set, which needs no files."""

from dataclasses import dataclass

import jax

from segjax.data.augment import Example, random_flip
from segjax.data.shapes import CLASSES, Shapes
from segjax.models import UNet
from segjax.recipe import Recipe, Split, main


@dataclass(frozen=True, kw_only=True)
class UNetShapes(Recipe):
    """A small U-Net learns to tell six shapes from a background, and from each other.

    $ python experiments/unet_shapes.py train
    """

    steps: int = 700
    batch_size: int = 16
    canvas: tuple[int, int] = (64, 64)
    crop: tuple[int, int] = (64, 64)
    evaluate_every: int = 350
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the U-Net's levels."""
    learning_rate: float = 5e-3
    pictures: int = 10_000
    """Pictures to train on."""
    held_out: int = 200
    """Pictures to evaluate on."""

    def model(self) -> UNet:
        return UNet(len(CLASSES), widths=self.widths, dtype=self.compute)

    def source(self, split: Split) -> Shapes:
        if split == "train":
            return Shapes(self.pictures, size=self.canvas, seed=2 * self.seed)
        return Shapes(self.held_out, size=self.canvas, seed=2 * self.seed + 1)

    def augment(self, key: jax.Array, example: Example) -> Example:
        return random_flip(key, example)


if __name__ == "__main__":
    main(UNetShapes)
