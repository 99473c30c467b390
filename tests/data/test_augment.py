"""Augmentation: equal to slow references, pictures and labels together, keys without batch."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage

from segjax.data.augment import (
    Example,
    Normalise,
    at_once,
    compose,
    displace,
    elastic,
    flip,
    mirror_pad,
    random_elastic,
    random_elastic_field,
    random_flip,
    random_rot90,
    random_rotation,
    random_scale_crop,
    record_key,
    rot90,
    rotation,
    scale_crop,
    smooth,
    spread,
    warp,
)
from segjax.data.colour import random_grey_values, random_photometric
from segjax.errors import SegjaxError
from segjax.training import sharding

HEIGHT, WIDTH = 6, 7
# Every pixel of the picture has a value of its own in its first channel.
PLACES = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
IMAGE = np.stack([PLACES, 255 - PLACES, PLACES // 2], -1)
LABEL = (PLACES * 5 % 11).astype(np.uint8)

# These many small programs take longer to compile than to run.
compiled = functools.cache(partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0}))


@partial(jax.jit, static_argnames=("f", "size", "axis"))
def _draw(f, keys, image, label, **options):
    return jax.vmap(partial(f, **options), (0, None))(keys, Example(image, label))


def draws(f, count=64, image=IMAGE, label=LABEL, **options):
    """f's images and labels for `count` keys."""
    keys = jax.random.split(jax.random.key(0), count)
    drawn = _draw(f, keys, image, label, **options)
    return zip(np.asarray(drawn.image), np.asarray(drawn.label), strict=True)


# Normalise


def test_normalise_by_hand():
    images = np.array([[[[0, 10, 255]]]], np.uint8)
    np.testing.assert_allclose(Normalise()(images), [[[[-1, 10 / 127.5 - 1, 1]]]], rtol=1e-6)
    got = Normalise((0.0, 20.0, 5.0), (1.0, 2.0, 50.0))(images)
    np.testing.assert_allclose(got, [[[[0, -5, 5]]]], rtol=1e-6)
    assert got.dtype == jnp.float32
    assert Normalise()(jnp.zeros((2, 1), jnp.bfloat16)).dtype == jnp.float32


# Reading at other places

positions = st.tuples(
    st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 40])
)


