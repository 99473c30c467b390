"""Are the fast forms of max-pooling and up-convolution faster than the plain ones here?

And what do a 3×3 convolution and its two gradients cost, beside PyTorch's?

    python benchmarks/layers.py
    python benchmarks/layers.py --pool 8 448 448 64 --runs 50

Milliseconds of the forward pass, and of the forward and backward pass, each as one jitted program:
the median of `--runs` calls after one that compiles. Answers are in README.md, with the machine.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn

from segjax.models.layers import UpConv, max_pool


def nn_max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (2, 2), (2, 2))


def jnp_max_pool(x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    return jnp.max(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def milliseconds(f: Callable[..., object], *arguments: object, runs: int) -> float:
    """Median time of one call."""
    jax.block_until_ready(f(*arguments))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def report(name: str, f: Callable[..., jax.Array], *arguments: object, runs: int) -> None:
    """Print one row of f's times, its gradients those of all arguments."""

    @jax.jit
    def both(cotangent: jax.Array, *arguments: object) -> object:
        value, pull = jax.vjp(f, *arguments)
        return value, pull(cotangent)

    forward = jax.jit(f)
    cotangent = forward(*arguments)  # as good as any other, and not constant
    once = milliseconds(forward, *arguments, runs=runs)
    twice = milliseconds(both, cotangent, *arguments, runs=runs)
    print(f"{name:28} {once:10.2f} {twice:18.2f}", flush=True)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def report_convolution(batch: int, height: int, width: int, channels: int, runs: int) -> None:
    """Print a 3×3 convolution's times, each pass by itself, for JAX and for PyTorch."""
    x = jax.random.normal(jax.random.key(0), (batch, height, width, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels))
    of_input = jax.jit(lambda x, k, y: jax.vjp(lambda x: convolve(x, k), x)[1](y))
    of_kernel = jax.jit(lambda x, k, y: jax.vjp(lambda k: convolve(x, k), k)[1](y))
    y = jax.jit(convolve)(x, kernel)
    passes = (jax.jit(convolve), x, kernel), (of_input, x, kernel, y), (of_kernel, x, kernel, y)
    times = [milliseconds(*each, runs=runs) for each in passes]
    print(f"{'JAX':28} " + " ".join(f"{t:10.2f}" for t in times), flush=True)

    def torch_of(array: jax.Array, *axes: int) -> torch.Tensor:
        tensor = torch.tensor(np.asarray(array.transpose(axes)))
        return tensor.to(memory_format=torch.channels_last)

    a, b, c = torch_of(x, 0, 3, 1, 2), torch_of(kernel, 3, 2, 0, 1), torch_of(y, 0, 3, 1, 2)
    where = (b.shape[:1], (1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    backward = torch.ops.aten.convolution_backward
    times = [
        milliseconds(lambda: torch.conv2d(a, b, padding=1), runs=runs),
        milliseconds(lambda: backward(c, a, b, *where, (True, False, False)), runs=runs),
        milliseconds(lambda: backward(c, a, b, *where, (False, True, False)), runs=runs),
    ]
    print(f"{'PyTorch, channels-last':28} " + " ".join(f"{t:10.2f}" for t in times), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = {"type": int, "nargs": 4, "metavar": ("B", "H", "W", "C")}
    parser.add_argument("--pool", default=(2, 224, 224, 64), help="input of max-pooling", **size)
    parser.add_argument("--up", default=(2, 112, 112, 128), help="input of up-convolution", **size)
    parser.add_argument("--conv", default=(1, 224, 224, 64), help="of a convolution", **size)
    parser.add_argument("--features", type=int, default=64, help="of the up-convolution's output")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    dtype, runs = jnp.dtype(options.dtype), options.runs

    device = jax.devices()[0]
    print(
        f"{device.device_kind} ({device.platform}, {platform.machine()}), jax {jax.__version__}, "
        f"flax {flax.__version__}, {dtype}, median of {runs} runs"
    )
    print(
        f"\n{'max-pool of ' + str(tuple(options.pool)):28} {'forward ms':>10} {'+ backward ms':>18}"
    )
    x = jax.random.normal(jax.random.key(0), options.pool, dtype)
    report("nn.max_pool", nn_max_pool, x, runs=runs)
    report("jnp.max of a reshape", jnp_max_pool, x, runs=runs)
    report("segjax max_pool", max_pool, x, runs=runs)

    print(f"\nup-convolution of {tuple(options.up)} to {options.features}")
    x = jax.random.normal(jax.random.key(0), options.up, dtype)
    plain = nn.ConvTranspose(options.features, (2, 2), (2, 2), padding="VALID", dtype=dtype)
    for name, model in (
        ("nn.ConvTranspose", plain),
        ("segjax UpConv", UpConv(options.features, dtype=dtype)),
    ):
        variables = model.init(jax.random.key(1), x)
        report(name, model.apply, variables, x, runs=runs)

    if device.platform == "cpu":  # PyTorch's clock would need more on a GPU
        print(f"\n3×3 convolution of {tuple(options.conv)}: forward, gradient of input, of kernel")
        report_convolution(*options.conv, runs=runs)


if __name__ == "__main__":
    main()
