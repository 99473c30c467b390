"""U-Net: the paper's shapes and counts, and equality with the same network in PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import InvalidRngError

from segjax.errors import SegjaxError
from segjax.models import UNet
from segjax.models.blocks import Conv, Logits
from segjax.models.layers import UpConv

# These small programs take longer to compile than to run.
jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0},
)
WIDTHS = (3, 4, 5)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def shapes(model, height, width, channels=3):
    images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def random_variables(model, channels=3, seed=0):
    """Of He's size, biases and batch statistics away from their start, so that each one counts."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return (spread * rng.normal(size=leaf.shape)).astype(np.float32)

    side = model.geometry.minimum
    return jax.tree_util.tree_map_with_path(draw, shapes(model, side, side, channels))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@partial(jit, static_argnums=0)
def logits_of(model, variables, images):
    return model.apply(variables, images).logits


def assert_close(got, want):
    # The floor: before valid convolutions and batch norm an up-convolution's bias has gradient 0.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(np.abs(want).max(), 0.1))


@pytest.mark.parametrize(
    "model, channels, count",
    [
        (UNet(2, padding="valid", norm="none"), 1, 31_030_658),  # the paper's network
        (UNet(2, padding="valid", norm="none", up="released"), 1, 31_100_354),  # the authors' file
        (UNet(2), 3, 31_037_698),  # milesial/Pytorch-UNet
        (UNet(2, up="bilinear_corners"), 3, 17_263_042),  # the same with `bilinear`
        (UNet(1, widths=(32, 64, 128, 256, 512), norm="none"), 1, 7_759_521),  # U-Net++'s baseline
    ],
    ids=["paper", "released", "milesial", "milesial-bilinear", "baseline"],
)
def test_parameter_count(model, channels, count):
    side = model.geometry.minimum
    params = shapes(model, side, side, channels)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_the_papers_table_of_shapes():
    model = UNet(2, padding="valid", norm="none", dropout=0.5)
    images = jax.ShapeDtypeStruct((1, 572, 572, 1), jnp.float32)

    def forward(key, images):
        return model.init_with_output(key, images, capture_intermediates=True)

    output, variables = jax.eval_shape(forward, jax.random.key(0), images)
    seen = variables["intermediates"]
    table = {  # input, after each of the two convolutions, channels
        "down_0": (572, 570, 568, 64),
        "down_1": (284, 282, 280, 128),
        "down_2": (140, 138, 136, 256),
        "down_3": (68, 66, 64, 512),
        "down_4": (32, 30, 28, 1024),
        "up_3": (56, 54, 52, 512),
        "up_2": (104, 102, 100, 256),
        "up_1": (200, 198, 196, 128),
        "up_0": (392, 390, 388, 64),
    }
    for name, (side, first, second, channels) in table.items():
        sizes = [seen[name][f"conv_{i}"]["__call__"][0].shape for i in range(2)]
        assert sizes == [(1, first, first, channels), (1, second, second, channels)], name
        if name.startswith("up"):
            upsampled = seen[name.replace("up", "upconv")]["__call__"][0].shape
            assert upsampled == (1, side, side, channels)
    crops = [(table[f"down_{d}"][2] - table[f"up_{d}"][0]) / 2 for d in range(4)]
    assert crops == [88, 40, 16, 4]
    assert output.logits.shape == (1, 388, 388, 2)
    # 23 convolutions: 18 of 3×3, 4 up-convolutions and the last one of 1×1.
    assert sum(leaf.ndim == 4 for leaf in jax.tree.leaves(variables["params"])) == 23


def test_valid_sizes_start_at_188():
    geometry = UNet(2, padding="valid").geometry
    assert [geometry.fit(size) for size in (1, 4, 5, 20, 21, 388)] == [188, 188, 204, 204, 220, 572]
    assert shapes_out(UNet(2, widths=(1,) * 5, padding="valid"), 188, 204) == (4, 20)


def shapes_out(model, height, width):
    images = jax.ShapeDtypeStruct((1, height, width, 1), jnp.float32)
    variables = shapes(model, height, width, 1)
    return jax.eval_shape(model.apply, variables, images).logits.shape[1:3]


LOST = {"valid": 4, "same": 0, "full": -4}  # by two convolutions


