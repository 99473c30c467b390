"""A new run from the whole state of another."""

import json
import shutil
from dataclasses import dataclass

import jax
import numpy as np
import optax
import pytest
from recipes import state_of
from tiny import TinyRecipe

from segjax.recipe import main
from segjax.training import optimizers, sharding


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """As `trained` has it; and without the report."""
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda *_, **__: make_mesh(jax.devices()[:1]))
    monkeypatch.setattr("segjax.commands.train.evaluate", lambda *_, **__: {})


@dataclass(frozen=True, kw_only=True)
class Constant(TinyRecipe):
    """Whose first steps do not depend on how many there are."""

    def schedule(self):
        return optimizers.constant(self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class Plain(Constant):
    def optimizer(self):
        return optax.sgd(1.0)


def train(home, run, *options, recipe=Constant):
    main(recipe, ["train", "--data", str(home), "--run", str(run), *map(str, options)])


def refused(capsys, *arguments, **recipe):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train(*arguments, **recipe)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def two_steps(trained):
    """A run of two constant steps."""
    make_mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda *_, **__: make_mesh(jax.devices()[:1]))
        patch.setattr("segjax.commands.train.evaluate", lambda *_, **__: {})
        train(trained, trained / "two", "--steps", 2)
    return trained / "two"


def starts(run):
    return json.loads((run / "environment.json").read_text())


def test_it_goes_on_as_the_other_would_have(trained, two_steps, tmp_path, capsys):
    """Parameters, optimiser, step and the order of the data: to the bit."""
    new, whole = tmp_path / "new", tmp_path / "whole"
    before = {path: path.read_bytes() for path in two_steps.rglob("*") if path.is_file()}
    train(trained, whole, "--steps", 4)
    capsys.readouterr()
    train(trained, new, "--steps", 4, "--fork", two_steps)
    told = capsys.readouterr().out
    assert f"{new}: a new run, from the whole state of {two_steps} at step 2; to step 4" in told
    jax.tree.map(np.testing.assert_array_equal, state_of(new), state_of(whole))
    assert starts(new)[0]["forked_from"] == {"run": str(two_steps), "step": 2}
    lines = [json.loads(line) for line in (new / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "learning_rate" in line] == [3, 4]
    assert [line["step"] for line in lines if "mean_iou" in line] == [2, 3, 4]  # as it begins, too
    assert before == {path: path.read_bytes() for path in two_steps.rglob("*") if path.is_file()}


def test_other_settings_are_refused_and_may_be_forked(trained, two_steps, tmp_path, capsys):
    settings = ["--steps", 3, "--learning-rate", 0.5, "--batch-size", 1, "--ema", 0.9]
    told = refused(capsys, trained, two_steps, *settings)
    assert "  batch_size: 2 in the run, 1 asked for\n" in told
    assert "  learning_rate: 0.001 in the run, 0.5 asked for\n" in told
    assert f"Or begin a new run, from this one's state with --fork {two_steps} or from" in told
    new = tmp_path / "new"
    train(trained, new, *settings, "--fork", two_steps)
    # The average starts at the parameters, of which it has the structure.
    assert jax.tree.structure(state_of(new)[1]["ema"]["params"]) == jax.tree.structure(
        state_of(new)[1]["params"]
    )
    with pytest.raises(AssertionError):
        jax.tree.map(
            np.testing.assert_array_equal,
            state_of(new)[1]["params"],
            state_of(two_steps)[1]["params"],
        )


def test_the_same_command_goes_on(trained, two_steps, tmp_path, capsys):
    new = tmp_path / "new"
    train(trained, new, "--steps", 3, "--fork", two_steps)
    for more in (("--fork", two_steps), ()):
        capsys.readouterr()
        train(trained, new, "--steps", 4, *more)
        told = capsys.readouterr().out
        assert "going on from step 3 of 4" in told or "at step 4 already" in told
    # Killed before its first checkpoint, it begins so again, asked for or not.
    for path in (new / "checkpoints").iterdir():
        shutil.rmtree(path)
    (new / "metrics.jsonl").unlink()
    train(trained, new, "--steps", 3)
    assert f"from the whole state of {two_steps} at step 2" in capsys.readouterr().out


def test_another_optimiser_is_named_and_nothing_is_written(trained, two_steps, tmp_path, capsys):
    told = refused(
        capsys, trained, tmp_path / "new", "--steps", 3, "--fork", two_steps, recipe=Plain
    )
    assert f"{two_steps / 'checkpoints/2'}: the checkpoint is of another network, class" in told
    assert "opt_state.0.mu.Conv_0.bias: (2,) stored, absent wanted" in told
    assert "its weights alone can be taken: --start-from" in told
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_forked(trained, two_steps, tmp_path, capsys):
    new = tmp_path / "new"
    told = refused(capsys, trained, new, "--steps", 2, "--fork", two_steps)
    assert f"{two_steps} is at step 2, and the new run ends at step 2: nothing is left" in told
    told = refused(capsys, trained, new, "--steps", 3, "--fork", tmp_path / "nowhere")
    assert "nowhere: no run here" in told
    told = refused(capsys, trained, two_steps, "--steps", 3, "--fork", two_steps)
    assert "a run cannot be begun from itself" in told
    told = refused(capsys, trained, two_steps, "--steps", 3, "--fork", trained / "run")
    assert "two: holds a run that was not begun from another. Drop --fork to go on" in told
    assert not new.exists()
