"""Otsu's threshold against a slow search, and which side of it is the objects."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.evaluation.baselines import Otsu, otsu_threshold


def between(grey, threshold):
    """The variance between the two sides of a threshold, as Otsu writes it."""
    dark, bright = grey[grey <= threshold], grey[grey > threshold]
    if not dark.size or not bright.size:
        return 0.0
    return dark.size * bright.size / grey.size**2 * (dark.mean() - bright.mean()) ** 2


@given(st.integers(0, 2**32 - 1), st.integers(2, 256))
@settings(max_examples=30, deadline=None)
def test_no_threshold_parts_better(seed, levels):
    grey = np.random.default_rng(seed).integers(0, levels, (5, 6)).astype(np.uint8)
    best = max(between(grey, t) for t in range(256))
    assert between(grey, otsu_threshold(grey)) == pytest.approx(best)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ground, nucleus", [(10, 200), (200, 10)])
def test_the_objects_are_the_smaller_side_bright_or_dark(ground, nucleus, channels):
    label = np.zeros((8, 9), np.uint8)
    label[2:5, 3:7] = 1
    noise = np.random.default_rng(0).integers(-9, 10, (8, 9))
    grey = (np.where(label, nucleus, ground) + noise).astype(np.uint8)
    got = Otsu()(np.repeat(grey[..., None], channels, -1))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, label)


def test_a_picture_of_one_value_has_no_objects():
    for value in (0, 7, 255):
        assert not Otsu()(np.full((3, 4, 1), value, np.uint8)).any()
