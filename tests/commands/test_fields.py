"""The fields and methods that every recipe has, each by runs of a recipe that takes a moment."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from recipes import state_of
from tiny import TinyRecipe, make_data

from segjax.commands.evaluate import evaluate
from segjax.commands.run import Run
from segjax.commands.step import in_steps
from segjax.errors import SegjaxError
from segjax.recipe import main
from segjax.training import sharding


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """So that a batch of two divides."""
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda *_: make_mesh(jax.devices()[:1]))


@pytest.fixture
def home(tmp_path):
    return make_data(tmp_path / "data")


def train(home, *options, recipe=TinyRecipe, run="run"):
    """Train in the folder `run` of the data's; gives it."""
    main(recipe, ["train", "--data", str(home), "--run", str(home / run), *map(str, options)])
    return home / run


def scores_of(run, place="report"):
    return json.loads((run / place / "scores.json").read_text())


# Splits


@dataclass(frozen=True, kw_only=True)
class WithTest(TinyRecipe):
    """Its data has a test split."""

    splits = ("train", "val", "test")


@pytest.fixture
def tested(home):
    """Data with three pictures to test on, all of the second class."""
    for kind in ("images", "masks"):
        (home / kind / "test").mkdir()
    for i in range(3):
        shutil.copy(home / "images/val/0.png", home / f"images/test/{i}.png")
        Image.fromarray(np.ones((16, 16), np.uint8)).save(home / f"masks/test/{i}.png")
    return home


def test_a_recipe_with_a_test_split_is_reported_on_it(tested, capsys):
    run = train(tested, recipe=WithTest)
    told = capsys.readouterr().out
    assert "2 pictures of val" in told and "3 pictures of test. Look at" in told
    val, test = scores_of(run), scores_of(run, "report/test")
    assert (val["split"], test["split"]) == ("val", "test")
    assert np.sum(val["confusion"]) == 2 * 16 * 16
    assert np.sum(test["confusion"], axis=1).tolist() == [0, 3 * 16 * 16]
    assert val["step"] == test["step"]  # the best on val
    assert (run / "report/test/preview.png").exists()

    shutil.rmtree(run / "report")
    evaluate(run, split="test")  # which needs the folder alone
    assert scores_of(run, "report/test") == test and not (run / "report/scores.json").exists()
    evaluate(run)
    assert scores_of(run) == val
    main(WithTest, ["evaluate", "--run", str(run), "--split", "test", "--out", str(run / "out")])
    assert scores_of(run, "out") == test


def test_the_test_split_is_audited_and_moves_with_the_data(tested, tmp_path, capsys):
    run = train(tested, recipe=WithTest)
    moved = tested.rename(tmp_path / "moved")
    run = moved / "run"
    with pytest.raises(SegjaxError, match=r"no data there.*--data"):
        evaluate(run, split="test")
    evaluate(run, split="test", data=moved)
    with pytest.raises(SystemExit):  # one picture thrice, and in two splits
        main(WithTest, ["audit", "--data", str(moved), "--out", str(tmp_path / "audit")])
    found = json.loads((tmp_path / "audit/audit.json").read_text())
    assert found["splits"].keys() == {"train", "val", "test"}


def test_a_run_without_a_test_split(home):
    """As are those of before, whose recipe.json holds one source."""
    run = train(home)
    assert Run(run).splits == ("val",) and not (run / "report/test").exists()
    with pytest.raises(SegjaxError, match="run: its recipe has no test split, but val"):
        evaluate(run, split="test")


@dataclass(frozen=True, kw_only=True)
class Misnamed(TinyRecipe):
    """Its author calls the held-out data otherwise."""

    splits = ("train", "valid")


def test_other_splits_are_told(home, capsys):
    with pytest.raises(SystemExit):
        train(home, recipe=Misnamed)
    assert "has the splits train, valid; expected train and val, and" in capsys.readouterr().err


# How long


@dataclass(frozen=True, kw_only=True)
class InEpochs(TinyRecipe):
    """Says for how long in epochs, though what it inherits says steps."""

    epochs: float | None = 1.5


