"""The scores of the ISBI 2012 challenge, neurons in electron micrographs, as its organisers count.

The probability of cell is cut at 0, 0.1 … 0.9: cell is what is above. Each score is the best of
these ten, over all pictures. What is counted at each adds up over the pictures.

Source: the challenge's page "Evaluation"; its organisers' code, fiji/Trainable_Segmentation,
package `metrics`; Arganda-Carreras et al. 2015, Crowdsourcing the creation of image segmentation
algorithms for connectomics. NumPy and SciPy; this file knows no network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = tuple(i / 10 for i in range(10))
_EIGHT = np.ones((3, 3), int)  # neighbours, corners included; ndimage's own are four


@dataclass(frozen=True)
class ISBI2012:
    """The challenge's scores beside the usual ones: what a recipe's `measure` returns.

    isbi_pixel_error: 1 - F of the pixels of cells.
    isbi_rand_error: 1 - F of pairs of pixels that lie in one region, as of `count_pairs`.
    isbi_warping_error: pixels that split or merge, as of `count_warping`, per pixel.
    isbi_rand_thinned: the later V_Rand, a score: F of pairs after membranes were thinned, the mean
        of the pictures.

    Args:
        cell: the class of cells; all others are membrane.
    """

    cell: int = 1

    def count(self, truth: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
        """What is counted of a picture at each of the T thresholds.

        Args:
            truth: integers (H, W), each pixel a class: the challenge knows no ignored ones.
            probabilities: float (H, W, N) in 0–1.

        Returns:
            "isbi_pixels" and "isbi_pairs" (T, 3): in both, predicted, true; "isbi_warping" (T, 2):
            wrong pixels, all; "isbi_thinned" (T, 2): F and 1. All float64.
        """
        cells, shares = truth == self.cell, probabilities[..., self.cell]
        regions = _label(cells)[0]
        rows: dict[str, list[Any]] = {
            f"isbi_{name}": [] for name in ("pixels", "pairs", "warping", "thinned")
        }
        for threshold in THRESHOLDS:
            predicted = shares > threshold
            found = _label(predicted)[0]
            hits = np.count_nonzero(cells & predicted)
            rows["isbi_pixels"].append((hits, predicted.sum(), cells.sum()))
            rows["isbi_pairs"].append(count_pairs(regions, found))
            rows["isbi_warping"].append((count_warping(cells, shares, threshold), cells.size))
            thin = _f(np.array(count_pairs(regions, thinned(found))))
            rows["isbi_thinned"].append((float(thin), 1))
        return {name: np.array(values, float) for name, values in rows.items()}

    def scores(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The scores (…), given the sums (…, T, K) of what was counted of the pictures."""
        warping, thin = (sums[f"isbi_{name}"] for name in ("warping", "thinned"))
        return {
            "isbi_pixel_error": 1 - _f(sums["isbi_pixels"]).max(-1),
            "isbi_rand_error": 1 - _f(sums["isbi_pairs"]).max(-1),
            "isbi_warping_error": (warping[..., 0] / warping[..., 1]).min(-1),
            "isbi_rand_thinned": (thin[..., 0] / thin[..., 1]).max(-1),
        }


