"""Ctrl-C and SIGTERM, once and twice, as processes are sent them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

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
    out, told = process.communicate(timeout=30)
    assert "Traceback" not in told and "Exception" not in told, told
    return out, told, process.returncode


def train(home, *more):
    return [tiny.__file__, "train", "--data", home, "--run", home / "run", *more]


def test_once_stops_after_the_step_and_the_same_command_goes_on(start, tmp_path):
    home = tiny.make_data(tmp_path / "data")
    command = train(home, "--steps", 10**6, "--evaluate-every", 10**6)
    done = 0
    for number in (signal.SIGINT, signal.SIGTERM):
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
