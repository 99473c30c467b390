"""What does a training step take on a TPU that is not here, as the TPU's own compiler has it?

    python benchmarks/compiled.py
    python benchmarks/compiled.py --networks U-Net FCN-8s --topology v6e:2x2
    python benchmarks/compiled.py --shrink 16 --size 64    # does it work?

Prints a Markdown table. The step is forward, backward and update by SGD with momentum of the
cross-entropy of the logits and 0.4 times that of auxiliary heads; uint8 pictures are scaled within
it. The batch is split over the chips of the slice; figures are those of one chip. Needs libtpu
(`pip install 'segjax[tpu]'`) and no TPU. A compilation takes minutes. Temporaries that exceed the
chip's memory are those that the compiler names as it refuses.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from segjax.models import FCN, SETRPUP, UNet, UNetPlusPlus
from segjax.models.layers import Output
from segjax.training import cost, sharding
from segjax.training.losses import cross_entropy
from segjax.training.optimizers import constant, sgd
from segjax.training.train import make_state, make_train_step

AUXILIARY = 0.4


class Row(NamedTuple):
    """A network of (classes, side, what divides its widths), and a chip's share of the batch."""

    make: Callable[[int, int, int], Any]
    share: int


def unet(classes: int, side: int, shrink: int, **fields: Any) -> UNet:
    widths = tuple(w // shrink for w in (64, 128, 256, 512, 1024))
    return UNet(classes, widths, dtype=jnp.bfloat16, **fields)


def nested(classes: int, side: int, shrink: int, **fields: Any) -> UNetPlusPlus:
    widths = tuple(w // shrink for w in (32, 64, 128, 256, 512))
    return UNetPlusPlus(classes, widths, dtype=jnp.bfloat16, **fields)


def fcn(classes: int, side: int, shrink: int, **fields: Any) -> FCN:
    *widths, classifier = (w // shrink for w in (64, 128, 256, 512, 512, 4096))
    return FCN(
        classes, widths=tuple(widths), classifier_width=classifier, dtype=jnp.bfloat16, **fields
    )


def setr(classes: int, side: int, shrink: int, **fields: Any) -> SETRPUP:
    return SETRPUP(
        classes,
        width=1024 // shrink,
        channels=256 // shrink,
        grid=(side // 16,) * 2,
        dtype=jnp.bfloat16,
        **fields,
    )


ROWS = {
    "U-Net": Row(unet, 8),
    "U-Net, remat": Row(lambda *a: unet(*a, remat=True), 8),
    "U-Net++": Row(nested, 8),
    "U-Net++, remat": Row(lambda *a: nested(*a, remat=True), 8),
    "FCN-8s": Row(fcn, 8),
    "SETR-PUP Large": Row(setr, 2),
    "SETR-PUP Large, remat": Row(lambda *a: setr(*a, remat=True), 4),
}


def step_in_shapes(model: Any, mesh: jax.sharding.Mesh, batch: int, side: int) -> tuple[Any, ...]:
    """The training step, and the shapes of its state and of its batch on the mesh."""

    def loss(output: Output, labels: jax.Array) -> jax.Array:
        auxiliary = sum(cross_entropy(logits, labels) for logits in output.auxiliary)
        return cross_entropy(output.logits, labels) + AUXILIARY * auxiliary

    optimizer, key = sgd(momentum=0.9), jax.random.key(0)
    step = make_train_step(
        model,
        optimizer,
        loss,
        schedule=constant(0.01),
        prepare=lambda key, batch: (batch["image"] / jnp.float32(255), batch["label"]),
        key=key,
    )

    def on(where: Any, tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    def first() -> Any:
        return make_state(model, optimizer, key=key, image_shape=(1, side, side, 3))

    shapes = {
        "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch, side, side), jnp.uint8),
    }
    state = on(sharding.replicated(mesh), jax.eval_shape(first))
    return step, state, on(sharding.split(mesh), shapes)


def measure(name: str, row: Row, mesh: jax.sharding.Mesh, options: argparse.Namespace) -> None:
    """Compile one network's step and print its row."""
    model = row.make(options.classes, options.size, options.shrink)
    started = time.perf_counter()
    step = step_in_shapes(model, mesh, row.share * mesh.size, options.size)
    try:
        found = cost.step_cost(*step)
    except cost.DoesNotFit as error:
        seconds = time.perf_counter() - started
        why = f"{error.need:.2f}, of {error.room:.2f}: does not fit"
        print(f"| {name} ({row.share}) | {why} | | | | | {seconds:.0f} |", flush=True)
        return
    talk = ", ".join(
        f"{n} {kind} ({size / 1e6:.1f} MB)" for kind, (n, size) in found.collectives.items()
    )
    print(
        f"| {name} ({row.share}) | {found.temporaries / 2**30:.2f} "
        f"| {found.memory / 2**30:.2f} | {found.bytes_accessed / 1e9:.1f} "
        f"| {found.flops / 1e12:.2f} | {talk} | {found.compile_seconds:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=[*ROWS], choices=ROWS, metavar="NAME")
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--size", type=int, default=512, help="side in pixels, a multiple of 32")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--shrink", type=int, default=1, help="divides every width")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    mesh = sharding.make_mesh(cost.slice_devices(options.topology))
    print(f"`{shlex.join(['python', *sys.argv])}`: jax {jax.__version__}, {mesh.size} chips,")
    print(f"{options.size}², bfloat16, {options.classes} classes.\n")
    print("| a chip's share | temporaries, GiB | in all, GiB | traffic, GB | TFLOPs ", end="")
    print("| between chips | compiled, s |\n|---|---:|---:|---:|---:|---|---:|")
    for name in options.networks:
        measure(name, ROWS[name], mesh, options)


if __name__ == "__main__":
    main()