def far_and_near(height, width, seed, reach):
    """An example and random positions in it and up to some sizes beyond it, none halfway."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 255, (height, width, 2)).astype(np.float32)
    label = rng.choice([0, 1, 7, 255], (height, width)).astype(np.uint8)
    weight = rng.uniform(0, 9, (height, width)).astype(np.float32)
    y, x = rng.integers(-reach * 4, reach * 4, (2, 5, 4)) / 4 + 1 / 16
    return Example(image, label, weight), y.astype(np.float32), x.astype(np.float32)


WARP = {outside: compiled(partial(warp, outside=outside)) for outside in ("ignore", "mirror")}


@settings(max_examples=25, deadline=None)
@given(positions)
def test_warp_is_scipys_interpolation_and_ignores_what_is_outside(drawn):
    example, y, x = far_and_near(*drawn)
    height, width = example.label.shape

    def slow(pixels, order):
        return ndimage.map_coordinates(pixels, (y, x), order=order, mode="mirror")

    got = WARP["mirror"](example, y, x)
    for channel in range(2):
        want = slow(example.image[..., channel].astype(float), 1)
        np.testing.assert_allclose(got.image[..., channel], want, atol=2e-3)
    np.testing.assert_array_equal(got.label, slow(example.label, 0))
    np.testing.assert_array_equal(got.weight, slow(example.weight, 0))

    row, column = np.floor(y + 0.5), np.floor(x + 0.5)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    without = WARP["ignore"](example, y, x)
    np.testing.assert_array_equal(without.label, np.where(inside, got.label, 255))
    np.testing.assert_array_equal(without.image, got.image)


def test_warp_at_whole_places_copies_pixels():
    example = Example(IMAGE, LABEL)
    y, x = np.indices(LABEL.shape)[:, ::-1].astype(np.float32)
    got = WARP["ignore"](example, y, x)
    np.testing.assert_array_equal(got.image, IMAGE[::-1])
    np.testing.assert_array_equal(got.label, LABEL[::-1])
    assert got.weight is None


@pytest.mark.parametrize("margin", [0, 2, 15])
def test_mirror_padding_is_numpys(margin):
    example = Example(IMAGE, LABEL, LABEL.astype(np.float32))
    ignored, mirrored = (mirror_pad(example, margin, outside=o) for o in ("ignore", "mirror"))
    for got, want in zip(mirrored, example, strict=True):
        around = ((margin, margin), (margin, margin), (0, 0))[: want.ndim]
        np.testing.assert_array_equal(got, np.pad(want, around, mode="reflect"))
        assert got.dtype == want.dtype
    np.testing.assert_array_equal(ignored.image, mirrored.image)
    np.testing.assert_array_equal(ignored.label, np.pad(LABEL, margin, constant_values=255))


# Flip


@pytest.mark.parametrize("axis", [0, 1])
def test_half_of_the_pictures_are_mirrored(axis):
    mirrored = 0
    for image, label in draws(random_flip, axis=axis):
        flip = (image != IMAGE).any()
        mirrored += flip
        np.testing.assert_array_equal(image, np.flip(IMAGE, axis) if flip else IMAGE)
        np.testing.assert_array_equal(label, np.flip(LABEL, axis) if flip else LABEL)
    assert 20 < mirrored < 44  # of 64: three standard deviations


def test_a_flip_goes_left_and_right_by_default():
    images = {image.tobytes() for image, _ in draws(random_flip)}
    assert images == {IMAGE.tobytes(), IMAGE[:, ::-1].tobytes()}


# Rotation


def test_quarter_turns_are_numpys_and_each_is_drawn():
    square, label = IMAGE[:, :6], LABEL[:, :6]
    turned = [(np.rot90(square, k).tobytes(), np.rot90(label, k).tobytes()) for k in range(4)]
    drawn = {
        (image.tobytes(), mask.tobytes())
        for image, mask in draws(random_rot90, image=square, label=label)
    }
    assert drawn == set(turned)


def test_a_quarter_turn_needs_a_square():
    with pytest.raises(SegjaxError, match=r"pictures of 6×7 .* expected square"):
        random_rot90(jax.random.key(0), Example(IMAGE, LABEL))


@pytest.mark.parametrize("degrees", [0.0, 17.3, -64.0, 90.0, 180.0])
def test_rotation_is_scipys(degrees):
    y, x = rotation((HEIGHT, WIDTH), degrees, (0.0, 0.0))
    got = WARP["mirror"](Example(IMAGE, LABEL), y, x)
    want = ndimage.rotate(IMAGE.astype(float), degrees, order=1, reshape=False, mode="mirror")
    np.testing.assert_allclose(got.image, want, atol=2e-3)
    if degrees % 90:  # else it reads on the line between pixels
        want = ndimage.rotate(LABEL, degrees, order=0, reshape=False, mode="mirror")
        np.testing.assert_array_equal(got.label, want)


def test_a_quarter_turn_by_degrees_is_one():
    y, x = rotation((6, 6), 90.0, (0.0, 0.0))
    got = WARP["mirror"](Example(IMAGE[:, :6], LABEL[:, :6]), y, x)
    np.testing.assert_array_equal(got.label, np.rot90(LABEL[:, :6]))


def test_a_shift_goes_down_and_right():
    y, x = rotation((HEIGHT, WIDTH), 0.0, (2.0, 1.0))
    got = WARP["ignore"](Example(IMAGE, LABEL), y, x)
    np.testing.assert_array_equal(got.image[2:, 1:], IMAGE[:-2, :-1])
    np.testing.assert_array_equal(got.label[2:, 1:], LABEL[:-2, :-1])
    assert (got.label[:2] == 255).all() and (got.label[:, :1] == 255).all()


@pytest.mark.parametrize("degrees, shift", [(30.0, (2.0, 0.0)), (-64.0, (0.75, -1.3))])
def test_a_turn_and_then_a_shift_are_scipys(degrees, shift):
    """Which goes from the result back: the shift is undone first, then the turn."""
    sin, cos = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    back, middle = np.array([[cos, sin], [-sin, cos]]), np.array([HEIGHT - 1, WIDTH - 1]) / 2

    def slow(pixels, order):
        offset = middle - back @ (middle + shift)
        return ndimage.affine_transform(pixels, back, offset, order=order, mode="mirror")

    got = WARP["mirror"](Example(IMAGE, LABEL), *rotation((HEIGHT, WIDTH), degrees, shift))
    want = np.stack([slow(IMAGE[..., i].astype(float), 1) for i in range(3)], -1)
    np.testing.assert_allclose(got.image, want, atol=2e-3)
    np.testing.assert_array_equal(got.label, slow(LABEL, 0))


def test_angles_and_shifts_are_drawn_between_the_bounds():
    ramp = np.moveaxis(np.indices((21, 21)), 0, -1).astype(np.float32)
    f = jax.vmap(partial(random_rotation, degrees=30, shift=4, outside="mirror"), (0, None))
    keys = jax.random.split(jax.random.key(0), 64)
    example = Example(ramp, np.zeros((21, 21), np.uint8))
    inner = np.asarray(jax.jit(f)(keys, example).image)[:, 10:12, 10]
    down = inner[:, 1] - inner[:, 0]
    angles = np.rad2deg(np.arctan2(-down[:, 1], down[:, 0]))
    shifts = np.linalg.norm(inner[:, 0] - 10, axis=-1)
    assert -30 <= angles.min() < -24 and 24 < angles.max() <= 30
    assert shifts.min() < 1 and 4 < shifts.max() <= 4 * np.sqrt(2) + 1e-3


# Elastic deformation


def slow_spread(vectors, size):
    """By Pillow's bicubic resize of the box that begins and ends half a pixel outside."""
    h, w = vectors.shape[:2]
    y, x = (h - 1) / (size[0] - 1) / 2, (w - 1) / (size[1] - 1) / 2
    box = (0.5 - x, 0.5 - y, w - 0.5 + x, h - 0.5 + y)
    planes = [Image.fromarray(vectors[..., i]) for i in range(2)]
    resized = [x.resize(size[::-1], Image.Resampling.BICUBIC, box) for x in planes]
    return np.stack(list(map(np.asarray, resized)), -1)