def output_side(side, poolings, lost):
    """U-Net's output by raw arithmetic, two convolutions losing `lost`, or None: impossible."""
    skips = []
    for _ in range(poolings):
        side -= lost
        if side <= 0 or side % 2:
            return None
        skips.append(side)
        side //= 2
    side -= lost
    for skip in reversed(skips):
        side = 2 * side
        if side <= 0 or (skip - side) % 2:
            return None
        side = min(side, skip) - lost
    return side if side > 0 else None


@pytest.mark.parametrize("levels", range(1, 7))
@pytest.mark.parametrize("padding", LOST)
def test_geometry_says_exactly_which_sides_are_possible(padding, levels):
    geometry = UNet(2, widths=(1,) * levels, padding=padding).geometry
    # Outputs of 1 to 3 pixels need less than two poolings; there too the geometry asks for 4.
    smallest = 4 if padding == "valid" else 1
    possible = {}
    limit = geometry.minimum + 5 * geometry.step
    for side in range(1, limit):
        output = output_side(side, levels - 1, LOST[padding])
        if output is not None and output >= smallest:
            possible[side] = output
    sides = range(geometry.minimum, limit, geometry.step)
    assert possible == {side: side - 2 * geometry.margin for side in sides}
    if padding == "valid" and levels > 2:
        assert all((output_side(side, levels - 1, 4) or 4) >= 4 for side in range(1, 500))


def test_full_sizes_grow_by_8():
    geometry = UNet(2, padding="full").geometry
    assert [geometry.fit(size) for size in (1, 4, 5, 564, 565)] == [4, 4, 20, 564, 580]
    assert shapes_out(UNet(2, widths=(1,) * 5, padding="full"), 564, 4) == (572, 12)
    with pytest.raises(SegjaxError, match=r"got 572×20\. Nearest heights: 564 or 580; widths: 20"):
        geometry.check(572, 20)


@pytest.mark.parametrize("levels", range(1, 5))
@pytest.mark.parametrize("padding", LOST)
def test_the_network_takes_what_its_geometry_says(padding, levels):
    model = UNet(2, widths=(1,) * levels, padding=padding, norm="none")
    stride, minimum, margin = (getattr(model.geometry, n) for n in ("step", "minimum", "margin"))
    height, width = minimum, minimum + 3 * stride
    assert shapes_out(model, height, width) == (height - 2 * margin, width - 2 * margin)
    for bad in (minimum - 1, minimum + 1, minimum + stride - 1):
        if (bad - minimum) % stride or bad < minimum:
            for size in ((bad, width), (height, bad)):
                with pytest.raises(SegjaxError, match=f"got {size[0]}×{size[1]}\\. Nearest"):
                    shapes(model, *size)


