"""What the recipes on the nuclei of the Data Science Bowl 2018 share: the data and its sizes."""

from dataclasses import dataclass
from pathlib import Path

from segjax.data import layouts
from segjax.data.pipeline import Source
from segjax.recipe import Recipe, Split


@dataclass(frozen=True, kw_only=True)
class DSB2018(Recipe):
    """Nuclei against background, on crops of 96×96 pixels.

    FOLDER holds images/ and masks_instance/, 16-bit PNGs of instance numbers, and two lists of
    stems, train.txt and val.txt; of pictures of very different sizes, list those that the canvas
    fits closely.
    """

    data: Path
    """Folder with images/, masks_instance/, train.txt and val.txt."""
    steps: int = 400
    batch_size: int = 16
    canvas: tuple[int, int] = (256, 320)
    crop: tuple[int, int] = (96, 96)
    evaluate_every: int = 200
    learning_rate: float = 3e-3
    scale: tuple[float, float] = (0.75, 1.5)
    """Least and greatest factor of resizing in training."""

    def source(self, split: Split) -> Source:
        return layouts.nuclei(self.data, split)