@pytest.mark.parametrize("grid, size", [(3, (17, 25)), (3, (32, 32)), (5, (9, 8))])
def test_vectors_are_spread_as_pillow_does(grid, size):
    vectors = np.random.default_rng(0).normal(0, 10, (grid, grid, 2)).astype(np.float32)
    got = compiled(partial(spread, size=size))(vectors)
    np.testing.assert_allclose(got, slow_spread(vectors, size), atol=2e-4)
    corners = np.asarray(got)[[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(corners, vectors[[0, 0, -1, -1], [0, -1, 0, -1]], atol=2e-4)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 6.0])
def test_a_field_is_smoothed_as_scipy_does(sigma):
    field = np.random.default_rng(0).uniform(-1, 1, (19, 26, 2)).astype(np.float32)

    def slow(x):
        return ndimage.gaussian_filter(x, sigma, mode="constant", truncate=12)

    got = compiled(partial(smooth, sigma=sigma))(field)
    for i in range(2):
        want = slow(field[..., i].astype(float)) / slow(np.ones(field.shape[:2]))
        np.testing.assert_allclose(got[..., i], want, atol=1e-5)


def slow_displace(example, by):
    at = np.indices(example.label.shape) + np.moveaxis(by, -1, 0)
    read = partial(ndimage.map_coordinates, coordinates=at, mode="mirror")
    planes = [read(example.image[..., i].astype(float), order=1) for i in range(3)]
    return np.stack(planes, -1), read(example.label, order=0)


def test_elastic_deformations_are_the_slow_ones():
    """U-Net's and Simard's, from the same random numbers."""
    key, size = jax.random.key(3), (20, 24)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    example = Example(image, rng.integers(0, 9, size, np.uint8))
    vectors = 3 * np.asarray(jax.random.normal(key, (3, 3, 2)))
    noise = np.asarray(jax.random.uniform(key, (*size, 2), minval=-1, maxval=1))
    for f, by in (
        (partial(random_elastic, sigma=3), slow_spread(vectors, size)),
        (partial(random_elastic_field, alpha=30, sigma=2), 30 * np.asarray(smooth(noise, 2))),
    ):
        got = compiled(partial(f, outside="mirror"))(key, example)
        want_image, want_label = slow_displace(example, by)
        assert np.abs(by).max() > 2
        np.testing.assert_allclose(got.image, want_image, atol=0.05)
        assert (np.asarray(got.label) == want_label).mean() > 0.99  # but for ties


