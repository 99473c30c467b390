"""The fast forms against the plain ones: Flax's, lax's and PyTorch's."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segjax.models.layers import (
    UpConv,
    bilinear_deconv,
    bilinear_matrix,
    crop,
    max_pool,
    resize,
    resize_matrix,
)

SIZES = [(4, 7), (5, 8), (3, 5)]
# These many small programs take longer to compile than to run.
jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0},
)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain_max_pool(x: jax.Array, *, ceil: bool) -> jax.Array:
    _, height, width, _ = x.shape
    padding = ((0, height % 2), (0, width % 2)) if ceil else "VALID"
    return nn.max_pool(x, (2, 2), (2, 2), padding=padding)


def value_and_cotangents(f, *arguments, seed: int = 1):
    """f's value and the gradients of Σ f · noise, which no symmetry of f can hide from."""
    noise = normal(*jax.eval_shape(f, *arguments).shape, seed=seed)

    @jit
    def both(*arguments):
        value, pull = jax.vjp(f, *arguments)
        return value, *pull(noise)

    return both(*arguments)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("height, width", SIZES)
def test_max_pool_is_the_plain_one(height, width, ceil):
    noise = normal(2, height, width, 3)
    for x in (noise, np.round(noise)):  # rounded entries are often equal
        got = value_and_cotangents(partial(max_pool, ceil=ceil), x)
        want = value_and_cotangents(partial(plain_max_pool, ceil=ceil), x)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("height, width", SIZES)
def test_max_pool_is_pytorchs(torch, height, width, ceil):
    noise = normal(2, height, width, 3)
    for x in (noise, np.round(noise)):
        value, gradient = value_and_cotangents(partial(max_pool, ceil=ceil), x)
        images = torch.tensor(x, requires_grad=True)
        pooled = torch.nn.functional.max_pool2d(images.permute(0, 3, 1, 2), 2, 2, ceil_mode=ceil)
        pooled = pooled.permute(0, 2, 3, 1)
        pooled.backward(torch.tensor(normal(*pooled.shape, seed=1)))
        np.testing.assert_array_equal(value, pooled.detach())
        np.testing.assert_array_equal(gradient, images.grad)


def test_max_pool_of_a_single_pixel():
    x = jnp.full((1, 1, 1, 2), -7.0)
    np.testing.assert_array_equal(max_pool(x, ceil=True), x)
    assert max_pool(x).shape == (1, 0, 0, 2)


@pytest.mark.parametrize("fill", [0.0, -np.inf])
def test_max_pool_of_equal_entries_has_the_first_ones_gradient(fill):
    x = jnp.full((1, 3, 3, 1), fill)
    value, pull = jax.vjp(partial(max_pool, ceil=True), x)
    np.testing.assert_array_equal(value, jnp.full((1, 2, 2, 1), fill))
    (gradient,) = pull(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0, 1], [0, 0, 0], [1, 0, 1]])


@pytest.mark.parametrize("position", range(4))
def test_max_pool_hands_a_nan_on_from_every_place(position):
    x = jnp.zeros(4).at[position].set(jnp.nan).reshape(1, 2, 2, 1)
    assert jnp.isnan(plain_max_pool(x, ceil=False)).all()
    assert jnp.isnan(max_pool(x)).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_max_pool_keeps_the_type(dtype):
    x = jax.ShapeDtypeStruct((1, 3, 3, 1), dtype)
    assert jax.eval_shape(partial(max_pool, ceil=True), x).dtype == dtype


@pytest.fixture
def up_conv():
    """x and UpConv(3)'s parameters, the bias not at its zero."""
    return normal(2, 3, 4, 5), {"kernel": normal(2, 2, 5, 3, seed=2), "bias": normal(3, seed=3)}


