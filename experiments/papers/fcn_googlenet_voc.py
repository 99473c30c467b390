"""FCN-32s on GoogLeNet, on PASCAL VOC, by its paper."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voc import VOC

from segjax import weights
from segjax.data.augment import Normalise
from segjax.data.labels import VOC_CLASSES
from segjax.models import FCNGoogLeNet
from segjax.models.googlenet import INCEPTIONS, Inception
from segjax.recipe import Published, main
from segjax.weights import torchvision

SCALE = Normalise(torchvision.GOOGLENET_MEAN, torchvision.GOOGLENET_DEVIATION)


@dataclass(frozen=True, kw_only=True)
class FCNGoogLeNetVOC(VOC):
    """Batches of twenty pictures, and the mean loss.

    $ python experiments/papers/fcn_googlenet_voc.py train --data DATA --googlenet FILE

    DATA is made as for fcn_voc.py. The authors never released this network, and started from one of
    their own: FILE is torchvision's, with batch norm. How long they trained is not said.
    """

    published = (
        Published(
            value=0.425,
            metric="mean_iou",
            split="PASCAL VOC 2011, val",
            source="Long, Shelhamer and Darrell 2015, table 1",
        ),
    )

    steps: int = 100_000
    batch_size: int = 20
    learning_rate: float = 5e-5
    normalise: Normalise = SCALE
    """Scaling of pixel values before the network; that of the pretrained weights."""
    googlenet: Path | None = None
    """File of torchvision's GoogLeNet, to start from."""
    stem: tuple[int, int, int] = (64, 64, 192)
    """Channels of the first convolutions."""
    widths: tuple[Inception, ...] = INCEPTIONS
    """Channels of the inceptions."""

    def model(self) -> FCNGoogLeNet:
        return FCNGoogLeNet(
            len(VOC_CLASSES),
            stem=self.stem,
            widths=self.widths,
            variant="torchvision",
            dtype=self.compute,
        )

    def initial(self, variables: Any) -> Any:
        if self.googlenet is None:
            return variables
        tensors, table = weights.read(self.googlenet), torchvision.googlenet(self.model())
        return weights.fill(variables, tensors, table, expected=("params/*score*", "fc.*", "aux*"))


if __name__ == "__main__":
    main(FCNGoogLeNetVOC)
