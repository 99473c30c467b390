"""A trained network in use, from a run and from variables of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import Tiny

import segjax
from segjax.commands.run import Run
from segjax.data.augment import Normalise
from segjax.errors import SegjaxError, SegjaxWarning
from segjax.inference import memory
from segjax.inference.predict import make_predict, predict_label
from segjax.models import UNet

COLOURS = ((0, 0, 0), (255, 255, 255))
RNG = np.random.default_rng(0)


def segmenter(model=None, *, channels=3, **fields):
    model = model or UNet(2, widths=(2, 3))
    side = model.geometry.minimum
    variables = model.init(jax.random.key(0), jnp.zeros((1, side, side, channels)))
    fields = {"normalise": Normalise(), "classes": ("a", "b"), "palette": COLOURS} | fields
    return segjax.Segmenter(model=model, variables=variables, channels=channels, **fields)


def picture(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def test_a_run_gives_what_its_network_gives(trained, tmp_path):
    loaded = segjax.load(trained / "run")
    path = trained / "images/val/0.png"
    image = np.asarray(Image.open(path))
    predict = make_predict(loaded.model, normalise=loaded.normalise)
    expected = predict_label(lambda images: predict(loaded.variables, images), image)
    for given in (path, str(path), image, jnp.asarray(image)):
        np.testing.assert_array_equal(loaded.predict(given), expected)
    assert loaded.predict(image).dtype == np.uint8
    assert loaded.classes == ("dark", "light") and loaded.palette == COLOURS
    assert segjax.load(Run(trained / "run"), "newest").predict(path).shape == (16, 16)


def test_pictures_come_alone_in_batches_and_in_lists():
    made = segmenter()
    batch = picture(2, 9, 14, 3)
    other = picture(5, 7, 3)
    labels = made.predict(batch)
    assert labels.shape == (2, 9, 14)
    first, last = made.predict([batch[0], other])
    np.testing.assert_array_equal(first, labels[0])
    assert last.shape == (5, 7)
    shares = made.probabilities(batch)
    assert shares.shape == (2, 9, 14, 2) and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(shares.argmax(-1), labels)


def test_a_shape_compiles_once(monkeypatch):
    made = segmenter()
    whole, lowered = made._whole, []

    class Counted:
        def lower(self, *given):
            lowered.append(given)
            return whole.lower(*given)

    monkeypatch.setitem(vars(made), "_whole", Counted())
    for _ in range(3):
        made.predict(picture(8, 8, 3))
    assert len(lowered) == 1


def test_tiles_are_taken_where_asked_for_or_needed(monkeypatch):
    made, image = segmenter(), picture(8, 80, 3)
    whole = made.logits(image[None])
    assert made.plan((8, 80)) is None
    plan = made.plan((8, 80), tile=24)
    assert plan.columns.tile == 24
    np.testing.assert_allclose(made.logits(image[None], tile=24), whole, atol=1e-5)
    monkeypatch.setattr(memory, "left", lambda: 0)
    assert made.plan((8, 80)) is not None
    np.testing.assert_allclose(made.logits(image[None]), whole, atol=1e-5)


def test_one_channel_is_a_sigmoid_with_a_threshold():
    low, high = (segmenter(Tiny(1), threshold=x) for x in (0.3, 0.7))
    image = picture(6, 7, 3)
    logit = np.asarray(low.logits(image[None]))[0, ..., 0]
    share = 1 / (1 + np.exp(-logit))
    np.testing.assert_array_equal(low.predict(image), share > 0.3)
    np.testing.assert_array_equal(high.predict(image), share > 0.7)
    np.testing.assert_allclose(
        low.probabilities(image), np.stack([1 - share, share], -1), rtol=1e-4
    )


def test_a_grey_picture_needs_no_axis_of_channels():
    made, image = segmenter(channels=1), picture(8, 9)
    np.testing.assert_array_equal(made.predict(image), made.predict(image[..., None]))


@pytest.mark.parametrize(
    "given, told",
    [
        (picture(8, 9), r"is \(8, 9\); expected \(H, W, 3\), a batch"),
        (picture(8, 9, 4), r"is \(8, 9, 4\); expected \(H, W, 3\)"),
        (picture(0, 9, 3), r"is \(0, 9, 3\)"),
        (np.zeros((8, 9, 3), np.int32), "is of int32; expected uint8"),
        ("no.png", "no.png"),
    ],
)
def test_what_is_no_picture_is_told(given, told):
    with pytest.raises(SegjaxError, match=told):
        segmenter().predict(given)


def test_what_does_not_fit_the_network_is_told():
    with pytest.raises(SegjaxError, match="has 2 classes, but 1 are named: a"):
        segmenter(classes=("a",))
    with pytest.raises(SegjaxError, match="threshold is 50; expected a probability"):
        segmenter(threshold=50)
    with pytest.warns(SegjaxWarning, match="floats in 0–1"):
        segmenter().predict(np.full((8, 8, 3), 0.5))
    with pytest.raises(SegjaxError, match="no run here"):
        segjax.load("nowhere")
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        segjax.lode  # noqa: B018
