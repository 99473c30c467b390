"""Augmentation: exact slices and mirrors, the slow resampling, keys that know no batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import sharding
from segjax.data.augment import (
    Normalise,
    random_crop,
    random_flip,
    random_scale_crop,
    record_key,
)
from segjax.errors import SegjaxError

HEIGHT, WIDTH = 6, 7
# Every pixel of the picture has a value of its own in its first channel.
PLACES = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
IMAGE = np.stack([PLACES, 255 - PLACES, PLACES // 2], -1)
LABEL = (PLACES * 5 % 11).astype(np.uint8)


@partial(
    jax.jit,
    static_argnames=("f", "size", "axis", "ignore_label"),
    # These many small programs take longer to compile than to run.
    compiler_options={"xla_backend_optimization_level": 0},
)
def _draw(f, keys, image, label, **options):
    return jax.vmap(partial(f, **options), (0, None, None))(keys, image, label)


def draws(f, count=64, image=IMAGE, label=LABEL, **options):
    """f's images and labels for `count` keys."""
    keys = jax.random.split(jax.random.key(0), count)
    return zip(*map(np.asarray, _draw(f, keys, image, label, **options)), strict=True)


# Normalise


def test_normalise_by_hand():
    images = np.array([[[[0, 10, 255]]]], np.uint8)
    np.testing.assert_allclose(Normalise()(images), [[[[-1, 10 / 127.5 - 1, 1]]]], rtol=1e-6)
    got = Normalise((0.0, 20.0, 5.0), (1.0, 2.0, 50.0))(images)
    np.testing.assert_allclose(got, [[[[0, -5, 5]]]], rtol=1e-6)
    assert got.dtype == jnp.float32
    assert Normalise()(jnp.zeros((2, 1), jnp.bfloat16)).dtype == jnp.float32


# Crop


def slices_drawn(augmentation, *, size, **options):
    """Where the windows drawn begin; each must be a slice of image and label."""
    (h, w), found = size, set()
    for image, label in draws(augmentation, size=size, **options):
        top, left = divmod(int(image[0, 0, 0]), WIDTH)
        found.add((top, left))
        np.testing.assert_array_equal(image, IMAGE[top : top + h, left : left + w])
        np.testing.assert_array_equal(label, LABEL[top : top + h, left : left + w])
    return found


def test_every_crop_is_a_slice_and_every_slice_is_drawn():
    found = slices_drawn(random_crop, size=(4, 6))
    assert found == {(top, left) for top in range(3) for left in range(2)}


def test_a_crop_of_the_whole_is_the_whole():
    for image, label in draws(random_crop, count=3, size=(HEIGHT, WIDTH)):
        np.testing.assert_array_equal(image, IMAGE)
        np.testing.assert_array_equal(label, LABEL)


@pytest.mark.parametrize("size", [(HEIGHT + 1, WIDTH), (HEIGHT, WIDTH + 1)])
def test_a_crop_too_large_is_told(size):
    text = f"A crop of {size[0]}×{size[1]} does not fit into pictures of 6×7; make the crop smaller"
    with pytest.raises(SegjaxError, match=text):
        jax.jit(partial(random_crop, size=size))(jax.random.key(0), IMAGE, LABEL)


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


# Scale and crop


def test_scale_one_of_the_same_size_changes_nothing():
    for image, label in draws(random_scale_crop, count=4, size=(HEIGHT, WIDTH), scale=(1, 1)):
        np.testing.assert_array_equal(image, IMAGE)
        np.testing.assert_array_equal(label, LABEL)
        assert (image.dtype, label.dtype) == (np.float32, np.uint8)


def test_scale_one_of_a_smaller_size_is_a_slice_and_every_slice_is_drawn():
    found = slices_drawn(random_scale_crop, size=(5, 5), scale=(1, 1))
    assert found == {(top, left) for top in range(2) for left in range(3)}


def test_a_picture_smaller_than_the_window_lies_in_it_with_its_edge_repeated():
    h, w = HEIGHT + 2, WIDTH + 1
    found = set()
    for image, label in draws(random_scale_crop, size=(h, w), scale=(1, 1), ignore_label=99):
        top, left = (int(np.argmax(line)) for line in ((label != 99).any(1), (label != 99).any(0)))
        found.add((top, left))
        around = ((top, 2 - top), (left, 1 - left))
        np.testing.assert_array_equal(image, np.pad(IMAGE, (*around, (0, 0)), mode="edge"))
        np.testing.assert_array_equal(label, np.pad(LABEL, around, constant_values=99))
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
            y, x = np.clip(y, 0, HEIGHT - 1), np.clip(x, 0, WIDTH - 1)
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


CROP = partial(random_scale_crop, size=(5, 6))


def augmented(epochs, records):
    """What the training does: keys and pictures of a batch, inside jit."""
    keys = jax.vmap(partial(record_key, jax.random.key(3)))(epochs, records)
    images = jnp.asarray(IMAGE) + records[:, None, None, None].astype(jnp.uint8)
    labels = jnp.broadcast_to(jnp.asarray(LABEL), (len(records), HEIGHT, WIDTH))
    return jax.vmap(CROP)(keys, images, labels)


def test_an_example_does_not_depend_on_its_batch_or_place():
    epochs, records = np.zeros(4, np.int32), np.array([4, 1, 3, 2], np.int32)
    images, labels = jax.jit(augmented)(epochs, records)
    for i, record in enumerate(records):
        image, label = CROP(
            record_key(jax.random.key(3), 0, record), IMAGE + np.uint8(record), LABEL
        )
        np.testing.assert_allclose(images[i], image, atol=1e-3)
        np.testing.assert_array_equal(labels[i], label)
    reversed_images, reversed_labels = jax.jit(augmented)(epochs, records[::-1])
    np.testing.assert_array_equal(reversed_images[::-1], images)
    np.testing.assert_array_equal(reversed_labels[::-1], labels)


def test_a_sharded_batch_is_augmented_as_on_one_device():
    batch = np.zeros(8, np.int32), np.arange(8, dtype=np.int32)
    on_devices = sharding.put(batch, sharding.make_mesh())
    for got, want in zip(jax.jit(augmented)(*on_devices), jax.jit(augmented)(*batch), strict=True):
        assert len(got.sharding.device_set) == 8
        np.testing.assert_allclose(got, want, atol=1e-3)
