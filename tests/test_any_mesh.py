"""However many devices train a network and however its state lies on them: the same result."""

import functools
from contextlib import nullcontext

import jax
import numpy as np
import pytest

from segjax.models import FCN, SETRPUP, UNet, UNetPlusPlus
from segjax.training import losses, make_state, make_train_step, optimizers, sharding

BATCH, SIDE, CLASSES, STEPS = 8, 32, 3, 20
NETWORKS = {
    "unet": lambda dropout: UNet(CLASSES, widths=(4, 8), dropout=dropout),
    "unetplusplus": lambda dropout: UNetPlusPlus(CLASSES, widths=(4, 8), dropout=dropout),
    "fcn8s": lambda dropout: FCN(
        CLASSES, widths=(4, 4, 4, 4, 4), classifier_width=8, dropout=dropout, padding="same"
    ),
    # It has no dropout.
    "setr": lambda _: SETRPUP(
        CLASSES, depth=2, width=8, heads=2, patch=16, grid=(2, 2), channels=4, auxiliary_taps=(0,)
    ),
}
# What is asked of the step beside the plain one.
ASKED = {"nothing": {}, "average": {"ema": 0.9}}
# Devices, over how many of them `model` goes, and what is split.
MESHES = [(2, 1, "data"), (4, 1, "no"), (8, 1, "data"), (8, 2, "model"), (4, 2, "data")]


def batches(uneven, dtype):
    """Of the first pictures all is ignored, of the next ones some where masks are uneven."""
    for number in range(STEPS):
        rng = np.random.default_rng(number)
        label = rng.integers(0, CLASSES, (BATCH, SIDE, SIDE), np.uint8)
        image = rng.normal(size=(*label.shape, 3)) + label[..., None]
        if uneven:
            label[rng.random(label.shape) > np.linspace(0, 1, BATCH).reshape(-1, 1, 1)] = 255
            assert (label[0] == 255).all()
        yield {"image": image.astype(dtype), "label": label}


def loss(output, labels):
    every = (output.logits, *output.auxiliary)
    return sum(losses.cross_entropy(logits, labels) for logits in every)


@functools.cache
def trained(network, mesh, dtype, *, asked="average", dropout=0.3, uneven=True, adam=True):
    """The variables and the average after twenty steps, on the host."""
    count, model_axis, shard = mesh
    mesh = sharding.make_mesh(jax.devices()[:count], model=model_axis)
    model = NETWORKS[network](dropout)
    optimizer = optimizers.adamw() if adam else optimizers.sgd()
    with jax.enable_x64(True) if dtype == "float64" else nullcontext():
        state = make_state(
            model,
            optimizer,
            key=jax.random.key(1),
            image_shape=(1, SIDE, SIDE, 3),
            ema="ema" in ASKED[asked],
        )
        float_as = {np.dtype("float32"): np.dtype(dtype)}
        state = jax.tree.map(lambda x: np.asarray(x, float_as.get(x.dtype, x.dtype)), state)
        rules = getattr(model, "sharding_rules", ())
        # All that divides is split, however small.
        lies = sharding.state_shardings(state, mesh, shard=shard, rules=rules, whole_below=0)
        step = make_train_step(
            model,
            optimizer,
            loss,
            schedule=optimizers.constant(0.01),
            prepare=lambda key, batch: (batch["image"], batch["label"]),
            key=jax.random.key(2),
            state_sharding=lies,
            at_use=functools.partial(sharding.at_use, shardings=lies.params),
            **ASKED[asked],
        )
        state = jax.device_put(state, lies)
        for batch in sharding.prefetch(batches(uneven, dtype), mesh):
            state, _ = step(state, batch)
        assert step.func._cache_size() == 1
        jax.tree.map(lambda x, s: None if x.sharding == s else pytest.fail(f"{s}"), state, lies)
        found = jax.device_get((state.variables, state.ema))
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(dtype)}
    return found


def distance(a, b):
    """The largest difference, relative to the array that it is in."""

    def one(a, b):
        return np.abs(a - b).max() / max(np.abs(a).max(), 0.1)

    return max(jax.tree.leaves(jax.tree.map(one, a, b)))


ONE = (1, 1, "no")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_it_trains_as_on_one_device(network, mesh):
    """AdamW in float64, with dropout, an average, and masks that are uneven over the devices."""
    d = distance(trained(network, ONE, "float64"), trained(network, mesh, "float64"))
    print("DIST64", network, mesh, d)
    assert d < 1e-10


@pytest.mark.parametrize("network", NETWORKS)
def test_it_trains_as_on_one_device_in_float32(network):
    """By SGD. Adam's quotient blows rounding up, where a gradient is nearly nothing."""
    mesh = (8, 1, "data")
    one, eight = (trained(network, m, "float32", adam=False) for m in (ONE, mesh))
    d = distance(one, eight)
    print("DIST32", network, d)
    assert d < 1e-5
