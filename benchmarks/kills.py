"""Is anything lost when a training is killed at any moment, again and again?

    python benchmarks/kills.py --kills 100
    python benchmarks/kills.py --kills 20 --processes 2

Trains a small U-Net with dropout, batch norm, augmentation and a moving average, and kills it by
signals drawn at random, at moments drawn at random, until it comes to its end; then anew, until all
kills are done. Between the kills the number of workers changes; in every other run the number of
devices too. What comes out is compared with what comes out undisturbed: to the bit, weights by
their SHA-256 and the scores of every evaluation; with other numbers of devices to 1e-6. Ends with
status 1 where something differs, or where a process ended otherwise than it should.
"""

import argparse
import collections
import hashlib
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from segjax.commands import step as step_module
from segjax.commands.run import Run
from segjax.commands.trained import load_step
from segjax.data import augment
from segjax.data.augment import Example
from segjax.data.shapes import CLASSES, Shapes
from segjax.models import UNet
from segjax.recipe import Recipe, main
from segjax.training import optimizers
from segjax.training.train import State, initial_state

SIGNALS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
DEVICES = 2  # of one process
LONG = 240.0  # seconds in which a process that was stopped, or has lost another, must have ended


@dataclass(frozen=True, kw_only=True)
class Small(Recipe):
    """What is killed."""

    steps: int = 80
    batch_size: int = 4
    canvas: tuple[int, int] = (32, 32)
    crop: tuple[int, int] = (32, 32)
    ema: float | None = 0.9
    learning_rate: float = 0.01
    evaluate_every: int = 10

    def model(self) -> UNet:
        return UNet(len(CLASSES), widths=(4, 8), dropout=0.2)

    def source(self, split: str) -> Shapes:
        return Shapes(length=24, size=(32, 32), seed=split == "val")

    def augment(self, key: jax.Array, example: Example) -> Example:
        return augment.random_flip(key, example)

    def schedule(self) -> optimizers.Schedule:
        return optimizers.constant(self.learning_rate)

    def optimizer(self) -> optimizers.optax.GradientTransformation:
        return optimizers.adamw()


# Forked from a process that has imported all this once, and has not begun to compute.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["segjax.recipe", "segjax.models", "segjax.data.shapes"])


def command(options: list[str], environment: dict[str, str], devices: int, told: Path) -> None:
    """As a recipe's `train OPTIONS` does, once all is imported."""
    os.environ.update(environment)
    jax.config.update("jax_num_cpu_devices", devices)
    in_float64()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    main(Small, ["train", *options])


