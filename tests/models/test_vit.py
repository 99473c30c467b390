"""The encoder: counts, taps, and what its fields promise not to change.

Equality with PyTorch and NumPy is tested with the layouts of its weights.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import ViT

# These small programs take longer to compile than to run.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
Small = partial(ViT, taps=(0, 2), depth=4, width=8, heads=2, patch=4, grid=(2, 3))


def shapes(model, height=8, width=12):
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def random_variables(model, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (rng.normal(size=leaf.shape) / 3).astype(np.float32), shapes(model)
    )


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@partial(jit, static_argnums=0)
def maps_of(model, variables, images):
    return model.apply(variables, images)


@pytest.mark.parametrize(
    "fields, count",
    [
        ({}, 304_715_752 - 1_025_000 - 2_048),  # timm's vit_large_patch16_384 less head and norm
        ({"depth": 12, "width": 768, "heads": 12, "taps": (11,)}, 86_859_496 - 769_000 - 1_536),
    ],
    ids=["large", "base"],
)
def test_parameter_count(fields, count):
    # The position of the class token is a leaf of its own, and counted in theirs.
    leaves = jax.tree.leaves(shapes(ViT(**fields), 384, 384)["params"])
    assert sum(leaf.size for leaf in leaves) == count


@pytest.mark.parametrize("side, tokens", [(384, 577), (480, 901), (512, 1025), (768, 2305)])
def test_token_count(side, tokens):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    for class_token in (True, False):
        model = ViT(class_token=class_token)
        variables = shapes(model, side, side)
        text = str(jax.make_jaxpr(model.apply)(variables, images))
        assert f"f32[1,{tokens - (not class_token)},1024]" in text
        (tapped,) = jax.eval_shape(model.apply, variables, images)
        assert tapped.shape == (1, side // 16, side // 16, 1024)


def test_values_and_gradients_are_the_same_by_scan_loop_and_remat():
    images, noise = normal(2, 8, 20, 3), (normal(2, 2, 5, 8, seed=2), normal(2, 2, 5, 8, seed=3))
    variables = random_variables(Small())

    def run(scan, remat):
        model = Small(scan=scan, remat=remat)
        assert jax.tree.map(jnp.shape, shapes(model)) == jax.tree.map(jnp.shape, variables)

        @jit
        def value_and_gradients(variables, images):
            maps, pull = jax.vjp(model.apply, variables, images)
            return maps, pull(noise)

        return value_and_gradients(variables, images)

    want = run(scan=False, remat=False)
    for fields in ((True, False), (True, True)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()),
            run(*fields),
            want,
        )


def test_the_program_of_a_scan_does_not_grow_with_depth():
    images = jnp.zeros((1, 8, 12, 3))

    def size(depth, **fields):
        model = Small(taps=(1, depth - 1), depth=depth, **fields)
        loss = jax.jit(
            jax.grad(lambda variables: sum(m.sum() for m in model.apply(variables, images)))
        )
        return len(loss.lower(shapes(model)).as_text())

    for remat in (False, True):
        assert size(32, remat=remat) < 1.01 * size(8, remat=remat)
    assert size(32, scan=False) > 2 * size(8, scan=False)


def test_remat_keeps_less_for_the_gradient():
    """Of each block its input, instead of all that its gradient needs."""
    images = jnp.zeros((1, 64, 64, 3))

    def kept(**fields):
        model = Small(**fields)
        _, pull = jax.eval_shape(
            lambda variables: jax.vjp(lambda v: model.apply(v, images), variables), shapes(model)
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    assert kept(remat=True) < kept(remat=False) / 5


def test_taps_choose_maps_in_their_order_and_change_none():
    variables, images = random_variables(Small()), normal(1, 8, 8, 3)
    every = maps_of(Small(taps=(0, 1, 2, 3)), variables, images)
    chosen = maps_of(Small(taps=(3, 0, 2, 0)), variables, images)
    for got, tap in zip(chosen, (3, 0, 2, 0), strict=True):
        np.testing.assert_allclose(got, every[tap], rtol=0, atol=1e-5)
    for first, second in itertools.pairwise(every):
        assert np.abs(second - first).max() > 0.01


def test_the_class_token_is_seen_by_the_patches_and_not_returned():
    variables, images = random_variables(Small()), normal(1, 8, 8, 3)
    want = maps_of(Small(), variables, images)
    for name in ("class_token", "class_position"):
        other = {"params": {**variables["params"], name: normal(8)}}
        got = maps_of(Small(), other, images)
        assert got[0].shape == (1, 2, 2, 8)
        assert np.abs(got[0] - want[0]).max() > 1e-3
    names = set(shapes(Small())["params"]) - set(shapes(Small(class_token=False))["params"])
    assert names == {"class_token", "class_position"}


def test_start():
    params = jit(ViT((1,), depth=2, width=64, heads=2).init)(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )["params"]
    blocks = params["blocks"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(blocks)} == {2}
    for name in ("qkv", "out", "mlp_0", "mlp_1"):
        kernel = np.asarray(blocks[name]["kernel"])
        assert kernel.std() == pytest.approx(0.02, rel=0.05)
        assert np.abs(kernel).max() > 0.05  # not cut at two deviations
        assert np.abs(kernel[0] - kernel[1]).max() > 0.02
        assert not np.any(blocks[name]["bias"])
    for name in ("norm_0", "norm_1"):
        assert np.all(blocks[name]["scale"] == 1) and not np.any(blocks[name]["bias"])
    for name in ("positions", "class_token", "class_position"):
        assert np.asarray(params[name]).std() == pytest.approx(0.02, rel=0.3)
    limit = (3 * 16 * 16) ** -0.5
    assert 0.99 * limit < np.abs(params["patch"]["kernel"]).max() < limit


def test_bfloat16_stays_near_float32():
    model, narrow = Small(), Small(dtype=jnp.bfloat16)
    variables, images = random_variables(model), normal(2, 8, 12, 3)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes(narrow))} == {"float32"}
    for got, want in zip(*(maps_of(m, variables, images) for m in (narrow, model)), strict=True):
        assert got.dtype == jnp.bfloat16
        error = np.abs(got.astype(jnp.float32) - want).max() / np.abs(want).max()
        assert 0 < error < 0.02  # 0.0064 measured on a CPU
