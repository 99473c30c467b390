"""Signals, once and twice, as processes are sent them; and outputs that nobody reads any more."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from segjax.commands.run import Run
from segjax.commands.trained import load_step
from segjax.evaluation import report
from segjax.training.checkpoint import Checkpoints

SLOW = """
import time
from dataclasses import dataclass
import jax
from tiny import TinyRecipe
from segjax.recipe import main

@dataclass(frozen=True, kw_only=True)
class Slow(TinyRecipe):
    def augment(self, key, example):
        jax.experimental.io_callback(lambda: time.sleep(60), None)
        return example

if __name__ == "__main__":
    main(Slow)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a command whose output can be waited for; what is left is killed at the end."""
    started = []
    paths = [str(Path(tiny.__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": os.pathsep.join(paths)}

    def start(*command):
        process = subprocess.Popen(
            [sys.executable, "-u", *map(str, command)], env=environment, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(text, stream):
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"ended without {text!r}")


def end(process):
    """What it still prints, and its exit status."""
    out, told = process.communicate(timeout=120)
    assert "Traceback" not in told and "Exception" not in told, told
    return out, told, process.returncode


def train(home, *more):
    return [tiny.__file__, "train", "--data", home, "--run", home / "run", *more]


def test_once_stops_after_the_step_and_the_same_command_goes_on(start, tmp_path):
    home = tiny.make_data(tmp_path / "data")
    command = train(home, "--steps", 10**6, "--evaluate-every", 10**6)
    done = 0
    for number in (signal.SIGINT, signal.SIGUSR1):
        process = start(*command)
        if done:
            wait_for(f"going on from step {done} of 1000000", process.stdout)
        wait_for("first step", process.stdout)
        process.send_signal(number)
        _, told, status = end(process)
        assert status == 128 + number
        assert "stopping after this step (again: at once)" in told
        done = int(re.search(r"Interrupted after step (\d+); the same command", told)[1])
    assert done > 1


def test_twice_ends_at_once_and_a_half_written_checkpoint_is_none(start, tmp_path):
    """Checkpoints are written all the time here; what is there after the end is whole."""
    home = tiny.make_data(tmp_path / "data")
    command = train(home, "--steps", 10**6)
    for go in range(2):
        process = start(*command)
        if go:
            wait_for("going on from step", process.stdout)
        for _ in range(3):
            wait_for("mean_iou", process.stdout)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert end(process)[2] in (130, 143)
    (home / "run/checkpoints/999.orbax-checkpoint-tmp/default").mkdir(parents=True)
    process = start(*command)
    wait_for("going on from step", process.stdout)


def test_twice_ends_a_step_that_takes_long(start, tmp_path):
    """The main thread is within XLA, where no handler of Python's is called."""
    home = tiny.make_data(tmp_path / "data")
    (tmp_path / "slow.py").write_text(SLOW)
    process = start(tmp_path / "slow.py", "train", "--data", home, "--run", home / "run")
    while not (home / "run/tensorboard").exists():
        time.sleep(0.05)
    time.sleep(3)  # compiled by now
    process.send_signal(signal.SIGINT)
    wait_for("stopping after this step (again: at once)", process.stderr)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert end(process)[2] == 130 and time.monotonic() - began < 10


# Held-out pictures take half a second each, once the training runs and where a file says so.
SLOW_TO_EVALUATE = """
import time
from pathlib import Path
from segjax.data.folder import Folder
from tiny import TinyRecipe
from segjax.recipe import main

read = Folder.__getitem__

def slowly(self, i):
    if self.split == "val" and Path("slow").exists() and Path("stopped/metrics.jsonl").exists():
        time.sleep(0.5)
    return read(self, i)

Folder.__getitem__ = slowly

if __name__ == "__main__":
    main(TinyRecipe)
"""


