"""SETR: the paper's counts, and that every head and stream counts.

Equality with the authors' and mmsegmentation's networks is tested with the layouts of their
weights.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import SETRMLA, SETRPUP, Geometry, SETRNaive

# These small programs take longer to compile than to run.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SMALL = {"depth": 2, "width": 8, "heads": 2, "patch": 4, "grid": (2, 3), "channels": 8}
MODELS = {
    "naive": SETRNaive(3, **SMALL, auxiliary_taps=(0,)),
    "pup": SETRPUP(3, **SMALL, auxiliary_taps=(0, 1)),
    "mla": SETRMLA(3, **SMALL, taps=(0, 1)),
}
each = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
BASE = {"depth": 12, "width": 768, "heads": 12}


def shapes(model, height=8, width=12):
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def random_variables(model, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) / 3).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(model))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@partial(jit, static_argnums=0)
def output_of(model, variables, images):
    return model.apply(variables, images)


def absent(model, *, conv_seg):
    """Parameters of the authors' networks that ours lack, less those that ours have more."""
    heads = 5 if isinstance(model, SETRMLA) else 1 + len(model.auxiliary_taps)
    count = heads * conv_seg
    if isinstance(model, SETRMLA):
        # The class token, and its position, that they drop before the first block; ours have a
        # bias in each auxiliary classifier.
        return count + 2 * model.width - 4 * model.num_classes
    # The biases of convolutions before a batch norm.
    convolutions = len(model.scales) + len(model.auxiliary_scales) * len(model.auxiliary_taps)
    return count + 256 * convolutions


@pytest.mark.parametrize(
    "model, ade, cityscapes",
    [
        (partial(SETRNaive), 305_669_296, 306_537_548),
        (partial(SETRPUP), 318_307_292, 319_064_927),
        (partial(SETRMLA), 310_568_836, 310_756_883),
        (partial(SETRNaive, **BASE, auxiliary_taps=(2, 5, 8)), 87_690_672, None),
        (partial(SETRPUP, **BASE, auxiliary_taps=(4, 7, 9, 11)), 97_641_180, None),
        (partial(SETRMLA, **BASE, taps=(2, 5, 8, 11)), 92_590_212, None),
    ],
    ids=["naive", "pup", "mla", "naive base", "pup base", "mla base"],
)
def test_parameter_count(model, ade, cityscapes):
    """The paper's, of pictures of 512 pixels and 150 classes with an unused classifier a head.

    That one, `conv_seg`, has 512 input channels; Cityscapes' counts are without it.
    """
    for classes, grid, conv_seg, count in ((150, 32, 513 * 150, ade), (19, 48, 0, cityscapes)):
        network = model(classes, grid=(grid, grid))
        params = shapes(network, 16 * grid, 16 * grid)["params"]
        ours = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert count in (None, ours + absent(network, conv_seg=conv_seg))


@each
def test_geometry_and_sizes(model):
    assert model.geometry == Geometry(4, 4, 4, None, None)
    images = jax.ShapeDtypeStruct((2, 20, 4, 3), jnp.float32)
    output = jax.eval_shape(model.apply, shapes(model), images)
    assert {leaf.shape for leaf in jax.tree.leaves(output)} == {(2, 20, 4, 3)}
    heads = model.taps if isinstance(model, SETRMLA) else model.auxiliary_taps
    assert len(output.auxiliary) == len(heads)


def sides(model, names):
    """Side and channels of what the named layers give for the paper's 512 pixels."""

    def forward(images):
        return model.init_with_output(jax.random.key(0), images, capture_intermediates=True)

    output, variables = jax.eval_shape(forward, jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32))
    assert output.logits.shape == (1, 512, 512, 150)
    found = []
    for name in names:
        layer = variables["intermediates"]
        for part in name.split("/"):
            layer = layer[part]
        _, height, width, channels = layer["__call__"][0].shape
        assert height == width
        found.append((height, channels))
    return found


