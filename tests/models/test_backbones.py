"""AlexNet and GoogLeNet under FCN, and the layers that they need, against PyTorch's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segjax.models import AlexNet, FCNAlexNet, FCNGoogLeNet, GoogLeNet
from segjax.models.alexnet import alexnet_span
from segjax.models.googlenet import googlenet_span
from segjax.models.layers import adapt_stem, dense_to_conv, local_response_norm, max_pool_3x3
from segjax.models.vgg import vgg16_span

# These small programs take longer to compile than to run.
jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0},
)
TORCHVISION = {"variant": "torchvision"}
SmallAlexNet = partial(FCNAlexNet, 3, widths=(4, 6, 8, 4, 6), classifier_width=7)
SmallGoogLeNet = partial(
    FCNGoogLeNet,
    3,
    stem=(4, 3, 5),
    widths=((4, 3, 5, 3, 4, 3), (5, 3, 4, 4, 3, 4), *((4,) * 6,) * 7),
)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(model, height=32, width=32):
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def random_variables(model):
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if leaf.ndim == 1:  # high enough that no unit is dead for the pictures below
            return rng.uniform(0, 30, leaf.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return (spread * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(model))


def assert_close(got, want):
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
    assert np.abs(want).max() > 0


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("height, width", [(2, 9), (7, 8), (4, 3)])
@pytest.mark.parametrize("rounded", [False, True])
def test_max_pool_3x3_is_pytorchs(torch, height, width, rounded):
    x = normal(2, height, width, 3)
    x = np.round(x) if rounded else x  # rounded entries are often equal
    images = torch.tensor(x, requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(images.permute(0, 3, 1, 2), 3, 2, ceil_mode=True)
    pooled = pooled.permute(0, 2, 3, 1)
    noise = normal(*pooled.shape, seed=2)
    pooled.backward(torch.tensor(noise))
    value, pull = jax.vjp(max_pool_3x3, x)
    np.testing.assert_array_equal(value, pooled.detach())
    np.testing.assert_allclose(pull(noise)[0], images.grad, atol=1e-6)


def test_max_pool_3x3_hands_a_nan_on():
    for y, x in np.ndindex(3, 3):
        assert jnp.isnan(max_pool_3x3(jnp.zeros((1, 3, 3, 1)).at[0, y, x].set(jnp.nan))).all()


@pytest.mark.parametrize("channels", [2, 7])
def test_local_response_norm_is_pytorchs(torch, channels):
    x = 300 * normal(2, 3, 4, channels)
    images = torch.tensor(x, requires_grad=True)
    theirs = torch.nn.functional.local_response_norm(images.permute(0, 3, 1, 2), 5, 1e-4, 0.75, 1)
    theirs = theirs.permute(0, 2, 3, 1)
    noise = normal(*x.shape, seed=2)
    theirs.backward(torch.tensor(noise))
    value, pull = jax.vjp(local_response_norm, x)
    assert_close(value, theirs.detach())
    assert_close(pull(noise)[0], images.grad)
    assert local_response_norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("order", ["hwc", "chw"])
def test_a_dense_layer_is_a_convolution(order):
    x, kernel = normal(1, 5, 7, 4), normal(2 * 3 * 4, 6, seed=2)
    axes = (0, 1, 2) if order == "hwc" else (2, 0, 1)
    weights = dense_to_conv(kernel, 2, 3, order=order)
    slid = nn.Conv(6, (2, 3), padding="VALID", use_bias=False).apply(
        {"params": {"kernel": weights}}, x
    )
    for i, j in np.ndindex(slid.shape[1:3]):
        window = x[0, i : i + 2, j : j + 3].transpose(axes).ravel()
        np.testing.assert_allclose(slid[0, i, j], window @ kernel, atol=1e-5)


def test_a_stem_for_other_channels():
    kernel, picture = normal(3, 3, 3, 5), normal(1, 6, 6, 3, seed=2)

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert_close(adapt_stem(kernel, 3), kernel)
    grey = picture[..., :1]
    want = conv(np.repeat(grey, 3, axis=-1), kernel)
    for channels in (1, 2):
        assert adapt_stem(kernel, channels).shape == (3, 3, channels, 5)
        assert_close(conv(np.repeat(grey, channels, -1), adapt_stem(kernel, channels)), want)
    more = adapt_stem(kernel, 5)
    np.testing.assert_array_equal(more[:, :, :3], kernel)
    for channel in (3, 4):
        np.testing.assert_array_equal(more[:, :, channel], kernel.mean(axis=2))
    assert_close(conv(np.pad(picture, [(0, 0)] * 3 + [(0, 2)]), more), conv(picture, kernel))


@pytest.mark.parametrize(
    "model, want",
    [
        (FCNAlexNet(21), 56_954_261),
        # bvlc_googlenet's 6,998,552 less its 1000 classes, and 21 of ours.
        (FCNGoogLeNet(21), 6_998_552 - 1_025_000 + 21_525),
        # torchvision's 6,624,904 (without auxiliary heads) and 61,100,840.
        (FCNGoogLeNet(1000, variant="torchvision"), 6_624_904),
        (FCNAlexNet(1000, widths=(64, 192, 384, 256, 256), variant="torchvision"), 61_100_840),
    ],
)
def test_parameter_count(model, want):
    assert count(shapes(model)["params"]) == want


@pytest.mark.parametrize(
    "span, pixels",
    [
        (vgg16_span((0, 6), pad=1), 404),
        (alexnet_span((0, 5), pad=0), 355),
        (googlenet_span((0, 6), variant="caffe", pad=3), 907),  # with the average pooling
        (googlenet_span((0, 0), variant="caffe", pad=3), 715),
        (googlenet_span((0, 0), variant="torchvision", pad=3), 379),
    ],
)
def test_a_score_sees_what_the_paper_says(span, pixels):
    """Table 1 of the FCN paper: 404, 355 and 907."""
    assert span[1] - span[0] + 1 == pixels


@pytest.mark.parametrize(
    "model, trunk, walk",
    [
        (SmallAlexNet(), "alexnet", {"conv1": 173, "conv2": 86, "conv3": 43, "": 21}),
        (SmallGoogLeNet(), "googlenet", {"conv1": 266, "conv2": 133, "inception_3a": 66, "": 16}),
        (SmallGoogLeNet(**TORCHVISION), "googlenet", {"conv1": 258, "inception_3a": 64, "": 16}),
    ],
)
def test_the_walk_of_a_500_pixel_side(model, trunk, walk):
    def forward(images):
        return model.init_with_output(jax.random.key(0), images, capture_intermediates=True)

    images = jax.ShapeDtypeStruct((1, 500, 375, 3), jnp.float32)
    output, variables = jax.eval_shape(forward, images)
    seen = variables["intermediates"]
    for name, side in walk.items():
        layer = seen[trunk][name] if name else seen[trunk]
        assert layer["__call__"][0].shape[1] == side, name
    assert seen["score_fr"]["__call__"][0].shape[1] == 16
    assert output.logits.shape == (1, 500, 375, 3)


@pytest.mark.parametrize(
    "model, crop",
    [(SmallAlexNet(), 18), (SmallGoogLeNet(), 17), (SmallGoogLeNet(**TORCHVISION), 17)],
)
def test_the_scores_cover_every_size(model, crop):
    variables = shapes(model)

    for side in (1, 29, 30, 31, 32, 33):
        images = jax.ShapeDtypeStruct((1, side, 67 - side, 3), jnp.float32)
        for n, cells in zip(images.shape[1:3], scores_shape(model, variables, images), strict=True):
            centres = 31 - crop + 32 * np.arange(cells)
            # No pixel is farther than half a step from a score.
            assert centres[0] <= 16 and n - 1 - centres[-1] <= 16


def scores_shape(model, variables, images):
    def scores(variables, images):
        _, seen = model.apply(variables, images, capture_intermediates=True)
        return seen["intermediates"]["score_fr"]["__call__"][0]

    return jax.eval_shape(scores, variables, images).shape[1:3]


def torch_conv(torch, x, layer, **arguments):
    kernel = layer["kernel"].permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(x, kernel, layer["bias"], **arguments)


def torch_alexnet(torch, params, x):
    """As `voc-fcn-alexnet/train.prototxt`, up to score_fr."""
    f, trunk, conv = torch.nn.functional, params["alexnet"], partial(torch_conv, torch)
    x = torch.relu(conv(x, trunk["conv1"], stride=4, padding=100))
    x = f.local_response_norm(f.max_pool2d(x, 3, 2, ceil_mode=True), 5, 1e-4, 0.75, 1)
    x = torch.relu(conv(x, trunk["conv2"], padding=2, groups=2))
    x = f.local_response_norm(f.max_pool2d(x, 3, 2, ceil_mode=True), 5, 1e-4, 0.75, 1)
    x = torch.relu(conv(x, trunk["conv3"], padding=1))
    x = torch.relu(conv(x, trunk["conv4"], padding=1, groups=2))
    x = torch.relu(conv(x, trunk["conv5"], padding=1, groups=2))
    x = f.max_pool2d(x, 3, 2, ceil_mode=True)
    x = torch.relu(conv(x, params["fc6"]))
    return conv(torch.relu(conv(x, params["fc7"])), params["score_fr"])


def torch_googlenet(torch, params, x):
    """As `bvlc_googlenet/train_val.prototxt` up to inception 5b, and score_fr."""
    f, trunk = torch.nn.functional, params["googlenet"]
    pool = partial(f.max_pool2d, kernel_size=3, stride=2, ceil_mode=True)

    def conv(x, layer, **arguments):
        return torch.relu(torch_conv(torch, x, layer, **arguments))

    x = f.local_response_norm(pool(conv(x, trunk["conv1"], stride=2, padding=19)), 5, 1e-4, 0.75, 1)
    x = conv(conv(x, trunk["conv2_reduce"]), trunk["conv2"], padding=1)
    x = pool(f.local_response_norm(x, 5, 1e-4, 0.75, 1))
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        if name in ("4a", "5a"):
            x = pool(x)
        block = trunk[f"inception_{name}"]
        x = torch.cat(
            [
                conv(x, block["1x1"]),
                conv(conv(x, block["3x3_reduce"]), block["3x3"], padding=1),
                conv(conv(x, block["5x5_reduce"]), block["5x5"], padding=2),
                conv(f.max_pool2d(x, 3, 1, padding=1), block["pool_proj"]),
            ],
            1,
        )
    return torch_conv(torch, x, params["score_fr"])


def bilinear_63(torch, channels):
    line = 1 - np.abs(np.arange(63) - 31) / 32
    kernel = np.eye(channels)[:, :, None, None] * np.outer(line, line)
    return torch.tensor(kernel.astype(np.float32))


@pytest.mark.parametrize(
    "model, network, crop, height, width",
    [
        (SmallAlexNet(), torch_alexnet, 18, 37, 50),
        (SmallAlexNet(upsampling="learned"), torch_alexnet, 18, 33, 31),
        (SmallGoogLeNet(), torch_googlenet, 17, 64, 41),
    ],
)
def test_equals_pytorch(torch, model, network, crop, height, width):
    params, images = random_variables(model)["params"], 100 * normal(2, height, width, 3)
    noise = normal(2, height, width, 3, seed=2)

    @jit
    def ours(params, images):
        logits, pull = jax.vjp(lambda p, x: model.apply({"params": p}, x).logits, params, images)
        return logits, *pull(noise)

    their_params = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), params)
    their_images = torch.tensor(images, requires_grad=True)
    scores = network(torch, their_params, their_images.permute(0, 3, 1, 2))
    kernel = bilinear_63(torch, 3)
    if model.upsampling == "learned":
        kernel = their_params["upscore"]["kernel"].permute(2, 3, 0, 1)
    theirs = torch.nn.functional.conv_transpose2d(scores, kernel, stride=32)
    theirs = theirs[:, :, crop : crop + height, crop : crop + width].permute(0, 2, 3, 1)
    theirs.backward(torch.tensor(noise))

    logits, gradients, gradient = ours(params, images)
    assert_close(logits, theirs.detach())
    assert_close(gradient, their_images.grad)
    jax.tree.map(lambda a, b: assert_close(a, b.grad), gradients, their_params)


@pytest.mark.parametrize("network", [SmallAlexNet, SmallGoogLeNet], ids=["AlexNet", "GoogLeNet"])
def test_no_parameter_of_torchvisions_is_dead(network):
    model = network(**TORCHVISION)
    variables, images = random_variables(model), 100 * normal(2, 40, 33, 3)
    noise = normal(2, 40, 33, 3, seed=2)

    @jit
    @jax.grad
    def gradients(params):
        return (model.apply({**variables, "params": params}, images).logits * noise).sum()

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(variables["params"])):
        assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


@pytest.mark.parametrize("fields", [{}, TORCHVISION], ids=["caffe", "torchvision"])
@pytest.mark.parametrize("network", [SmallAlexNet, SmallGoogLeNet], ids=["AlexNet", "GoogLeNet"])
def test_bfloat16_stays_near_float32(network, fields):
    model, narrow = network(**fields), network(dtype=jnp.bfloat16, **fields)
    variables, images = random_variables(model), 100 * normal(2, 40, 33, 3)
    got, want = (jit(m.apply)(variables, images).logits for m in (narrow, model))
    assert got.dtype == jnp.float32
    error = np.abs(got - want).max() / np.abs(want).max()
    assert 0 < error < 0.03


def test_the_trunks_alone_take_their_own_pictures():
    """CaffeNet's 227 pixels and GoogLeNet's 224 give the maps of their classifiers."""
    images = jax.ShapeDtypeStruct((1, 227, 227, 3), jnp.float32)
    pool5, _ = jax.eval_shape(AlexNet().init_with_output, jax.random.key(0), images)
    assert pool5.shape == (1, 6, 6, 256)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    for variant in ("caffe", "torchvision"):
        trunk = GoogLeNet(variant=variant)
        last, _ = jax.eval_shape(trunk.init_with_output, jax.random.key(0), images)
        assert last.shape == (1, 7, 7, 1024)
