"""What the FCN recipes share: a start from torchvision's VGG16."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segjax import weights
from segjax.data.augment import Normalise
from segjax.weights import torchvision

IMAGENET = Normalise(torchvision.MEAN, torchvision.DEVIATION)


@dataclass(frozen=True, kw_only=True)
class FromVGG16:
    """To stand before a Recipe: starts from torchvision's VGG16, or without it at random.

    No Recipe itself: as one, its fields would hide those of a recipe that stands after it.
    """

    normalise: Normalise = IMAGENET
    """Scaling of pixel values before the network; that of the pretrained weights."""
    vgg16: Path | None = None
    """File of torchvision's VGG16, of the network's widths, to start from."""

    def initial(self, variables: Any) -> Any:
        if self.vgg16 is None:
            return variables
        tensors, layout = weights.read(self.vgg16), torchvision.vgg16(self.model())
        expected = ("params/*score*", "classifier.6.*")  # ours anew, ImageNet's not at all
        return weights.fill(variables, tensors, layout, expected=expected)
