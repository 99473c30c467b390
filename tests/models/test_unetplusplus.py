"""U-Net++: the authors' counts, the equation in PyTorch, its heads and its pruning."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segjax.errors import SegjaxError
from segjax.models import UNetPlusPlus
from segjax.models.unetplusplus import average, prune

# These small programs take longer to compile than to run.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
WIDTHS = (3, 4, 5)
Small = partial(UNetPlusPlus, 2, widths=WIDTHS)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def shapes(model, height=16, width=16, channels=3):
    images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def random_variables(model, channels=3):
    """Of He's size, biases and batch statistics away from their start, so that each one counts."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return (spread * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(model, channels=channels))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@partial(jit, static_argnums=0)
def output_of(model, variables, images):
    return model.apply(variables, images)


def assert_close(got, want):
    # The floor: before batch norm an up-convolution's bias has almost no gradient.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(np.abs(want).max(), 0.1))


# The biases of its convolutions that pytorch-nested-unet has before batch norm, to no effect.
DEAD = 2 * sum(width * (5 - i) for i, width in enumerate((32, 64, 128, 256, 512)))


@pytest.mark.parametrize(
    "fields, channels, expected",
    [
        ({"norm": "none"}, 1, 9_041_700),
        ({"norm": "none", "deep_supervision": False}, 1, 9_041_601),
        ({"up": "bilinear_corners"}, 3, 9_163_428 - DEAD),
        ({"up": "bilinear_corners", "deep_supervision": False}, 3, 9_163_329 - DEAD),
    ],
    ids=["authors-heads", "authors", "nested-unet-heads", "nested-unet"],
)
def test_parameter_count(fields, channels, expected):
    assert count(shapes(UNetPlusPlus(1, **fields), channels=channels)) == expected


def test_parameter_count_of_the_pruned_networks():
    model = UNetPlusPlus(1, norm="none")
    variables = shapes(model, channels=1)
    pruned = [prune(model, variables, level) for level in (1, 2, 3, 4)]
    assert [count(v) for _, v in pruned] == [100_961, 511_105, 2_204_961, 9_041_601]
    for network, v in pruned:
        assert v == shapes(network, channels=1)


def torch_heads(torch, params, statistics, images, *, levels, up, train):
    """The heads by the equation, as a recursion; parameters in Flax's layout, NHWC outside."""
    f = torch.nn.functional

    def unit(x, name):
        for n in range(2):
            conv, norm = params[name][f"conv_{n}"], params[name].get(f"norm_{n}")
            x = f.conv2d(x, conv["kernel"].permute(3, 2, 0, 1), conv.get("bias"), padding=1)
            if norm is not None:
                running = statistics[name][f"norm_{n}"].values()
                x = f.batch_norm(x, *running, norm["scale"], norm["bias"], training=train)
            x = torch.relu(x)
        return x

    def upsampled(x, name):
        if up == "nearest":
            return f.interpolate(x, scale_factor=2)
        if up.startswith("bilinear"):
            corners = up == "bilinear_corners"
            return f.interpolate(x, scale_factor=2, mode="bilinear", align_corners=corners)
        kernel, bias = (params[name][key] for key in ("kernel", "bias"))
        padding = 1 if up == "transposed" else 0
        return f.conv_transpose2d(x, kernel.permute(2, 3, 0, 1), bias, stride=2, padding=padding)

    @cache
    def x(i, j):
        if j:
            below = upsampled(x(i + 1, j - 1), f"up_{i}_{j}")
            inputs = torch.cat([below, *(x(i, k) for k in range(j))], dim=1)
        else:
            inputs = f.max_pool2d(x(i - 1, 0), 2) if i else images.permute(0, 3, 1, 2)
        return unit(inputs, f"x_{i}_{j}")

    def head(j):
        layer = params[f"head_{j}"]
        y = f.conv2d(x(0, j), layer["kernel"].permute(3, 2, 0, 1), layer["bias"])
        return y.permute(0, 2, 3, 1)

    return [head(j) for j in range(1, levels)]