def torch_unet(torch, params, statistics, images, *, levels, padding, up, train):
    """The same network of PyTorch's own functions; parameters in Flax's layout, NHWC outside."""
    f = torch.nn.functional
    pad = {"valid": 0, "same": 1, "full": 2}[padding]

    def level(x, name):
        for i in range(2):
            conv, norm = params[name][f"conv_{i}"], params[name].get(f"norm_{i}")
            x = f.conv2d(x, conv["kernel"].permute(3, 2, 0, 1), conv.get("bias"), padding=pad)
            if norm is not None:
                running = statistics[name][f"norm_{i}"]
                scale, bias, mean, var = (
                    norm["scale"],
                    norm["bias"],
                    running["mean"],
                    running["var"],
                )
                x = f.batch_norm(x, mean, var, scale, bias, training=train, momentum=0.1, eps=1e-5)
            x = torch.relu(x)
        return x

    x, skips = images.permute(0, 3, 1, 2), []
    for depth in range(levels - 1):
        skips.append(level(x, f"down_{depth}"))
        x = f.max_pool2d(skips[-1], 2)
    x = level(x, f"down_{levels - 1}")
    for depth in reversed(range(levels - 1)):
        if layer := params.get(f"upconv_{depth}"):
            kernel = layer["kernel"].permute(2, 3, 0, 1)
            around = 1 if up == "transposed" else 0
            x = f.conv_transpose2d(x, kernel, layer["bias"], stride=2, padding=around)
            x = torch.relu(x) if up == "released" else x
        elif up == "nearest":
            x = f.interpolate(x, scale_factor=2)
        else:
            corners = up == "bilinear_corners"
            x = f.interpolate(x, scale_factor=2, mode="bilinear", align_corners=corners)
        height, width = np.minimum(x.shape[2:], skips[depth].shape[2:])

        def cropped(x, height=height, width=width):
            top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
            return x[:, :, top : top + height, left : left + width]

        x = level(torch.cat([cropped(x), cropped(skips[depth])], dim=1), f"up_{depth}")
    last = params["logits"]
    return f.conv2d(x, last["kernel"].permute(3, 2, 0, 1), last["bias"]).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    "fields, train",
    [
        ({"widths": WIDTHS}, True),
        ({"widths": (4, 3)}, False),
        ({"widths": (3, 4), "norm": "none"}, False),
        ({"widths": (4, 3), "padding": "valid"}, True),
        ({"widths": (3, 4), "padding": "valid"}, False),
        ({"widths": (4, 3), "padding": "valid", "norm": "none"}, True),
        ({"widths": (3,)}, True),
        ({"widths": WIDTHS, "padding": "full", "norm": "none"}, False),
        ({"widths": (3, 4), "padding": "full"}, True),
        ({"widths": (3, 4), "padding": "valid", "norm": "none", "up": "released"}, False),
        ({"widths": (3, 4), "up": "transposed", "norm": "none"}, False),
        ({"widths": (3, 4), "up": "bilinear"}, False),
        ({"widths": WIDTHS, "up": "bilinear_corners"}, True),
        ({"widths": (3, 4), "up": "nearest", "norm": "none"}, False),
    ],
    ids=lambda case: "-".join(str(v) for v in case.values()) if isinstance(case, dict) else None,
)
def test_equals_pytorch(torch, fields, train):
    model = UNet(4, **fields)
    stride, minimum = model.geometry[:2]
    side = minimum if model.padding == "valid" else 3 * stride
    images = normal(2, side, side + 2 * stride, 3)
    variables = random_variables(model)
    params, statistics = variables["params"], variables.get("batch_stats", {})
    noise = normal(*jax.eval_shape(model.apply, variables, images).logits.shape, seed=2)

    @jit
    def ours(params, images):
        def loss(params, images):
            output, new = model.apply(
                {**variables, "params": params}, images, train=train, mutable=["batch_stats"]
            )
            return (output.logits * noise).sum(), (output.logits, new.get("batch_stats", {}))

        gradients, rest = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, images)
        return gradients, *rest

    (gradients, gradient), logits, new_statistics = ours(params, images)

    to_torch = partial(jax.tree.map, lambda a: torch.tensor(a, requires_grad=True))
    running = jax.tree.map(torch.tensor, statistics)
    their_params, their_images = to_torch(params), to_torch(images)
    theirs = torch_unet(
        torch,
        their_params,
        running,
        their_images,
        levels=len(model.widths),
        padding=model.padding,
        up=model.up,
        train=train,
    )
    theirs.backward(torch.tensor(noise))

    assert_close(logits, theirs.detach().numpy())
    assert_close(gradient, their_images.grad.numpy())
    jax.tree.map(lambda a, b: assert_close(a, b.grad.numpy()), gradients, their_params)

    # PyTorch's momentum 0.1 is Flax's 0.9. Its running variance takes n / (n - 1) of the batch's,
    # n = B · H · W; ours, as Flax's, takes the batch's own.
    def compare(path, ours, theirs):
        old = statistics
        for key in path:
            old = old[key.key]
        ours, theirs = np.asarray(ours) - 0.9 * old, theirs.numpy() - 0.9 * old
        if train and path[-1].key == "var":
            n = batch_pixels(model, path[0].key, path[1].key, images.shape)
            theirs = theirs * (n - 1) / n
        assert_close(ours, theirs)

    jax.tree_util.tree_map_with_path(compare, new_statistics, running)


def batch_pixels(model, level, norm, shape):
    """B · H · W of what a BatchNorm sees."""
    _, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, capture_intermediates=True),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    b, h, w, _ = variables["intermediates"][level][norm]["__call__"][0].shape
    return b * h * w


