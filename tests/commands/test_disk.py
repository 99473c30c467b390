"""A disk that is full, read-only or gone: a sentence, no traceback, and nothing is lost."""

import errno
import json
import os
import shutil
import sys
import time

import jax
import numpy as np
import pytest
from recipes import state_of
from tiny import TinyRecipe, make_data

from segjax.commands import disk
from segjax.commands.system_error import told
from segjax.recipe import main
from segjax.training import progress, sharding
from segjax.training.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One device, and no report in the end."""
    monkeypatch.setattr(sys.modules["segjax.commands.train"], "evaluate", lambda *_, **__: {})
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda *_, **__: make_mesh(jax.devices()[:1]))
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)


@pytest.fixture
def home(tmp_path):
    return make_data(tmp_path / "data")


def train(home, *options):
    options = ["--data", home, "--run", home / "run", "--steps", 4, *options]
    main(TinyRecipe, ["train", *map(str, options)])


def fails(capsys, home, *options):
    with pytest.raises(SystemExit) as stopped:
        train(home, *options)
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and "Traceback" not in captured.err + captured.out
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def undisturbed():
    """Where a run comes that nothing disturbs: found once."""
    return []


@pytest.fixture
def goes_on(home, capsys, undisturbed):
    """The same command, once the disk is mended, comes to the same parameters."""

    def check(step):
        train(home)
        assert f"going on from step {step} of 4" in capsys.readouterr().out
        if not undisturbed:
            other = make_data(home / "other")
            train(other)
            undisturbed.append(state_of(other / "run")[1]["params"])
        arrays = state_of(home / "run")[1]["params"]
        jax.tree.map(np.testing.assert_array_equal, arrays, undisturbed[0])

    return check


class Full:
    """A disk that has room again once `full` is false; from the third save on it has none."""

    def __init__(self, monkeypatch, at=3):
        self.full = True
        saves, save = [], Checkpoints.save

        def counted(checkpoints, *arguments, **named):
            saves.append(arguments)
            if self.full and len(saves) >= at:
                raise ValueError(
                    'RESOURCE_EXHAUSTED: Error writing "params" in OCDBT database at local file '
                    '"/disk/run/checkpoints/3.tmp/": [errno 28: No space left on device]'
                )
            save(checkpoints, *arguments, **named)

        monkeypatch.setattr(Checkpoints, "save", counted)
        self.saves = saves


def test_no_room_for_a_checkpoint(home, capsys, monkeypatch, goes_on):
    usage, calls = shutil.disk_usage, []

    def disk_usage(path):
        calls.append(path)
        return usage(path)._replace(free=10) if len(calls) >= 3 else usage(path)

    with monkeypatch.context() as patch:
        patch.setattr(disk.shutil, "disk_usage", disk_usage)
        said = fails(capsys, home)
    assert "no room for the checkpoint of step 3: 0.0 MiB are free" in said
    assert "The checkpoint of step 2 is kept; the same command goes on from there." in said
    goes_on(2)


def test_a_write_in_the_background_that_fails(home, capsys, monkeypatch, goes_on):
    full = Full(monkeypatch)
    said = fails(capsys, home)
    assert "/disk/run/checkpoints/3.tmp/: No space left on device. Free the disk" in said
    assert "The checkpoint of step 2 is kept" in said
    assert len(full.saves) == 3  # it is not tried again
    full.full = False
    goes_on(2)


def test_a_log_that_cannot_be_written(home, capsys, monkeypatch, goes_on):
    write, lines = progress.RunLog._write, []

    def failing(log, step, values):
        lines.append(step)
        if len(lines) > 3:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        write(log, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(progress.RunLog, "_write", failing)
        said = fails(capsys, home)
    assert "the disk: Read-only file system. " in said and "is kept; the same command" in said
    goes_on(json.loads(said.split("step ")[1].split(" ")[0]))


def test_a_file_limit_is_no_traceback(tmp_path):
    """The system's own refusal: files of at most so many bytes (RLIMIT_FSIZE)."""
    import subprocess

    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from segjax.commands.command import command\n"
        "def write(): Path(sys.argv[1]).write_bytes(bytes(9000))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "command({'write': write, 'other': write}, description='', argv=['write'])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2 and ran.stderr.startswith("error: the disk: File too large. Free")


