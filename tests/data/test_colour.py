"""Changes of values: each equal to a slow reference, drawn as stated, no pixel moved."""

import colorsys
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.data.augment import Example
from segjax.data.colour import (
    adjust_saturation,
    distort,
    random_grey_values,
    random_photometric,
    scale_values,
    shift_hue,
)
from segjax.errors import SegjaxError

rng = np.random.default_rng(0)
# Random colours; the grey ones, black, white, and ties between channels, which hues divide by.
COLOURS = np.concatenate(
    [
        rng.integers(0, 256, (40, 3)),
        np.repeat([[0], [7], [255]], 3, 1),
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 5], [9, 5, 9], [5, 9, 9], [0, 0, 1]],
    ]
).astype(np.uint8)[None]
LABEL = np.zeros(COLOURS.shape[:2], np.uint8)
OFF = {"brightness": 0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0}


def by_hsv(change):
    """The colours after a change of (hue, saturation, value) in 0-1, pixel for pixel."""
    changed = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*(pixel / 255)))) for pixel in COLOURS[0]
    ]
    return 255 * np.array([changed])


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5, 4.0])
def test_saturation_is_that_of_hsv(factor):
    want = by_hsv(lambda h, s, v: (h, min(s * factor, 1), v))
    np.testing.assert_allclose(adjust_saturation(COLOURS, factor), want, atol=1e-3)


@pytest.mark.parametrize("turns", [-0.7, -0.1, 0.0, 0.05, 1 / 3, 1.0])
def test_hue_is_that_of_hsv(turns):
    want = by_hsv(lambda h, s, v: ((h + turns) % 1, s, v))
    np.testing.assert_allclose(jax.jit(shift_hue)(COLOURS, turns), want, atol=1e-3)


def test_values_are_scaled_and_clipped():
    got = scale_values(np.array([[[0, 100, 250]]], np.uint8), 1.5, -20)
    np.testing.assert_array_equal(got, [[[0, 130, 255]]])
    assert got.dtype == np.float32


def slow_distort(brightness, contrast, saturation, hue, contrast_last):
    """mmsegmentation's PhotoMetricDistortion, without its rounding, pixel for pixel."""
    found = []
    for pixel in COLOURS[0]:
        values = [min(max(float(x) + brightness, 0), 255) for x in pixel]
        if not contrast_last:
            values = [min(x * contrast, 255) for x in values]
        h, s, v = colorsys.rgb_to_hsv(*(x / 255 for x in values))
        values = colorsys.hsv_to_rgb((h + hue / 180) % 1, min(s * saturation, 1), v)
        values = [255 * x for x in values]
        if contrast_last:
            values = [min(x * contrast, 255) for x in values]
        found.append(values)
    return np.array([found])


@pytest.mark.parametrize("contrast_last", [False, True])
@pytest.mark.parametrize(
    "brightness, contrast, saturation, hue",
    [(-32, 1.5, 1.5, 18), (32, 0.5, 0.5, -18), (10, 1.2, 1.4, 0), (0, 1, 1, -7)],
)
def test_distortion_is_the_slow_one(brightness, contrast, saturation, hue, contrast_last):
    options = {
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
        "contrast_last": contrast_last,
    }
    got = jax.jit(distort)(COLOURS, **options)
    np.testing.assert_allclose(got, slow_distort(**options), atol=2e-3)


@partial(jax.jit, static_argnames="f")
def _drawn(f, keys, example, **options):
    return jax.vmap(partial(f, **options), (0, None))(keys, example).image


def drawn(colour, *, f=random_photometric, **options):
    """What becomes of one colour under 256 keys: (256, C)."""
    keys = jax.random.split(jax.random.key(0), 256)
    example = Example(np.array([[colour]], np.uint8), np.zeros((1, 1), np.uint8))
    return np.asarray(_drawn(f, keys, example, **options))[:, 0, 0]


def assert_half_changed_between(values, low, high, neutral):
    changed = values[~np.isclose(values, neutral, atol=1e-3)]
    assert 104 < len(changed) < 152  # of 256: three standard deviations
    span = high - low
    assert low - 1e-3 <= changed.min() < low + 0.1 * span
    assert high - 0.1 * span < changed.max() <= high + 1e-3


def test_each_distortion_comes_to_half_of_the_pictures_between_its_bounds():
    light = drawn((100, 100, 100), **OFF | {"brightness": 32})[:, 0]
    assert_half_changed_between(light, 68, 132, 100)
    contrast = drawn((100, 100, 100), **OFF | {"contrast": (0.5, 1.5)})[:, 1]
    assert_half_changed_between(contrast, 50, 150, 100)
    colour = drawn((200, 100, 100), **OFF | {"saturation": (0.5, 1.5)})[:, 1]
    assert_half_changed_between(colour, 50, 150, 100)
    turned = drawn((0, 255, 255), **OFF | {"hue": 18})
    hues = np.array([colorsys.rgb_to_hsv(*(pixel / 255))[0] for pixel in turned])
    assert_half_changed_between(hues, 0.4, 0.6, 0.5)


def test_contrast_comes_last_in_half_of_the_pictures():
    found = drawn((200, 100, 100), **OFF | {"contrast": (2, 2), "saturation": (2, 2)})
    first, last = (255, 145, 145), (255, 0, 0)  # 255 is where the other order is clipped
    for want in (first, last):
        assert 16 < np.isclose(found, want, atol=1e-2).all(-1).sum() < 48  # of 256, an eighth


def test_grey_values_are_drawn_between_the_bounds():
    factors = drawn((100,), f=random_grey_values, brightness=0)[:, 0]
    assert 80 <= factors.min() < 84 and 121 < factors.max() <= 125
    offsets = drawn((100, 20), f=random_grey_values, contrast=(1, 1), brightness=30)
    assert 70 <= offsets[:, 0].min() < 74 and 126 < offsets[:, 0].max() <= 130
    np.testing.assert_allclose(offsets[:, 1], np.maximum(offsets[:, 0] - 80, 0), atol=1e-3)


@pytest.mark.parametrize("channels", [1, 4])
def test_colours_need_three_channels(channels):
    example = Example(np.zeros((2, 2, channels), np.uint8), np.zeros((2, 2), np.uint8))
    with pytest.raises(SegjaxError, match=f"of {channels} channels.*use random_grey_values"):
        random_photometric(jax.random.key(0), example)


COMPILED = [jax.jit(f) for f in (random_grey_values, random_photometric)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), which=st.sampled_from([0, 1]))
def test_no_pixel_moves_and_no_label_changes(seed, which):
    """Pixels in another order become the same pixels in that order."""
    order = np.random.default_rng(seed).permutation(COLOURS.shape[1])
    label = np.arange(COLOURS.shape[1], dtype=np.uint8)[None]
    weight = label.astype(np.float32)
    f, key = COMPILED[which], jax.random.key(seed)
    straight = f(key, Example(COLOURS, label, weight))
    mixed = f(key, Example(COLOURS[:, order], label[:, order], weight[:, order]))
    np.testing.assert_array_equal(straight.label, label)
    np.testing.assert_array_equal(straight.weight, weight)
    for a, b in zip(straight, mixed, strict=True):
        np.testing.assert_array_equal(a[:, order], b)
