"""U-Net++ on nuclei as published, and the U-Nets beside it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import optax

from segjax.data import layouts
from segjax.data.augment import Example, random_scale_crop
from segjax.data.pipeline import Source
from segjax.models import Output, UNet, UNetPlusPlus
from segjax.recipe import Loss, Published, Recipe, Split, main
from segjax.training import optimizers

IOU = {"unet": 0.9077, "wide-unet": 0.9092, "unetplusplus": 0.9263, "supervised": 0.9252}


@dataclass(frozen=True, kw_only=True)
class UNetPlusPlusNuclei(Recipe):
    """The authors' Keras network on crops of 96×96 pixels, one loss a head, stopped early.

    $ python experiments/papers/unetplusplus_nuclei.py train --data FOLDER

    FOLDER holds images/ and masks_instance/, 16-bit PNGs of instance numbers, and two lists of
    stems, train.txt and val.txt; list pictures that the canvas fits closely, for crops are of it.
    Beside it: --network unetplusplus (without deep supervision), unet, and wide-unet --widths 35 70
    140 280 560.

    The paper leaves open how its 670 pictures were split and cut, the pictures a step and when it
    stops; what its IoU is the mean of, its code does not say plainly. The weight decay is its
    code's, the gradient of 1e-4 times the squared weights.
    """

    data: Path
    """Folder with images/, masks_instance/, train.txt and val.txt."""
    steps: int = 50_000
    batch_size: int = 16
    canvas: tuple[int, int] = (256, 320)
    crop: tuple[int, int] = (96, 96)
    learning_rate: float = 3e-4
    weight_decay: float = 2e-4
    losses: tuple[Loss, ...] = ("bce_dice",)
    """What is minimised for each head."""
    evaluate_every: int = 500
    patience: int | None = 30
    network: Literal["supervised", "unetplusplus", "unet", "wide-unet"] = "supervised"
    """U-Net++ with a loss for each head, or with one; or a U-Net."""
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Channels of the levels."""
    dropout: float = 0.5
    """Rate after each convolution of U-Net++, or after a U-Net's two lowest levels."""

    @property
    def published(self) -> tuple[Published, ...]:
        return (
            Published(
                value=IOU[self.network],
                metric="mean_iou",
                split="a part of 670 pictures",
                source="Zhou et al. 2018, table 3",
            ),
        )

    def model(self) -> nn.Module:
        fields = {
            "widths": self.widths,
            "norm": "none",
            "dropout": self.dropout,
            "dtype": self.compute,
        }
        if self.network in ("unet", "wide-unet"):
            return UNet(1, **fields)
        return UNetPlusPlus(1, deep_supervision=self.network == "supervised", **fields)

    def source(self, split: Split) -> Source:
        return layouts.nuclei(self.data, split)

    def augment(self, key: jax.Array, example: Example) -> Example:
        return random_scale_crop(key, example, size=self.crop, scale=(1, 1))

    def schedule(self) -> optimizers.Schedule:
        return optimizers.constant(self.learning_rate)

    def optimizer(self) -> optax.GradientTransformation:
        """Adam, whose gradient has the decay of the convolutions; the up-convolutions have none."""
        decayed = partial(
            jax.tree_util.tree_map_with_path,
            lambda path, _: "up" not in str(path[-2]) and "kernel" in str(path[-1]),
        )
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay, mask=decayed), optax.adam(1.0)
        )

    def loss(self, output: Output, example: Example) -> jax.Array:
        of_head = super().loss
        heads = output.auxiliary or (output.logits,)
        return sum(of_head(Output(logits), example) for logits in heads)


if __name__ == "__main__":
    main(UNetPlusPlusNuclei)
