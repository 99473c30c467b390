"""One training in a run folder at a time; all else may look on while it trains."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
import tiny

from segjax.commands import lock
from segjax.commands.lock import locked
from segjax.commands.run import Run
from segjax.commands.trained import load_step, read
from segjax.errors import SegjaxError, SegjaxWarning
from segjax.recipe import main
from segjax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Data with a run in `run`, which another process trains, saving all the time."""
    home = tiny.make_data(tmp_path_factory.mktemp("training"))
    paths = [str(Path(tiny.__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-u", tiny.__file__, *train(home)]
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)
    for _ in range(3):  # of the third evaluation, the first checkpoint is written
        assert any("mean_iou" in line for line in process.stdout)
    yield home, process
    process.kill()
    process.communicate()


def train(home, *more):
    run = ["--run", str(home / "run")]
    return ["train", "--data", str(home), *run, "--steps", str(10**6), *more]


def test_a_run_that_trains_can_be_used(training):
    """It replaces its checkpoints meanwhile, of which none may vanish under who reads it."""
    home, process = training
    steps = set()
    for i in range(24):
        step, segmenter = load_step(Run(home / "run"), ("best", "newest")[i % 2])
        steps.add(step)
        assert segmenter.predict(home / "images/val/0.png").shape == (16, 16)
    assert process.poll() is None and len(steps) > 5


def test_a_checkpoint_that_vanishes_while_it_is_read(tmp_path, monkeypatch):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.zeros(2)}, {"mean_iou": step / 10})
    verify = Checkpoints.verify

    def removed(checkpoints, step):
        (checkpoints.folder / str(step)).rename(checkpoints.folder / f"{step}.deleted")
        verify(checkpoints, step)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "verify", lambda c, s: removed(c, s) if s == 2 else verify(c, s))
        for which in ("newest", "best"):
            assert read(tmp_path, which, lambda _, step: step) == (1, 1)
            (tmp_path / "checkpoints/2.deleted").rename(tmp_path / "checkpoints/2")
    with pytest.raises(SegjaxError, match="replaces its checkpoints faster than they can be read"):
        read(tmp_path, "best", lambda checkpoints, step: removed(checkpoints, step), tries=2)


@pytest.mark.parametrize("more", [(), ("--restart", "--yes")], ids=["go on", "restart"])
def test_a_second_training_is_refused_and_told_who_trains(training, capsys, more):
    home, process = training
    with pytest.raises(SystemExit) as stopped:
        main(tiny.TinyRecipe, train(home, *more))
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and process.poll() is None
    assert f"{home / 'run'}: process {process.pid} on {socket.gethostname()}, started " in told
    assert "is training there. Wait for its end, stop it, or name another folder" in told


def test_a_lock_dies_with_its_owner(training):
    """However it dies; what it leaves behind locks nothing."""
    home, process = training
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert (home / "run" / "lock").exists()
    with locked(home / "run"):
        assert str(os.getpid()) in (home / "run" / "lock").read_text()
    assert not (home / "run" / "lock").exists()


def test_a_start_that_fails_leaves_no_folder(tmp_path):
    run = tmp_path / "runs" / "first"
    with pytest.raises(KeyError), locked(run):
        assert (run / "lock").exists()
        raise KeyError
    assert not [*tmp_path.iterdir()]
    run.mkdir(parents=True)
    with locked(run):
        pass
    assert run.exists()  # it was there before
    with locked(run):
        (run / "recipe.json").touch()
        with pytest.raises(SegjaxError, match="is training there"), locked(run):
            pass
    assert [path.name for path in run.iterdir()] == ["recipe.json"]


def test_a_folder_of_other_things_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("long")
    for folder in (tmp_path, tmp_path / "thesis.txt"):
        with locked(folder):
            assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_is_removed_meanwhile(tmp_path):
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "lock").unlink()
        (tmp_path / "run").rmdir()
        with locked(tmp_path / "run"):  # another one by now
            pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    told = "keeps no locks .Function not implemented"
    with pytest.warns(SegjaxWarning, match=told), locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
