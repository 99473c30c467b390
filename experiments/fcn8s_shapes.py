"""FCN-8s on the built-in data set, at a size that a laptop carries."""

from dataclasses import dataclass

import jax

from segjax.data.augment import Example, random_flip
from segjax.data.shapes import CLASSES, Shapes
from segjax.models import FCN
from segjax.recipe import Recipe, Split, main


@dataclass(frozen=True, kw_only=True)
class FCN8sShapes(Recipe):
    """FCN-8s from random weights, its VGG16 and classifier narrowed, on drawn shapes.

    $ python experiments/fcn8s_shapes.py train

    The paper's own widths: --widths 64 128 256 512 512 --classifier-width 4096.
    """

    steps: int = 1000
    batch_size: int = 16
    canvas: tuple[int, int] = (64, 64)
    crop: tuple[int, int] = (64, 64)
    evaluate_every: int = 250
    widths: tuple[int, int, int, int, int] = (16, 32, 64, 128, 128)
    """Channels of VGG16's blocks."""
    classifier_width: int = 256
    """Channels of fc6 and fc7."""
    pictures: int = 10_000
    """Pictures to train on."""
    held_out: int = 200
    """Pictures to evaluate on."""

    def model(self) -> FCN:
        return FCN(
            len(CLASSES),
            padding="same",
            widths=self.widths,
            classifier_width=self.classifier_width,
            dtype=self.compute,
        )

    def source(self, split: Split) -> Shapes:
        if split == "train":
            return Shapes(self.pictures, size=self.canvas, seed=2 * self.seed)
        return Shapes(self.held_out, size=self.canvas, seed=2 * self.seed + 1)

    def augment(self, key: jax.Array, example: Example) -> Example:
        return random_flip(key, example)


if __name__ == "__main__":
    main(FCN8sShapes)
