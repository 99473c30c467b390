"""U-Net on the road scenes of CamVid, 11 classes."""

from dataclasses import dataclass

from camvid import CamVid

from segjax.data.labels import CAMVID_CLASSES
from segjax.models import UNet
from segjax.recipe import main


@dataclass(frozen=True, kw_only=True)
class UNetCamVid(CamVid):
    """Road scenes of 480×360 pixels, trained on random crops at random scales.

    $ python experiments/unet_camvid.py train --data FOLDER

    FOLDER holds images/{train,val} and masks/{train,val}; masks hold 0 to 10, and 11 = unlabelled.
    """

    steps: int = 1000
    learning_rate: float = 2e-3
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Channels of the U-Net's levels."""

    def model(self) -> UNet:
        return UNet(len(CAMVID_CLASSES), widths=self.widths, dtype=self.compute)


if __name__ == "__main__":
    main(UNetCamVid)
