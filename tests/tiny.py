"""A recipe that trains in a moment, for tests of what follows training; `trained` is its run."""

from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import numpy as np
from PIL import Image

from segjax.data.augment import random_flip
from segjax.data.folder import Folder
from segjax.models import Output
from segjax.models.geometry import Geometry
from segjax.recipe import Published, Recipe, main


class Tiny(nn.Module):
    """One convolution: what is slow is to compile, and little of that."""

    num_classes: int

    geometry = Geometry(step=1, minimum=1, stride=1, halo=0, context=(0, 0))

    @nn.compact
    def __call__(self, images, *, train=False):
        return Output(nn.Conv(self.num_classes, (1, 1))(images))


@dataclass(frozen=True, kw_only=True)
class TinyRecipe(Recipe):
    """Two classes in pictures of 16×16 pixels."""

    published = (Published(value=0.625, metric="mean_iou", split="val", source="nobody, Table 1"),)

    data: Path
    steps: int = 2
    batch_size: int = 2
    canvas: tuple[int, int] = (16, 16)
    crop: tuple[int, int] = (16, 16)
    evaluate_every: int = 1
    log_every: int = 1
    workers: int = 1

    def model(self):
        return Tiny(2)

    def source(self, split):
        return Folder(self.data, ("dark", "light"), ((0, 0, 0), (255, 255, 255)), split=split)

    def augment(self, key, example):
        return random_flip(key, example)


def make_data(home):
    """Two pictures a split, whose bright pixels are of the second class."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (home / kind / split).mkdir(parents=True)
        for i in range(2):
            picture = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(picture).save(home / f"images/{split}/{i}.png")
            mask = (picture[..., 0] > 127).astype(np.uint8)
            Image.fromarray(mask).save(home / f"masks/{split}/{i}.png")
    return home


if __name__ == "__main__":
    main(TinyRecipe)
