"""The weight map is the slow one's, gaps part what touches, and the cache is never wrong."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.data import weight_map
from segjax.data.pipeline import pad_to_canvas
from segjax.data.weight_map import Weighted, border_weights, components, separate
from segjax.errors import SegjaxError

HEIGHT, WIDTH = 18, 23


def cells(seed, count=5):
    """Rectangles that touch and overlap, of numbers with gaps between them: int32 (H, W)."""
    rng = np.random.default_rng(seed)
    instances = np.zeros((HEIGHT, WIDTH), np.int32)
    for number in rng.choice(np.arange(1, 3 * count), count, replace=False):
        top, left = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
        height, width = rng.integers(1, 9, 2)
        instances[top : top + height, left : left + width] = number
    return instances


def neighbours(array, row, column):
    return array[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].ravel().tolist()


each_seed = given(st.integers(0, 2**32 - 1))
some = settings(max_examples=25, deadline=None)


@some
@each_seed
def test_separation_parts_what_touches_and_takes_nothing_else(seed):
    touching = cells(seed)
    apart = separate(touching)
    for (row, column), number in np.ndenumerate(touching):
        higher = [n for n in neighbours(touching, row, column) if n > number]
        assert apart[row, column] == (0 if higher else number)
        if apart[row, column]:
            assert set(neighbours(apart, row, column)) <= {0, number}


def test_the_gap_between_two_cells_is_one_pixel_wide():
    instances = np.repeat([[1] * 5 + [2] * 5], 4, axis=0).astype(np.uint16)
    np.testing.assert_array_equal(separate(instances)[2], [1, 1, 1, 1, 0, 2, 2, 2, 2, 2])


def slow_weights(instances, w0, sigma):
    """Every pixel against every pixel of every instance."""
    weights = np.zeros(instances.shape)
    places = {n: np.argwhere(instances == n) for n in np.unique(instances) if n}
    for row, column in np.argwhere(instances == 0):
        distances = sorted(
            np.sqrt(((pixels - (row, column)) ** 2).sum(1)).min() for pixels in places.values()
        )
        if len(distances) > 1:
            weights[row, column] = w0 * np.exp(-(sum(distances[:2]) ** 2) / (2 * sigma**2))
    return weights


@some
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 7),
    w0=st.sampled_from([10.0, 3.0]),
    sigma=st.sampled_from([0.4, 1.0, 5.0]),
)
def test_border_weights_are_the_slow_ones(seed, count, w0, sigma):
    instances = separate(cells(seed, count)).astype(np.uint16)
    got = border_weights(instances, w0=w0, sigma=sigma)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow_weights(instances, w0, sigma), rtol=1e-5, atol=2e-9 * w0)


def test_border_weights_by_hand():
    """Two columns with three between them: d1 + d2 is 4 in each of these, and 1 + 5 outside."""
    line = np.array([[0, 1, 0, 0, 0, 2, 0]])
    inner, outer = 10 * np.exp(-16 / 50), 10 * np.exp(-36 / 50)
    want = [[outer, 0, inner, inner, inner, 0, outer]]
    np.testing.assert_allclose(border_weights(line), want, rtol=1e-6)


def test_components_meet_at_corners_and_know_no_ignored_pixel():
    label = np.array([[1, 0, 0, 2], [0, 1, 0, 2], [255, 0, 0, 0], [1, 0, 3, 3]], np.uint8)
    got = components(label)
    np.testing.assert_array_equal(got > 0, (label > 0) & (label < 255))
    assert got[0, 0] == got[1, 1] and len(np.unique(got)) == 5
    np.testing.assert_array_equal(separate(got), got)


@dataclass(frozen=True)
class Cells:
    """Three pictures of touching cells; with `known`, their instances are told."""

    known: bool = True
    classes = ("background", "cell", "never")
    palette = ((0, 0, 0), (255, 255, 255), (9, 9, 9))

    def __len__(self):
        return 3

    def __getitem__(self, i):
        instances = cells(range(3)[i]).astype(np.uint16)
        label = (instances > 0).astype(np.uint8)
        label[:, ::3] = 255
        example = {"image": np.zeros((HEIGHT, WIDTH, 1), np.uint8), "label": label, "id": str(i)}
        return example | ({"instances": instances} if self.known else {})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "segjax" / "weight_maps"


@pytest.mark.parametrize("known", [True, False])
def test_weights_and_labels_of_a_source(known, cache):
    """By hand: gaps in the label, w_c = n / (k n_c) over all three, the border added, ignored 0."""
    labels, borders, images, ignored_gaps = [], [], Cells(known), 0
    for example in images:
        touching = example["instances"] if known else components(example["label"])
        apart = separate(touching)
        gaps, ignored = touching != apart, example["label"] == 255
        labels.append(np.where(gaps & ~ignored, 0, example["label"]))
        ignored_gaps += (gaps & ignored).sum()
        borders.append(slow_weights(apart, 7, 3))
    valid = np.concatenate(labels)[np.concatenate(labels) < 255]
    balance = {c: len(valid) / (2 * (valid == c).sum()) for c in (0, 1)}

    source = Weighted(images, w0=7, sigma=3)
    total = []
    for i, (label, border) in enumerate(zip(labels, borders, strict=True)):
        example = source[i]
        assert example.keys() == {"image", "label", "id", "weight"}
        assert (example["label"].dtype, example["weight"].dtype) == (np.uint8, np.float32)
        np.testing.assert_array_equal(example["label"], label)
        classes = np.vectorize({0: balance[0], 1: balance[1], 255: 0.0}.get)(label)
        want = np.where(label == 255, 0, classes + border)
        np.testing.assert_allclose(example["weight"], want, rtol=1e-5)
        total += (example["weight"] - border)[label < 255].tolist()
    assert np.mean(total) == pytest.approx(1, rel=1e-5)
    assert (len(source), source.classes, source.palette) == (3, Cells.classes, Cells.palette)
    assert known == any(
        (label == 0)[example["label"] == 1].any()
        for label, example in zip(labels, images, strict=True)
    )
    assert known == (ignored_gaps > 0)


def test_without_balance_all_pixels_weigh_1_beside_the_gaps(cache):
    plain, balanced = Weighted(Cells(), balance=False), Weighted(Cells())
    for i in range(3):
        mine, other = plain[i], balanced[i]
        valid = mine["label"] < 255
        np.testing.assert_array_equal(mine["label"], other["label"])
        border = other["weight"] - balanced.class_weights[other["label"]]
        np.testing.assert_allclose(mine["weight"], np.where(valid, 1 + border, 0), rtol=1e-5)


@pytest.mark.parametrize("options", [{"w0": -1.0}, {"sigma": 0.0}, {"sigma": float("nan")}])
def test_parameters_outside_their_range_are_told(options):
    with pytest.raises(SegjaxError, match="expected w0 of at least 0 and sigma above 0"):
        Weighted(Cells(), **options)


def test_a_weight_is_padded_with_0(cache):
    example = Weighted(Cells())[0]
    (weight,) = pad_to_canvas([example], (HEIGHT + 2, WIDTH + 3))["weight"]
    np.testing.assert_array_equal(weight, np.pad(example["weight"], ((0, 2), (0, 3))))
    assert weight.dtype == np.float32
    (weight,) = pad_to_canvas([example], (HEIGHT, WIDTH))["weight"]
    np.testing.assert_array_equal(weight, example["weight"])


def calls(monkeypatch):
    """The instances that `border_weights` is really called with from now on."""
    seen, compute = [], border_weights

    def counted(instances, **options):
        seen.append(instances)
        return compute(instances, **options)

    monkeypatch.setattr(weight_map, "border_weights", counted)
    return seen


def test_a_map_is_computed_once_for_a_content_and_parameters(cache, monkeypatch):
    seen = calls(monkeypatch)
    first = [Weighted(Cells())[i]["weight"] for i in range(3)]
    again = [Weighted(Cells())[i]["weight"] for i in range(3)]
    assert len(seen) == len(list(cache.iterdir())) == 3
    np.testing.assert_array_equal(first, again)
    for options in ({"w0": 3.0}, {"sigma": 2.0}):
        other = Weighted(Cells(), **options)[0]["weight"]
        assert not np.array_equal(other, first[0])
    assert len(seen) == 5


@pytest.mark.parametrize("broken", [b"", b"no array", b"PK\x03\x04", "half", "another shape"])
def test_a_broken_cache_file_is_computed_anew(broken, cache, monkeypatch):
    want = Weighted(Cells())[0]["weight"]
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if broken == "another shape":
        np.save(path, np.zeros((2, 2), np.float32))
    else:
        path.write_bytes(whole[: len(whole) // 2] if broken == "half" else broken)
    seen = calls(monkeypatch)
    np.testing.assert_array_equal(Weighted(Cells())[0]["weight"], want)
    assert len(seen) == 1 and path.read_bytes() == whole


def test_no_file_is_seen_half_written(cache, monkeypatch):
    """It has its name only once it is whole; what is left unfinished is deleted."""
    save = np.save

    def full_disk(file, array):
        assert not [p for p in cache.iterdir() if p.suffix == ".npy"]
        save(file, array)
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    assert Weighted(Cells())[0]["weight"].max() > 1
    assert list(cache.iterdir()) == []


def test_without_a_cache_folder_it_is_computed_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Weighted(Cells())[0]["weight"].max() > 1


def test_threads_agree(cache):
    source = Weighted(Cells())
    with ThreadPoolExecutor(8) as pool:
        maps = list(pool.map(lambda i: source[i % 3]["weight"], range(48)))
    for i, got in enumerate(maps):
        np.testing.assert_array_equal(got, Weighted(Cells())[i % 3]["weight"])
    assert len(os.listdir(cache)) == 3