def count_pairs(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """Ordered pairs of pixels of one region: in truth and prediction, in the prediction, in truth.

    Σ n_ij² + n_0, Σ n_j² + n_0 and Σ n_i², where n_ij pixels of region i of the truth are of
    region j of the prediction: the foreground-restricted Rand index. Pixels outside the truth's
    regions do not count; the n_0 outside the prediction's are a region each.

    Args:
        truth, predicted: integers (H, W), 0 or the number of a region.

    Source: `getForegroundRestrictedRandIndexStatsN2` of the organisers' RandError.
    """
    inside = truth > 0
    truth, predicted = truth[inside].astype(np.int64), predicted[inside].astype(np.int64)
    among = predicted > 0
    pairs = (truth * (predicted.max(initial=0) + 1) + predicted)[among]
    alone = np.count_nonzero(~among)

    def squares(numbers: np.ndarray) -> float:
        return float((np.unique(numbers, return_counts=True)[1].astype(float) ** 2).sum())

    return squares(pairs) + alone, squares(predicted[among]) + alone, squares(truth)


def thinned(regions: np.ndarray) -> np.ndarray:
    """Regions grown until they meet: each pixel outside of all joins the nearest.

    The organisers flood by a watershed that leaves a line of one pixel between regions; here none
    is left, and of pixels as far from two regions another may be chosen.

    Args:
        regions: integers (H, W), 0 or the number of a region.
    """
    if not regions.any():
        return regions
    from scipy import ndimage  # takes a moment to import

    nearest = ndimage.distance_transform_edt(
        regions == 0, return_distances=False, return_indices=True
    )
    return regions[tuple(nearest)]


def count_warping(cells: np.ndarray, shares: np.ndarray, threshold: float) -> int:
    """Pixels by which a prediction splits or merges cells, wherever it draws their borders.

    Pixels of the truth that differ from the prediction are flipped, the surest first, where that
    changes no topology, until there is no such one. Of those that still differ, counted are the
    ones that join two cells or part one. Invented and lost cells and holes do not count.

    Args:
        cells: bool (H, W), the truth.
        shares: float (H, W), the probability of cell.
        threshold: above which the prediction is cell.

    Source: Jain et al. 2010, Boundary learning by optimization with topological constraints; the
    organisers' WarpingError, `getMinimumSplitsAndMergersErrorValue`, by type of mistake.
    """
    from scipy import ndimage  # takes a moment to import

    warped = _warped(cells, shares, threshold)
    numbers = _label(warped)[0]
    boxes = ndimage.find_objects(numbers)
    wrong = 0
    for y, x in np.argwhere(warped != (shares > threshold)).tolist():
        around = np.s_[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        number, regions = numbers[y, x], _beside(numbers[around], y, x)
        if len(regions) == 2 and number:
            wrong += _parts(numbers, boxes[number - 1], number, y, x)
        else:
            wrong += len(regions) > 2
    return wrong


def _label(pixels: np.ndarray, neighbours: NDArray[np.int_] | None = None) -> tuple[Any, int]:
    """Numbers of the connected regions, and how many; by four neighbours, if no others are said."""
    from scipy import ndimage  # takes a moment to import

    numbers, regions = ndimage.label(pixels, neighbours)
    return numbers, regions


def _warped(cells: np.ndarray, shares: np.ndarray, threshold: float) -> NDArray[np.bool_]:
    """The truth (H, W), moved towards the prediction as far as its topology allows."""
    simple, width = _simple(), cells.shape[1] + 2
    pixels = bytearray(np.pad(cells, 1).astype(np.uint8).tobytes())
    seen = np.frombuffer(pixels, np.uint8)
    target = np.pad(shares > threshold, 1).ravel()
    doubt = -np.abs(np.pad(shares, 1).ravel() - threshold)
    places = [-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1]
    a, b, c, d, e, f, g, h = places
    stale = bytearray([1]) * len(pixels)  # near which something was flipped since the last look
    flipped = True
    while flipped:
        flipped = False
        differ = np.flatnonzero(seen != target)
        # Equal ones by columns, as the organisers'.
        order = np.lexsort((differ // width, differ % width, doubt[differ]))
        for i in differ[order].tolist():
            if not stale[i]:
                continue
            stale[i] = 0
            code = pixels[i + a] | pixels[i + b] << 1 | pixels[i + c] << 2 | pixels[i + d] << 3
            code |= (
                pixels[i + e] << 4 | pixels[i + f] << 5 | pixels[i + g] << 6 | pixels[i + h] << 7
            )
            if simple[code]:
                pixels[i] ^= 1
                flipped = True
                for place in places:
                    stale[i + place] = 1
    return seen.reshape(-1, width)[1:-1, 1:-1] > 0


@cache
def _simple() -> tuple[bool, ...]:
    """Of each of 256 neighbourhoods, whether its middle may be flipped and the topology kept.

    Bit i is the i-th of the eight neighbours, by rows. So it is where one region of cell, of
    pixels that share a side, and one of membrane, corners included, meet the middle.
    """
    found = []
    for code in range(256):
        ring = np.array([code >> i & 1 for i in range(8)])
        patch = np.insert(ring, 4, 0).reshape(3, 3)
        cell = _label(patch)[0]
        membrane = _label(np.insert(1 - ring, 4, 0).reshape(3, 3), _EIGHT)[1]
        beside = {*cell[[0, 1, 1, 2], [1, 0, 2, 1]].tolist()} - {0}
        found.append(len(beside) == membrane == 1)
    return tuple(found)


def _beside(around: np.ndarray, y: int, x: int) -> set[int]:
    """The numbers in a 3×3 neighbourhood, cut at the picture's edges, less its middle, (y, x)."""
    numbers = around.ravel().tolist()
    del numbers[min(y, 1) * around.shape[1] + min(x, 1)]
    return set(numbers)


def _parts(numbers: np.ndarray, box: tuple[slice, slice], number: int, y: int, x: int) -> bool:
    """Whether a region falls apart without one of its pixels, at which its pieces then met."""
    region = np.pad(numbers[box] == number, 1)
    y, x = y - box[0].start + 1, x - box[1].start + 1
    region[y, x] = False
    pieces = _label(region)[0][y - 1 : y + 2, x - 1 : x + 2]
    return len(_beside(pieces, 1, 1) - {0}) > 1


def _f(counts: np.ndarray) -> np.ndarray:
    """F = 2 · both / (predicted + true) of counts (…, 3)."""
    return 2 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1)
