"""However many devices train a network and however its state lies on them: the same result."""

import functools
import re

import jax
import numpy as np
import pytest

from segjax.models import FCN, SETRPUP, UNet, UNetPlusPlus
from segjax.training import losses, make_state, make_train_step, optimizers, sharding
from segjax.training.checkpoint import Checkpoints

BATCH, SIDE, CLASSES, STEPS = 16, 16, 3, 20
NETWORKS = {
    "unet": UNet(CLASSES, widths=(4, 8), dropout=0.3),
    "unetplusplus": UNetPlusPlus(CLASSES, widths=(4, 8), dropout=0.3),
    "fcn8s": FCN(CLASSES, padding="same", widths=(4, 4, 4, 4, 4), classifier_width=8, dropout=0.3),
    "setr": SETRPUP(  # which has no dropout
        CLASSES, depth=2, width=8, heads=2, patch=4, grid=(4, 4), channels=4, scales=(2,),
        auxiliary_taps=(0,),
    ),
}  # fmt: skip
SIDES = {"fcn8s": 32}
# Devices, over how many of them `model` goes, and what is split.
ONE, SPLIT = (1, 1, "no"), (8, 1, "data")
MESHES = [
    ("unet", (2, 1, "no")),
    ("setr", (4, 2, "data")),
    ("unetplusplus", (2, 1, "data")),
    ("fcn8s", (2, 1, "data")),
]
# What is asked of the step, all of it at once.
ASKED = {"float64": {"ema": 0.9, "accumulate": 2}, "float32": {"ema": 0.9}}


def batches(side, dtype):
    """Of the first picture all is ignored, of the next ones less and less."""
    for number in range(STEPS):
        rng = np.random.default_rng(number)
        label = rng.integers(0, CLASSES, (BATCH, side, side), np.uint8)
        image = rng.normal(size=(*label.shape, 3)) + label[..., None]
        label[rng.random(label.shape) > np.linspace(0, 1, BATCH).reshape(-1, 1, 1)] = 255
        assert (label[0] == 255).all()
        yield {"image": image.astype(dtype), "label": label}


def loss(output, labels):
    every = (output.logits, *output.auxiliary)
    return sum(losses.cross_entropy(logits, labels) for logits in every)


def step_on(lies, model, optimizer, **asked):
    """The step of a state that lies so."""
    return make_train_step(
        model,
        optimizer,
        loss,
        schedule=optimizers.constant(0.01),
        prepare=lambda key, batch: (batch["image"], batch["label"]),
        key=jax.random.key(2),
        state_sharding=lies,
        at_use=functools.partial(sharding.at_use, shardings=lies.params),
        **asked,
    )


def make(network, optimizer):
    side = SIDES.get(network, SIDE)
    key, shape = jax.random.key(1), (1, side, side, 3)
    return make_state(NETWORKS[network], optimizer, key=key, image_shape=shape, ema=True)


@functools.cache
def first_state(network, optimizer):
    """On the host, in float32."""
    with jax.enable_x64(False):
        return jax.device_get(make(network, optimizer))


ADAM, SGD = optimizers.adamw(), optimizers.sgd()


@functools.cache
def trained(network, mesh, dtype, optimizer):
    """The variables and their average after twenty steps, on the host."""
    count, model_axis, shard = mesh
    mesh = sharding.make_mesh(jax.devices()[:count], model=model_axis)
    model = NETWORKS[network]
    with jax.enable_x64(dtype == "float64"):
        floats = {np.dtype("float32"): np.dtype(dtype)}
        state = first_state(network, optimizer)
        state = jax.tree.map(lambda x: x.astype(floats.get(x.dtype, x.dtype)), state)
        rules = getattr(model, "sharding_rules", ())
        # All that divides is split, however small.
        lies = sharding.state_shardings(state, mesh, shard=shard, rules=rules, whole_below=0)
        step = step_on(lies, model, optimizer, **ASKED[dtype])
        state = jax.device_put(state, lies)
        for batch in sharding.prefetch(batches(SIDES.get(network, SIDE), dtype), mesh):
            state, _ = step(state, batch)
        assert step.func._cache_size() == 1
        assert jax.tree.map(lambda x: x.sharding, state) == lies
        found = jax.device_get((state.variables, state.ema))
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(dtype)}
    return found


def distance(a, b):
    """The largest difference, relative to the array that it is in."""

    def one(a, b):
        return np.abs(a - b).max() / max(np.abs(a).max(), 0.1)

    return max(jax.tree.leaves(jax.tree.map(one, a, b)))


@pytest.mark.parametrize("network, mesh", MESHES, ids=str)
def test_it_trains_as_on_one_device(network, mesh):
    """AdamW in float64: dropout, an average, masks uneven over the devices, each batch in parts."""
    one = trained(network, ONE, "float64", ADAM)
    assert distance(one, trained(network, mesh, "float64", ADAM)) < 1e-10


@pytest.mark.parametrize("network", ["unet"])
def test_it_trains_as_on_one_device_in_float32(network):
    """By SGD: Adam's quotient makes a step of rounding where a gradient is nearly nothing."""
    one = trained(network, ONE, "float32", SGD)
    assert distance(one, trained(network, SPLIT, "float32", SGD)) < 1e-5