@pytest.mark.parametrize(
    "recipe, given, steps, epochs",
    [
        (TinyRecipe, {}, 2, None),
        (TinyRecipe, {"steps": 3}, 3, None),
        (TinyRecipe, {"epochs": 4}, 0, 4),
        (TinyRecipe, {"epochs": None}, 2, None),
        (InEpochs, {}, 0, 1.5),
        (InEpochs, {"steps": 3}, 3, None),
        (InEpochs, {"epochs": 0.5}, 0, 0.5),
        (InEpochs, {"epochs": None}, 2, None),
    ],
    ids=str,
)
def test_what_is_given_outright_wins_over_the_default(recipe, given, steps, epochs):
    made = recipe(data=Path(), **given)
    assert (made.steps, made.epochs) == (steps, epochs)
    assert dataclasses.replace(made, seed=1) == recipe(data=Path(), seed=1, **given)


@pytest.mark.parametrize(
    "epochs, pictures, batch_size, steps",
    [(1, 10, 5, 2), (1, 11, 5, 3), (0.5, 224, 16, 7), (0.1, 30, 1, 3), (0.01, 2, 2, 1)],
)
def test_epochs_in_steps_see_every_picture_that_often(epochs, pictures, batch_size, steps):
    recipe = TinyRecipe(data=Path(), epochs=epochs, batch_size=batch_size)
    counted = in_steps(recipe, range(pictures))
    assert (counted.steps, counted.epochs) == (steps, None)
    # The schedule is that of as many steps.
    same = TinyRecipe(data=Path(), steps=steps, batch_size=batch_size)
    assert jax.tree.leaves(counted.schedule()) == jax.tree.leaves(same.schedule())


def test_epochs_on_the_command_line(home, capsys):
    by_steps = train(home, "--steps", 5, run="by_steps")
    capsys.readouterr()
    run = train(home, "--epochs", 2.5, "--batch-size", 1, run="by_epochs")
    assert "2.5 epochs of 2 pictures are 5 steps of 1." in capsys.readouterr().out
    fields = Run(run).fields
    assert (fields["steps"], fields["epochs"], Run(by_steps).fields["epochs"]) == (5, 2.5, None)
    assert state_of(run)[0] == 5

    # Goes on with more of them, and with steps.
    train(home, "--epochs", 3, "--batch-size", 1, run="by_epochs")
    assert "going on from step 5 of 6" in capsys.readouterr().out
    train(home, "--steps", 7, "--batch-size", 1, run="by_epochs")
    assert "going on from step 6 of 7" in capsys.readouterr().out
    assert Run(run).fields["epochs"] is None


def test_pictures_that_are_skipped_are_no_part_of_an_epoch(home, capsys):
    (home / "images/train/0.png").write_bytes(b"no picture")
    train(home, "--epochs", 4, "--skip-broken")
    assert "4 epochs of 1 pictures are 2 steps of 2." in capsys.readouterr().out


def test_the_cost_of_a_recipe_in_epochs_needs_no_data(capsys):
    main(InEpochs, ["cost"])
    assert "one training step of 2 × 16×16" in capsys.readouterr().out


@dataclass(frozen=True, kw_only=True)
class Endless(TinyRecipe):
    """Says nothing of how long, and what it inherits does not either."""

    steps: int = 0


@pytest.mark.parametrize(
    "recipe, options, told",
    [
        (TinyRecipe, "--steps 2 --epochs 3", "Both --steps and --epochs are given"),
        (TinyRecipe, "--steps=9 --epochs=3", "Both --steps and --epochs are given"),
        (TinyRecipe, "--epochs 0", "epochs is 0.0; expected a number above 0"),
        (TinyRecipe, "--epochs inf", "epochs is inf; expected a number above 0"),
        (TinyRecipe, "--steps 0", "Neither steps nor epochs are given; expected"),
        (TinyRecipe, "--weight-decay nan", "weight_decay is nan; expected a number of at least 0"),
        (TinyRecipe, "--clip -1", "clip is -1.0; expected a length above 0"),
        (TinyRecipe, "--ema 1", "ema is 1.0; expected a decay between 0 and 1, such as 0.999"),
        (TinyRecipe, "--patience 0", "patience is 0; expected at least 1 evaluation"),
        (TinyRecipe, "--log-to tensorbored", "'wandb', 'mlflow'"),
    ],
)
def test_values_that_no_field_can_have_are_told(recipe, options, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(recipe, ["cost", *options.split()])
    assert stopped.value.code == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_both_in_python():
    with pytest.raises(SegjaxError, match=r"Both steps \(9\) and epochs \(3\) are given"):
        TinyRecipe(data=Path(), steps=9, epochs=3)
