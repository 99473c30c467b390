"""Simple methods to compare a network with: each is a frozen dataclass, so that a run can name it.

A baseline is called as `picture (H, W, C) -> label (H, W)`. It learns nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEVELS = 256


@dataclass(frozen=True)
class Otsu:
    """Each picture parted into background and objects by the grey value that parts it best.

    Grey is the mean of the channels. Whichever side of the threshold has fewer pixels is the
    objects, so it takes bright ones on dark ground as well as dark ones on bright ground.

    Reference: Otsu, A threshold selection method from gray-level histograms, 1979.
    """

    def __call__(self, image: NDArray[np.uint8 | np.float32]) -> NDArray[np.uint8]:
        """(H, W, C) in 0..255 -> (H, W), 0 = background, 1 = object."""
        grey = np.rint(image.mean(-1)).astype(np.uint8)
        above = grey > otsu_threshold(grey)
        objects = above if 2 * above.sum() <= above.size else ~above
        return objects.astype(np.uint8)


def otsu_threshold(grey: NDArray[np.uint8]) -> int:
    """The greatest grey value of the darker side, so that the two sides differ most.

    It maximises the variance between the sides, w0 w1 (m0 - m1)², where w are their pixels and m
    their means; of several such values the least. A picture of one value has no two sides: 0.
    """
    counts = np.bincount(grey.ravel(), minlength=_LEVELS).astype(float)
    below, total_below = counts.cumsum(), (counts * np.arange(_LEVELS)).cumsum()
    above, total_above = below[-1] - below, total_below[-1] - total_below
    means = total_below / np.maximum(below, 1), total_above / np.maximum(above, 1)
    return int(np.argmax(below * above * (means[0] - means[1]) ** 2))
