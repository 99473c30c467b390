"""FCN: the authors' counts and sizes, and equality with the same network in PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import InvalidRngError

from segjax.models import FCN, fcn

# These small programs take longer to compile than to run.
jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0},
)
Small = partial(FCN, 3, widths=(2, 3, 4, 5, 6), classifier_width=7)
SCORES = {32: {"score_fr"}, 16: {"score_fr", "score_pool4"}}
SCORES[8] = {*SCORES[16], "score_pool3"}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def shapes(model, height=32, width=32, channels=3):
    images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def random_variables(model, seed=0):
    """Of He's size, with biases and score layers that are not zero."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return (spread * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, shapes(model))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@partial(jit, static_argnums=0)
def logits_of(model, variables, images):
    return model.apply(variables, images).logits


@pytest.mark.parametrize("stride, count", [(32, 134_346_581), (16, 134_357_354), (8, 134_362_751)])
@pytest.mark.parametrize("padding", ["authors", "same"])
def test_parameter_count(stride, count, padding):
    variables = shapes(FCN(21, stride=stride, padding=padding))
    assert set(variables) == {"params"}
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


@pytest.mark.parametrize("padding", ["authors", "same"])
def test_the_walk_of_a_500_pixel_side(padding):
    authors = padding == "authors"
    model = Small(padding=padding, stride=32)

    def forward(images):
        return model.init_with_output(jax.random.key(0), images, capture_intermediates=True)

    images = jax.ShapeDtypeStruct((1, 500, 375, 3), jnp.float32)
    output, variables = jax.eval_shape(forward, images)
    seen = variables["intermediates"]
    sides = {f"conv{i}": seen["vgg16"][f"conv{i}_1"]["__call__"][0].shape[1] for i in range(1, 6)}
    # conv(i + 1) keeps the size of pool(i); pool5 is the last that the trunk returns.
    walk = [698, 349, 175, 88, 44] if authors else [500, 250, 125, 63, 32]
    assert list(sides.values()) == walk
    assert [pool.shape[1] for pool in seen["vgg16"]["__call__"][0]] == (
        [88, 44, 22] if authors else [63, 32, 16]
    )
    assert seen["fc6"]["__call__"][0].shape[1] == 16
    assert output.logits.shape == (1, 500, 375, 3)


def bilinear(torch, side, channels):
    """The FCN authors' `upsample_filt` on the diagonal, (N, N, side, side)."""
    factor = (side + 1) // 2
    centre = factor - 1 if side % 2 else factor - 0.5
    line = 1 - np.abs(np.arange(side) - centre) / factor
    kernel = np.eye(channels)[:, :, None, None] * np.outer(line, line)
    return torch.tensor(kernel.astype(np.float32))


