"""Every family's training step, compiled for TPUs that are not here and lowered for GPUs."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from segjax.models import FCN, SETRPUP, UNet, UNetPlusPlus
from segjax.training import cost, sharding
from segjax.training.devices import find
from segjax.training.losses import cross_entropy
from segjax.training.optimizers import adamw, constant
from segjax.training.reckoning import bytes_per_device
from segjax.training.train import make_state, make_train_step

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'segjax[tpu]'"
)
BF16 = {"dtype": jnp.bfloat16}
ENCODER = {"depth": 2, "width": 16, "heads": 2, "grid": (2, 2), "channels": 8, **BF16}
FAMILIES = {
    "U-Net": UNet(3, (8, 16), **BF16),
    "U-Net++": UNetPlusPlus(3, (4, 8, 16), **BF16),
    "FCN-8s": FCN(3, widths=(4, 4, 8, 8, 8), classifier_width=8, padding="same", **BF16),
    "SETR-PUP": SETRPUP(3, auxiliary_taps=(0,), **ENCODER),
}


def in_shapes(model, mesh):
    """A training step, and the shapes of a state and of a batch of 2 pictures a device."""

    def loss(output, labels):
        return sum(cross_entropy(x, labels) for x in (output.logits, *output.auxiliary))

    def first():
        return make_state(model, optimizer, key=key, image_shape=(1, 32, 32, 3))

    def on(where, tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    optimizer, key = adamw(weight_decay=0.01), jax.random.key(0)
    step = make_train_step(
        model,
        optimizer,
        loss,
        schedule=constant(0.01),
        prepare=lambda key, batch: (batch["image"] / jnp.float32(255), batch["label"]),
        key=key,
    )
    side = (2 * mesh.size, 32, 32)
    batch = {
        "image": jax.ShapeDtypeStruct((*side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(side, jnp.uint8),
    }
    state = on(sharding.replicated(mesh), jax.eval_shape(first))
    return step, state, on(sharding.split(mesh), batch)


@pytest.fixture(scope="module")
def chips():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cost._NO_TPU_HERE.items():
            patch.setenv(name, value)
        yield cost.slice_devices("v5e:2x2")


def compiled(family, chips):
    step, state, batch = in_shapes(FAMILIES[family], sharding.make_mesh(chips))
    jax.config.update("jax_disable_most_optimizations", False)  # of conftest.py
    try:
        program = cost.lower(step, state, batch).compile()
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    return cost.of_compiled(program), state, program.memory_analysis()


def norms(state):
    """The channels of each batch norm."""
    return [x.size for x in jax.tree.leaves(state.batch_stats)][::2]


@pytest.mark.parametrize("family", FAMILIES)  # all of one program: two workers compile it once
def test_a_step_on_a_slice(family, chips):
    found, state, memory = compiled(family, chips)
    # Activations stay where they are.
    assert set(found.collectives) == {"all-reduce"}
    # Gradients are reduced once, and batch norm talks once each way.
    number, size = found.collectives["all-reduce"]
    channels = norms(state)
    # Sum and sum of squares forward, and their gradients backward, which are scale's and bias' too:
    # float32 each. The gradient in one, which XLA adds up in the type it is computed in, bfloat16;
    # and a few scalars, the loss and how many pixels count.
    once = 2 * cost.count(state.params) + 4 * 4 * sum(channels)
    assert 0.95 * once < size < 1.05 * once
    assert number <= 2 * len(channels) + 4
    # The state is donated; what is left are loss, norm, rate: a tile each.
    assert found.aliased >= bytes_per_device(state)
    assert found.outputs - found.aliased < 4096
    # Memory is the compiler's.
    whole = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    beyond = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert found.memory == whole + beyond
    assert found.arguments >= bytes_per_device(state)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_lower_for_gpus(family):
    mesh = sharding.make_mesh(jax.devices()[:1])
    step, state, batch = in_shapes(FAMILIES[family], mesh)
    traced = step.func.trace(state, batch, **step.keywords)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" in text
    assert ("stablehlo.select_and_scatter" in text) == (not family.startswith("SETR"))


@pytest.mark.parametrize(
    "topology, number, kind",
    [("v4:2x2x1", 4, "v4"), ("v5p:2x2x2", 8, "v5p"), ("v6e:1x1", 1, "v6e"), ("v5e:4x4", 16, "v5e")],
)
def test_slices_have_their_chips(topology, number, kind, chips):
    found = cost.slice_devices(topology)
    assert cost.slice_of(topology) == (kind, number) == (kind, len(found))
    assert find(found[0].device_kind).name == kind