def test_a_folder_that_is_removed_amid_the_training(home, capsys, monkeypatch, goes_on):
    save, removed = disk.Saver.__call__, []

    def removing(saver, step, *arguments):
        if step == 3 and not removed:
            saver._checkpoints.holds("ema", step=2)  # once that is written
            removed.append(shutil.rmtree(home / "run"))
        save(saver, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(disk.Saver, "__call__", removing)
        said = fails(capsys, home)
    assert f"{home / 'run'}: was removed amid the training" in said
    assert "the state after step 3" in said
    goes_on(3)


def test_a_clock_that_jumps(home, capsys, monkeypatch):
    """A year back: nobody waits for it, the newest is the one saved last, rates are above 0."""
    clock, save = time.time, disk.Saver.__call__

    def jumping(saver, step, *arguments):
        if step == 3:
            patch.setattr(time, "time", lambda: clock() - 365 * 86400)
        save(saver, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(disk.Saver, "__call__", jumping)
        train(home)
    lines = [json.loads(line) for line in (home / "run/metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    assert rates and min(rates) > 0
    jumps = np.diff([line["time"] for line in lines])
    assert jumps.min() < -9e6  # it did
    assert state_of(home / "run")[0] == 4
    train(home, "--steps", 5)
    assert "going on from step 4 of 5" in capsys.readouterr().out


def test_a_write_that_comes_too_late(home, capsys, monkeypatch, goes_on):
    """As Orbax has it, whose patience a clock wears out that jumps ahead."""
    save, saves = Checkpoints.save, []

    def late(checkpoints, step, *arguments):
        saves.append(step)
        if (step == 2 and saves.count(2) == 1) or step == 4:
            raise TimeoutError("ChainedFuture completed 0/3 futures but timed out after 3600 s")
        save(checkpoints, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", late)
        said = fails(capsys, home)
        assert saves == [1, 2, 2, 3, 4, 4]
    assert "not written in time: the disk hangs, or the clock has jumped ahead." in said
    goes_on(3)


@pytest.mark.parametrize("name", ["run", "run/checkpoints", "run/tensorboard"])
def test_a_file_where_a_folder_should_be(name, home, capsys):
    if name != "run":
        train(home, "--steps", 1)
        shutil.rmtree(home / name)
        capsys.readouterr()
    (home / name).write_text("a file")
    assert str(home / name) in fails(capsys, home, "--steps", 2)
    assert (home / name).read_text() == "a file"


@pytest.mark.parametrize("verb", ["evaluate", "predict", "export", "report", "audit"])
def test_out_that_cannot_be_written(verb, trained, tmp_path, capsys, monkeypatch):
    """Told before anything is computed."""
    from segjax import __main__ as segjax_main

    (tmp_path / "out").write_text("a file")
    run = trained / "run"
    pictures = [trained / "images/val/0.png"] if verb == "predict" else []
    for out, said in ((tmp_path / "out", "File exists"), (tmp_path / "out/x", "Not a directory")):
        command = ["segjax", verb, run, *pictures, "--out", out]
        monkeypatch.setattr(sys, "argv", [*map(str, command)])
        with pytest.raises(SystemExit) as stopped:
            segjax_main.main()
        captured = capsys.readouterr()
        assert stopped.value.code == 2
        assert f"error: {tmp_path / 'out'}" in captured.err and said in captured.err
        assert captured.err.count("\n") == 1


def test_predict_stops_where_the_disk_is_full(trained, tmp_path, capsys, monkeypatch):
    from segjax.commands import predict as verb

    tried = []

    def full(*_):
        tried.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(verb, "save_png", full)
    pictures = sorted((trained / "images").glob("*/*.png"))
    (tmp_path / "a.png").write_bytes(pictures[0].read_bytes())
    command = ["predict", pictures[-1], tmp_path / "a.png", "--run", trained / "run"]
    with pytest.raises(SystemExit):
        main(TinyRecipe, [*map(str, command), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "No space left on device" in said and "stopped here" in said and len(tried) == 1
    assert "None of the 2 is done." in said


@pytest.mark.parametrize(
    "error, said",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk: No space left on device. F"),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied. Correct the path"),
        (FileExistsError(17, "File exists", "a", None, "b"), "b: File exists. Correct the path"),
        (ValueError('RESOURCE: file "/a b/": [No space left on device]'), "/a b/: No space left"),
        (ExceptionGroup("two", [KeyError(1), OSError(28, "")]), "the disk: No space left on"),
        (ConnectionRefusedError(111, "Connection refused"), None),
        (ValueError("a mistake of ours"), None),
    ],
    ids=str,
)
def test_errors_of_the_disk_are_told(error, said):
    assert (told(error) or "").startswith(said or "") and (said is None) == (told(error) is None)
    try:
        raise RuntimeError("around it") from error
    except RuntimeError as around:
        assert told(around) == told(error)
