"""Is an evaluation as fast as the bare prediction of its pictures?

    python benchmarks/evaluation_rate.py
    python benchmarks/evaluation_rate.py --pictures 64 --widths 64 128 256 512 1024 --dtype bfloat16

Prints a Markdown table. The bare prediction is of one batch that lies on the device, again and
again. The others read JPEG pictures and PNG masks of 500×375 pixels from a folder, on a canvas of
512×512, and count: all that logits tell, then contours too, as the verb `evaluate` does. They take
turns, and the best of the rounds counts.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from drawn import draw

from segjax.commands.evaluate import Inspection, batches_on_mesh
from segjax.data import Normalise, layouts
from segjax.evaluation import evaluator
from segjax.inference import make_predict
from segjax.models import UNet
from segjax.training import sharding


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128], help="U-Net's")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        draw(Path(home) / "voc", options.pictures)
        found = measure(options, Path(home) / "voc")
    print(f"`{shlex.join(['python', *sys.argv])}`: {os.cpu_count()} cores, {jax.devices()[0]}\n")
    print("| | pictures a second | of the bare prediction |\n|---|---:|---:|")
    bare = max(found["bare prediction"])
    for name, rates in found.items():
        print(f"| {name} | {max(rates):.2f} | {max(rates) / bare:.2f} |")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    source, mesh, size = layouts.voc(folder), sharding.make_mesh(), options.batch_size
    model = UNet(len(source.classes), widths=tuple(options.widths), dtype=options.dtype)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    variables = jax.device_put(variables, sharding.replicated(mesh))
    predict = partial(make_predict(model, normalise=Normalise()), variables)
    read = partial(batches_on_mesh, source, mesh, batch_size=size, canvases=[(512, 512)], workers=2)
    batch = next(read())

    def bare() -> None:
        for _ in range(options.pictures // size):
            logits = predict(batch["image"])
        jax.block_until_ready(logits)

    def counted() -> None:
        evaluator.evaluate(predict, read(), num_classes=len(source.classes))

    def inspected() -> None:
        inspection = Inspection(source, kept=())
        evaluator.evaluate(
            predict,
            read(note=inspection.note),
            num_classes=len(source.classes),
            inspect=inspection,
        )

    ways: dict[str, Callable[[], None]] = {
        "bare prediction": bare,
        "read, predicted, counted": counted,
        "… and contours": inspected,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # compiled
    for _ in range(options.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            found[name].append(options.pictures / (time.perf_counter() - began))
    return found


if __name__ == "__main__":
    main()