def in_float64() -> None:
    """On CPUs, from the first state on."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)

    def initial(*args: Any, **options: Any) -> Callable[[jax.Array], State]:
        init = initial_state(*args, **options)

        def wide(key: jax.Array) -> State:
            first = init(key)
            return jax.tree.map(lambda x: x.astype("float64") if x.dtype == "float32" else x, first)

        return wide

    step_module.initial_state = initial


class Killed:
    """The training of one run folder, its processes started together."""

    def __init__(
        self, run: Path, *, processes: int, devices: int, workers: int, steps: int
    ) -> None:
        options = ["--run", str(run), "--workers", str(workers), "--steps", str(steps)]
        environment = {"JAX_NUM_PROCESSES": str(processes)}
        if processes > 1:
            environment["JAX_COORDINATOR_ADDRESS"] = f"localhost:{_free_port()}"
            options += ["--distributed", "--wait", "60"]
        self.began, self.run = time.monotonic(), run
        self.told = [run.with_name(f"{run.name}.{i}.txt") for i in range(processes)]
        self.processes = []
        for i in range(processes):
            own = environment | {"JAX_PROCESS_ID": str(i)}
            given = options, own, devices, self.told[i]
            self.processes.append(_PROCESSES.Process(target=command, args=given))
            self.processes[-1].start()

    def send(self, number: int, rng: random.Random) -> None:
        """A signal to one or some of the processes; sometimes a second one, soon."""
        for process in rng.sample(self.processes, rng.randint(1, len(self.processes))):
            for again in (False, True):
                if not again or rng.random() < 0.2:
                    time.sleep(again * rng.random() / 2)
                    if process.pid and process.exitcode is None:
                        os.kill(process.pid, number)

    def end(self, within: float = LONG) -> tuple[list[int], str]:
        """The statuses of all, and what they told."""
        for process in self.processes:
            process.join(within)
        told = "".join(path.read_text() for path in self.told if path.exists())
        if any(process.exitcode is None for process in self.processes):
            raise TimeoutError(told)
        return [process.exitcode or 0 for process in self.processes], told

    def moment(self) -> str:
        """What it is about."""
        metrics, checkpoints = self.run / "metrics.jsonl", self.run / "checkpoints"
        if not metrics.exists() or metrics.stat().st_mtime < time.time() - _since(self.began):
            return "starting"
        if any(checkpoints.glob("*tmp*")):
            return "saving"
        lines = metrics.read_text().splitlines()
        last = json.loads(lines[-1])["step"] if lines else 0
        return "evaluating" if last % Small.evaluate_every == 0 and last else "training"


def _since(began: float) -> float:
    return time.monotonic() - began


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def outcome(run: Path) -> tuple[np.ndarray, list[tuple[int, float, float]]]:
    """The weights at the end, in one row, and the scores of every evaluation."""
    with _PROCESSES.Pool(1) as elsewhere:  # for here nothing is computed
        return elsewhere.apply(_outcome, (run,))


def _outcome(run: Path) -> tuple[np.ndarray, list[tuple[int, float, float]]]:
    in_float64()
    step, trained = load_step(Run(run), "newest")
    leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(trained.variables)]
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    scores = [(x["step"], x["mean_iou"], x["loss"]) for x in lines if "mean_iou" in x]
    assert step == scores[-1][0], (step, scores[-1])
    return np.concatenate(leaves), scores


def allowed(number: int, statuses: list[int], told: str) -> bool:
    """Whether the processes ended as they should by this signal.

    By the signal itself only where Python had not yet come to listen.
    """
    ends = {0, -number, 128 + number} | ({75} if len(statuses) > 1 else set())
    return set(statuses) <= ends | ({1} if number == signal.SIGINT and not told else set())


def main_(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=Small.steps)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    rng, counts, faults = random.Random(given.seed), collections.Counter[str](), list[str]()
    began = time.monotonic()
    many, runs, kills, furthest = given.processes > 1, 0, 0, 0.0
    with tempfile.TemporaryDirectory() as home:
        start = {"processes": given.processes, "steps": given.steps}
        alone = Path(home) / "undisturbed"
        devices = 1 if many else DEVICES
        counts_of_devices = [n for n in (1, 2, 4) if Small.batch_size % (n * given.processes) == 0]
        first = Killed(alone, devices=devices, workers=2, **start)
        statuses, told = first.end(within=900)  # which compiles
        if any(statuses):
            sys.exit(f"The undisturbed training ended with {statuses}: {told}")
        whole = _since(first.began)  # how long a start and all steps take
        weights, scores = outcome(alone)
        while kills < given.kills:
            runs, run = runs + 1, Path(home) / f"killed{runs}"
            change = runs % 2 == 0
            while True:
                now = rng.choice(counts_of_devices) if change else devices
                training = Killed(run, devices=now, workers=rng.randint(1, 3), **start)
                if kills == given.kills:
                    number = 0
                    statuses, told = training.end(within=900)
                else:
                    number = getattr(signal, rng.choice(SIGNALS))
                    training.processes[0].join(rng.uniform(0.05, 0.9) * whole)
                    if training.processes[0].exitcode is None:
                        kills += 1
                        counts[training.moment()] += 1
                        counts[signal.Signals(number).name] += 1
                        training.send(number, rng)
                    try:
                        statuses, told = training.end()
                    except TimeoutError as late:
                        faults.append(f"{signal.Signals(number).name}: has not ended: {late}")
                        break
                if not allowed(number, statuses, told) or "Check failure" in told:
                    faults.append(f"{signal.Signals(number).name} {statuses}: {told[-2000:]}")
                    break
                if not any(statuses):  # how busy the machine is changes
                    whole = min(whole, _since(training.began))
                    break
            for process in training.processes:
                process.kill()
            if faults:
                break
            other, others = outcome(run)
            apart = float(np.abs(other - weights).max())
            furthest = max(furthest, apart)
            if change:
                same = apart <= 1e-12 and [x[0] for x in others] == [x[0] for x in scores]
            else:
                same = _sha(other) == _sha(weights) and others == scores
            if not same:
                faults.append(f"run {runs}, devices {'changed' if change else 'kept'}: {apart:.1e}")
            print(f"{kills} kills, {runs} runs, {_since(began):.0f} s", file=sys.stderr, flush=True)
    told = ", ".join(f"{name} {counts[name]}" for name in sorted(counts))
    print(f"{kills} kills in {runs} runs of {given.steps} steps, {_since(began):.0f} s: {told}")
    print(
        f"SHA-256 {_sha(weights)[:16]}…; with other numbers of devices at most {furthest:.1e} off"
    )
    if faults:
        sys.exit("\n".join(faults))


def _sha(weights: np.ndarray) -> str:
    return hashlib.sha256(weights.tobytes()).hexdigest()


if __name__ == "__main__":
    main_()
