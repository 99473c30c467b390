"""What the papers' FCN recipes share: the authors' data, whole pictures, and Caffe's optimiser."""

from dataclasses import dataclass
from pathlib import Path

import jax
import optax

from segjax.data.augment import Example, Normalise
from segjax.data.labels import VOC_CLASSES, voc_palette
from segjax.data.tfds_source import TFDS
from segjax.recipe import Recipe, Split
from segjax.training import optimizers
from segjax.weights import pytorch_fcn

CAFFE = Normalise(pytorch_fcn.MEAN, pytorch_fcn.DEVIATION)


@dataclass(frozen=True, kw_only=True)
class VOC(Recipe):
    """SBD's train, 8498 pictures, against seg11valid, 736, none augmented.

    Pictures are padded to one size, by black that is void; the authors' network takes each as it
    is. They draw with replacement, here each comes once in an epoch.
    """

    data: Path
    """The folder that `prepare` was given as --data-dir."""
    canvas: tuple[int, int] = (500, 500)
    crop: tuple[int, int] = (500, 500)
    weight_decay: float = 5e-4
    momentum: float = 0.9
    """Of the gradient descent."""
    normalise: Normalise = CAFFE
    """Scaling of pixel values before the network; less Caffe's mean."""
    evaluate_every: int = 4000

    def source(self, split: Split) -> TFDS:
        return TFDS(
            "voc_segmentation/2012_sbd",
            {"train": "sbd_train", "val": "seg11valid"}[split],
            self.data,
            VOC_CLASSES,
            voc_palette(len(VOC_CLASSES)),
            id="id",
        )

    def augment(self, key: jax.Array, example: Example) -> Example:
        return example

    def schedule(self) -> optimizers.Schedule:
        return optimizers.constant(self.learning_rate)

    def optimizer(self) -> optax.GradientTransformation:
        """Biases learn twice as fast, and do not decay."""
        sgd = optimizers.sgd(momentum=self.momentum, weight_decay=self.weight_decay)
        return optimizers.scaled(sgd, {"bias$": 2})
