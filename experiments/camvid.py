"""What the recipes on the road scenes of CamVid share: the data and its augmentation."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from segjax.data.augment import Example, at_once, flip, scale_crop
from segjax.data.folder import Folder
from segjax.data.labels import CAMVID_CLASSES, CAMVID_PALETTE
from segjax.recipe import Recipe, Split


@dataclass(frozen=True, kw_only=True)
class CamVid(Recipe):
    """Road scenes of 480×360 pixels, trained on random crops at random scales.

    FOLDER holds images/{train,val} and masks/{train,val}; masks hold 0 to 10, and 11 = unlabelled.
    """

    data: Path
    """Folder with images/ and masks/."""
    batch_size: int = 8
    canvas: tuple[int, int] = (360, 480)
    crop: tuple[int, int] = (192, 192)
    evaluate_every: int = 250
    scale: tuple[float, float] = (0.5, 1.5)
    """Least and greatest factor of resizing in training."""

    def source(self, split: Split) -> Folder:
        return Folder(self.data, CAMVID_CLASSES, CAMVID_PALETTE, split=split, values=((11, 255),))

    def augment(self, key: jax.Array, example: Example) -> Example:
        crop = partial(scale_crop, size=self.crop, scale=self.scale)
        return at_once(crop, flip)(key, example)
