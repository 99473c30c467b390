"""Do FCN's score maps do better added up, as in its paper, or side by side, as U-Net's features?"""

from dataclasses import dataclass
from typing import Literal

from fcn8s_camvid import FCN8sCamVid

from segjax.models import FCN
from segjax.recipe import main


@dataclass(frozen=True, kw_only=True)
class AblationFusion(FCN8sCamVid):
    """FCN-8s whose skips are added to the enlarged scores, or concatenated with them.

    $ python experiments/ablation_fusion_camvid.py train --data FOLDER --run runs/sum --fusion sum
    $ python experiments/ablation_fusion_camvid.py train --data FOLDER --run runs/concat \\
        --fusion concat
    """

    fusion: Literal["sum", "concat"] = "sum"
    """How scores and skips meet."""

    def model(self) -> FCN:
        return super().model().clone(fusion=self.fusion)


if __name__ == "__main__":
    main(AblationFusion)
