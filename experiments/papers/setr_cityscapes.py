"""SETR on Cityscapes as published: Naïve, PUP and MLA on ViT-Large."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
import optax

from segjax import weights
from segjax.data import layouts
from segjax.data.augment import Example, Normalise, compose, random_flip, random_scale_crop
from segjax.data.colour import random_photometric
from segjax.data.folder import Folder
from segjax.data.labels import CITYSCAPES_CLASSES
from segjax.models import SETRMLA, SETRPUP, Output, SETRNaive
from segjax.models.vit import resize_positions
from segjax.recipe import Published, Recipe, Split, main
from segjax.training import optimizers
from segjax.weights import setr
from segjax.weights.vit import timm

TAPS = {"naive": (9, 14, 19), "pup": (9, 14, 19, 23), "mla": (5, 11, 17, 23)}
MEAN_IOU = {"naive": 0.7790, "pup": 0.7934, "mla": 0.7724}
FLOOR = 1e-4
IMAGENET = Normalise(setr.MEAN, setr.DEVIATION)


@dataclass(frozen=True, kw_only=True)
class SETRCityscapes(Recipe):
    """Crops of 768×768, tested by windows of that size; 80 thousand steps, as of the authors.

    $ python experiments/papers/setr_cityscapes.py train --data FOLDER --vit VIT.pth
    $ … --decoder naive
    $ … --decoder mla --learning-rate 0.002
    $ python -m segjax evaluate runs/setr_cityscapes --tile 768

    FOLDER holds leftImg8bit/ and gtFine/; VIT.pth is timm's ViT-Large/16 of 384×384 pixels.
    """

    data: Path
    """Folder with leftImg8bit/ and gtFine/."""
    vit: Path | None = None
    """File of timm's ViT-Large to start from."""
    decoder: Literal["naive", "pup", "mla"] = "pup"
    """How tokens become a map of scores."""
    steps: int = 80_000
    batch_size: int = 8
    canvas: tuple[int, int] = (1024, 2048)
    crop: tuple[int, int] = (768, 768)
    learning_rate: float = 0.01
    weight_decay: float = 0.0
    normalise: Normalise = IMAGENET
    """Scaling of pixel values before the network; ImageNet's."""
    evaluate_every: int = 4000
    depth: int = 24
    """Transformer blocks."""
    width: int = 1024
    """Of a token."""
    heads: int = 16
    """Of the attention."""
    decoder_channels: int = 256
    """Of the decoder's convolutions."""
    taps: tuple[int, ...] | None = None
    """Blocks, from 0, with an auxiliary head, or those that MLA takes; by default the authors'."""
    auxiliary_weight: float = 0.4
    """Of each auxiliary head's loss."""

    @property
    def published(self) -> tuple[Published, ...]:
        return (
            Published(
                value=MEAN_IOU[self.decoder],
                metric="mean_iou",
                split="val, at one scale",
                source=f"the authors' README, SETR-{self.decoder}, 80k",
            ),
        )

    def model(self) -> nn.Module:
        taps = self.taps or TAPS[self.decoder]
        make: Any = {
            "naive": partial(SETRNaive, auxiliary_taps=taps),
            "pup": partial(SETRPUP, auxiliary_taps=taps),
            "mla": partial(SETRMLA, taps=taps),
        }[self.decoder]
        return make(
            len(CITYSCAPES_CLASSES),
            depth=self.depth,
            width=self.width,
            heads=self.heads,
            grid=(self.crop[0] // 16, self.crop[1] // 16),
            channels=self.decoder_channels,
            dtype=self.compute,
        )

    def initial(self, variables: Any) -> Any:
        """The encoder from the file, its position embeddings resized; the decoder at random."""
        if self.vit is None:
            return variables
        tensors, encoder = weights.read(self.vit), self.model().encoder
        side = math.isqrt(tensors["pos_embed"].shape[1] - 1)
        table = timm(encoder.clone(grid=(side, side)), path="params/vit")
        path = "params/vit/positions"
        read = table.entries[path]

        def resized(*tensors: np.ndarray) -> np.ndarray:
            return np.asarray(resize_positions(read.convert(*tensors), encoder.grid))

        entries = {**table.entries, path: read._replace(convert=resized)}
        ours, rest = ("params/[!v]*", "batch_stats/*"), ("norm.*", "pre_logits.*", "head.*")
        tokens = ("cls_token",) if self.decoder == "mla" else ()
        return weights.fill(
            variables, tensors, table._replace(entries=entries), expected=(*ours, *rest, *tokens)
        )

    def source(self, split: Split) -> Folder:
        return layouts.cityscapes(self.data, split)

    def augment(self, key: jax.Array, example: Example) -> Example:
        crop = partial(random_scale_crop, size=self.crop, scale=(0.5, 2.0), max_share=0.75)
        return compose(crop, random_flip, random_photometric)(key, example)

    def schedule(self) -> optimizers.Schedule:
        return self._poly(self.learning_rate)

    def _poly(self, rate: float) -> optimizers.Schedule:
        return optimizers.polynomial(rate, steps=self.steps, power=0.9, end=FLOOR)

    def optimizer(self) -> optax.GradientTransformation:
        """The decoder learns ten times as fast, down to the same floor: so mmcv's hook has it."""
        ten, one = self._poly(10 * self.learning_rate), self.schedule()
        decoder = partial(
            jax.tree_util.tree_map_with_path,
            lambda path, _: not str(path[0].key).startswith(("vit", "norm", "project", "mix")),
        )
        faster = optax.scale_by_schedule(lambda step: ten(step) / one(step))
        return optax.chain(
            optimizers.sgd(momentum=0.9, weight_decay=self.weight_decay),
            optax.masked(faster, decoder),
        )

    def loss(self, output: Output, example: Example) -> jax.Array:
        of_head, heads = super().loss, (output.logits, *output.auxiliary)
        main, *auxiliary = (of_head(Output(logits), example) for logits in heads)
        return main + self.auxiliary_weight * sum(auxiliary)


if __name__ == "__main__":
    main(SETRCityscapes)
