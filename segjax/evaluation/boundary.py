"""How well contours are met: boundary IoU and trimap IoU, of whole label maps on the host.

Both are scores of some pixels only, those near a contour. What is counted of a picture is, for each
class, pixels hit, true and predicted, as of `metrics.class_counts`: add pictures up, then score.

Void (`ignore_label`) is taken out of truth and prediction alike. Its pixels count nowhere, and
where it meets a class there is a contour: in PASCAL VOC void is the strip that contours lie in.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segjax.errors import SegjaxError, held

RATIO = 0.02  # of a boundary's width to the picture's diagonal
WIDTHS = (3, 10)  # of trimaps, in pixels


def boundary_counts(
    truth: np.ndarray,
    predicted: np.ndarray,
    *,
    num_classes: int,
    ratio: float = RATIO,
    ignore_label: int = 255,
) -> NDArray[np.int64]:
    """Count the pixels of the boundaries of each class, for boundary IoU.

    Boundary IoU = |(G_d ∩ G) ∩ (P_d ∩ P)| / |(G_d ∩ G) ∪ (P_d ∩ P)|, where G and P are the pixels
    of a class in the truth and in the prediction, and G_d, P_d those at most d pixels from their
    contours. As in the authors' code a mask's boundary is what d erosions by 3×3 pixels take away
    from it, the edge of the picture is a contour too, and d = ratio · √(H² + W²), rounded, at
    least 1. Void makes contours as well, and counts nowhere.

    Args:
        truth: integers (H, W) in 0…N-1, or `ignore_label`.
        predicted: integers (H, W) in 0…N-1.
        num_classes: N.
        ratio: d as a share of the picture's diagonal.
        ignore_label: the label of pixels that do not count.

    Returns:
        (3, N) int64: hits, true and predicted pixels; `metrics.iou_of` of their sum over the
        pictures is the boundary IoU of each class.

    Raises:
        SegjaxError: the shapes differ, or a label is outside the classes.

    Reference: Cheng, Girshick, Dollár, Berg, Kirillov, Boundary IoU, 2021, and `mask_to_boundary`
    of their boundary-iou-api.
    """
    truth, predicted = _without_void(truth, predicted, num_classes, ignore_label)
    return _boundary(truth, predicted, contour_distance(truth), ratio, num_classes)


def trimap_counts(
    truth: np.ndarray,
    predicted: np.ndarray,
    *,
    num_classes: int,
    widths: Sequence[int] = WIDTHS,
    ignore_label: int = 255,
) -> NDArray[np.int64]:
    """Count the pixels of each class in bands along the true contours, for trimap IoU.

    A band of width w has the pixels with one of another label, void among them, at most w pixels
    away (the larger of the distances in y and x). The edge of the picture is no contour. Trimap IoU
    is the IoU of those pixels alone.

    Args:
        truth: integers (H, W) in 0…N-1, or `ignore_label`.
        predicted: integers (H, W) in 0…N-1.
        num_classes: N.
        widths: of W bands, in pixels, each at least 1.
        ignore_label: the label of pixels that do not count.

    Returns:
        (W, 3, N) int64: for each width hits, true and predicted pixels; `metrics.iou_of` of their
        sum over the pictures is the trimap IoU of each class.

    Raises:
        SegjaxError: the shapes differ, or a label is outside the classes.

    Reference: Kohli, Ladický, Torr, Robust Higher Order Potentials, 2009; Krähenbühl, Koltun,
    Efficient Inference in Fully Connected CRFs, 2011; with void as the contour Chen et al.,
    DeepLab, 2017.
    """
    truth, predicted = _without_void(truth, predicted, num_classes, ignore_label)
    return _trimaps(truth, predicted, contour_distance(truth), widths, num_classes)


def contour_counts(
    truth: np.ndarray, predicted: np.ndarray, *, num_classes: int, ignore_label: int = 255
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`boundary_counts` and `trimap_counts`, with one search for the contours of the truth."""
    truth, predicted = _without_void(truth, predicted, num_classes, ignore_label)
    distance = contour_distance(truth)
    return (
        _boundary(truth, predicted, distance, RATIO, num_classes),
        _trimaps(truth, predicted, distance, WIDTHS, num_classes),
    )