@pytest.mark.parametrize(
    "up, padding",
    [
        ("upconv", "same"),
        ("released", "same"),
        ("bilinear", "same"),
        ("upconv", "valid"),
        ("released", "valid"),
        ("upconv", "full"),
    ],
)
def test_every_skip_and_every_upsampling_reaches_the_output(up, padding):
    model = UNet(2, widths=WIDTHS, up=up, padding=padding)
    side = model.geometry.fit(8)
    variables, images = random_variables(model), normal(1, side, side, 3)
    logits = logits_of(model, variables, images)
    for depth, width in enumerate(WIDTHS[:-1]):
        channels = variables["params"][f"up_{depth}"]["conv_0"]["kernel"].shape[2]
        # The upsampled map comes first, then the skip; "released" leaves it wider at the top.
        upsampled = WIDTHS[1] if (up, depth) == ("released", 0) else width
        assert channels == upsampled + width
        for part in (slice(0, upsampled), slice(upsampled, None)):
            cut = jax.tree.map(np.copy, variables)
            cut["params"][f"up_{depth}"]["conv_0"]["kernel"][:, :, part] = 0
            assert np.abs(logits_of(model, cut, images) - logits).max() > 1e-3, (depth, part)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm": "none"},
        {"norm": "none", "up": "transposed"},
        {"up": "nearest"},
        {"up": "bilinear"},
        {"padding": "valid", "norm": "none"},
        {"padding": "valid", "norm": "none", "up": "released"},
        {"padding": "full", "norm": "none"},
    ],
    ids=str,
)
def test_every_parameter_has_a_gradient(fields):
    model = UNet(2, widths=WIDTHS, **fields)
    variables, side = random_variables(model), model.geometry.fit(8)
    images, out = normal(2, side, side, 3), side - 2 * model.geometry.margin
    noise = normal(2, out, out, 2)

    @jit
    @jax.grad
    def gradients(params):
        changed = {**variables, "params": params}
        output, _ = model.apply(changed, images, train=True, mutable=["batch_stats"])
        return (output.logits * noise).sum()

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(variables["params"])):
        assert np.abs(leaf).max() > 1e-4, jax.tree_util.keystr(path)


@pytest.mark.parametrize("up", ["upconv", "transposed", "bilinear", "nearest"])
@pytest.mark.parametrize("padding", LOST)
def test_halo_and_context_are_exactly_what_a_pixel_depends_on(padding, up):
    # Four levels: with fewer the margins are multiples of the stride, which hides how cells lie.
    model = UNet(1, widths=(1,) * 4, padding=padding, norm="none", up=up)
    _, minimum, stride, halo, context, margin = model.geometry
    # Of positive weights, without biases: a black picture gives zero, and one white line in it
    # shows all that it reaches, through every maximum, for nothing else is there.
    variables = jax.tree.map(
        lambda leaf: np.full(leaf.shape, (leaf.ndim > 1) / np.prod(leaf.shape[:-1]), np.float32),
        shapes(model, minimum, minimum),
    )
    first = -(-halo // stride) * stride
    lines, side = first + np.arange(stride), model.geometry.fit(2 * first + stride)
    images = np.zeros((2, stride, side, side, 3), np.float32)
    for i, line in enumerate(lines + max(margin, 0)):
        images[0, i, line] = images[1, i, :, line] = 1
    logits = logits_of(model, variables, images.reshape(-1, side, side, 3))
    ahead = max(-margin, 0)
    logits = np.asarray(logits).reshape(2, stride, *logits.shape[1:3])[:, :, ahead:, ahead:]
    for seen in (logits[0].any(axis=2), logits[1].any(axis=1)):
        which, pixels = np.nonzero(seen)
        near, cells = lines[which], pixels // stride * stride
        assert np.abs(near - pixels).max() == halo
        assert ((cells - near).max(), (near - cells).max() - stride + 1) == context


def test_reach_of_the_papers_network():
    assert UNet(2, padding="valid").geometry[3:] == (107, (92, 96), 92)
    assert UNet(2, padding="full").geometry[3:] == (107, (92, 96), -4)
    assert UNet(2).geometry[3:] == (107, (94, 94), 0)
    assert UNet(2, up="bilinear_corners").geometry[3:] == (None, None, 0)


def test_transposed_up_convolution_starts_with_he_normal_of_its_fan_in():
    params = jit(UpConv(64, side=4).init)(jax.random.key(0), jnp.zeros((1, 1, 1, 50)))["params"]
    # Each output pixel sees 2×2 input pixels.
    assert params["kernel"].shape == (4, 4, 50, 64)
    assert np.std(params["kernel"]) == pytest.approx(np.sqrt(2 / 200), rel=0.02)


@pytest.mark.parametrize("fields", [{}, {"padding": "valid"}, {"up": "released"}], ids=str)
def test_bfloat16_stays_near_float32(fields):
    model, narrow = (UNet(2, widths=WIDTHS, dtype=t, **fields) for t in (None, jnp.bfloat16))
    side = model.geometry.fit(16)
    variables, images = random_variables(model), normal(2, side, side, 3)
    types = {leaf.dtype.name for leaf in jax.tree.leaves(shapes(narrow, side, side))}
    assert types == {"float32"}
    got, want = (logits_of(m, variables, images) for m in (narrow, model))
    assert got.dtype == jnp.float32
    error = np.abs(got - want).max() / np.abs(want).max()
    assert 0 < error < 0.03

    @jit
    def train(images):
        return narrow.apply(variables, images, train=True, mutable=["batch_stats"])

    output, statistics = train(images)
    assert output.logits.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(statistics)} == {"float32"}


