"""Views: means of probabilities of a picture that is turned, mirrored, resized, or cut."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.inference import views
from segjax.inference.predict import labels_of, probabilities_of
from segjax.models import Geometry

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3)).astype(np.float32) / 100


def pictures(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def network(channels=3):
    """Logits that depend on where up and left are: a lopsided 3×3 filter of the first channel."""

    def predict(images):
        x = np.pad(np.asarray(images, np.float32)[..., 0], ((0, 0), (1, 1), (1, 1)), "edge")
        height, width = images.shape[1:3]
        seen = sum(
            KERNEL[i, j] * x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
        )
        return np.stack([seen * (n + 1) - n for n in range(channels)], -1)

    return predict


def mean_of(*logits):
    """The slow way, in float64: the mean of probabilities."""
    every = []
    for one in np.asarray(logits, np.float64):
        if one.shape[-1] == 1:
            one = np.concatenate([np.zeros_like(one), one], -1)
        every.append(np.exp(one) / np.exp(one).sum(-1, keepdims=True))
    return np.mean(every, 0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("xp", [np, jnp])
def test_an_ensemble_is_the_mean_of_probabilities(channels, xp):
    given = RNG.normal(0, 4, (3, 2, 4, 5, channels)).astype(np.float32)
    got = views.ensemble([lambda images, one=one: xp.asarray(one) for one in given])(None)
    assert got.shape == given[0].shape and got.dtype == np.float32
    want = mean_of(*given)
    np.testing.assert_allclose(probabilities_of(got), want, rtol=1e-5)
    certain = abs(want[..., -1] - 0.5) > 1e-5
    want_label = want.argmax(-1)
    np.testing.assert_array_equal(np.asarray(labels_of(got))[certain], want_label[certain])


def test_an_ensemble_of_certain_networks_stays_finite():
    for sure in (1e4, -1e4):
        logits = np.full((1, 1, 1, 1), sure, np.float32)
        got = views.ensemble([lambda _, x=logits: x, lambda _, x=logits: x])(None)
        np.testing.assert_allclose(got, logits)
    apart = [np.array([[[[1e4, 0]]]], np.float32), np.array([[[[0, 1e4]]]], np.float32)]
    got = views.ensemble([lambda _, x=x: x for x in apart])(None)
    np.testing.assert_allclose(probabilities_of(got), [[[[0.5, 0.5]]]])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_flip_is_the_mean_of_the_picture_and_its_mirror(channels):
    predict, images = network(channels), pictures(2, 5, 7, 3)
    got = views.flip(predict)(images)
    mirrored = predict(images[:, :, ::-1])[:, :, ::-1]
    assert np.abs(mirrored - predict(images)).max() > 0.1
    np.testing.assert_allclose(probabilities_of(got), mean_of(predict(images), mirrored), rtol=1e-4)


def test_rotations_turn_back_what_they_turned():
    predict, images = network(), pictures(1, 5, 7, 3)
    every = [np.rot90(predict(np.rot90(images, q, (1, 2))), -q, (1, 2)) for q in range(4)]
    got = views.rotations(predict)(images)
    np.testing.assert_allclose(probabilities_of(got), mean_of(*every), rtol=1e-4)
    np.testing.assert_allclose(views.rotations(predict)(jnp.asarray(images)), got, atol=1e-5)


def test_all_eight_are_the_same_from_every_side():
    predict = views.compose([views.flip, views.rotations], network())
    images = pictures(1, 6, 6, 3)
    got = predict(images)
    for turned in (images[:, ::-1], np.rot90(images, 1, (1, 2)), images.swapaxes(1, 2)):
        same = predict(turned)
        assert sorted(np.ravel(same).round(4)) == sorted(np.ravel(got).round(4))


@pytest.mark.parametrize("size", [(5, 9), (20, 3), (1, 1), (7, 8)])
@pytest.mark.parametrize("xp", [np, jnp])
def test_resizing_is_bilinear(size, xp):
    x = RNG.normal(size=(2, 7, 8, 3)).astype(np.float32)
    got = views.resize(xp.asarray(x), *size)
    want = jax.image.resize(x, (2, *size, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert got.dtype == np.float32 and isinstance(got, np.ndarray if xp is np else jax.Array)


def test_scales_average_probabilities_of_resized_logits():
    predict, images, seen = network(), pictures(1, 9, 14, 3), []

    def noted(images):
        seen.append((images.shape[1:3], images.dtype))
        return predict(images)

    got = views.scales(0.5, 1, 1.75)(noted)(images)
    assert seen == [((5, 7), np.uint8), ((9, 14), np.uint8), ((16, 25), np.uint8)]
    small = views.resize(images, 5, 7).round().astype(np.uint8)
    large = views.resize(images, 16, 25).round().astype(np.uint8)
    every = [views.resize(predict(x), 9, 14) for x in (small, images, large)]
    np.testing.assert_allclose(probabilities_of(got), mean_of(*every), rtol=1e-4)
    floats = images.astype(np.float32)
    views.scales(0.5)(noted)(floats)
    assert seen[-1] == ((5, 7), np.float32)


def test_windows_slide_by_two_thirds_and_logits_are_averaged():
    predict, images = network(), pictures(2, 10, 6, 3)
    got = views.Sliding(6)(predict)(images)
    total, count = np.zeros((2, 10, 6, 3)), np.zeros((10, 1, 1))
    for top in (0, 4):
        total[:, top : top + 6] += predict(images[:, top : top + 6])
        count[top : top + 6] += 1
    np.testing.assert_allclose(got, total / count, rtol=1e-5, atol=1e-6)
    assert views.Sliding(99)(predict)(images).shape == (2, 10, 6, 3)


def test_views_are_named_in_a_line():
    assert views.parse("") == ()
    assert views.parse("flip") == (views.flip,)
    assert views.parse("scales=0.5:1.75, flip") == (
        views.flip,
        views.scales(0.5, 0.75, 1, 1.25, 1.5, 1.75),
    )
    assert views.parse("slide=480,scales=1:2:0.5,rotations") == (
        views.rotations,
        views.scales(1, 1.5, 2),
        views.Sliding(480),
    )
    assert views.parse("scales=0.75") == (views.scales(0.75),)


NO_VIEWS = "flop flip=2 scales scales= scales=2:1 scales=1:2:0 scales=a scales=1:inf scales=1:2:3:4"


@pytest.mark.parametrize("wrong", [*NO_VIEWS.split(), "slide", "flip scales=1"])
def test_what_is_no_view_is_told(wrong):
    with pytest.raises(SegjaxError, match=r"is none. There are flip, rotations, scales=LOW:HIGH"):
        views.parse(wrong)


def test_ratios_that_make_no_sense_are_told():
    for wrong in ((), (0,), (-1,), (9,), (math.nan,)):
        with pytest.raises(SegjaxError, match="expected ratios above 0 and up to 8"):
            views.scales(*wrong)


def test_how_far_a_view_sees():
    geometry = Geometry(16, 16, 16, 40, (30, 28))
    assert views.flip.around(geometry).context == (40, 40)
    assert views.scales(0.5, 2).around(geometry).context == (82, 82)
    assert views.Sliding(9).around(geometry).context is None
    other = Geometry(12, 12, 8, 50, (45, 45))
    beside = views.With([], [other])
    assert beside.around(geometry) == Geometry(48, 16, 16, 50, (50, 50))
    everything = geometry._replace(halo=None, context=None)
    for view in (views.flip, views.scales(0.5), beside):
        assert view.around(everything).context is None
