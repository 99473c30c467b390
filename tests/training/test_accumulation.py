"""A batch in parts: the step of the whole batch, whatever the loss, on any number of devices."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segjax.commands.step import make_prepare
from segjax.data.augment import Normalise, random_flip
from segjax.errors import SegjaxError
from segjax.models import FCN, UNet, UNetPlusPlus
from segjax.training import losses, optimizers, sharding
from segjax.training.accumulation import in_parts
from segjax.training.train import make_state, make_train_step

BATCH, SIDE, CLASSES = 8, 16, 3
PREPARE = make_prepare(SimpleNamespace(augment=random_flip, normalise=Normalise()))
UNET = UNet(CLASSES, widths=(3, 4), norm="none", dropout=0.3)
# A family each, without batch norm and, where it has it, with dropout.
NETWORKS = {
    "unet": UNET,
    "unetplusplus": UNetPlusPlus(CLASSES, widths=(3, 4), norm="none", dropout=0.3),
    "fcn": FCN(CLASSES, padding="same", widths=(3, 3, 3, 4, 4), classifier_width=5),
}


def batch_of(number):
    """Of the first pictures much is ignored, of the very first one all: the parts are uneven."""
    rng = np.random.default_rng(number)
    label = rng.integers(0, CLASSES, (BATCH, SIDE, SIDE), np.uint8)
    label[rng.random(label.shape) > np.linspace(0, 1, BATCH).reshape(-1, 1, 1)] = 255
    return {
        "image": rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8),
        "label": label,
        "epoch": np.full(BATCH, number // 2, np.int32),
        "record": rng.permutation(BATCH).astype(np.int32),
    }


def cross_entropy(output, example):
    return losses.cross_entropy(output.logits, example.label)


def lovasz(output, example):
    """Which sorts all pixels of the batch together: no mean of parts."""
    return losses.lovasz(output.logits, example.label)


SGD = optimizers.sgd()


def step_in(parts, model, loss):
    return make_train_step(
        model,
        SGD,
        loss,
        schedule=optimizers.constant(0.05),
        prepare=PREPARE,
        key=jax.random.key(6),
        accumulate=parts,
    )


def run(model, parts, *, devices=1, loss=cross_entropy, steps=3, dtype=np.float32):
    """The state after some steps with SGD, and the last loss."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    step = step_in(parts, model, loss)
    state = make_state(model, SGD, key=jax.random.key(1), image_shape=(1, SIDE, SIDE, 3))
    # Score layers that start at zero would hide what lies before them.
    state = state.replace(params=jax.tree.map(lambda x: x + jnp.float32(0.01), state.params))
    cast = jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype == np.float32 else x, jax.device_get(state)
    )
    state = jax.device_put(cast, sharding.replicated(mesh))
    for number in range(steps):
        state, scalars = step(state, sharding.put(batch_of(number), mesh))
    return jax.device_get(state), float(scalars["loss"])


def distance(a, b):
    def one(a, b):
        return np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(a).max(), 0.1)

    return max(jax.tree.leaves(jax.tree.map(one, a.params, b.params)))


@pytest.mark.parametrize("name", NETWORKS)
def test_parts_are_the_batch_in_float64(name):
    with jax.enable_x64(True):
        whole, loss = run(NETWORKS[name], 1, dtype=np.float64)
        parts, of_parts = run(NETWORKS[name], 4, dtype=np.float64)
    assert distance(parts, whole) < 1e-10
    assert of_parts == pytest.approx(loss, rel=1e-10)


def test_a_loss_that_is_no_mean_over_parts():
    """Lovász sorts the pixels of the batch; and the parts lie on several devices each."""
    whole, loss = run(UNET, 1, loss=lovasz)
    parts, of_parts = run(UNET, 2, loss=lovasz, devices=2)
    assert distance(parts, whole) < 1e-5
    assert of_parts == pytest.approx(loss, rel=1e-5)


def plain(params, stats, batch):
    """A row's square under one mask of dropout, and a running mean of what was seen."""
    dropout = nn.Dropout(0.5, deterministic=False)
    x = dropout.apply({}, batch * params, rngs={"dropout": jax.random.key(0)})
    return x**2, 0.5 * stats + 0.5 * batch.mean()


def test_a_part_has_every_nth_row_and_statistics_follow_one_another():
    batch = jnp.arange(12.0).reshape(6, 2)
    found, stats = in_parts(plain, 3)(2.0, 0.0, batch)
    whole, _ = plain(2.0, 0.0, batch)
    np.testing.assert_array_equal(found, whole)  # so are the masks
    means = [batch[i::3].mean() for i in range(3)]
    assert stats == 0.125 * means[0] + 0.25 * means[1] + 0.5 * means[2]


def test_one_part_is_the_function_itself():
    assert in_parts(plain, 1) is plain


def test_a_batch_that_does_not_divide_is_told():
    with pytest.raises(SegjaxError, match="batch of 6 rows does not divide into 4 parts"):
        in_parts(plain, 4)(2.0, 0.0, jnp.zeros((6, 2)))
    mesh = sharding.make_mesh(jax.devices()[:2])
    told = r"8 pictures in 3 parts \(accumulate\) does not divide among 2 devices; take .* 6 or 12"
    with pytest.raises(SegjaxError, match=told):
        sharding.check_batch_size(mesh, 8, parts=3)


def test_no_picture_moves_between_devices():
    """Parts have rows of every device: only sums over all pictures meet."""
    mesh = sharding.make_mesh()
    step = step_in(2, UNET, cross_entropy)
    whole = sharding.replicated(mesh)
    state = make_state(
        UNET, SGD, key=jax.random.key(1), image_shape=(1, SIDE, SIDE, 3), sharding=whole
    )
    batch = {name: np.concatenate([x, x]) for name, x in batch_of(0).items()}
    lowered = step.func.lower(state, sharding.put(batch, mesh), **step.keywords)
    text = lowered.compile().as_text()
    moving = ("all-gather", "all-to-all", "collective-permute")
    assert "all-reduce" in text and not any(word in text for word in moving)
