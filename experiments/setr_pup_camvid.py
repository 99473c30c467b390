"""SETR-PUP on the road scenes of CamVid, 11 classes."""

from dataclasses import dataclass
from functools import partial

import jax
from camvid import CamVid

from segjax.data.augment import Example, compose, random_flip, random_scale_crop
from segjax.data.colour import random_photometric
from segjax.data.labels import CAMVID_CLASSES
from segjax.models import SETRPUP, Output
from segjax.recipe import main


@dataclass(frozen=True, kw_only=True)
class SETRPUPCamVid(CamVid):
    """SETR-PUP from random weights, its encoder small, on road scenes.

    $ python experiments/setr_pup_camvid.py train --data FOLDER

    FOLDER holds images/{train,val} and masks/{train,val}; masks hold 0 to 10, and 11 = unlabelled.
    The paper's ViT-Large: --width 1024 --depth 24 --heads 16 --decoder-channels 256
    --auxiliary-taps 9 14 19 23; from random weights it needs far more pictures than these.
    """

    steps: int = 600
    width: int = 128
    """Of a token."""
    depth: int = 6
    """Transformer blocks."""
    heads: int = 4
    """Of the attention."""
    decoder_channels: int = 64
    """Of the decoder's convolutions."""
    auxiliary_taps: tuple[int, ...] = (2, 3, 4, 5)
    """Blocks, from 0, with an auxiliary head."""
    auxiliary_weight: float = 0.4
    """Of each auxiliary head's loss."""

    def model(self) -> SETRPUP:
        return SETRPUP(
            len(CAMVID_CLASSES),
            depth=self.depth,
            width=self.width,
            heads=self.heads,
            grid=(self.crop[0] // 16, self.crop[1] // 16),
            channels=self.decoder_channels,
            auxiliary_taps=self.auxiliary_taps,
            dtype=self.compute,
        )

    def augment(self, key: jax.Array, example: Example) -> Example:
        crop = partial(random_scale_crop, size=self.crop, scale=self.scale, max_share=0.75)
        return compose(crop, random_flip, random_photometric)(key, example)

    def loss(self, output: Output, example: Example) -> jax.Array:
        of_head, heads = super().loss, (output.logits, *output.auxiliary)
        main, *auxiliary = (of_head(Output(logits), example) for logits in heads)
        return main + self.auxiliary_weight * sum(auxiliary)


if __name__ == "__main__":
    main(SETRPUPCamVid)
