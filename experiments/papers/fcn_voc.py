"""FCN on PASCAL VOC as published: 32s, 16s and 8s after each other, or 8s at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from voc import VOC

from segjax import weights
from segjax.data.augment import Example
from segjax.data.labels import VOC_CLASSES
from segjax.models import FCN, Output
from segjax.recipe import Published, main
from segjax.training import losses
from segjax.weights import torchvision

MEAN_IOU = {32: 0.636, 16: 0.650, 8: 0.655}


@dataclass(frozen=True, kw_only=True)
class FCNVOC(VOC):
    """By the authors' "heavy" solver: one picture a step, the losses of its pixels added up.

    $ python -m segjax prepare voc_segmentation/2012_sbd --data-dir DATA --manual FOLDER
    $ python experiments/papers/fcn_voc.py train --data DATA --vgg16 vgg16_from_caffe.pth

    FOLDER holds the authors' seg11valid.txt; the weights are Caffe's, as pytorch-fcn has them. That
    is 8s at once. In three stages, each from the one before it:

    $ … --steps 100000 --stride 32 --run runs/32s --vgg16 vgg16_from_caffe.pth
    $ … --steps 100000 --stride 16 --run runs/16s --start-from runs/32s --learning-rate 1e-12
    $ … --steps 100000 --no-at-once --start-from runs/16s --learning-rate 1e-14
    """

    steps: int = 300_000
    batch_size: int = 1
    learning_rate: float = 1e-10
    momentum: float = 0.99
    """Of the gradient descent."""
    stride: Literal[32, 16, 8] = 8
    """Of the finest prediction."""
    at_once: bool = True
    """Whether 8s and 16s are trained without the stages before them."""
    widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    """Channels of VGG16's blocks."""
    classifier_width: int = 4096
    """Channels of fc6 and fc7."""
    vgg16: Path | None = None
    """File of Caffe's VGG16 in torchvision's layout, to start from."""

    @property
    def published(self) -> tuple[Published, ...]:
        at_once = self.at_once and self.stride == 8
        return (
            Published(
                value=0.654 if at_once else MEAN_IOU[self.stride],
                metric="mean_iou",
                split="seg11valid",
                source=f"the authors' README, FCN-{self.stride}s{' at once' if at_once else ''}",
            ),
        )

    def model(self) -> FCN:
        return FCN(
            len(VOC_CLASSES),
            stride=self.stride,
            widths=self.widths,
            classifier_width=self.classifier_width,
            at_once=self.at_once,
            dtype=self.compute,
        )

    def initial(self, variables: Any) -> Any:
        if self.vgg16 is None:
            return variables
        table = torchvision.vgg16(self.model(), order="bgr")
        expected = ("params/*score*", "classifier.6.*")  # ours anew, ImageNet's not at all
        return weights.fill(variables, weights.read(self.vgg16), table, expected=expected)

    def loss(self, output: Output, example: Example) -> jax.Array:
        return losses.cross_entropy(output.logits, example.label, reduction="sum")


if __name__ == "__main__":
    main(FCNVOC)
