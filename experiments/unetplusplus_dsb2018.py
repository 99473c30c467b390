"""U-Net++ on the nuclei of the Data Science Bowl 2018, one of its paper's data sets."""

from dataclasses import dataclass
from functools import partial

import jax
from dsb2018 import DSB2018

from segjax.data.augment import Example, at_once, flip, scale_crop
from segjax.models import Output, UNetPlusPlus
from segjax.recipe import Loss, main


@dataclass(frozen=True, kw_only=True)
class UNetPlusPlusDSB2018(DSB2018):
    """Nuclei against background, with the authors' loss for each head, on crops of 96×96 pixels.

    $ python experiments/unetplusplus_dsb2018.py train --data FOLDER

    FOLDER holds images/ and masks_instance/, 16-bit PNGs of instance numbers, and two lists of
    stems, train.txt and val.txt; of pictures of very different sizes, list those that the canvas
    fits closely. The paper's widths: --widths 32 64 128 256 512.
    """

    widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Channels of the levels."""
    losses: tuple[Loss, ...] = ("bce_dice",)
    """What is minimised for each head, the sum of these."""

    def model(self) -> UNetPlusPlus:
        return UNetPlusPlus(1, widths=self.widths, dtype=self.compute)

    def augment(self, key: jax.Array, example: Example) -> Example:
        crop = partial(scale_crop, size=self.crop, scale=self.scale)
        return at_once(crop, flip, partial(flip, axis=0))(key, example)

    def loss(self, output: Output, example: Example) -> jax.Array:
        of_head = super().loss
        heads = [of_head(Output(logits), example) for logits in output.auxiliary]
        return sum(heads[1:], heads[0])


if __name__ == "__main__":
    main(UNetPlusPlusDSB2018)
