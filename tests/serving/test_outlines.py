"""Label maps as run lengths and polygons, against drawing them again and a slow reference."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from segjax.errors import SegjaxError
from segjax.serving import outlines

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))
RING = np.pad(np.pad(np.pad(np.ones((1, 1), bool), 1), 1, constant_values=True), 1)


def slow_rle(mask):
    """Counts as COCO defines them, one pixel at a time."""
    counts, value, run = [], False, 0
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if mask[y, x] != value:
                counts.append(run)
                value, run = not value, 0
            run += 1
    return [*counts, run]


def slow_text(counts):
    """`rleToString` of COCO's maskApi.c, step by step."""
    text = ""
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            text += chr((c | 0x20 if more else c) + 48)
    return text


@given(MASKS)
def test_run_lengths_equal_the_reference_and_come_back(mask):
    rle = outlines.encode_rle(mask)
    assert rle["counts"] == slow_text(slow_rle(mask))
    np.testing.assert_array_equal(outlines.decode_rle(rle), mask)


def test_run_lengths_by_hand():
    assert outlines.encode_rle(np.eye(2, dtype=bool)) == {"size": [2, 2], "counts": "0120"}
    assert outlines.encode_rle(np.zeros((40, 30), bool))["counts"] == "`U1"


def test_run_lengths_are_those_of_pycocotools():
    oracle = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).random((40, 31)) > 0.6
    want = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert outlines.encode_rle(mask)["counts"] == want["counts"].decode()


def drawn(parts, shape):
    """What lies in the rings by the even-odd rule, asked of each pixel's centre."""
    mask = np.zeros(shape, int)
    for rings in parts:
        inside = np.zeros(shape, int)
        for ring in rings:
            for (x0, y0), (x1, y1) in pairwise(ring):
                if x0 == x1:
                    inside[min(y0, y1) : max(y0, y1), x0:] += 1
        mask += inside % 2
    return mask


@given(MASKS)
def test_polygons_drawn_again_are_the_mask(mask):
    parts = outlines.polygons(mask)
    np.testing.assert_array_equal(drawn(parts, mask.shape), mask)
    for outer, *holes in parts:
        assert outlines.area(outer) > 0 and all(outlines.area(hole) < 0 for hole in holes)
        for ring in (outer, *holes):
            assert ring[0] == ring[-1] and len(ring) >= 5
            # Only corners, each a turn of a right angle.
            steps = np.sign(np.diff(np.array([*ring, ring[1]]), axis=0))
            assert (np.abs(steps).sum(1) == 1).all()
            assert ((steps[:-1] * steps[1:]).sum(1) == 0).all()
    assert sum(outlines.area(ring) for rings in parts for ring in rings) == mask.sum()


def test_polygons_by_hand():
    (outer, hole), (dot,) = outlines.polygons(RING)
    assert sorted(set(outer)) == [(1, 1), (1, 6), (6, 1), (6, 6)]
    assert outlines.area(outer) == 25 and outlines.area(hole) == -9
    assert dot == [(3, 3), (4, 3), (4, 4), (3, 4), (3, 3)]


def test_pixels_that_touch_at_a_corner_are_two_parts():
    first, second = outlines.polygons(np.eye(2, dtype=bool))
    assert first == [[(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]]
    assert second == [[(1, 1), (2, 1), (2, 2), (1, 2), (1, 1)]]


def test_what_is_too_ragged_is_told(monkeypatch):
    monkeypatch.setattr(outlines, "MOST_EDGES", 7)
    with pytest.raises(SegjaxError, match="have 8 edges, more than 7: too ragged"):
        outlines.polygons(np.eye(2, dtype=bool))


def test_geojson_leaves_the_background_out():
    told = outlines.as_geojson(RING.astype(np.uint8), ("none", "cell"), ((0, 0, 0), (9, 9, 9)))
    told = json.loads(json.dumps(told))
    assert told["type"] == "FeatureCollection"
    assert [f["properties"] for f in told["features"]] == [
        {"class": "cell", "label": 1, "area": 16},
        {"class": "cell", "label": 1, "area": 1},
    ]
    assert [len(f["geometry"]["coordinates"]) for f in told["features"]] == [2, 1]


def test_coco_has_each_class_that_occurs():
    labels = np.zeros((4, 5), np.uint8)
    labels[1:3, 2:5] = 2
    told = json.loads(json.dumps(outlines.as_coco(labels, ("a", "b", "c"))))
    assert [a["category_id"] for a in told["annotations"]] == [0, 2]
    assert told["annotations"][1]["bbox"] == [2, 1, 3, 2]
    assert told["annotations"][1]["area"] == 6
    masks = [outlines.decode_rle(a["segmentation"]) for a in told["annotations"]]
    np.testing.assert_array_equal(masks[1], labels == 2)
    assert told["images"][0] == {"id": 1, "height": 4, "width": 5}