@pytest.mark.parametrize(
    "fields, train",
    [
        ({"norm": "none", "widths": (3, 2, 3, 2)}, False),
        ({"widths": (3, 4)}, False),
        ({}, True),
        ({"up": "bilinear", "widths": (3, 4)}, False),
        ({"up": "bilinear_corners"}, True),
        ({"up": "nearest", "widths": (3, 4)}, False),
        ({"up": "transposed", "norm": "none", "widths": (3, 4)}, False),
    ],
    ids=str,
)
def test_equals_the_equation_in_pytorch(torch, fields, train):
    model = Small(**fields)
    levels, step = len(model.widths), model.geometry.step
    images, variables = normal(2, 3 * step, 2 * step, 3), random_variables(model)
    noises = [normal(2, 3 * step, 2 * step, 2, seed=j) for j in range(1, levels)]

    @jit
    @partial(jax.grad, argnums=(0, 1), has_aux=True)
    def ours(params, images):
        output, _ = model.apply(
            {**variables, "params": params}, images, train=train, mutable=["batch_stats"]
        )
        loss = sum((y * noise).sum() for y, noise in zip(output.auxiliary, noises, strict=True))
        return loss, output.auxiliary

    (gradients, gradient), heads = ours(variables["params"], images)

    to_torch = partial(jax.tree.map, lambda a: torch.tensor(a, requires_grad=True))
    running = jax.tree.map(torch.tensor, variables.get("batch_stats", {}))
    their_params, their_images = to_torch(variables["params"]), to_torch(images)
    theirs = torch_heads(
        torch, their_params, running, their_images, levels=levels, up=model.up, train=train
    )
    sum((y * torch.tensor(n)).sum() for y, n in zip(theirs, noises, strict=True)).backward()

    for got, want in zip(heads, theirs, strict=True):
        assert_close(got, want.detach().numpy())
    assert_close(gradient, their_images.grad.numpy())
    jax.tree.map(lambda a, b: assert_close(a, b.grad.numpy()), gradients, their_params)


@pytest.mark.parametrize("classes, to_probability", [(1, jax.nn.sigmoid), (3, jax.nn.softmax)])
def test_the_average_is_that_of_the_probabilities(classes, to_probability):
    heads = [4 * normal(1, 2, 3, classes, seed=seed) for seed in range(4)]
    got = to_probability(average(heads))
    np.testing.assert_allclose(got, np.mean([to_probability(x) for x in heads], 0), rtol=1e-5)
    if classes > 1:  # far from what the mean of the logits would give
        assert np.abs(got - to_probability(np.mean(heads, 0))).max() > 0.05


def test_the_average_takes_large_logits():
    heads = [jnp.full((1, 1, 1, 1), value) for value in (300.0, 200.0)]
    assert average(heads) == pytest.approx(200 + np.log(2))  # 1 - p is e⁻³⁰⁰ and e⁻²⁰⁰
    assert np.isfinite(jax.grad(lambda heads: average(heads).sum())(heads)).all()


def test_logits_are_the_average_or_one_head():
    variables, images = random_variables(Small()), normal(1, 8, 12, 3)
    accurate = output_of(Small(), variables, images)
    assert len(accurate.auxiliary) == 2
    assert_close(accurate.logits, average(accurate.auxiliary))
    for head in (1, 2):
        fast = output_of(Small(head=head), variables, images)
        jax.tree.map(assert_close, fast, accurate._replace(logits=accurate.auxiliary[head - 1]))
    del variables["params"]["head_1"]  # not one of these heads' networks has it
    single = output_of(Small(deep_supervision=False), variables, images)
    assert_close(single.logits, accurate.auxiliary[1])
    assert single.auxiliary == ()


