"""The table of networks: the papers' counts, each at the size that its paper gives it."""

import jax
import jax.numpy as jnp
import pytest

from segjax import verbs
from segjax.models.variants import VARIANTS

PARAMETERS = {
    "FCN-32s": 134_346_581,
    "FCN-16s": 134_357_354,
    "FCN-8s": 134_362_751,
    "FCN-8s at once": 134_362_751,
    "FCN-8s, same": 134_362_751,
    "FCN-32s AlexNet": 56_954_261,
    "FCN-32s GoogLeNet": 5_995_077,  # ours: never released
    "U-Net": 31_030_658,
    "U-Net, released": 31_100_354,
    "U-Net, same": 31_036_546,  # ours: batch norm for biases
    "U-Net++ L1": 100_961,
    "U-Net++ L2": 511_105,
    "U-Net++ L3": 2_204_961,
    "U-Net++ L4": 9_041_601,
    # The paper's 305.67 and so on count what has no effect: see SETRNaive.
    "SETR-Naive": 305_360_472,
    "SETR-PUP": 317_920_494,
    "SETR-MLA": 310_182_638,
    "SETR-Naive-Base": 87_381_848,
    "SETR-PUP-Base": 97_254_382,
    "SETR-MLA-Base": 92_204_526,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_sizes(name):
    network, side, channels = VARIANTS[name]
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    output, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == PARAMETERS[name]
    out = side - 2 * network.geometry.margin
    assert output.logits.shape == (1, out, out, network.num_classes)


def test_the_table_names_all(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    small = ("U-Net++ L1", "SETR-MLA-Base")
    monkeypatch.setattr(verbs, "VARIANTS", {name: VARIANTS[name] for name in small})
    verbs.models()
    told = capsys.readouterr().out
    assert "100,961" in told and "│    9 │" in told
    assert "92,204,526" in told and "│  all │" in told


def test_flops_are_two_for_each_multiplication_and_addition():
    """U-Net++ L1 by hand: 3×3 convolutions, up-convolution, head; borders meet zeros, 2 % less."""
    network, side, _ = VARIANTS["U-Net++ L1"]
    images = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    top = 9 * (1 * 32 + 32 * 32) + 9 * (64 * 32 + 32 * 32) + 32
    low = 9 * (32 * 64 + 64 * 64) + 64 * 4 * 32
    by_hand = 2 * (96**2 * top + 48**2 * low)
    assert verbs._flops(network, variables, images) == pytest.approx(0.99 * by_hand, rel=0.01)
