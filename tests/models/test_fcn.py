"""FCN: the authors' counts and sizes, and equality with the same network in PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import InvalidRngError

from segjax.models import FCN, FCNAlexNet, FCNGoogLeNet, fcn
from segjax.models.blocks import Conv

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


def bilinear(side, channels):
    """The FCN authors' `upsample_filt` on the diagonal, (N, N, side, side)."""
    factor = (side + 1) // 2
    centre = factor - 1 if side % 2 else factor - 0.5
    line = 1 - np.abs(np.arange(side) - centre) / factor
    kernel = np.eye(channels)[:, :, None, None] * np.outer(line, line)
    return kernel.astype(np.float32)


def torch_fcn(torch, params, images, model):
    """As wkentaro/pytorch-fcn writes it; parameters in Flax's layout, NHWC outside."""
    f = torch.nn.functional
    authors = model.padding == "authors"
    # Without an unpadded fc6 the picture's padding takes nothing from the first skip either.
    unpadded = authors and model.classifier_width is not None

    def conv(x, layer, pad=0):
        return f.conv2d(x, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], padding=pad)

    def cropped(x, offset, size):
        assert all(offset + n <= side for n, side in zip(size, x.shape[2:], strict=True))
        return x[:, :, offset : offset + size[0], offset : offset + size[1]]

    def up(x, name, scale, offset, size):
        if model.upsampling in ("bilinear", "nearest"):
            # With one repeated entry around, which begins scale/2 after the convolution's map.
            corners = {"align_corners": False} if model.upsampling == "bilinear" else {}
            x = f.pad(x, (1, 1, 1, 1), mode="replicate")
            x = f.interpolate(x, scale_factor=scale, mode=model.upsampling, **corners)
            return cropped(x, offset + scale // 2, size)
        if model.upsampling == "learned":
            kernel = params[name]["kernel"].permute(2, 3, 0, 1)
        else:
            kernel = torch.tensor(bilinear(2 * scale, x.shape[1]))
        return cropped(f.conv_transpose2d(x, kernel, stride=scale), offset, size)

    def fuse(x, name, pool, layer, offset, scale):
        # The authors crop the skip to the upsampled map; "same" has it the other way round.
        if unpadded:
            size = [2 * n + 2 for n in x.shape[2:]]
            x, pool = up(x, name, 2, 0, size), cropped(pool, offset, size)
        else:
            x = up(x, name, 2, 1, pool.shape[2:])
        pool = pool * scale if model.at_once else pool
        if model.fusion == "concat":
            return conv(torch.cat([x, pool], 1), params[layer])
        return x + conv(pool, params[layer])

    picture = images.permute(0, 3, 1, 2)
    x, pools = picture, []
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(1, depth + 1):
            pad = 100 if authors and block == i == 1 else 1
            x = torch.relu(conv(x, params["vgg16"][f"conv{block}_{i}"], pad))
        x = f.max_pool2d(x, 2, 2, ceil_mode=True)
        pools.append(x)
    if model.classifier_width is not None:
        x = torch.relu(conv(x, params["fc6"], 0 if authors else 3))
        x = torch.relu(conv(x, params["fc7"]))
    x = conv(x, params["score_fr"])
    if model.stride <= 16:
        x = fuse(x, "upscore2", pools[3], "score_pool4", 5, 0.01)
    if model.stride <= 8:
        x = fuse(x, "upscore_pool4", pools[2], "score_pool3", 9, 0.0001)
    offset = {32: 19, 16: 27, 8: 31}[model.stride] if authors else model.stride // 2
    if authors and not unpadded:
        offset = 99 + model.stride // 2
    name = {32: "upscore", 16: "upscore16", 8: "upscore8"}[model.stride]
    return up(x, name, model.stride, offset, picture.shape[2:]).permute(0, 2, 3, 1)


def assert_close(got, want):
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
    assert np.abs(want).max() > 0


@pytest.mark.parametrize(
    "height, width, fields",
    [
        (37, 50, {"stride": 32}),
        (33, 64, {"stride": 16, "upsampling": "learned"}),
        (71, 46, {"stride": 8}),
        (
            *(34, 41),
            {"classifier_width": None, "fusion": "concat", "upsampling": "bilinear"}
            | {"at_once": True},
        ),
        (37, 50, {"stride": 32, "padding": "same", "upsampling": "bilinear"}),
        (33, 64, {"stride": 16, "padding": "same", "upsampling": "learned", "fusion": "concat"}),
        (71, 46, {"stride": 8, "padding": "same", "upsampling": "nearest"}),
    ],
    ids=str,
)
def test_equals_pytorch(torch, height, width, fields):
    model = Small(**fields)
    params, images = random_variables(model)["params"], normal(2, height, width, 3)
    noise = normal(2, height, width, 3, seed=2)

    @jit
    def ours(params, images):
        logits, pull = jax.vjp(lambda p, x: model.apply({"params": p}, x).logits, params, images)
        return logits, *pull(noise)

    to_torch = partial(jax.tree.map, lambda a: torch.tensor(a, requires_grad=True))
    their_params, their_images = to_torch(params), to_torch(images)
    theirs = torch_fcn(torch, their_params, their_images, model)
    theirs.backward(torch.tensor(noise))

    logits, gradients, gradient = ours(params, images)
    assert_close(logits, theirs.detach())
    assert_close(gradient, their_images.grad)
    jax.tree.map(lambda a, b: assert_close(a, b.grad), gradients, their_params)


@pytest.mark.parametrize("fusion, upsampling", [("sum", "learned"), ("concat", "fixed")])
def test_the_start(fusion, upsampling):
    """Scores of zero, upsampling bilinear, and yet no score layer without a gradient."""
    wide = {"widths": (8,) * 5, "classifier_width": 16}  # enough for some units to be alive
    model = FCN(3, padding="same", fusion=fusion, upsampling=upsampling, **wide)
    images, noise = normal(1, 32, 32, 3), normal(1, 32, 32, 3, seed=2)

    @jit
    def start(key):
        logits, variables = model.init_with_output(key, images)

        def loss(params):
            return (model.apply({"params": params}, images).logits * noise).sum()

        return logits.logits, variables["params"], jax.grad(loss)(variables["params"])

    # This kind of key compiles in a third of the time.
    logits, params, gradients = start(jax.random.key(0, impl="rbg"))
    assert not np.any(logits)
    assert all(np.any(params[name]["kernel"]) for name in ("fc6", "fc7"))
    for name in SCORES[8]:
        # Concatenated, the scores below are handed on and the skip's weights are zero.
        handed_on = np.eye(*params[name]["kernel"].shape[2:])
        want = handed_on if fusion == "concat" and name != "score_fr" else 0 * handed_on
        np.testing.assert_array_equal(params[name]["kernel"][0, 0], want)
        assert not np.any(params[name]["bias"])
        assert np.abs(gradients[name]["kernel"]).max() > 1e-3, name
    if upsampling == "learned":
        for name, side in (("upscore2", 4), ("upscore_pool4", 4), ("upscore8", 16)):
            kernel = np.asarray(params[name]["kernel"]).transpose(2, 3, 0, 1)
            np.testing.assert_allclose(kernel, bilinear(side, 3), atol=1e-6)


def turn(variables):
    """Every kernel transposed, for pictures that are."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1) if leaf.ndim == 4 else leaf, variables)


TINY = {
    FCN: {"widths": (1,) * 5, "classifier_width": 1},
    FCNAlexNet: {"widths": (2,) * 5, "classifier_width": 1},
    FCNGoogLeNet: {"stem": (1, 1, 1), "widths": ((1,) * 6,) * 9},
}


@pytest.mark.parametrize(
    "network, fields",
    [
        (FCN, {"stride": 32}),
        (FCN, {"stride": 16}),
        (FCN, {"stride": 8, "at_once": True}),
        (FCN, {"stride": 8, "classifier_width": None}),
        (FCN, {"stride": 16, "padding": "same", "upsampling": "learned", "fusion": "concat"}),
        (FCN, {"stride": 8, "padding": "same", "upsampling": "bilinear"}),
        (FCN, {"stride": 8, "padding": "same", "upsampling": "nearest"}),
        (FCNAlexNet, {}),
        (FCNGoogLeNet, {}),
        (FCNGoogLeNet, {"variant": "torchvision"}),
    ],
    ids=str,
)
def test_what_a_pixel_reaches_and_that_it_moves_with_the_stride(network, fields):
    # Of positive weights, without biases: a black picture gives zero, and one white row in it shows
    # all that it reaches, through every maximum, for nothing else is there.
    model = network(1, **{**TINY[network], **fields})
    halo, context, stride = (getattr(model.geometry, n) for n in ("halo", "context", "stride"))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("bias", "mean"):
            return np.zeros(leaf.shape, np.float32)
        fan_in = np.prod(leaf.shape[:-1])
        return (rng.uniform(0.5, 1.5, leaf.shape) / fan_in).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes(model))
    first = -(-halo // stride) * stride  # of the 32 white rows
    length = 2 * first + 2 * stride
    images = np.zeros((stride + 2, length, 1, 3), np.float32)
    rows = first + np.arange(stride)
    images[np.arange(stride), rows] = 1
    long = rng.uniform(size=(length + stride, 1, 3))
    images[stride:] = long[:length], long[stride:]
    logits = np.asarray(logits_of(model, variables, images))[:, :, 0, 0]
    # The same of columns.
    turned = logits_of(model, turn(variables), images.swapaxes(1, 2))
    np.testing.assert_allclose(turned[:, 0, :, 0], logits, rtol=1e-5)

    which, pixels = np.nonzero(logits[:stride])
    near = rows[which]
    cells = pixels // stride * stride
    reached = np.abs(near - pixels).max()
    around = np.array([(cells - near).max(), (near - cells).max() - stride + 1])
    if fields.get("upsampling") == "nearest":
        # Its geometry is that of "bilinear".
        assert halo - stride < reached <= halo
        assert (around <= context).all() and (np.subtract(context, stride) <= around).all()
    else:
        assert (reached, *around) == (halo, *context)
    here, moved = logits[stride, stride:], logits[stride + 1, :-stride]
    inner = slice(halo, len(here) - halo)
    np.testing.assert_allclose(here[inner], moved[inner], rtol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"stride": 32},
        {"stride": 16},
        {"stride": 8},
        {"stride": 8, "classifier_width": None},
        {"stride": 8, "padding": "same"},
    ],
    ids=str,
)
def test_every_size_works_and_no_crop_leaves_its_map(monkeypatch, fields):
    plain_crop, plain_deconv = fcn.crop, fcn.bilinear_deconv

    def checked_crop(x, height, width, *, offset):
        assert 0 <= offset <= min(x.shape[1] - height, x.shape[2] - width)
        return plain_crop(x, height, width, offset=offset)

    def checked_deconv(x, height, width, *, stride, offset, **rest):
        assert offset >= 0 and offset + height <= (x.shape[1] + 1) * stride
        assert offset + width <= (x.shape[2] + 1) * stride
        return plain_deconv(x, height, width, stride=stride, offset=offset, **rest)

    monkeypatch.setattr(fcn, "crop", checked_crop)
    monkeypatch.setattr(fcn, "bilinear_deconv", checked_deconv)
    model = Small(**fields)
    variables = shapes(model)
    # As a height or a width every side from 1 to 80 with 8s, which has every skip's crop; to 40
    # with the others: 32 more pixels make pool5 one longer and repeat the same alignment.
    largest = 80 if model.stride == 8 else 40
    for height in range(1, largest // 2 + 1):
        width = largest + 1 - height
        images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        output = jax.eval_shape(model.apply, variables, images)
        assert output.logits.shape == (1, height, width, 3)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_score_layers_exist_only_where_used(stride):
    assert set(shapes(Small(stride=stride))["params"]) == {"vgg16", "fc6", "fc7"} | SCORES[stride]


@pytest.mark.parametrize("padding", ["authors", "same"])
@pytest.mark.parametrize("stride", [16, 8])
def test_every_stream_reaches_the_output(padding, stride):
    model = Small(stride=stride, padding=padding)
    variables, images = random_variables(model), normal(1, 40, 40, 3)
    logits = logits_of(model, variables, images)
    for name in SCORES[stride]:
        cut = jax.tree.map(np.copy, variables)
        cut["params"][name]["kernel"][:] = 0
        change = np.abs(logits_of(model, cut, images) - logits)
        assert change.max() > 0.02 * np.abs(logits).max(), name


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


@pytest.mark.parametrize(
    "padding, stride, walk",
    [
        ("authors", 32, [((16, 12), 19, (544, 416))]),
        ("authors", 16, [((16, 12), 0, (34, 26)), ((34, 26), 27, (560, 432))]),
        (
            *("authors", 8),
            [((16, 12), 0, (34, 26)), ((34, 26), 0, (70, 54)), ((70, 54), 31, (568, 440))],
        ),
        ("same", 16, [((16, 12), 1, (34, 26)), ((32, 24), 8, (528, 400))]),
        (
            *("same", 8),
            [((16, 12), 1, (34, 26)), ((32, 24), 1, (66, 50)), ((63, 47), 4, (512, 384))],
        ),
    ],
)
def test_the_walk_of_scores_of_500_by_375_pixels(monkeypatch, padding, stride, walk):
    """Of each enlargement: the scores' sides, the crop, and the sides before it."""
    seen, plain = [], fcn.bilinear_deconv

    def see(scores, height, width, *, stride, offset, **rest):
        sides = scores.shape[1:3]
        seen.append((sides, offset, tuple(stride * (side - 1) + 2 * stride for side in sides)))
        return plain(scores, height, width, stride=stride, offset=offset, **rest)

    monkeypatch.setattr(fcn, "bilinear_deconv", see)
    shapes(Small(padding=padding, stride=stride), 500, 375)
    assert seen == walk


@pytest.mark.parametrize(
    "network, tail",
    [
        (FCN, ["fc6", 0.5, "fc7", 0.5, "score_fr", "score_pool4", "score_pool3"]),
        (FCNAlexNet, ["fc6", 0.5, "fc7", 0.5, "score_fr"]),
        (FCNGoogLeNet, ["pool_proj", 0.4, "score_fr"]),
    ],
)
def test_dropout_of_the_papers_rate_is_before_the_scores_only(network, tail):
    order = []

    def see(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            order.append(context.module.rate)
        elif isinstance(context.module, nn.Conv):
            order.append(context.module.name)
        return call(*args, **kwargs)

    rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
    with nn.intercept_methods(see):
        jax.eval_shape(partial(network(3).init, train=True), rngs, jnp.zeros((1, 32, 32, 3)))
    assert order[-len(tail) :] == tail
    assert all(isinstance(layer, str) for layer in order[: -len(tail)])


@pytest.mark.parametrize(
    "fields", [{"padding": "same"}, {}, {"stride": 16}, {"stride": 32}], ids=str
)
def test_bfloat16_stays_near_float32(fields):
    model, narrow = (Small(**fields, dtype=dtype) for dtype in (None, jnp.bfloat16))
    variables, images = random_variables(model), normal(2, 40, 33, 3)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes(narrow))} == {"float32"}
    got, want = (logits_of(m, variables, images) for m in (narrow, model))
    assert got.dtype == jnp.float32
    error = np.abs(got - want).max() / np.abs(want).max()
    assert 0 < error < 0.03


def test_dtype_is_that_of_every_convolution():
    model = Small(dtype=jnp.bfloat16)

    def forward(images):
        key, convolutions = jax.random.key(0), lambda module, _: isinstance(module, nn.Conv | Conv)
        return model.init_with_output(key, images, capture_intermediates=convolutions)

    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    seen = jax.eval_shape(forward, images)[1]["intermediates"]
    types = [leaf.dtype for leaf in jax.tree.leaves(seen)]
    assert types == [jnp.bfloat16] * 18  # 13 of VGG16, fc6, fc7, three score layers