@pytest.mark.parametrize("up", ["upconv", "bilinear_corners"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_pruned_network_is_that_head_bit_for_bit(norm, up):
    model = UNetPlusPlus(3, widths=(3, 4, 5, 6), norm=norm, up=up, dropout=0.5)
    variables, images = random_variables(model), normal(2, 16, 24, 3)
    heads = output_of(model, variables, images).auxiliary
    for level, want in enumerate(heads, 1):
        network, kept = prune(model, variables, level)
        got = output_of(network, kept, images)
        assert got.auxiliary == () and network.geometry.step == 2**level
        np.testing.assert_array_equal(got.logits, want)
        assert jax.tree.map(jnp.shape, kept) == jax.tree.map(jnp.shape, shapes(network))


def test_pruning_needs_the_head():
    model = Small()
    for level in (0, 3):
        with pytest.raises(SegjaxError, match=rf"heads, \[1, 2\]; got {level}"):
            prune(model, {}, level)
    with pytest.raises(SegjaxError, match=r"heads, \[2\]; got 1"):
        prune(Small(deep_supervision=False), {}, 1)


def test_a_head_that_is_not_there_is_refused():
    for model in (Small(head=0), Small(head=3), Small(head=1, deep_supervision=False)):
        with pytest.raises(SegjaxError, match=f"heads .*; got head {model.head}"):
            shapes(model)
    with pytest.raises(SegjaxError, match=r"1 widths has heads \[\]; .* at least two"):
        shapes(UNetPlusPlus(2, widths=(3,)))


def test_compiled_prediction_of_one_head_costs_what_the_pruned_network_does():
    model = Small(head=1)
    variables, images = shapes(model), jnp.zeros((1, 32, 32, 3))

    def operations(model, variables):
        run = jax.jit(lambda variables, images: model.apply(variables, images).logits)
        return run.lower(variables, images).compile().cost_analysis()["flops"]

    fast, pruned = operations(model, variables), operations(*prune(model, variables, 1))
    assert fast == pruned < 0.5 * operations(Small(), variables)


@pytest.mark.parametrize("up", ["upconv", "bilinear"])
def test_every_dense_skip_reaches_its_head(up):
    model = UNetPlusPlus(2, widths=(2, 3, 4, 5), up=up)
    variables, images = random_variables(model), normal(1, 16, 16, 3)
    heads = output_of(model, variables, images).auxiliary
    for depth in range(1, 4):
        for i in range(depth):
            j, width = depth - i, model.widths[i]
            kernel = variables["params"][f"x_{i}_{j}"]["conv_0"]["kernel"]
            below = width if up == "upconv" else model.widths[i + 1]
            assert kernel.shape[2] == below + j * width
            for start in range(below, below + j * width, width):
                cut = jax.tree.map(np.copy, variables)
                cut["params"][f"x_{i}_{j}"]["conv_0"]["kernel"][:, :, start : start + width] = 0
                got = output_of(model, cut, images).auxiliary
                changed = [bool(np.any(a != b)) for a, b in zip(got, heads, strict=True)]
                # x[i, j] is part of the networks L_depth and deeper, and of no shallower one.
                assert changed == [head >= depth for head in (1, 2, 3)]


@pytest.mark.parametrize("fields", [{}, {"norm": "none"}, {"up": "transposed"}, {"up": "nearest"}])
def test_one_loss_a_head_reaches_every_parameter(fields):
    model = Small(**fields)
    variables, images = random_variables(model), normal(2, 8, 8, 3)
    labels = np.random.default_rng(2).integers(0, 2, (2, 8, 8))

    @jit
    @jax.grad
    def gradients(params):
        output, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        scores = [jax.nn.log_softmax(logits) for logits in output.auxiliary]
        return -sum(jnp.take_along_axis(s, labels[..., None], -1).sum() for s in scores)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(variables["params"])):
        assert np.abs(leaf).max() > 1e-4, jax.tree_util.keystr(path)


@pytest.mark.parametrize("up", ["upconv", "transposed", "bilinear", "nearest"])
@pytest.mark.parametrize("levels", [2, 3])
def test_halo_and_context_are_exactly_what_a_pixel_depends_on(up, levels):
    model = UNetPlusPlus(1, widths=(1,) * levels, norm="none", up=up)
    _, _, stride, halo, context, _ = model.geometry
    cell = 8 * stride + np.arange(stride)  # in the middle: nothing is cut off by the border
    # All positive: no ReLU is shut. Several pictures: every pixel is once the largest of a window.
    variables = jax.tree.map(lambda a: np.abs(a) + 0.1, random_variables(model, channels=1))
    images = np.abs(normal(8, 17 * stride, 17 * stride, 1)) + 0.1

    @jit
    @jax.jacrev
    def jacobian(images):
        heads = model.apply(variables, images).auxiliary
        return sum(head.sum((0, 3))[cell, cell] for head in heads)

    sees = np.asarray(jacobian(images)).any((1, 4))  # (stride, H, W)
    spans = [np.flatnonzero(see.any(axis))[[0, -1]] for see in sees for axis in (0, 1)]
    pixels = cell.repeat(2)
    assert max(max(p - a, b - p) for p, (a, b) in zip(pixels, spans, strict=True)) == halo
    assert (max(cell[0] - a for a, _ in spans), max(b - cell[-1] for _, b in spans)) == context


def test_aligned_corners_make_a_pixel_depend_on_all():
    assert Small(up="bilinear_corners").geometry == (4, 4, 4, None, None, 0)


def test_dropout_is_after_every_convolution_in_training():
    model = Small(norm="none", dropout=0.5)
    variables, images = random_variables(model), normal(1, 8, 8, 3)

    @jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, images, train=True, rngs=rngs)

    assert np.abs(train(0).logits - train(1).logits).max() > 1e-2
    jax.tree.map(np.testing.assert_array_equal, train(0), train(0))
    without = output_of(Small(norm="none"), variables, images)
    jax.tree.map(np.testing.assert_array_equal, output_of(model, variables, images), without)

    def forward(images):
        key, dropouts = jax.random.key(0), lambda module, _: isinstance(module, nn.Dropout)
        rngs, capture = {"params": key, "dropout": key}, {"capture_intermediates": dropouts}
        return model.init_with_output(rngs, images, train=True, **capture)

    _, seen = jax.eval_shape(forward, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    assert len(jax.tree.leaves(seen["intermediates"])) == 2 * 6  # convolutions of 6 nodes


def test_bfloat16_stays_near_float32():
    model, narrow = Small(), Small(dtype=jnp.bfloat16)
    variables, images = random_variables(model), normal(2, 16, 16, 3)
    got, want = (output_of(m, variables, images).auxiliary for m in (narrow, model))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.float32
        assert 0 < np.abs(a - b).max() < 0.03 * np.abs(b).max()

    def forward(images):
        # All but the heads' convolutions and the whole.
        key, inner = jax.random.key(0), lambda module, _: (module.name or "head")[:4] != "head"
        return narrow.init_with_output(key, images, train=True, capture_intermediates=inner)

    _, seen = jax.eval_shape(forward, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    types = {leaf.dtype.name for leaf in jax.tree.leaves(seen.pop("intermediates"))}
    assert types == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(seen)} == {"float32"}
