"""Prediction of pictures of any size: the network's own logits where it takes the size."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.data.augment import Normalise
from segjax.errors import SegjaxError, SegjaxWarning
from segjax.inference.predict import (
    labels_of,
    make_predict,
    make_tiled_predict,
    predict_label,
    probabilities_of,
)
from segjax.models import FCN, UNet

CLASSES = 3
NORMALISE = Normalise(mean=(120.0, 110.0, 100.0), deviation=(60.0, 50.0, 40.0))
SAME = UNet(CLASSES, widths=(2, 3, 4))
VALID = UNet(CLASSES, widths=(2, 3), padding="valid", norm="none")
FCN8 = FCN(CLASSES, padding="same", widths=(2, 2, 2, 2, 2), classifier_width=2)
SIZES = [(16, 16), (20, 24), (17, 16), (13, 29), (1, 1), (1, 7)]


def make_variables(model):
    """Random all through: FCN's scores would start at zero."""
    side = model.geometry.minimum
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(0.1, 0.5, x.shape).astype(np.float32), shapes)


VARIABLES = {model: make_variables(model) for model in (SAME, VALID, FCN8)}
PREDICT = {model: make_predict(model, normalise=NORMALISE) for model in VARIABLES}
each_model = pytest.mark.parametrize(
    "model", VARIABLES, ids=["U-Net", "U-Net of valid convolutions", "FCN"]
)


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def predict(model, images):
    return np.asarray(PREDICT[model](VARIABLES[model], jnp.asarray(images)))


def apply(model, images):
    normalised = (images - np.array(NORMALISE.mean)) / np.array(NORMALISE.deviation)
    normalised = normalised.astype(np.float32)
    return np.asarray(jax.jit(model.apply)(VARIABLES[model], normalised).logits)


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@each_model
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_have_the_size_of_the_picture(model, size):
    shape = jax.eval_shape(
        PREDICT[model], VARIABLES[model], jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    )
    assert (shape.shape, shape.dtype) == ((2, *size, CLASSES), jnp.float32)


@pytest.mark.parametrize("model, size", [(SAME, (12, 16)), (FCN8, (9, 11))])
def test_a_size_that_the_network_takes_is_the_network_alone(model, size):
    images = pictures(2, *size)
    logits = predict(model, images)
    assert np.ptp(logits) > 0
    assert_close(logits, apply(model, images))


@pytest.mark.parametrize("size", [(13, 15), (1, 5)])
def test_a_size_between_is_mirrored_below_and_to_the_right(size):
    images = pictures(1, *size)
    height, width = (SAME.geometry.fit(side) for side in size)
    assert (height, width) != size
    around = ((0, 0), (0, height - size[0]), (0, width - size[1]), (0, 0))
    expected = apply(SAME, np.pad(images, around, mode="reflect"))[:, : size[0], : size[1]]
    assert_close(predict(SAME, images), expected)


@pytest.mark.parametrize("size", [(12, 12), (13, 18), (1, 1)], ids=str)
def test_valid_convolutions_see_the_mirrored_surroundings(size):
    margin = VALID.geometry.margin
    images = pictures(1, *size)
    fitted = [VALID.geometry.fit(side) for side in size]
    around = [(margin, n - side - margin) for n, side in zip(fitted, size, strict=True)]
    expected = apply(VALID, np.pad(images, ((0, 0), *around, (0, 0)), mode="reflect"))
    assert_close(predict(VALID, images), expected[:, : size[0], : size[1]])


@each_model
def test_a_picture_does_not_depend_on_the_others(model):
    images, others = pictures(3, 13, 15), pictures(3, 13, 15, seed=1)
    others[1] = images[1]
    logits = predict(model, images)
    assert_close(predict(model, others)[1], logits[1])
    assert np.abs(predict(model, others)[0] - logits[0]).max() > 0


def test_a_label_is_the_most_likely_class():
    logits = np.random.default_rng(0).normal(size=(1, 4, 5, 200)).astype(np.float32)
    given = []

    def predict(images):
        given.append(images)
        return jnp.asarray(logits)

    image = pictures(4, 5)
    label = predict_label(predict, image)
    assert isinstance(label, np.ndarray) and (label.shape, label.dtype) == ((4, 5), np.uint8)
    np.testing.assert_array_equal(label, logits[0].argmax(-1))
    np.testing.assert_array_equal(given[0], image[None])
    assert given[0].dtype == jnp.uint8


TILED = make_tiled_predict(SAME, normalise=NORMALISE, tile=16, batch_size=1)
each_way = pytest.mark.parametrize("predict", [PREDICT[SAME], TILED], ids=["whole", "by tiles"])


@each_way
@pytest.mark.parametrize("put", [np.asarray, jnp.asarray])
def test_pictures_that_are_no_batch_are_told(predict, put):
    with pytest.raises(SegjaxError, match=r"images are \(16, 16, 3\); expected \(B, H, W, C\)"):
        predict(VARIABLES[SAME], put(pictures(16, 16)))
    with pytest.raises(SegjaxError, match=r"image is \(1, 16, 16, 3\); expected one picture"):
        predict_label(lambda images: predict(VARIABLES[SAME], images), put(pictures(1, 16, 16)))


def test_a_picture_scaled_to_one_is_warned_of():
    floats = pictures(16, 16).astype(np.float32)
    whole = partial(PREDICT[SAME], VARIABLES[SAME])
    with pytest.warns(SegjaxWarning, match="The image is of floats in 0–1"):
        predict_label(whole, floats / 255)
    predict_label(whole, floats)
    predict_label(whole, 0 * floats)


def test_one_channel_tells_two_classes_apart():
    logits = jnp.array([[-2.0], [-0.1], [0.0], [0.1], [2.0]])
    np.testing.assert_array_equal(labels_of(logits), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(labels_of(logits, threshold=0.45), [0, 1, 1, 1, 1])
    share = 1 / (1 + np.exp(-np.asarray(logits[:, 0])))
    np.testing.assert_allclose(probabilities_of(logits)[:, 1], share, rtol=1e-6)
    # A picture of two channels whose first is 0 is the same one.
    two = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
    np.testing.assert_array_equal(labels_of(two), labels_of(logits))
    np.testing.assert_allclose(probabilities_of(two), probabilities_of(logits))
