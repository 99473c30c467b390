"""A label map as shapes: COCO's run lengths, and polygons with holes as GeoJSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from segjax.errors import SegjaxError

MOST_EDGES = 2_000_000  # of pixels along outlines, followed in a few seconds

Ring = list[tuple[int, int]]


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's compressed run lengths, as `pycocotools.mask.decode` takes them.

    Runs go down the columns and begin with one of zeros. Each is written as its difference to the
    run two before it (the first three as they are), in groups of five bits, lowest first, of which
    all but the last have bit 5 set; the last one's highest bit is the sign. 48 is added for text.

    Args:
        mask: bool (H, W).

    Returns:
        {"size": [H, W], "counts": text}.

    Source: `rleToString` in `maskApi.c` of cocodataset/cocoapi.
    """
    flat = np.asarray(mask, bool).ravel(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]]))
    if flat[0]:
        runs = np.concatenate([[0], runs])
    written = runs.astype(np.int64)
    written[3:] -= runs[1:-2]
    return {"size": list(mask.shape), "counts": "".join(map(_as_text, written.tolist()))}


def _as_text(number: int) -> str:
    text = ""
    while True:
        bits, number = number & 31, number >> 5
        last = number == (-1 if bits & 16 else 0)
        text += chr(48 + (bits if last else bits | 32))
        if last:
            return text


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """The mask, bool (H, W), of what `encode_rle` gives."""
    runs: list[int] = []
    number = shift = 0
    for letter in rle["counts"]:
        bits = ord(letter) - 48
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(rle["size"], order="F")


def polygons(mask: np.ndarray) -> list[list[Ring]]:
    """The parts of a mask, each as its outer ring and those of its holes.

    The rings follow the pixels' edges, so their areas are counts of pixels and no two overlap.
    Pixels that touch at a corner alone are two parts.

    Args:
        mask: bool (H, W).

    Returns:
        For each part, in the order of its first pixel: rings of corners (x, y), the first repeated
        at the end; x to the right and y down from the picture's top left. By the shoelace formula
        outer rings have a positive area, holes a negative one, as GeoJSON winds them.

    Raises:
        SegjaxError: the outlines have more than two million edges.
    """
    parts, count = ndimage.label(mask)
    if not count:
        return []
    starts, turned, ring_of = _follow(np.asarray(mask, bool))
    found: list[list[Ring]] = [[] for _ in range(count)]
    for edges in ring_of:
        corners = edges[turned[edges]]
        ring = [(int(x), int(y)) for x, y in starts[corners][:, :2]]
        # The pixel to the right of an edge is the part's own.
        x, y, direction = starts[edges[0]]
        down, across = ((0, 0), (0, -1), (-1, -1), (-1, 0))[direction]
        part = found[parts[y + down, x + across] - 1]
        ring.append(ring[0])
        part.insert(0, ring) if area(ring) > 0 else part.append(ring)
    return found


def area(ring: Ring) -> float:
    """½ Σ (x_i y_(i+1) - x_(i+1) y_i)."""
    x, y = np.array(ring, np.int64).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # east, south, west, north in (x, y)


def _follow(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The edges around a mask, the mask to their right, chained to rings.

    Returns:
        (edges, 3) of x, y and direction where each starts; whether the ring turns there; and the
        edges of each ring in their order.
    """
    height, width = mask.shape
    padded = np.pad(mask, 1)
    inside, size = padded[1:-1, 1:-1], (height + 1, width + 1)
    leaves = np.zeros((4, *size), bool)  # an edge leaves the corner (y, x) to the east, south …
    leaves[0, :-1, :-1] = inside & ~padded[:-2, 1:-1]
    leaves[1, :-1, 1:] = inside & ~padded[1:-1, 2:]
    leaves[2, 1:, 1:] = inside & ~padded[2:, 1:-1]
    leaves[3, 1:, :-1] = inside & ~padded[1:-1, :-2]
    names = np.flatnonzero(leaves)
    if len(names) > MOST_EDGES:
        raise SegjaxError(
            f"The outlines have {len(names):,} edges, more than {MOST_EDGES:,}: too ragged for "
            "polygons. Ask for a mask or for run lengths."
        )
    direction, y, x = np.unravel_index(names, leaves.shape)
    step = np.array(_STEPS)[direction]
    to_x, to_y = x + step[:, 0], y + step[:, 1]
    # Right before straight before left: parts that touch at a corner stay two.
    right, left = (direction + 1) % 4, (direction + 3) % 4
    on = np.where(leaves[direction, to_y, to_x], direction, left)
    on = np.where(leaves[right, to_y, to_x], right, on)
    after = np.searchsorted(names, np.ravel_multi_index((on, to_y, to_x), leaves.shape))
    turned = np.empty(len(names), bool)
    turned[after] = on != direction
    following, seen, rings = after.tolist(), bytearray(len(names)), []
    for first in range(len(names)):
        if seen[first]:
            continue
        ring, edge = [], first
        while not seen[edge]:
            seen[edge] = 1
            ring.append(edge)
            edge = following[edge]
        rings.append(np.array(ring))
    return np.stack([x, y, direction], 1), turned, rings


def as_coco(labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """A label map in COCO's form: one annotation of run lengths for each class that occurs.

    Args:
        labels: integer (H, W), class indices below N.
        classes: N names.
    """
    annotations: list[dict[str, Any]] = []
    for label in np.unique(labels).tolist():
        mask = labels == label
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": label,
                "segmentation": encode_rle(mask),
                "area": int(np.count_nonzero(mask)),
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "iscrowd": 1,  # as run lengths are marked, which may be of many things
            }
        )
    height, width = labels.shape
    return {
        "images": [{"id": 1, "height": height, "width": width}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        "annotations": annotations,
    }


def as_geojson(
    labels: np.ndarray, classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """A label map as a GeoJSON FeatureCollection, a feature for each connected part of a class.

    Coordinates are pixels, x to the right and y down from the top left corner, not longitudes. A
    class that is black in the palette is the background and has none.

    Args:
        labels: integer (H, W), class indices below N.
        classes: N names.
        palette: N colours.

    Raises:
        SegjaxError: the outlines have more than two million edges.
    """
    features = []
    for label in np.unique(labels).tolist():
        if not any(palette[label]):
            continue
        for rings in polygons(labels == label):
            features.append(
                {
                    "type": "Feature",
                    "properties": {
                        "class": classes[label],
                        "label": label,
                        "area": sum(map(area, rings)),
                    },
                    "geometry": {"type": "Polygon", "coordinates": rings},
                }
            )
    return {"type": "FeatureCollection", "features": features}
