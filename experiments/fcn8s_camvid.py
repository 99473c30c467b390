"""FCN on the road scenes of CamVid, 11 classes: 32s, 16s from it, 8s from that, or at once."""

from dataclasses import dataclass
from typing import Literal

from camvid import CamVid
from vgg16 import FromVGG16

from segjax.data.labels import CAMVID_CLASSES
from segjax.models import FCN
from segjax.recipe import main


@dataclass(frozen=True, kw_only=True)
class FCN8sCamVid(FromVGG16, CamVid):
    """FCN-8s from random weights, its VGG16 and classifier narrowed, on road scenes.

    $ python experiments/fcn8s_camvid.py train --data FOLDER

    In stages, as in the paper:

    $ python experiments/fcn8s_camvid.py train --data FOLDER --stride 32 --run runs/fcn32s
    $ python experiments/fcn8s_camvid.py train --data FOLDER --stride 16 --run runs/fcn16s \\
        --start-from runs/fcn32s
    $ python experiments/fcn8s_camvid.py train --data FOLDER --start-from runs/fcn16s

    FOLDER holds images/{train,val} and masks/{train,val}; masks hold 0 to 10, and 11 = unlabelled.
    The paper's own widths, from torchvision's weights: --widths 64 128 256 512 512
    --classifier-width 4096 --vgg16 vgg16-397923af.pth
    """

    steps: int = 300
    stride: Literal[32, 16, 8] = 8
    """Of the finest prediction."""
    widths: tuple[int, int, int, int, int] = (16, 32, 64, 128, 128)
    """Channels of VGG16's blocks."""
    classifier_width: int = 256
    """Channels of fc6 and fc7."""

    def model(self) -> FCN:
        return FCN(
            len(CAMVID_CLASSES),
            stride=self.stride,
            padding="same",
            widths=self.widths,
            classifier_width=self.classifier_width,
            dtype=self.compute,
        )


if __name__ == "__main__":
    main(FCN8sCamVid)
