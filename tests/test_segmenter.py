"""A trained network in use, from a run and from variables of one's own."""

from operator import attrgetter

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
from segjax.inference import memory, views
from segjax.inference.predict import make_predict, predict_label, probabilities_of
from segjax.models import FCN, SETRPUP, UNet

COLOURS = ((0, 0, 0), (255, 255, 255))
RNG = np.random.default_rng(0)


def segmenter(model=None, *, channels=3, seed=0, **fields):
    model = model or UNet(2, widths=(2, 3))
    side = model.geometry.minimum
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, side, side, channels)))
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
        attrgetter("lode")(segjax)


SETR = SETRPUP(2, depth=1, width=8, heads=2, channels=4, auxiliary_taps=())
NETWORKS = {
    "U-Net": UNet(2, widths=(2, 3)),
    "of valid convolutions": UNet(2, widths=(2, 3), padding="valid", norm="none"),
    "sigmoid of full convolutions": UNet(1, widths=(2, 3), padding="full", norm="none"),
    "FCN": FCN(2, widths=(2,) * 5, classifier_width=2, padding="same"),
}
ALL_SIDES = (views.flip, views.rotations)


def by_strips(made, image, **options):
    """All strips as one, and how many there were."""
    given, read = [], []

    def rows(first, last):
        read.append(last - first)
        return image[first:last]

    strips = list(made.strips(rows, image.shape[:2], **options))
    first = options.get("start", 0)
    for at, strip in strips:
        assert at == first
        first += len(strip)
        given.append(strip)
    assert first == len(image) and max(read) < len(image)
    return np.concatenate(given), len(strips)


def logits_of(x):
    return x


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seen", [(), ALL_SIDES], ids=["plainly", "from all sides"])
def test_strips_are_the_whole_picture(name, seen):
    """Also from all sides, at sizes that the network does not take."""
    made = segmenter(NETWORKS[name])
    tile = 560 if name == "FCN" else 48
    image = picture(710 if name == "FCN" else 90, 37, 3)
    assert made.plan_strips(image.shape[:2], tile=tile, views=seen).exact
    strips, number = by_strips(made, image, tile=tile, views=seen, of=logits_of)
    assert number >= 3
    whole = np.asarray(made.logits(image[None], views=seen))[0]
    np.testing.assert_allclose(strips, whole, rtol=0, atol=1e-4 * np.ptp(whole))
    labels, _ = by_strips(made, image, tile=tile, views=seen)
    assert labels.dtype == np.uint8 and (labels == made.predict(image, views=seen)).mean() > 0.999
    tiled = made.logits(image[None], tile=tile, views=seen)[0]
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-4 * np.ptp(whole))


@pytest.mark.parametrize("model", [UNet(2, widths=(2, 3)), SETR], ids=["exact", "averaged"])
def test_strips_begin_where_they_are_told_to(model):
    made, image = segmenter(model), picture(90, 37, 3)
    whole, _ = by_strips(made, image, tile=32, of=logits_of)
    assert list(made.strips(None, (90, 37), tile=32, start=90)) == []
    for start in (1, 32, 40, 71, 89):
        below, _ = by_strips(made, image, tile=32, of=logits_of, start=start)
        np.testing.assert_array_equal(below, whole[start:])


def test_strips_of_windows_are_what_tiles_give():
    made, image = segmenter(SETR), picture(90, 37, 3)
    plan = made.plan_strips((90, 37), tile=32)
    assert not plan.exact and "averaged where they overlap" in str(plan)
    got, _ = by_strips(made, image, tile=32, of=logits_of, gaussian=True)
    want = made.logits(image[None], tile=32, gaussian=True)[0]
    np.testing.assert_array_equal(got, want)


def test_a_view_in_sizes_by_strips_is_near_and_says_so():
    made, image = segmenter(), np.kron(picture(23, 10, 3), np.ones((4, 4, 1), np.uint8))
    seen = (views.flip, views.scales(0.5, 1))
    plan = made.plan_strips(image.shape[:2], tile=48, views=seen)
    assert "nearly the logits of the whole picture" in str(plan)
    got, _ = by_strips(made, image, tile=48, views=seen, of=probabilities_of)
    want = made.probabilities(image, views=seen)
    assert np.abs(got - want).mean() < 0.02


def test_an_ensemble_is_a_view():
    one, other = segmenter(), segmenter(UNet(2, widths=(3, 2)), seed=1)
    image = picture(90, 20, 3)
    both = views.With([other.logits], [one.model.geometry, other.model.geometry])
    got = one.probabilities(image, views=(both,))
    want = (one.probabilities(image) + other.probabilities(image)) / 2
    np.testing.assert_allclose(got, want, atol=1e-6)
    strips, _ = by_strips(one, image, tile=48, views=(both,), of=probabilities_of)
    np.testing.assert_allclose(strips, want, atol=1e-5)
    assert both.exact
    assert not views.With([other.logits], [one.model.geometry, SETR.geometry]).exact


def test_any_function_is_a_view_but_not_by_strips():
    def louder(predict):
        return lambda images: 2 * predict(images)

    made, image = segmenter(), picture(20, 20, 3)
    twice = made.logits(image[None], views=(louder,))
    np.testing.assert_allclose(twice, 2 * made.logits(image[None]), rtol=1e-6)
    with pytest.raises(SegjaxError, match=r"louder.* does not tell how far it sees"):
        made.plan_strips((20, 20), views=(louder,))


@pytest.mark.parametrize("seen", [(), (views.flip,)], ids=["plainly", "flipped"])
def test_what_the_memory_does_not_hold_is_labelled_by_strips(seen, monkeypatch, tmp_path):
    made, image = segmenter(), picture(90, 30, 3)
    want = made.predict(image, views=seen)
    np.save(tmp_path / "a.npy", image)
    np.testing.assert_array_equal(made.predict(tmp_path / "a.npy", views=seen), want)
    monkeypatch.setattr("segjax.segmenter._LARGE", 100)
    monkeypatch.delattr(segjax.Segmenter, "logits")
    for given in (image, tmp_path / "a.npy", image[None], [image]):
        labels = made.predict(given, tile=48, views=seen)
        np.testing.assert_array_equal(np.reshape(labels, want.shape), want)
