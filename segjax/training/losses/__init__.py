"""Losses: `(logits, labels, *, ignore_label=255, …) -> scalar`, in float32, whatever comes in.

Those of `pixels` are means over pixels, those of `regions` compare areas. What holds for all:

- Pixels of `ignore_label` are as if they were not there, whatever the logits hold at them.
- Sums are those of the whole batch, and under jit that is the global one, on all devices.
- 0, with zero gradients, where no pixel is valid.
- NaN where a label is neither a class nor ignored, rather than a loss that looks right.
- A network of one channel is binary: labels are 0 and 1, and its logit s, of a sigmoid, stands for
  the two logits (0, s), whose softmax that is.

They are added as numbers are: `cross_entropy(logits, labels) + 0.5 * dice(logits, labels)`.
"""

from segjax.training.losses.pixels import binary_cross_entropy as binary_cross_entropy
from segjax.training.losses.pixels import binary_focal as binary_focal
from segjax.training.losses.pixels import class_weights as class_weights
from segjax.training.losses.pixels import cross_entropy as cross_entropy
from segjax.training.losses.pixels import focal as focal
from segjax.training.losses.pixels import ohem_cross_entropy as ohem_cross_entropy
from segjax.training.losses.regions import bce_dice as bce_dice
from segjax.training.losses.regions import dice as dice
from segjax.training.losses.regions import generalised_dice as generalised_dice
from segjax.training.losses.regions import lovasz as lovasz
from segjax.training.losses.regions import tversky as tversky
