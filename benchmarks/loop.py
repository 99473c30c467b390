"""Do logging, checkpoints and evaluation slow the training step?

    python benchmarks/loop.py

Prints a Markdown table: milliseconds of a step of `experiments/unet_shapes.py`, the median over
windows of 20 steps, of a bare loop that calls the compiled step and nothing else; of `fit` alone;
and of the whole `train`, with a line of metrics.jsonl and TensorBoard every 20 steps, and every 100
an evaluation and a checkpoint, which is written while the next steps run. The time of the
evaluations themselves is left out, as metrics.jsonl leaves it out. The three take turns.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import itertools

from unet_shapes import UNetShapes

import segjax
from segjax.commands.step import Parts
from segjax.data import pipeline
from segjax.recipe import main
from segjax.training import fit, sharding

WINDOW = 20  # steps


def batches(recipe: UNetShapes, mesh: Any) -> Iterator[Any]:
    read = pipeline.train_batches(
        recipe.source("train"),
        batch_size=recipe.batch_size,
        canvas=recipe.canvas,
        seed=recipe.seed,
        threads=recipe.workers,
    )
    return sharding.prefetch(read, mesh)


def bare(recipe: UNetShapes) -> list[float]:
    """Milliseconds of a step in each window, but the first, which compiles."""
    mesh = sharding.make_mesh()
    parts, ends = Parts(recipe, mesh), []
    state = parts.make_state()
    for number, batch in enumerate(batches(recipe, mesh), 1):
        state, scalars = parts.step(state, batch)
        if number % WINDOW == 0:
            jax.block_until_ready(scalars)
            ends.append(time.perf_counter())
        if number == recipe.steps:
            return _between(ends)
    raise AssertionError("batches have no end")


def fitted(recipe: UNetShapes) -> list[float]:
    """The same, in `fit`, which looks at every step's scalars."""
    mesh = sharding.make_mesh()
    parts, ends = Parts(recipe, mesh), []

    def observe(number: int, scalars: Any, wait: float) -> None:
        if number % WINDOW == 0:
            ends.append(time.perf_counter())

    fit(
        parts.make_state(),
        parts.step,
        batches(recipe, mesh),
        until=recipe.steps,
        observe=observe,
    )
    return _between(ends)


def trained(recipe: UNetShapes) -> list[float]:
    """The same, as the run's own metrics.jsonl tells it."""
    with tempfile.TemporaryDirectory() as home:
        run = Path(home) / "run"
        numbers = {"steps": recipe.steps, "evaluate-every": 100, "log-every": WINDOW}
        options = [word for name, x in numbers.items() for word in (f"--{name}", str(x))]
        main(UNetShapes, ["train", "--run", str(run), *options])
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return [1000 * recipe.batch_size / rate for rate in rates[1:]]


def _between(ends: list[float]) -> list[float]:
    return [1000 * (b - a) / WINDOW for a, b in itertools.pairwise(ends)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    segjax.use_compilation_cache()
    recipe = UNetShapes(steps=asked.steps)
    ways: dict[str, Callable[[UNetShapes], list[float]]] = {
        "bare loop": bare,
        "`fit`": fitted,
        "`train`": trained,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(asked.turns):
        for name, way in ways.items():
            found[name] += way(recipe)
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| | ms a step: median (least) | of the bare loop |\n|---|---:|---:|")
    least = {name: min(times) for name, times in found.items()}
    middle = {name: statistics.median(times) for name, times in found.items()}
    for name in ways:
        share = middle[name] / middle["bare loop"] - 1
        print(f"| {name} | {middle[name]:.1f} ({least[name]:.1f}) | {share:+.1%} |")
