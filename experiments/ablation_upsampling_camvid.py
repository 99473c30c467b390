"""How should FCN's scores be enlarged: by transposed convolutions, bilinearly or by repetition?"""

from dataclasses import dataclass
from typing import Literal

from fcn8s_camvid import FCN8sCamVid

from segjax.models import FCN
from segjax.recipe import main


@dataclass(frozen=True, kw_only=True)
class AblationUpsampling(FCN8sCamVid):
    """FCN-8s that enlarges by transposed convolutions, fixed or learned, or by resizing.

    $ python experiments/ablation_upsampling_camvid.py train --data FOLDER --run runs/learned \\
        --upsampling learned

    and with fixed, bilinear and nearest.
    """

    upsampling: Literal["fixed", "learned", "bilinear", "nearest"] = "fixed"
    """How scores are enlarged."""

    def model(self) -> FCN:
        return super().model().clone(upsampling=self.upsampling)


if __name__ == "__main__":
    main(AblationUpsampling)
