"""The packed forms, forced on a CPU, against the plain ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import UNetPlusPlus, lanes
from segjax.models.blocks import BatchNorm, Conv, DoubleConv, Logits
from segjax.models.layers import UpConv, bilinear_deconv, max_pool, resize


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def tpu(monkeypatch):
    """Calls a function in the forms that a TPU is given."""

    def choose(*arguments, default, tpu=None, **others):
        return (tpu or default)(*arguments)

    def forced(f, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(jax.lax, "platform_dependent", choose)
            return f(*arguments)

    return forced


def value_and_cotangents(f, *arguments):
    """f's value and the gradients of Σ f · noise, which no symmetry of f can hide from."""

    @jax.jit  # anew each time, for it is compiled for one form
    def both(*arguments):
        value, pull = jax.vjp(f, *arguments)
        return value, pull(jax.tree.map(lambda leaf: jnp.asarray(normal(*leaf.shape)), value))

    return both(*arguments)


def assert_equal(got, want):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), got, want)


def module(made, *maps):
    """A module as a function of its variables and maps."""
    shapes = jax.eval_shape(made.init, jax.random.key(0), *maps)
    variables = jax.tree.map(lambda leaf: normal(*leaf.shape, seed=2) ** 2, shapes)

    def run(variables, *maps, **options):
        return made.apply(variables, *maps, mutable=["batch_stats"], **options)

    return run, variables, *maps


@pytest.mark.parametrize("pixels, features", [(2, 64), (4, 32)])
def test_pixels_of_a_column_share_the_lanes(pixels, features):
    x = normal(2, 8, 3, features)
    packed = lanes.pack(x, pixels)
    assert lanes.sharing(8, features) == pixels and packed.shape[-1] == lanes.LANES
    np.testing.assert_array_equal(packed[0, 1, 2, :features], x[0, pixels, 2])
    np.testing.assert_array_equal(packed[0, 1, 2, -features:], x[0, 2 * pixels - 1, 2])
    np.testing.assert_array_equal(lanes.unpack(packed, pixels), x)


@pytest.mark.parametrize("height, channels", [(7, 64), (6, 32), (8, 128), (8, 3), (8, 48)])
def test_what_does_not_fit_is_not_packed(height, channels):
    assert lanes.sharing(height, channels) == 1


CASES = {
    "normed": lambda: module(
        DoubleConv((64, 64), 1, "batch", train=True), normal(2, 4, 3, 3), normal(2, 4, 3, 64)
    ),
    "of 32": lambda: module(Conv(32, 1, True), normal(1, 8, 3, 32), normal(1, 8, 3, 16)),
    "valid": lambda: module(Conv(64, 0, False), normal(1, 8, 4, 64)),
    "full": lambda: module(Conv(64, 2, False), normal(1, 4, 2, 64)),
    "running statistics": lambda: module(BatchNorm(train=False), normal(2, 4, 3, 64)),
    "up-convolution": lambda: module(UpConv(64), normal(2, 3, 5, 128)),
    "up-convolution of packed": lambda: module(UpConv(32), normal(2, 4, 5, 64)),
    "up-convolution, nothing packed": lambda: module(UpConv(5), normal(2, 3, 5, 7)),
    "up-convolution of 4×4": lambda: module(UpConv(5, side=4), normal(2, 3, 5, 7)),
    "logits": lambda: module(Logits(5), normal(2, 4, 3, 32)),
    "logits, nothing packed": lambda: module(Logits(5), normal(2, 3, 3, 7)),
    "resize": lambda: (partial(resize, height=7, width=9), normal(2, 3, 4, 5)),
    "deconvolution": lambda: (
        partial(bilinear_deconv, height=9, width=7, stride=4, offset=2),
        normal(2, 3, 4, 5),
    ),
    "pooling": lambda: (max_pool, normal(2, 6, 5, 64)),
    "pooling of 32": lambda: (max_pool, normal(2, 8, 4, 32)),
    "pooling of equal entries": lambda: (max_pool, np.round(normal(2, 8, 4, 32))),
    "two readers": lambda: (
        lambda x: [jnp.sin(copy) * i for i, copy in enumerate(lanes.fork(x, 3))],
        normal(2, 4, 3, 64),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_packed_and_plain_are_the_same(case, tpu):
    f, *arguments = case()
    want = value_and_cotangents(f, *arguments)
    assert_equal(tpu(value_and_cotangents, f, *arguments), want)


def test_pooling_hands_a_nan_on(tpu):
    for y, x in np.ndindex(2, 2):
        spoilt = jnp.zeros((1, 2, 2, 64)).at[0, y, x].set(jnp.nan)
        assert jnp.isnan(tpu(max_pool, spoilt)).all()


def test_a_networks_step_is_the_same(tpu):
    model, images = UNetPlusPlus(3, (32, 64)), normal(1, 8, 6, 3)
    f, variables, _ = module(model, images)
    train = partial(f, train=True)
    want = value_and_cotangents(train, variables, images)
    assert_equal(tpu(value_and_cotangents, train, variables, images), want)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_a_tpu_is_given_the_packed_form(platform):
    level, x = DoubleConv((64, 64), 1, "batch", train=True), jnp.zeros((1, 4, 4, 64))
    variables = jax.eval_shape(level.init, jax.random.key(0), x)
    forward = jax.jit(partial(level.apply, mutable=["batch_stats"]))
    text = forward.trace(variables, x).lower(lowering_platforms=(platform,)).as_text()
    assert ("3x3x128x128" in text) == (platform == "tpu")