def test_dtype_is_that_of_every_convolution_but_the_last():
    model = UNet(2, widths=WIDTHS, dtype=jnp.bfloat16)

    def forward(images):
        key, convolutions = (
            jax.random.key(0),
            lambda module, _: isinstance(module, Conv | UpConv | Logits),
        )
        return model.init_with_output(key, images, capture_intermediates=convolutions)

    _, variables = jax.eval_shape(forward, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    seen = variables["intermediates"]
    assert seen.pop("logits")["__call__"][0].dtype == jnp.float32
    types = [leaf.dtype for leaf in jax.tree.leaves(seen)]
    assert types == [jnp.bfloat16] * 12  # 2 for each of 5 levels, 2 up-convolutions


def test_dropout_is_for_training_and_needs_its_key():
    model = UNet(2, widths=WIDTHS, norm="none", dropout=0.5)
    variables, images = random_variables(model), normal(1, 8, 8, 3)

    @jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, images, train=True, rngs=rngs).logits

    assert np.abs(train(0) - train(1)).max() > 1e-2
    np.testing.assert_array_equal(train(0), train(0))
    without = UNet(2, widths=WIDTHS, norm="none")
    np.testing.assert_array_equal(
        logits_of(model, variables, images), logits_of(without, variables, images)
    )
    with pytest.raises(InvalidRngError, match='needs PRNG for "dropout"'):
        jax.eval_shape(partial(model.apply, train=True), variables, images)


def test_dropout_is_after_the_two_lowest_levels_only_and_feeds_the_skip():
    model = UNet(2, widths=(2, 3, 4, 5), norm="none", dropout=0.5)
    variables, images = random_variables(model), normal(1, 16, 16, 3)

    @jit
    def train(variables, images):
        dropped, inputs = [], {}

        def see(call, args, kwargs, context):
            result = call(*args, **kwargs)
            if isinstance(context.module, nn.Dropout) and context.module.rate:
                assert context.module.rate == 0.5
                dropped.append(result)
            inputs[context.module.name] = args
            return result

        with nn.intercept_methods(see):
            model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)})
        return dropped, inputs["up_2"], inputs["upconv_2"][0]

    (skip, lowest), (_, joined), below = train(variables, images)
    assert (skip.shape, lowest.shape) == ((1, 4, 4, 4), (1, 2, 2, 5))
    np.testing.assert_array_equal(joined, skip)  # the upsampled map comes first
    np.testing.assert_array_equal(below, lowest)


def test_a_wrong_size_is_refused_with_the_nearest_good_ones():
    text = "multiple of 16 pixels; got 100×96. Nearest heights: 96 or 112; widths: 96"
    with pytest.raises(SegjaxError, match=text):
        shapes(UNet(2), 100, 96)
    text = "got 572×570. Nearest heights: 572; widths: 556 or 572"
    with pytest.raises(SegjaxError, match=text):
        shapes(UNet(2, padding="valid"), 572, 570)