def test_a_stop_breaks_an_evaluation_off_which_is_done_again(start, tmp_path):
    """What comes out is what would have, had there been no stop."""
    home = tiny.make_data(tmp_path / "data")
    for kind in ("images", "masks"):
        for i in range(2, 60):
            shutil.copy(home / kind / "val/0.png", home / kind / f"val/{i}.png")
    (tmp_path / "recipe.py").write_text(SLOW_TO_EVALUATE)
    (tmp_path / "slow").touch()
    command = [tmp_path / "recipe.py", "train", "--data", home]
    command += ["--steps", 4, "--evaluate-every", 2, "--run"]
    undisturbed = start(*command, "whole")
    stopped = start(*command, "stopped")
    metrics = tmp_path / "stopped/metrics.jsonl"
    until = time.monotonic() + 240
    while time.monotonic() < until and not (
        metrics.exists() and '"step": 2' in metrics.read_text()
    ):
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    _, told, status = end(stopped)
    assert status == 143 and "Interrupted after step 2; the same command" in told
    assert "mean_iou" not in metrics.read_text()
    with Checkpoints(tmp_path / "stopped/checkpoints") as checkpoints:
        assert checkpoints.newest == 2 and not checkpoints.scored(2)
    (tmp_path / "slow").unlink()
    again = start(*command, "stopped")
    assert "step 2  mean_iou" in end(again)[0] and end(undisturbed)[2] == again.returncode == 0

    def outcome(run):
        lines = report.read_metrics(tmp_path / run / "metrics.jsonl")
        told = [(x["step"], x["loss"], x.get("mean_iou")) for x in lines]
        step, trained = load_step(Run(tmp_path / run), "best")
        return told, step, jax.tree.map(np.asarray, trained.variables)

    (lines, step, weights), (want, best, others) = outcome("stopped"), outcome("whole")
    assert (lines, step) == (want, best)
    jax.tree.map(np.testing.assert_array_equal, weights, others)


def test_an_output_that_is_closed_ends_no_training(start, tmp_path):
    home = tiny.make_data(tmp_path / "data")
    process = start(*train(home, "--steps", 4))
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0
    assert told == "The output is read by nobody any more; the command goes on.\n"
    assert (home / "run/report/scores.json").exists()
    assert "mean_iou" in (home / "run/metrics.jsonl").read_text()


def test_a_terminal_that_knows_ascii_alone_and_is_closed(tmp_path):
    home = tiny.make_data(tmp_path / "data")
    ours, theirs = os.openpty()
    take = "import os, sys; os.login_tty(int(sys.argv[1])); os.execv(sys.executable, sys.argv[2:])"
    command = [sys.executable, "-c", take, theirs, sys.executable]
    command += train(home, "--steps", 10**6, "--evaluate-every", 10**6)
    environment = os.environ | {
        "TERM": "xterm", "LANG": "C", "PYTHONIOENCODING": "ascii", "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    process = subprocess.Popen([str(word) for word in command], env=environment, pass_fds=[theirs])
    os.close(theirs)
    try:
        shown = b""
        while b"img/s" not in shown:
            shown += os.read(ours, 1000)
        os.close(ours)
        assert process.wait(120) == 128 + signal.SIGHUP
    finally:
        process.kill()
        process.wait()
    assert b"Error" not in shown and shown.isascii()
    with Checkpoints(home / "run/checkpoints") as checkpoints:
        assert checkpoints.newest


def test_other_verbs_end_without_a_traceback(start, tmp_path):
    home = tiny.make_data(tmp_path / "data")
    process = start(*train(home))
    assert end(process)[2] == 0
    for i in range(2000):
        shutil.copy(home / "images/val/0.png", home / f"{i}.png")
    process = start("-m", "segjax", "predict", home / "run", home)
    wait_for("0_overlay.png", process.stdout)
    process.send_signal(signal.SIGINT)
    _, told, status = end(process)
    assert (status, told) == (130, "Interrupted.\n")
