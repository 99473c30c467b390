"""The built-in data set: the same bytes everywhere, and pictures that are worth learning from."""

import hashlib
import itertools
import pickle

import numpy as np
import pytest

from segjax.data.shapes import CLASSES, PALETTE, Shapes, _draw, _Random
from segjax.errors import SegjaxError

SMALL = (48, 64)


@pytest.fixture(scope="module")
def pictures():
    """The images (100, H, W, 3) and labels (100, H, W) of the first hundred pictures."""
    source = Shapes(size=SMALL)
    examples = [source[i] for i in range(100)]
    return np.stack([e["image"] for e in examples]), np.stack([e["label"] for e in examples])


@pytest.mark.parametrize(
    ("size", "seed", "index", "digest"),
    [
        ((96, 96), 0, 0, "22203af38b82553aead0b06b9db19c23cb96b1560cbf527217a514ba7bfae9ba"),
        ((96, 96), 0, 9999, "3e69eb5836325142fe8788a71b06f3955eb272bbafbe3f22ff675b100f024ff5"),
        ((48, 64), 1, 0, "e005ffef91905627f8d16bc78f9c8842399517d7ad21e2ba28620aedc12bd7db"),
        ((48, 64), 1, 7, "02308a2bf336595d6519887b181279767430a175ef1f001506d24419de399982"),
    ],
)
def test_the_bytes_are_the_same_on_every_platform(size, seed, index, digest):
    example = Shapes(size=size, seed=seed)[index]
    got = hashlib.sha256(example["image"].tobytes() + example["label"].tobytes()).hexdigest()
    assert got == digest, (
        "The pictures changed: every score on Shapes is then a new one. If you meant it, say so in "
        "the CHANGELOG; if only this machine disagrees, some operation is not exact."
    )


def test_an_example_keeps_the_contract():
    source = Shapes(length=3, size=SMALL)
    example = source[2]
    assert example.keys() == {"image", "label", "id"}
    assert example["id"] == "shapes-0-000002"
    assert (example["image"].shape, example["image"].dtype) == ((*SMALL, 3), np.uint8)
    assert (example["label"].shape, example["label"].dtype) == (SMALL, np.uint8)
    assert example["image"].flags.c_contiguous
    assert (len(source), source.classes, source.palette) == (3, CLASSES, PALETTE)
    assert len(CLASSES) == len(PALETTE) == len(set(PALETTE)) == 7


def test_the_index_and_the_seed_alone_decide():
    source = Shapes(size=SMALL)
    again = pickle.loads(pickle.dumps(Shapes(length=6, size=SMALL)))
    for name in ("image", "label"):
        np.testing.assert_array_equal(source[5][name], source[5][name])
        np.testing.assert_array_equal(source[5][name], again[5][name])
        assert (source[5][name] != source[6][name]).any()
        assert (source[5][name] != Shapes(size=SMALL, seed=1)[5][name]).any()


def test_a_larger_size_draws_the_same_shapes():
    small, large = Shapes(size=SMALL)[3]["label"], Shapes(size=(96, 128))[3]["label"][::2, ::2]
    both = (small != 255) & (large != 255)
    assert both.mean() > 0.7
    np.testing.assert_array_equal(small[both], large[both])


def test_it_is_indexed_like_a_list():
    source = Shapes(length=4, size=SMALL)
    assert source[-1]["id"] == source[np.int64(3)]["id"] == "shapes-0-000003"
    assert source[-4]["id"] == source[0]["id"]
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 4"):
            source[index]
    assert len(list(source)) == 4


def test_every_class_is_common(pictures):
    _, labels = pictures
    assert set(np.unique(labels)) == {*range(len(CLASSES)), 255}
    for kind in range(1, len(CLASSES)):
        assert (labels == kind).any((1, 2)).mean() > 0.4, CLASSES[kind]
        assert (labels == kind).mean() > 0.01, CLASSES[kind]
    assert 0.5 < (labels == 0).mean() < 0.8
    assert (labels == 255).mean() < 0.2


def test_a_picture_has_three_to_eight_shapes():
    counts = {len(_draw(_Random(0, i), 32, 32)[2]) - 1 for i in range(100)}
    assert counts == {3, 4, 5, 6, 7, 8}


def test_colour_alone_does_not_tell_the_classes_apart(pictures):
    images, labels = pictures
    kinds = range(len(CLASSES))
    means = np.stack([images[:50][labels[:50] == kind].mean(0) for kind in kinds])
    recalls = []
    for kind in kinds:
        pixels = images[50:][labels[50:] == kind].astype(float)
        nearest = np.square(pixels[:, None] - means).sum(-1).argmin(-1)
        recalls.append((nearest == kind).mean())
    assert np.mean(recalls) < 1.4 / len(CLASSES)


def test_void_lies_on_both_sides_of_every_border_and_nowhere_else():
    for index in range(5):
        label = Shapes(size=SMALL)[index]["label"]
        _, owner, kinds = _draw(_Random(0, index), *SMALL)
        for row, column in itertools.product(range(SMALL[0]), range(SMALL[1])):
            here = owner[row, column]
            cross = (
                *owner[max(row - 1, 0) : row + 2, column],
                *owner[row, max(column - 1, 0) : column + 2],
            )
            expected = kinds[here] if all(other == here for other in cross) else 255
            assert label[row, column] == expected, (index, row, column)


def test_shapes_stand_out_from_what_surrounds_them():
    gaps = []
    for index in range(50):
        image, owner, kinds = _draw(_Random(0, index), *SMALL)
        means = [image[owner == n].mean(0) for n in range(len(kinds)) if (owner == n).any()]
        gaps += [np.abs(mean - means[0]).sum() for mean in means[1:]]
    assert np.mean(np.array(gaps) > 60) > 0.9


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"size": (31, 64)}, r"at least 32 pixels each, got \(31, 64\); draw larger"),
        ({"size": (64, 31)}, r"at least 32 pixels each, got \(64, 31\)"),
        ({"size": 96}, r"must be \(height, width\) .* got 96"),
        ({"seed": -1}, r"seed must lie in \[0, 2\*\*64\), got -1"),
        ({"seed": 2**64}, "seed must lie in"),
    ],
)
def test_mistakes_are_told(arguments, text):
    with pytest.raises(SegjaxError, match=text):
        Shapes(**arguments)


def test_the_limits_are_allowed():
    assert Shapes(length=1, size=(32, 200), seed=2**64 - 1)[0]["image"].shape == (32, 200, 3)
