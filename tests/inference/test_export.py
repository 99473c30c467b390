"""Exported, a network labels as in use, to the bit, in any number of pictures of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from segjax.data.augment import Normalise
from segjax.errors import SegjaxError
from segjax.inference.export import PLATFORMS, export_labels, flat
from segjax.inference.predict import labels_of, make_predict
from segjax.models import FCN, SETRMLA, SETRPUP, Output, UNet, UNetPlusPlus
from segjax.models.geometry import Geometry

VGG = {"widths": (2, 2, 2, 2, 3), "classifier_width": 4}
VIT = {"depth": 2, "width": 8, "heads": 2, "grid": (3, 3), "channels": 4}
NETWORKS = {
    "U-Net": UNet(5, widths=(4, 3, 4)),
    "U-Net, valid": UNet(5, widths=(4, 3), padding="valid", norm="none"),
    "U-Net, corners": UNet(5, widths=(4, 3), up="bilinear_corners"),
    "U-Net++": UNetPlusPlus(1, widths=(4, 3)),
    "FCN-8s": FCN(5, **VGG),
    "FCN-16s, same": FCN(5, stride=16, padding="same", **VGG),
    "FCN-32s, learned": FCN(5, stride=32, upsampling="learned", **VGG),
    "SETR-PUP": SETRPUP(5, auxiliary_taps=(0,), **VIT),
    "SETR-MLA": SETRMLA(5, taps=(0, 1), **VIT),
}
SIZES = (1, 1), (17, 32), (40, 23)


def with_weights(model, rng, channels=3):
    """Random ones, in layers that start at zero too."""
    side = model.geometry.fit(32)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, channels)))

    def made(path, leaf):
        drawn = rng.normal(size=leaf.shape) * (path[-1].key != "bias")
        return jnp.asarray(np.square(drawn) if path[-1].key == "var" else drawn, leaf.dtype)

    return jax.tree_util.tree_map_with_path(made, like)


def exported(model, variables, **options):
    made = export_labels(model, variables, normalise=Normalise(), channels=3, **options)
    return export.deserialize(made.serialize())


@pytest.mark.parametrize("name", NETWORKS)
def test_it_labels_as_in_use_to_the_bit(name):
    """With all that the compiler does to a program in use, which other tests leave out."""
    model, rng = NETWORKS[name], np.random.default_rng(0)
    predict = make_predict(model, normalise=Normalise())
    sample = rng.integers(0, 256, (2, *SIZES[-1], 3), np.uint8)
    drawn = (with_weights(model, rng) for _ in range(50))
    variables = next(v for v in drawn if np.ptp(labels_of(predict(v, sample))))
    made = exported(model, variables)
    assert made.platforms == PLATFORMS
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        predict.clear_cache()
        for i, size in enumerate(SIZES):
            for batch in (1, 2) if name == "U-Net" else (1 + i % 2,):
                # Of the last size the sample, of which not all is one class.
                shape = batch, *size, 3
                images = rng.integers(0, 256, shape, np.uint8) if i < 2 else sample[:batch]
                want = np.asarray(labels_of(predict(variables, images)))
                got = np.asarray(made.call(flat(variables), images))
                assert got.dtype == np.uint8
                np.testing.assert_array_equal(got, want)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def test_the_logits_are_the_same_bits_too():
    """Labels could hide what differs."""
    model, rng = NETWORKS["SETR-MLA"], np.random.default_rng(0)
    variables = with_weights(model, rng)
    predict = make_predict(model, normalise=Normalise())
    shape = export.symbolic_shape("b, h, w, 3")
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    made = export.export(predict)(like, jax.ShapeDtypeStruct(shape, np.uint8))
    images = rng.integers(0, 256, (2, 40, 23, 3), np.uint8)
    np.testing.assert_array_equal(made.call(variables, images), predict(variables, images))


def test_a_threshold_and_a_fixed_size():
    model, rng = NETWORKS["U-Net++"], np.random.default_rng(0)
    variables = with_weights(model, rng)
    images = rng.integers(0, 256, (2, 8, 6, 3), np.uint8)
    logits = make_predict(model, normalise=Normalise())(variables, images)
    for threshold in (0.1, 0.9):
        made = exported(model, variables, threshold=threshold, size=(8, 6))
        want = labels_of(logits, threshold=threshold)
        np.testing.assert_array_equal(made.call(flat(variables), images), want)
    with pytest.raises(ValueError, match="shape"):
        made.call(flat(variables), images[:, :4])


class Stubborn(nn.Module):
    """Asks how large a picture is, and makes a number of it."""

    num_classes: int
    geometry = Geometry(step=1, minimum=1, stride=1, halo=None, context=None)

    @nn.compact
    def __call__(self, images, *, train=False):
        weights = jnp.asarray(np.linspace(0, 1, images.shape[1]), jnp.float32)
        return Output(nn.Conv(self.num_classes, (1, 1))(images * weights[:, None, None]))


def test_a_network_that_needs_to_know_its_size():
    model, rng = Stubborn(2), np.random.default_rng(0)
    variables = with_weights(model, rng)
    with pytest.raises(SegjaxError, match=r"Stubborn cannot be exported .*left open.*--size"):
        exported(model, variables)
    made = exported(model, variables, size=(5, 4))
    assert made.call(flat(variables), np.zeros((3, 5, 4, 3), np.uint8)).shape == (3, 5, 4)
