"""Is a training step's peak memory what `cost` says, on this CPU?

    python benchmarks/memory.py
    python benchmarks/memory.py --networks U-Net --batch 1 --size 64 --shrink 16    # does it work?

Prints a Markdown table. "Said" is `Cost.memory`: arguments, temporaries and what of the outputs
takes no argument's place. "Measured" is state and batch, plus what the process's resident memory
grew by at most: in the first step, in which the runtime loads what it keeps, and in two later ones
(Linux resets that peak by /proc/self/clear_refs). Each network has a process of its own.
"""

import argparse
import ctypes
import gc
import multiprocessing
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import compiled
import jax
import jax.numpy as jnp

from segjax.training import sharding
from segjax.training.cost import lower, of_compiled
from segjax.training.reckoning import bytes_per_device, reckon


def resident(which: str) -> int:
    """Bytes: VmRSS now, VmHWM at most since the last reset."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if which in x]
    return 1024 * int(line.split()[1])


def measure(name: str, options: argparse.Namespace) -> str:
    """One network's row."""
    jax.config.update("jax_platforms", "cpu")
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = compiled.ROWS[name].make(21, options.size, options.shrink)
    model = model.clone(dtype=jnp.float32)
    shapes = compiled.step_in_shapes(model, mesh, options.batch, options.size)
    step, *arguments = shapes
    program = lower(*shapes).compile()
    said = of_compiled(program).memory
    reckoned = reckon(*shapes).temporaries + bytes_per_device(arguments)
    # Written to, for memory that is not is not there either.
    state, batch = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype) + jnp.ones((), x.dtype), arguments
    )
    held = sum(x.nbytes for x in jax.tree.leaves((state, batch)))
    peaks = []
    for steps in (1, 2):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        for _ in range(steps):
            state, scalars = program(state, batch, **step.keywords)
            jax.block_until_ready(scalars)
        peaks.append(held + resident("VmHWM") - before)
    mib = (f"{x / 2**20:,.0f}" for x in (reckoned, said, *peaks))
    off = (f"{said / x - 1:+.0%}" for x in peaks)
    return f"| {name} | {' | '.join(mib)} | {' | '.join(off)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["U-Net", "U-Net++", "FCN-8s"]
    parser.add_argument("--networks", nargs="+", default=names, choices=compiled.ROWS)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--shrink", type=int, default=4, help="divides every width")
    options = parser.parse_args()
    print(f"`{shlex.join(['python', *sys.argv])}`: jax {jax.__version__}, float32, MiB.\n")
    print("| network | reckoned | said | measured: first step | later steps | said is off by | |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in options.networks:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            print(pool.submit(measure, name, options).result(), flush=True)


if __name__ == "__main__":
    main()