def torch_fcn(torch, params, images, *, stride, padding):
    """As wkentaro/pytorch-fcn writes it; parameters in Flax's layout, NHWC outside."""
    f = torch.nn.functional
    authors = padding == "authors"

    def conv(x, layer, pad=0):
        return f.conv2d(x, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], padding=pad)

    def up(x, scale):
        # Symmetric padding of stride / 2 keeps centres aligned in the "same" variant.
        kernel = bilinear(torch, 2 * scale, x.shape[1])
        return f.conv_transpose2d(x, kernel, stride=scale, padding=0 if authors else scale // 2)

    def cropped(x, like, offset):
        height, width = like.shape[2:]
        assert offset + height <= x.shape[2] and offset + width <= x.shape[3]
        return x[:, :, offset : offset + height, offset : offset + width]

    def fuse(x, skip, offset):
        # The authors crop the skip to the upsampled map; "same" has it the other way round.
        return x + cropped(skip, x, offset) if authors else cropped(x, skip, 0) + skip

    picture = images.permute(0, 3, 1, 2)
    x, pools = picture, []
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(1, depth + 1):
            pad = 100 if authors and block == i == 1 else 1
            x = torch.relu(conv(x, params["vgg16"][f"conv{block}_{i}"], pad))
        x = f.max_pool2d(x, 2, 2, ceil_mode=True)
        pools.append(x)
    x = torch.relu(conv(x, params["fc6"], 0 if authors else 3))
    x = conv(torch.relu(conv(x, params["fc7"])), params["score_fr"])
    if stride <= 16:
        x = fuse(up(x, 2), conv(pools[3], params["score_pool4"]), 5)
    if stride <= 8:
        x = fuse(up(x, 2), conv(pools[2], params["score_pool3"]), 9)
    offset = {32: 19, 16: 27, 8: 31}[stride] if authors else 0
    return cropped(up(x, stride), picture, offset).permute(0, 2, 3, 1)


@pytest.mark.parametrize("stride, height, width", [(32, 37, 50), (16, 33, 64), (8, 71, 46)])
@pytest.mark.parametrize("padding", ["authors", "same"])
def test_equals_pytorch(torch, padding, stride, height, width):
    model = Small(stride=stride, padding=padding)
    params, images = random_variables(model)["params"], normal(2, height, width, 3)
    noise = normal(2, height, width, 3, seed=2)

    @jit
    def ours(params, images):
        logits, pull = jax.vjp(lambda p, x: model.apply({"params": p}, x).logits, params, images)
        return logits, *pull(noise)

    to_torch = partial(jax.tree.map, lambda a: torch.tensor(a, requires_grad=True))
    their_params, their_images = to_torch(params), to_torch(images)
    theirs = torch_fcn(torch, their_params, their_images, stride=stride, padding=padding)
    theirs.backward(torch.tensor(noise))

    def assert_close(got, want):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
        assert np.abs(want).max() > 0

    logits, gradients, gradient = ours(params, images)
    assert_close(logits, theirs.detach().numpy())
    assert_close(gradient, their_images.grad.numpy())
    jax.tree.map(lambda a, b: assert_close(a, b.grad.numpy()), gradients, their_params)


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("padding", ["authors", "same"])
def test_every_size_works_and_no_crop_leaves_its_map(monkeypatch, padding, stride):
    plain_crop, plain_deconv = fcn.crop, fcn.bilinear_deconv

    def checked_crop(x, height, width, *, offset):
        assert 0 <= offset <= min(x.shape[1] - height, x.shape[2] - width)
        return plain_crop(x, height, width, offset=offset)

    def checked_deconv(x, height, width, *, stride, offset):
        assert offset + height <= (x.shape[1] + 1) * stride
        assert offset + width <= (x.shape[2] + 1) * stride
        return plain_deconv(x, height, width, stride=stride, offset=offset)

    monkeypatch.setattr(fcn, "crop", checked_crop)
    monkeypatch.setattr(fcn, "bilinear_deconv", checked_deconv)
    model = Small(stride=stride, padding=padding)
    variables = shapes(model)
    # As a height or a width every side from 1 to 80 with 8s, which has every skip's crop; to 40
    # with the others: 32 more pixels make pool5 one longer and repeat the same alignment.
    largest = 80 if stride == 8 else 40
    for height in range(1, largest // 2 + 1):
        width = largest + 1 - height
        images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        output = jax.eval_shape(model.apply, variables, images)
        assert output.logits.shape == (1, height, width, 3)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_score_layers_exist_only_where_used(stride):
    assert set(shapes(Small(stride=stride))["params"]) == {"vgg16", "fc6", "fc7"} | SCORES[stride]


def test_score_layers_start_at_zero():
    init = jit(Small(padding="same").init_with_output)
    output, variables = init(jax.random.key(0), normal(1, 32, 32, 3))
    params = variables["params"]
    assert not any(np.any(leaf) for name in SCORES[8] for leaf in jax.tree.leaves(params[name]))
    assert not np.any(output.logits)
    assert all(np.any(params[name]["kernel"]) for name in ("fc6", "fc7"))


@pytest.mark.parametrize("padding", ["authors", "same"])
def test_every_stream_reaches_the_output(padding):
    model = Small(stride=8, padding=padding)
    variables, images = random_variables(model), normal(1, 40, 40, 3)
    logits = logits_of(model, variables, images)
    for name in SCORES[8]:
        cut = jax.tree.map(np.copy, variables)
        cut["params"][name]["kernel"][:] = 0
        change = np.abs(logits_of(model, cut, images) - logits)
        assert change.max() > 0.05 * np.abs(logits).max(), name


def test_dropout_is_for_training_and_needs_its_key():
    model = Small(padding="same", stride=32)
    variables, images = random_variables(model), normal(2, 64, 96, 3)

    @jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, images, train=True, rngs=rngs).logits

    assert np.abs(train(0) - train(1)).max() > 1e-2
    np.testing.assert_array_equal(train(0), train(0))
    without = logits_of(Small(padding="same", stride=32, dropout=0.0), variables, images)
    np.testing.assert_array_equal(logits_of(model, variables, images), without)
    with pytest.raises(InvalidRngError, match='needs PRNG for "dropout"'):
        jax.eval_shape(partial(model.apply, train=True), variables, images)


def test_bfloat16_stays_near_float32():
    model, narrow = (Small(padding="same", dtype=dtype) for dtype in (None, jnp.bfloat16))
    variables, images = random_variables(model), normal(2, 40, 33, 3)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes(narrow))} == {"float32"}
    got, want = (logits_of(m, variables, images) for m in (narrow, model))
    assert got.dtype == jnp.float32
    error = np.abs(got - want).max() / np.abs(want).max()
    assert 0 < error < 0.025  # 0.0085 measured on a CPU


def test_dtype_is_that_of_every_convolution():
    model = Small(dtype=jnp.bfloat16)

    def forward(images):
        key, convolutions = jax.random.key(0), lambda module, _: isinstance(module, nn.Conv)
        return model.init_with_output(key, images, capture_intermediates=convolutions)

    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    seen = jax.eval_shape(forward, images)[1]["intermediates"]
    types = [leaf.dtype for leaf in jax.tree.leaves(seen)]
    assert types == [jnp.bfloat16] * 18  # 13 of VGG16, fc6, fc7, three score layers
