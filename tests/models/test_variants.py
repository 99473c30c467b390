"""The table of networks: the papers' counts, each at the size that its paper gives it."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from segjax.models import variants
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


def test_the_command_prints_all_of_them():
    command = [sys.executable, "-m", "segjax", "models"]
    environment = {**os.environ, "COLUMNS": "120", "JAX_PLATFORMS": "cpu"}
    told = subprocess.check_output(command, env=environment, text=True)
    cells = [line.strip("│").split("│") for line in told.splitlines() if line.startswith("│")]
    rows = {name.strip(): [cell.strip() for cell in rest] for name, *rest in cells}
    assert {name: int(row[2].replace(",", "")) for name, row in rows.items()} == PARAMETERS
    assert rows["FCN-8s"] == ["21", "500×500×3", "134,362,751", "359.2", "32", "245"]
    assert rows["SETR-MLA-Base"][-1] == "all"
    assert "two for each multiplication" in told and "305.67 M" in told


def test_the_figures_that_the_command_shows_are_those_of_the_networks():
    """Else: python -m segjax.models.variants."""
    written = json.loads(variants.FIGURES.read_text())
    assert list(written) == list(VARIANTS)
    for name, variant in VARIANTS.items():
        figures = variants.figures(variant)
        # Another JAX may count an elementwise operation more or less.
        assert written[name].pop("gflops") == pytest.approx(figures.pop("gflops"), rel=0.01)
        assert written[name] == figures


def test_flops_are_two_for_each_multiplication_and_addition():
    """U-Net++ L1 by hand: 3×3 convolutions, up-convolution, head; borders meet zeros, 2 % less."""
    network, side, _ = VARIANTS["U-Net++ L1"]
    images = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    top = 9 * (1 * 32 + 32 * 32) + 9 * (64 * 32 + 32 * 32) + 32
    low = 9 * (32 * 64 + 64 * 64) + 64 * 4 * 32
    by_hand = 2 * (96**2 * top + 48**2 * low)
    assert variants._flops(network, variables, images) == pytest.approx(0.99 * by_hand, rel=0.01)


def test_flops_of_a_network_that_scans_its_blocks():
    """SETR-Naive-Base by hand: twelve blocks of 1025 tokens, patches, head, enlargement.

    Layer norms, softmax and GELU are the rest, 2 %.
    """
    network, side, _ = VARIANTS["SETR-Naive-Base"]
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    tokens, patches, width = 1025, 32**2, 768
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    head = patches * (256 * width + 150 * 256) + 150 * (512 * 32 * 32 + 512 * 512 * 32)
    by_hand = 2 * (12 * block + patches * 16**2 * 3 * width + head)
    assert network.scan
    assert variants._flops(network, variables, images) == pytest.approx(1.02 * by_hand, rel=0.01)
