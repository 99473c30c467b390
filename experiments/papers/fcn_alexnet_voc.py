"""FCN-32s on AlexNet, on PASCAL VOC, as published."""

from dataclasses import dataclass

from voc import VOC

from segjax.data.labels import VOC_CLASSES
from segjax.models import FCNAlexNet
from segjax.recipe import Published, main


@dataclass(frozen=True, kw_only=True)
class FCNAlexNetVOC(VOC):
    """By the authors' solver: twenty pictures a step, one after the other, and their mean loss.

    $ python experiments/papers/fcn_alexnet_voc.py train --data DATA

    DATA is made as for fcn_voc.py. The authors start from CaffeNet, of which no layout is known
    here; with them only the biases of the scores learn twice as fast; and the mean is over the
    pictures, here over all pixels of the twenty.
    """

    published = (
        Published(
            value=0.480,
            metric="mean_iou",
            split="seg11valid",
            source="the authors' README, FCN-AlexNet",
        ),
    )

    steps: int = 100_000
    batch_size: int = 20
    accumulate: int = 20
    learning_rate: float = 1e-4
    widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    """Channels of AlexNet's convolutions."""
    classifier_width: int = 4096
    """Channels of fc6 and fc7."""

    def model(self) -> FCNAlexNet:
        return FCNAlexNet(
            len(VOC_CLASSES),
            widths=self.widths,
            classifier_width=self.classifier_width,
            dtype=self.compute,
        )


if __name__ == "__main__":
    main(FCNAlexNetVOC)
