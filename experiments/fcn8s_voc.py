"""FCN on PASCAL VOC 2012 with SBD's masks, 21 classes."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import optax
from vgg16 import FromVGG16

from segjax.data.augment import Example, at_once, flip, scale_crop
from segjax.data.labels import VOC_CLASSES, voc_palette
from segjax.data.tfds_source import TFDS
from segjax.models import FCN
from segjax.recipe import Published, Recipe, Split, main
from segjax.training import optimizers


@dataclass(frozen=True, kw_only=True)
class FCN8sVOC(FromVGG16, Recipe):
    """FCN-8s at once, from torchvision's VGG16, on trainaug; held out is val.

    $ python -m segjax prepare voc_segmentation/2012_sbd --data-dir DATA
    $ python experiments/fcn8s_voc.py train --data DATA --vgg16 vgg16-397923af.pth

    The network is the paper's; the schedule is today's usual one, not its batches of one picture.
    """

    published = (
        Published(
            value=0.654,
            metric="mean_iou",
            split="seg11valid: VOC 2011's val less what is in SBD's train, 736 pictures",
            source="the authors' release of FCN-8s at once, its README",
        ),
    )

    data: Path
    """The folder that `prepare` was given as --data-dir."""
    steps: int = 30_000
    weight_decay: float = 5e-4
    batch_size: int = 16
    canvas: tuple[int, int] = (512, 512)
    crop: tuple[int, int] = (480, 480)
    buckets: tuple[tuple[int, int], ...] = ((384, 512), (512, 384), (512, 512))
    evaluate_every: int = 2000
    stride: Literal[32, 16, 8] = 8
    """Of the finest prediction."""
    widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    """Channels of VGG16's blocks."""
    classifier_width: int = 4096
    """Channels of fc6 and fc7."""

    def model(self) -> FCN:
        return FCN(
            len(VOC_CLASSES),
            stride=self.stride,
            widths=self.widths,
            classifier_width=self.classifier_width,
            at_once=True,
            dtype=self.compute,
        )

    def source(self, split: Split) -> TFDS:
        return TFDS(
            "voc_segmentation/2012_sbd",
            {"train": "trainaug", "val": "val"}[split],
            self.data,
            VOC_CLASSES,
            voc_palette(len(VOC_CLASSES)),
            id="id",
        )

    def augment(self, key: jax.Array, example: Example) -> Example:
        crop = partial(scale_crop, size=self.crop)
        return at_once(crop, flip)(key, example)

    def schedule(self) -> optimizers.Schedule:
        return optimizers.polynomial(self.learning_rate, steps=self.steps, power=0.9)

    def optimizer(self) -> optax.GradientTransformation:
        return optimizers.sgd(momentum=0.9, weight_decay=self.weight_decay)


if __name__ == "__main__":
    main(FCN8sVOC)
