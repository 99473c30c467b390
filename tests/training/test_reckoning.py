"""What a step is reckoned to take, before it is compiled."""

import jax
import jax.numpy as jnp
import pytest

from segjax.training.reckoning import bytes_per_device, reckon
from segjax.training.sharding import make_mesh, split

SIDE = 64
ARRAY = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)
BYTES = 4 * SIDE**2


def test_only_large_operations_write():
    def f(x, w):
        return jnp.sum(jnp.tanh(x @ w + 1) * 2)

    found = reckon(f, ARRAY, ARRAY)
    assert found.temporaries == BYTES  # the product; not the sum, nor its tanh
    assert found.traffic == pytest.approx(4 * BYTES, abs=16)  # two read, one written and read


def test_what_the_gradient_needs_is_kept_or_computed_again():
    def layers(x, w):
        for _ in range(6):
            x = jnp.tanh(x @ w)
        return x

    def temporaries(block):
        def chain(w, x):
            for _ in range(6):
                x = block(x, w)
            return jnp.sum(x)

        return reckon(jax.grad(chain), ARRAY, ARRAY).temporaries / BYTES

    assert 36 <= temporaries(layers) <= 36 + 6
    assert 6 + 6 <= temporaries(jax.checkpoint(layers)) <= 6 + 6 + 8


def test_a_loop_counts_as_often_as_it_runs():
    def loop(w, x, *, length):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=length)[0].sum()

    def traffic(length):
        return reckon(lambda w, x: loop(w, x, length=length), ARRAY, ARRAY).traffic

    assert traffic(12) - traffic(4) == 8 * (traffic(5) - traffic(4)) > 8 * 3 * BYTES


def test_bytes_lie_as_the_sharding_says():
    mesh = make_mesh()
    x = jax.ShapeDtypeStruct((mesh.size * 2, 3), jnp.bfloat16, sharding=split(mesh))
    assert bytes_per_device({"a": x, "b": ARRAY}) == 2 * 3 * 2 + BYTES