def test_state_is_split_as_is_asked():
    """Over data each leaf along its largest axis; over model by the rules of the network."""
    state = jax.eval_shape(lambda: make("setr", ADAM))

    def specs(devices, model_axis, shard):
        mesh = sharding.make_mesh(jax.devices()[:devices], model=model_axis)
        rules = NETWORKS["setr"].sharding_rules
        return jax.tree.map(
            lambda x: tuple(x.spec),
            sharding.state_shardings(state, mesh, shard=shard, rules=rules, whole_below=64),
        )

    split = specs(8, 1, "data").params["vit"]["blocks"]
    assert split["mlp_0"]["kernel"] == (None, None, "data")
    assert split["mlp_1"]["kernel"] == (None, "data", None)
    assert split["norm_0"]["scale"] == ()
    assert split["qkv"]["kernel"][1:] == ("data", None, None, None)
    by_rule = specs(8, 2, "model").params
    blocks = by_rule["vit"]["blocks"]
    assert blocks["qkv"]["kernel"] == (None, None, None, "model", None)
    assert blocks["out"]["kernel"] == (None, "model", None, None)
    assert blocks["mlp_0"]["kernel"] == (None, None, "model")
    assert blocks["mlp_1"]["kernel"] == (None, "model", None)
    assert by_rule["vit"]["patch"]["kernel"] == (None,) * 4
    assert by_rule["head"]["conv_0"]["conv"]["kernel"] == (None, None, None, "model")
    both = specs(8, 2, "data")
    assert both.params["vit"]["blocks"]["mlp_0"]["kernel"] == (None, "data", "model")
    # Adam's moments and the average lie as their parameters, whatever is around them.
    assert both.opt_state[0].mu == both.opt_state[0].nu == both.ema["params"] == both.params
    assert {*jax.tree.leaves(both.batch_stats, is_leaf=lambda x: isinstance(x, tuple))} == {()}
    assert both.step == ()


def test_a_state_is_made_split_and_never_whole():
    """No device holds a whole leaf, nor does the program that makes it need one."""
    model = SETRPUP(3, depth=4, width=128, heads=8, patch=16, grid=(2, 2), auxiliary_taps=())
    mesh = sharding.make_mesh()
    make = functools.partial(
        make_state, model, ADAM, key=jax.random.key(0), image_shape=(1, 32, 32, 3), ema=True
    )
    shapes = jax.eval_shape(make)
    lies = sharding.state_shardings(shapes, mesh, shard="data", rules=model.sharding_rules)
    state = make(sharding=lies)
    large = [x for x in jax.tree.leaves(state) if x.size >= sharding.WHOLE_BELOW]
    assert len(large) > 30
    for x in large:
        assert {shard.data.size for shard in x.addressable_shards} == {x.size // 8}
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert held < 1.05 * whole / 8
    plain = make(sharding=sharding.replicated(mesh))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(plain))


def test_a_checkpoint_is_restored_onto_any_mesh_to_the_bit(tmp_path):
    state, rules = first_state("setr", ADAM), NETWORKS["setr"].sharding_rules

    def placed(state, devices, model_axis, shard):
        mesh = sharding.make_mesh(jax.devices()[:devices], model=model_axis)
        lies = sharding.state_shardings(state, mesh, shard=shard, rules=rules, whole_below=0)
        return jax.device_put(state, lies)

    nothing = jax.tree.map(np.zeros_like, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, placed(state, 8, 1, "data"))
        meshes = [(1, 1, "no"), (8, 4, "model"), (4, 2, "data"), (2, 1, "data")]
        for step, mesh in enumerate(meshes, start=1):
            like = placed(nothing, *mesh)
            restored = checkpoints.restore(like, step=step)
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), state)
            assert all(
                jax.tree.leaves(jax.tree.map(lambda x, y: x.sharding == y.sharding, restored, like))
            )
            checkpoints.save(step + 1, restored)


def test_parameters_are_gathered_a_block_at_a_time_and_activations_never():
    """What the partitioner made of it. Without `at_use` it gathers and adds up activations."""
    model = SETRPUP(3, depth=4, width=128, heads=8, patch=16, grid=(2, 2), auxiliary_taps=())
    mesh, batch = sharding.make_mesh(), 16
    make = functools.partial(
        make_state, model, SGD, key=jax.random.key(0), image_shape=(1, 32, 32, 3)
    )
    shapes = jax.eval_shape(make)
    lies = sharding.state_shardings(shapes, mesh, shard="data", rules=model.sharding_rules)
    step = step_on(lies, model, SGD)
    state = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, lies
    )
    rows = sharding.split(mesh)
    pictures = {
        "image": jax.ShapeDtypeStruct((batch, 32, 32, 3), np.float32, sharding=rows),
        "label": jax.ShapeDtypeStruct((batch, 32, 32), np.uint8, sharding=rows),
    }
    compiled = step.func.lower(state, pictures, **step.keywords).compile()
    gathered = re.findall(r"= \(?f32\[([\d,]+)\][^ ]* all-gather", compiled.as_text())
    found = {tuple(int(n) for n in text.split(",") if n != "1") for text in gathered}
    params = dict(shapes.params)
    blocks = params["vit"]["blocks"]
    split = {tuple(n for n in x.shape[1:] if n != 1) for x in jax.tree.leaves(blocks)}
    others = params | {"vit": {k: x for k, x in params["vit"].items() if k != "blocks"}}
    split |= {tuple(n for n in x.shape if n != 1) for x in jax.tree.leaves(others)}
    assert found and found <= split
    assert "all-to-all" not in compiled.as_text()
    held = sum(x.size * 4 for x in jax.tree.leaves(shapes)) / 8
    memory = compiled.memory_analysis()
    assert memory.output_size_in_bytes < 1.1 * held
    assert memory.alias_size_in_bytes > 0.9 * held