def test_displacements_have_the_stated_deviations():
    """Of U-Net's vectors σ, of Simard's the docstring's share of α, away from the edges."""
    ramp = np.moveaxis(np.indices((65, 65)), 0, -1).astype(np.float32)
    example = Example(ramp, np.zeros((65, 65), np.uint8))
    keys = jax.random.split(jax.random.key(0), 128)
    for f, want in (
        (partial(random_elastic, sigma=5), 5),
        (partial(random_elastic_field, alpha=34, sigma=4), 0.16 * 34 / 4),
    ):
        images = jax.jit(jax.vmap(partial(f, outside="mirror"), (0, None)))(keys, example).image
        found = np.asarray(images)[:, 32, 32] - 32
        assert np.std(found) == pytest.approx(want, rel=0.15)


def test_displace_reads_at_the_place_and_its_vector():
    by = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    by[1, 2] = 3, -1
    got = displace(Example(IMAGE, LABEL), by, outside="ignore")
    want = LABEL.copy()
    want[1, 2] = LABEL[4, 1]
    np.testing.assert_array_equal(got.label, want)


# Several at once


def test_moves_at_once_are_those_one_after_the_other():
    """Bit for bit where places are whole, else up to rounding; labels are equal in any case."""
    example = Example(IMAGE, LABEL, LABEL.astype(np.float32))
    keys = jax.random.split(jax.random.key(0), 32)
    for scale, tolerance in (((1, 1), 0), ((0.7, 1.4), 2e-3)):
        cut = {"size": (5, 5), "scale": scale}
        chain = compose(partial(random_scale_crop, **cut), random_rot90, random_flip)
        once = at_once(partial(scale_crop, **cut), rot90, flip)
        want, got = (compiled(jax.vmap(f, (0, None)))(keys, example) for f in (chain, once))
        np.testing.assert_allclose(got.image, want.image, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(got.label, want.label)
        np.testing.assert_array_equal(got.weight, want.weight)


def test_moves_at_once_read_the_picture_where_each_leads_to():
    """A window, then a deformation: from the result back, in float64."""
    key, size = jax.random.key(3), (20, 24)
    rng = np.random.default_rng(0)
    image = np.concatenate([np.moveaxis(np.indices(size), 0, -1), rng.normal(size=(*size, 1))], -1)
    example = Example(image.astype(np.float32), rng.integers(0, 9, size, np.uint8))
    moves = partial(scale_crop, size=(9, 8), scale=(1, 1)), partial(elastic, sigma=1)
    got = compiled(at_once(*moves, outside="mirror"))(key, example)
    window, _ = moves[0](jax.random.fold_in(key, 0), size)
    top, left = moves[0](jax.random.fold_in(key, 0), size).place(0.0, 0.0)
    by = slow_spread(np.asarray(jax.random.normal(jax.random.fold_in(key, 1), (3, 3, 2))), (9, 8))
    at = np.indices(window) + np.moveaxis(by, -1, 0) + np.reshape([top, left], (2, 1, 1))
    for channel in range(3):
        want = ndimage.map_coordinates(image[..., channel], at, order=1, mode="mirror")
        np.testing.assert_allclose(got.image[..., channel], want, atol=1e-3)
    want = ndimage.map_coordinates(example.label, at, order=0, mode="mirror")
    np.testing.assert_array_equal(got.label, want)
    beyond = (at[0] > top + 8) | (at[1] > left + 7)  # what the window has cut off is found again
    assert beyond.any()


# Scale and crop


def slices_drawn(augmentation, *, size, **options):
    """Where the windows drawn begin; each must be a slice of image and label."""
    (h, w), found = size, set()
    for image, label in draws(augmentation, size=size, **options):
        top, left = divmod(int(image[0, 0, 0]), WIDTH)
        found.add((top, left))
        np.testing.assert_array_equal(image, IMAGE[top : top + h, left : left + w])
        np.testing.assert_array_equal(label, LABEL[top : top + h, left : left + w])
    return found


def test_scale_one_of_the_same_size_changes_nothing():
    for image, label in draws(random_scale_crop, count=4, size=(HEIGHT, WIDTH), scale=(1, 1)):
        np.testing.assert_array_equal(image, IMAGE)
        np.testing.assert_array_equal(label, LABEL)
        assert (image.dtype, label.dtype) == (np.float32, np.uint8)


def test_scale_one_of_a_smaller_size_is_a_slice_and_every_slice_is_drawn():
    found = slices_drawn(random_scale_crop, size=(5, 5), scale=(1, 1))
    assert found == {(top, left) for top in range(2) for left in range(3)}


def test_a_picture_smaller_than_the_window_lies_in_it_mirrored():
    h, w = HEIGHT + 2, WIDTH + 1
    found = set()
    for image, label in draws(random_scale_crop, size=(h, w), scale=(1, 1)):
        inside = label != 255
        top, left = int(np.argmax(inside.any(1))), int(np.argmax(inside.any(0)))
        found.add((top, left))
        around = ((top, 2 - top), (left, 1 - left))
        np.testing.assert_array_equal(image, np.pad(IMAGE, (*around, (0, 0)), mode="reflect"))
        np.testing.assert_array_equal(label, np.pad(LABEL, around, constant_values=255))
    assert found == {(top, left) for top in range(3) for left in range(2)}


def slow_scale_crop(factor, top, left, size):
    """The window by four loops, in float64."""
    image, label = np.empty((*size, 3)), np.full(size, 255, np.uint8)
    for row in range(size[0]):
        for column in range(size[1]):
            y = (row + 0.5 + top) / factor - 0.5
            x = (column + 0.5 + left) / factor - 0.5
            if -0.5 <= y < HEIGHT - 0.5 and -0.5 <= x < WIDTH - 0.5:
                label[row, column] = LABEL[int(np.floor(y + 0.5)), int(np.floor(x + 0.5))]
            # Mirrored once at either end is enough here.
            y = HEIGHT - 1 - abs(HEIGHT - 1 - abs(y))
            x = WIDTH - 1 - abs(WIDTH - 1 - abs(x))
            i, j = min(int(y), HEIGHT - 2), min(int(x), WIDTH - 2)
            image[row, column] = sum(
                (1 - abs(y - k)) * (1 - abs(x - m)) * IMAGE[k, m].astype(float)
                for k in (i, i + 1)
                for m in (j, j + 1)
            )
    return image, label


@pytest.mark.parametrize("factor", [0.45, 0.8, 1.0, 1.3, 2.1])
def test_scale_crop_is_the_slow_resampling_at_a_whole_offset(factor):
    size = (5, 6)

    def offsets(length, window):
        room = int(np.floor(length * factor)) - window
        return range(min(room, 0), max(room, 0) + 1)

    slow = {
        (top, left): slow_scale_crop(factor, top, left, size)
        for top in offsets(HEIGHT, size[0])
        for left in offsets(WIDTH, size[1])
    }
    found = set()
    for image, label in draws(random_scale_crop, size=size, scale=(factor, factor)):
        place = min(slow, key=lambda place: np.abs(slow[place][0] - image).max())
        np.testing.assert_allclose(image, slow[place][0], atol=1e-3)
        np.testing.assert_array_equal(label, slow[place][1])
        found.add(place)
    assert len(found) > len(slow) / 2


def test_the_factor_is_drawn_between_the_bounds():
    # Columns of the window that the picture covers, where it is always the smaller.
    widths = [
        int((label != 255).any(0).sum())
        for _, label in draws(random_scale_crop, size=(20, 20), scale=(0.5, 2.0))
    ]
    assert 3 <= min(widths) < 6
    assert 12 < max(widths) <= 14


def test_ignore_is_never_invented_inside():
    """It is a frame around one rectangle, as large as the scaled picture or the window."""
    size = (8, 8)
    for scale in (0.5, 0.77, 1.1, 1.25, 2.0):
        for _, label in draws(random_scale_crop, size=size, scale=(scale, scale)):
            inside = label != 255
            rows, columns = inside.any(1), inside.any(0)
            np.testing.assert_array_equal(inside, np.outer(rows, columns))
            for line, length in ((rows, HEIGHT), (columns, WIDTH)):
                assert np.abs(np.diff(line.astype(int))).sum() <= 2
                assert min(int(length * scale), 8) <= line.sum() <= int(length * scale) + 1


def test_a_mask_keeps_its_own_ignored_pixels():
    label = np.full_like(LABEL, 255)
    for _, got in draws(random_scale_crop, count=4, label=label, size=(4, 4), scale=(1, 2)):
        np.testing.assert_array_equal(got, np.full((4, 4), 255))


# A bound on one class's share

STRIPES = np.repeat(np.array([[0, 0, 0, 0, 0, 0, 0, 1, 2, 255]], np.uint8), 8, axis=0)


def slow_bounded_crop(key, label, size, max_share):
    """mmsegmentation's RandomCrop on this library's random numbers: which of the windows."""
    _, places = jax.random.split(key)
    room = np.subtract(label.shape, size)

    def window(number):
        drawn = jax.random.uniform(jax.random.fold_in(places, number), (2,))
        top, left = np.round(np.asarray(drawn) * room).astype(int)
        return label[top : top + size[0], left : left + size[1]]

    for number in range(10):
        values, counts = np.unique(window(number), return_counts=True)
        counts = counts[values != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < max_share:
            return number, window(number)
    return 10, window(10)


@pytest.mark.parametrize("max_share", [0.75, 0.5, 0.01])
def test_a_bounded_crop_is_the_slow_one(max_share):
    size, chosen = (3, 4), set()
    f = compiled(partial(random_scale_crop, size=size, scale=(1.0, 1.0), max_share=max_share))
    image = np.zeros((*STRIPES.shape, 1), np.uint8)
    for seed in range(40):
        number, want = slow_bounded_crop(jax.random.key(seed), STRIPES, size, max_share)
        got = f(jax.random.key(seed), Example(image, STRIPES))
        np.testing.assert_array_equal(got.label, want)
        chosen.add(number)
    assert chosen == {10} if max_share == 0.01 else len(chosen) > 3


# What holds for all that move pixels

SIDE = 14


def padding(_, example, *, margin=3, outside="ignore"):
    return mirror_pad(example, margin, outside=outside)


MOVING = {
    "scale and crop": partial(random_scale_crop, size=(9, 20)),
    "bounded crop": partial(random_scale_crop, size=(9, 8), max_share=0.75),
    "mirrored crop": partial(random_scale_crop, size=(20, 9), outside="mirror"),
    "flip": random_flip,
    "flip down": partial(random_flip, axis=0),
    "quarter turn": random_rot90,
    "rotation": partial(random_rotation, shift=5),
    "mirrored rotation": partial(random_rotation, shift=5, outside="mirror"),
    "elastic": partial(random_elastic, sigma=3),
    "mirrored elastic": partial(random_elastic, sigma=3, outside="mirror"),
    "elastic field": partial(random_elastic_field, alpha=20, sigma=2),
    "padding": padding,
    "mirrored padding": partial(padding, outside="mirror"),
    "chain": compose(
        random_rot90, padding, partial(random_flip, axis=0), partial(random_elastic, sigma=2)
    ),
    "chain of two": compose(
        partial(random_rotation, shift=2), partial(random_scale_crop, size=(9, 20))
    ),
}
each_moving = pytest.mark.parametrize("name", MOVING)
seeds = st.integers(0, 2**31 - 1)


@each_moving
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_image_label_and_weight_never_part_company(name, seed):
    """All hold a pixel's row and column: what is nearest is half a pixel away at most.

    Of two readings the second's half may lie across the first's pixels.
    """
    rows, columns = np.indices((SIDE, SIDE))
    number = rows * SIDE + columns
    image = np.stack([rows, columns], -1).astype(np.uint8)
    example = Example(image, number.astype(np.uint8), number.astype(np.float32))
    got = jax.tree.map(np.asarray, compiled(MOVING[name])(jax.random.key(seed), example))
    place = np.stack(np.divmod(got.weight, SIDE), -1)
    reach = (1 + np.sqrt(2)) / 2 if "two" in name else 0.5
    assert np.abs(got.image - place).max() <= reach + 1e-4
    valid = got.label != 255
    np.testing.assert_array_equal(got.label[valid], got.weight[valid])
    assert valid.mean() > 0.1


@each_moving
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_ignore_is_neither_invented_nor_lost_but_outside(name, seed):
    label = np.random.default_rng(seed).choice([0, 1, 2, 255], (SIDE, SIDE)).astype(np.uint8)
    label[0] = np.arange(SIDE) % 2  # what a bounded crop looks for is there
    places = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    image = np.zeros((SIDE, SIDE, 1), np.uint8)
    f, key = compiled(MOVING[name]), jax.random.key(seed)
    got = jax.tree.map(np.asarray, f(key, Example(image, label, places)))
    want = label.ravel()[got.weight.astype(int)]
    if "bounded" in name:
        outside = got.label != want
        assert (got.label[outside] == 255).all()
    else:
        outside = np.asarray(f(key, Example(image, np.zeros_like(label), places)).label) == 255
    np.testing.assert_array_equal(got.label, np.where(outside, 255, want))
    if "mirror" in name or "flip" in name or "quarter" in name:
        assert not outside.any()


NEUTRAL = {
    "scale and crop": partial(random_scale_crop, size=(5, 6), scale=(1.0, 1.0)),
    "rotation": partial(random_rotation, degrees=0, shift=0),
    "elastic": partial(random_elastic, sigma=0),
    "elastic field": partial(random_elastic_field, alpha=0),
    "padding": partial(padding, margin=0),
    "grey values": partial(random_grey_values, brightness=0, contrast=(1, 1)),
    "photometric": partial(
        random_photometric, brightness=0, contrast=(1, 1), saturation=(1, 1), hue=0
    ),
}


@pytest.mark.parametrize("name", NEUTRAL)
@settings(max_examples=20, deadline=None)
@given(image=arrays.arrays(np.uint8, (5, 6, 3)), label=arrays.arrays(np.uint8, (5, 6)), seed=seeds)
def test_neutral_parameters_change_no_bit(name, image, label, seed):
    example = Example(image, label, label.astype(np.float32))
    got = compiled(NEUTRAL[name])(jax.random.key(seed), example)
    for array, want in zip(got, example, strict=True):
        np.testing.assert_array_equal(array, want)


def test_compose_applies_in_order_each_with_a_key_of_its_own():
    def add(key, example):
        return example._replace(image=example.image + jax.random.uniform(key))

    def double(key, example):
        return example._replace(image=2 * example.image)

    def image(*augmentations):
        zeros = Example(np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.uint8))
        return float(compose(*augmentations)(jax.random.key(0), zeros).image[0, 0, 0])

    first, both = image(add), image(add, add)
    assert 0 < first < 1 and both not in (first, 2 * first)
    assert image(add, double) == pytest.approx(2 * first)
    assert image(double, add) not in (first, 2 * first)
    assert image() == 0


# Keys


def test_a_key_is_of_seed_epoch_and_record():
    triples = [
        (seed, epoch, record) for seed in range(3) for epoch in range(3) for record in (0, 5)
    ]
    roots = [jax.random.key(seed) for seed in range(3)]
    keys = {
        jax.random.key_data(record_key(roots[seed], *pair)).tobytes() for seed, *pair in triples
    }
    assert len(keys) == len(triples)
    ordered, swapped = (record_key(roots[0], *pair) for pair in ((1, 2), (2, 1)))
    assert (jax.random.key_data(ordered) != jax.random.key_data(swapped)).any()


CROP = partial(random_scale_crop, size=(5, 6), max_share=0.2)  # which draws most anew


def augmented(epochs, records):
    """What the training does: keys and pictures of a batch, inside jit."""
    keys = jax.vmap(partial(record_key, jax.random.key(3)))(epochs, records)
    images = jnp.asarray(IMAGE) + records[:, None, None, None].astype(jnp.uint8)
    labels = jnp.broadcast_to(jnp.asarray(LABEL), (len(records), HEIGHT, WIDTH))
    return jax.vmap(CROP)(keys, Example(images, labels))


def test_an_example_does_not_depend_on_its_batch_or_place():
    epochs, records = np.zeros(4, np.int32), np.array([4, 1, 3, 2], np.int32)
    batch = jax.jit(augmented)(epochs, records)
    for i, record in enumerate(records):
        key = record_key(jax.random.key(3), 0, record)
        alone = compiled(CROP)(key, Example(IMAGE + np.uint8(record), LABEL))
        np.testing.assert_allclose(batch.image[i], alone.image, atol=1e-3)
        np.testing.assert_array_equal(batch.label[i], alone.label)
    backwards = jax.jit(augmented)(epochs, records[::-1])
    np.testing.assert_array_equal(backwards.image[::-1], batch.image)
    np.testing.assert_array_equal(backwards.label[::-1], batch.label)


def test_a_sharded_batch_is_augmented_as_on_one_device():
    batch = np.zeros(8, np.int32), np.arange(8, dtype=np.int32)
    on_devices = sharding.put(batch, sharding.make_mesh())
    got, want = jax.jit(augmented)(*on_devices), jax.jit(augmented)(*batch)
    assert len(got.image.sharding.device_set) == 8
    np.testing.assert_allclose(got.image, want.image, atol=1e-3)
    np.testing.assert_array_equal(got.label, want.label)