def _boundary(
    truth: np.ndarray, predicted: np.ndarray, of_truth: np.ndarray, ratio: float, num_classes: int
) -> NDArray[np.int64]:
    width = max(1, round(ratio * float(np.hypot(*truth.shape))))
    edge = _edge_distance(truth.shape)
    in_truth, in_predicted = (
        np.minimum(distance, edge) <= width for distance in (of_truth, contour_distance(predicted))
    )
    return _counts(truth, predicted, in_truth, in_predicted, num_classes)


def _trimaps(
    truth: np.ndarray,
    predicted: np.ndarray,
    of_truth: np.ndarray,
    widths: Sequence[int],
    num_classes: int,
) -> NDArray[np.int64]:
    bands = [of_truth <= width for width in widths]
    return np.stack([_counts(truth, predicted, band, band, num_classes) for band in bands])


def contour_distance(label: np.ndarray) -> NDArray[np.int32]:
    """How many pixels away, along y or x, the nearest pixel of another label is: 1 beside it.

    Args:
        label: integers (H, W).

    Returns:
        int32 (H, W); the greatest int32 where all pixels are of one label.
    """
    from scipy import ndimage  # takes a moment to import

    height, width = label.shape
    beside = np.zeros(label.shape, bool)  # those with a neighbour, of eight, of another label
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        left = max(0, -right)
        one = np.s_[: height - down, left : width - max(0, right)]
        other = np.s_[down:, left + right : width + min(0, right)]
        differ = label[one] != label[other]
        beside[one] |= differ
        beside[other] |= differ
    if not beside.any():
        return np.full(label.shape, np.iinfo(np.int32).max, np.int32)
    # A pixel k away from the nearest such one is k + 1 from what is of another label: the square
    # of side 2k + 1 around it is of one label, and the next larger one is not.
    return ndimage.distance_transform_cdt(~beside, "chessboard").astype(np.int32) + 1


def _edge_distance(size: tuple[int, ...]) -> NDArray[np.int64]:
    """How many pixels away the outside of the picture is: 1 at its edge."""
    y, x = (np.minimum(np.arange(n), np.arange(n)[::-1]) + 1 for n in size)
    return np.minimum(y[:, None], x)


def _without_void(
    truth: np.ndarray, predicted: np.ndarray, num_classes: int, ignore_label: int
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Both as int16, with -1 where the truth is void."""
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise SegjaxError(
            f"The truth is {truth.shape}, the prediction {predicted.shape}; expected (H, W) of "
            "both."
        )
    void = truth == ignore_label
    for name, label in (("truth", truth), ("prediction", predicted)):
        if ((label < 0) | (label >= num_classes))[~void].any():
            raise SegjaxError(
                f"The {name} held {held(label)}; expected classes, 0 to {num_classes - 1}. Correct "
                "it, or name the label to skip by ignore_label."
            )
    one, other = (
        np.where(void, np.int16(-1), label.astype(np.int16)) for label in (truth, predicted)
    )
    return one, other


def _counts(
    truth: np.ndarray,
    predicted: np.ndarray,
    in_truth: np.ndarray,
    in_predicted: np.ndarray,
    num_classes: int,
) -> NDArray[np.int64]:
    """(3, N) pixels of each class, hit, true and predicted, among some of each label map."""

    def pixels(label: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.bincount(label[where & (label >= 0)], minlength=num_classes)

    hit = in_truth & in_predicted & (truth == predicted)
    return np.stack([pixels(truth, hit), pixels(truth, in_truth), pixels(predicted, in_predicted)])