def test_up_conv_is_flaxs_transposed_convolution_flipped(up_conv):
    x, params = up_conv
    plain = nn.ConvTranspose(3, (2, 2), (2, 2), padding="VALID")

    def flipped(params, x):
        kernel = params["kernel"][::-1, ::-1]
        return plain.apply({"params": {"kernel": kernel, "bias": params["bias"]}}, x)

    got = value_and_cotangents(lambda p, x: UpConv(3).apply({"params": p}, x), params, x)
    want = value_and_cotangents(flipped, params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


def test_up_conv_is_pytorchs(torch, up_conv):
    x, params = up_conv
    value, gradients, gradient = value_and_cotangents(
        lambda p, x: UpConv(3).apply({"params": p}, x), params, x
    )
    images, kernel, bias = (
        torch.tensor(a, requires_grad=True) for a in (x, params["kernel"], params["bias"])
    )
    y = torch.nn.functional.conv_transpose2d(
        images.permute(0, 3, 1, 2), kernel.permute(2, 3, 0, 1), bias, stride=2
    ).permute(0, 2, 3, 1)
    y.backward(torch.tensor(normal(*y.shape, seed=1)))
    pairs = (
        (value, y.detach()),
        (gradient, images.grad),
        (gradients["kernel"], kernel.grad),
        (gradients["bias"], bias.grad),
    )
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_up_conv_starts_with_he_normal_of_its_fan_in():
    params = jit(UpConv(64).init)(jax.random.key(0), jnp.zeros((1, 1, 1, 50)))["params"]
    # 12,800 samples: the standard error of their deviation is 0.6 %.
    assert np.std(params["kernel"]) == pytest.approx(np.sqrt(2 / 50), rel=0.02)
    np.testing.assert_array_equal(params["bias"], np.zeros(64))


def test_up_conv_computes_in_its_dtype_with_float32_parameters(up_conv):
    x, params = up_conv
    model = UpConv(3, dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    y, full = model.apply({"params": params}, x), UpConv(3).apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    # Inputs, parameters and result each rounded by 2⁻⁹ at most.
    error = np.abs(y.astype(jnp.float32) - full).max()
    assert 0 < error < 4 * 2**-8 * np.abs(full).max()


def test_crop_takes_the_centre_or_from_the_offset():
    x = jnp.arange(7 * 6).reshape(1, 7, 6, 1)
    np.testing.assert_array_equal(crop(x, 3, 2), x[:, 2:5, 2:4])
    np.testing.assert_array_equal(crop(x, 4, 3), x[:, 1:5, 1:4])  # odd rest: one less in front
    np.testing.assert_array_equal(crop(x, 3, 2, offset=1), x[:, 1:4, 1:3])
    np.testing.assert_array_equal(crop(x, 3, 2, offset=0), x[:, :3, :2])
    np.testing.assert_array_equal(crop(x, 7, 6), x)


def caffe_kernel(side: int, channels: int) -> np.ndarray:
    """(side, side, N, N) of the FCN authors' `surgery.interp`: bilinear on the diagonal."""
    factor = (side + 1) // 2
    centre = factor - 1 if side % 2 else factor - 0.5
    x = 1 - np.abs(np.arange(side) - centre) / factor
    return (np.outer(x, x)[:, :, None, None] * np.eye(channels)).astype(np.float32)


DECONVOLUTIONS = [(2, 0), (2, 1), (8, 31), (16, 27), (32, 19)]


@pytest.mark.parametrize("stride, offset", DECONVOLUTIONS)
def test_bilinear_deconv_is_the_dense_transposed_convolution(stride, offset):
    x, kernel = normal(2, 5, 4, 2), caffe_kernel(2 * stride, 2)
    height, width = 6 * stride - offset, 5 * stride - offset - 1

    def dense(x):
        full = jax.lax.conv_transpose(x, kernel, (stride, stride), "VALID")
        assert full.shape[1:3] == (6 * stride, 5 * stride)
        return crop(full, height, width, offset=offset)

    got = value_and_cotangents(
        lambda x: bilinear_deconv(x, height, width, stride=stride, offset=offset), x
    )
    want = value_and_cotangents(dense, x)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("stride, offset", DECONVOLUTIONS)
def test_bilinear_deconv_is_pytorchs(torch, stride, offset):
    x, kernel = normal(2, 5, 4, 2), caffe_kernel(2 * stride, 2)
    height, width = 6 * stride - offset, 5 * stride - offset - 1
    value, gradient = value_and_cotangents(
        lambda x: bilinear_deconv(x, height, width, stride=stride, offset=offset), x
    )
    scores = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.conv_transpose2d(
        scores.permute(0, 3, 1, 2), torch.tensor(kernel.transpose(2, 3, 0, 1)), stride=stride
    ).permute(0, 2, 3, 1)[:, offset : offset + height, offset : offset + width]
    y.backward(torch.tensor(normal(*y.shape, seed=1)))
    np.testing.assert_allclose(value, y.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, scores.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("stride", [2, 8, 32])
def test_bilinear_deconv_is_a_resize_inside_and_fades_at_the_border(stride):
    x = normal(1, 5, 4, 2)
    got = bilinear_deconv(x, 5 * stride, 4 * stride, stride=stride, offset=stride // 2)
    resized = jax.image.resize(x, got.shape, "bilinear", antialias=False)
    inside = (slice(None), slice(stride // 2, -stride // 2), slice(stride // 2, -stride // 2))
    np.testing.assert_allclose(got[inside], resized[inside], rtol=1e-5, atol=1e-5)
    fade = 0.5 + 0.5 / stride  # the weight of the only neighbour of the outermost row
    np.testing.assert_allclose(got[:, 0, inside[2]], fade * resized[:, 0, inside[2]], atol=1e-5)


def test_bilinear_matrix_by_hand():
    want = np.array([[1, 0], [3, 0], [3, 1], [1, 3], [0, 3], [0, 1]]) / 4
    np.testing.assert_array_equal(bilinear_matrix(2, 6, stride=2, offset=0), want)
    np.testing.assert_array_equal(bilinear_matrix(2, 4, stride=2, offset=1), want[1:5])


def test_bilinear_deconv_takes_bfloat16_and_computes_in_float32():
    x = jnp.asarray(normal(1, 3, 3, 2), jnp.bfloat16)
    got = bilinear_deconv(x, 12, 12, stride=4, offset=2)
    assert got.dtype == jnp.float32
    want = bilinear_deconv(x.astype(jnp.float32), 12, 12, stride=4, offset=2)
    np.testing.assert_array_equal(got, want)


RESIZES = [(4, 5, 8, 20), (6, 7, 3, 2), (1, 5, 3, 1), (5, 1, 1, 4), (3, 7, 5, 7), (9, 12, 1, 7)]


@pytest.mark.parametrize("height, width, new_height, new_width", RESIZES)
@pytest.mark.parametrize(
    "method, options",
    [
        ("bilinear", {"align_corners": False}),
        ("bilinear", {"align_corners": True}),
        ("bilinear", {"align_corners": False, "antialias": True}),
        ("bicubic", {"align_corners": False}),
        ("bicubic", {"align_corners": True}),
        ("bicubic", {"align_corners": False, "antialias": True}),
        ("nearest", {}),
    ],
)
def test_resize_is_pytorchs(torch, method, options, height, width, new_height, new_width):
    x = normal(2, height, width, 3)
    value, gradient = value_and_cotangents(
        lambda x: resize(x, new_height, new_width, method=method, **options), x
    )
    maps = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.interpolate(
        maps.permute(0, 3, 1, 2), (new_height, new_width), mode=method, **options
    ).permute(0, 2, 3, 1)
    y.backward(torch.tensor(normal(*y.shape, seed=1)))
    np.testing.assert_allclose(value, y.detach(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, maps.grad, rtol=0, atol=1e-5)


def test_resize_nearest_takes_pytorchs_neighbours_at_all_sizes(torch):
    for inputs, outputs in itertools.product((1, 2, 7, 41, 64, 100, 127), range(1, 130)):
        line = np.arange(inputs, dtype=np.float32)
        want = torch.nn.functional.interpolate(torch.tensor(line)[None, None], outputs)[0, 0]
        got = resize(line[None, :, None, None], outputs, 1, method="nearest")
        np.testing.assert_array_equal(got[0, :, 0, 0], want)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
def test_resize_of_a_constant_is_the_constant(method, align_corners, antialias):
    options = {"align_corners": align_corners, "antialias": antialias}
    for inputs, outputs in itertools.product(range(1, 9), repeat=2):
        matrix = resize_matrix(inputs, outputs, method=method, **options)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)


def test_resize_to_its_own_size_is_itself_and_keeps_the_type():
    x = jnp.asarray(normal(1, 4, 5, 2), jnp.bfloat16)
    assert resize(x, 4, 5) is x
    want = resize(x.astype(jnp.float32), 8, 3)
    np.testing.assert_array_equal(resize(x, 8, 3), want.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "f",
    [
        max_pool,
        lambda x: max_pool(x, ceil=True),
        lambda x: crop(x, 2, 3),
        lambda x: bilinear_deconv(x, 12, 9, stride=4, offset=2),
        lambda x: resize(x, 12, 3),
        lambda x: UpConv(2).apply(
            {"params": {"kernel": np.ones((2, 2, 3, 2)), "bias": np.ones(2)}}, x
        ),
    ],
    ids=["floor", "ceil", "crop", "bilinear_deconv", "resize", "UpConv"],
)
def test_jit_is_eager(f):
    x = normal(2, 5, 5, 3)
    np.testing.assert_allclose(jax.jit(f)(x), f(x), rtol=1e-6, atol=1e-6)
