"""U-Net's weight map: rare classes and the gaps between touching cells count for more.

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))² / 2σ²)

where d1 and d2 are the distances of x to the nearest and the second nearest cell, and w_c balances
the classes. In the cells themselves, where the paper leaves d1 open, the second term is left out,
as in the weights that its authors show. NumPy and SciPy; this file knows no network.

Reference: Ronneberger, Fischer, Brox, 2015, section 3, equation 2.
"""

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from segjax import cache_folder
from segjax.data.wrapper import Wrapper
from segjax.errors import SegjaxError

IGNORE = 255


def components(label: np.ndarray) -> np.ndarray:
    """Number the connected parts of the foreground, where instances are not known.

    Args:
        label: integer (H, W); 0 is the background, 255 is ignored.

    Returns:
        int32 (H, W), 0 or the number of a part. Parts that meet at a corner are one, so that none
        touch and `separate` takes nothing away.
    """
    from scipy import ndimage  # takes a moment to import

    numbers, _ = ndimage.label((label > 0) & (label != IGNORE), np.ones((3, 3)))
    return numbers


def separate(instances: np.ndarray) -> np.ndarray:
    """Open a gap between touching instances, one pixel wide.

    Args:
        instances: integer (H, W), 0 or the number of an instance.

    Returns:
        The same, but 0 where one of the eight neighbours belongs to an instance of a higher
        number: no two instances touch, not even at a corner.
    """
    from scipy import ndimage  # takes a moment to import

    return np.where(ndimage.maximum_filter(instances, 3) > instances, 0, instances)


def border_weights(instances: np.ndarray, *, w0: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """w0 exp(-(d1 + d2)² / 2σ²) in the background, 0 in instances and where there is but one.

    Args:
        instances: integer (H, W), 0 or the number of an instance, as from `separate`.
        w0: the weight where d1 + d2 is 0.
        sigma: in pixels.

    Returns:
        float32 (H, W). Distances are from pixel centre to pixel centre; beyond d1 + d2 = 6.5 σ,
        where a weight is less than 1e-9 w0, it may be 0.
    """
    from scipy import ndimage  # takes a moment to import

    reach = int(np.ceil(6.5 * sigma))
    nearest = np.full(instances.shape, np.inf)
    second = nearest.copy()
    # Each distance transform is of the surroundings that an instance can have an effect on.
    for number, box in enumerate(ndimage.find_objects(instances), start=1):
        if box is None:
            continue
        around = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(instances[around] != number)
        first = nearest[around]
        np.minimum(second[around], np.maximum(first, distance), out=second[around])
        np.minimum(first, distance, out=first)
    weights = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(instances > 0, 0, weights).astype(np.float32)


@dataclass(frozen=True)
class Weighted(Wrapper):
    """A source with U-Net's weight map for each picture, and gaps between touching instances.

    Instances are the example's "instances", integer (H, W), where it has them, otherwise the
    connected parts of what is not background. The label becomes 0, background, in the gaps.

    w_c is n / (k n_c), where n_c of the n valid pixels of the source have class c, of k classes
    that occur: classes weigh the same in total, and w_c is 1 on average. For it, the source is read
    once. The second term is kept in ~/.cache/segjax/weight_maps (or in $XDG_CACHE_HOME), by a hash
    of the instances and parameters.

    Args:
        source: of which the first class is the background.
        w0: the weight of a gap, 0 or more.
        sigma: in pixels, how fast it falls off, above 0.
        balance: whether w_c balances the classes, or is 1. Balanced, small objects are found more
            often and drawn too large.

    Returns of `[i]`:
        The source's example, its "label" separated, with "weight": float32 (H, W), 0 where the
        label is 255.

    Raises:
        SegjaxError: w0 or sigma is outside its range; what the source raises.
    """

    w0: float = 10.0
    sigma: float = 5.0
    balance: bool = True

    def __post_init__(self) -> None:
        if not (self.w0 >= 0 and self.sigma > 0):
            raise SegjaxError(
                f"Weighted: got w0={self.w0} and sigma={self.sigma}, expected w0 of at least 0 and "
                "sigma above 0; the paper's are 10 and 5."
            )

    def __getitem__(self, i: int) -> dict[str, Any]:
        example, instances = self._separated(i)
        label = example["label"]
        weight = self.class_weights[label] if self.balance else np.ones(label.shape, np.float32)
        weight += _cached_border_weights(instances, w0=self.w0, sigma=self.sigma)
        weight[label == IGNORE] = 0
        return {**example, "weight": weight}

    @cached_property
    def class_weights(self) -> np.ndarray:
        """w_c of each label: float32 (256,), 0 of those that do not occur and of 255."""
        counts = np.zeros(256, np.int64)
        for i in range(len(self)):
            example, _ = self._separated(i)
            counts += np.bincount(example["label"].ravel(), minlength=256)
        counts[IGNORE] = 0
        occurs = counts > 0
        balance = counts.sum() / (occurs.sum() * np.maximum(counts, 1))
        return np.where(occurs, balance, 0).astype(np.float32)

    def _separated(self, i: int) -> tuple[dict[str, Any], np.ndarray]:
        """The source's example with gaps in its label, and its separated instances."""
        example = dict(self.source[i])
        touching = example.pop("instances", None)
        if touching is None:
            touching = components(example["label"])
        instances = separate(touching)
        gaps = (instances != touching) & (example["label"] != IGNORE)
        example["label"] = np.where(gaps, 0, example["label"]).astype(np.uint8)
        return example, instances


def _cached_border_weights(instances: np.ndarray, *, w0: float, sigma: float) -> np.ndarray:
    """`border_weights`, from the cache folder where it lies there."""
    content = hashlib.sha256(f"{instances.shape} {w0} {sigma} ".encode())
    content.update(np.ascontiguousarray(instances, "<i4").data)
    path = cache_folder("weight_maps") / f"{content.hexdigest()}.npy"
    with suppress(OSError, ValueError), path.open("rb") as file:  # it is not there, or broken
        weights = np.lib.format.read_array(file)
        if weights.shape == instances.shape and weights.dtype == np.float32:
            return weights
    weights = border_weights(instances, w0=w0, sigma=sigma)
    with suppress(OSError):  # no place to keep it: it is computed each time
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under a name of its own first: other threads and processes may be at the same one. Once
        # it is renamed, there is nothing to delete at the end, which is one of the errors let go.
        with tempfile.NamedTemporaryFile(dir=path.parent) as unfinished:
            np.save(unfinished, weights)
            unfinished.flush()
            os.replace(unfinished.name, path)
    return weights