def test_stages_of_pup():
    """Each of four convolutions before an enlargement by 2, the classifier before the last one."""
    stages = [f"head/conv_{i}" for i in range(4)]
    auxiliary = ["auxiliary_3/conv_0", "auxiliary_3/logits", "auxiliary_3"]
    got = sides(SETRPUP(150, grid=(32, 32)), [*stages, "head/logits", "head", *auxiliary])
    assert got[:6] == [(32, 256), (64, 256), (128, 256), (256, 256), (256, 150), (512, 150)]
    assert got[6:] == [(32, 256), (32, 150), (128, 150)]


def test_stages_of_mla():
    names = ["project_3", "mix_0", "stream_0_0", "stream_3_1", "auxiliary_0", "logits"]
    want = [(32, 256), (32, 256), (32, 128), (32, 128), (32, 150), (128, 150)]
    assert sides(SETRMLA(150, grid=(32, 32)), names) == want


@each
def test_a_pixel_sees_the_whole_picture(model):
    """Halo None: the logits of one corner depend on the pixel in the other."""
    assert model.geometry.halo is None
    variables, images = random_variables(model), normal(1, 16, 24, 3)

    @jit
    @jax.grad
    def gradient(images):
        return model.apply(variables, images).logits[0, 0, 0].sum()

    assert np.abs(gradient(images)[0, -1, -1]).max() > 0


@each
def test_no_parameter_is_dead_and_heads_keep_apart(model):
    variables, images = random_variables(model), normal(2, 8, 12, 3)

    @jit
    def gradients(params):
        def scalars(params):
            output = model.apply({**variables, "params": params}, images)
            return jnp.stack([(x**2).mean() for x in jax.tree.leaves(output)])

        return jax.jacrev(scalars)(params)

    # For each leaf the greatest gradient that each output has there.
    reached = jax.tree.map(
        lambda leaf: np.abs(leaf).reshape(len(leaf), -1).max(axis=1), gradients(variables["params"])
    )
    for name, part in reached.items():
        leaves = np.array(jax.tree.leaves(part))
        assert np.all(leaves.max(axis=1) > 0), name
        outputs = leaves.max(axis=0) > 0  # the logits, then the auxiliary ones
        if name.startswith("auxiliary"):
            assert list(np.flatnonzero(outputs)) == [int(name[-1]) + 1]
        else:
            assert outputs[0]
            if name == "head" or name.startswith("stream"):
                assert not np.any(outputs[1:])


@each
def test_training_updates_the_statistics_of_every_norm(model):
    variables, images = random_variables(model), normal(2, 8, 12, 3)
    train = jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updated = train(variables, images)
    old = variables["batch_stats"]
    jax.tree.map(
        lambda a, b: np.testing.assert_array_less(0, np.abs(a - b).max()),
        updated["batch_stats"],
        old,
    )


@each
def test_scan_and_remat_reach_the_encoder_and_change_nothing(model):
    variables, images = random_variables(model), normal(1, 8, 12, 3)
    other = model.clone(scan=not model.scan, remat=not model.remat)
    assert (other.encoder.scan, other.encoder.remat) == (False, True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()),
        output_of(other, variables, images),
        output_of(model, variables, images),
    )


def test_unused_auxiliary_heads_cost_nothing_under_jit():
    model = MODELS["pup"]
    images = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)

    def flops(f):
        return jax.jit(f).lower(shapes(model), images).compile().cost_analysis()["flops"]

    assert flops(lambda v, x: model.apply(v, x).logits) < flops(model.apply)


@each
def test_bfloat16_stays_near_float32(model):
    narrow = model.clone(dtype=jnp.bfloat16)
    variables, images = random_variables(model), normal(2, 8, 12, 3)
    got, want = (output_of(m, variables, images) for m in (narrow, model))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == jnp.float32
        error = np.abs(a - b).max() / np.abs(b).max()
        assert 0 < error < 0.03  # 0.009 measured on a CPU
