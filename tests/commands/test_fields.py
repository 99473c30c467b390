"""The fields and methods that every recipe has, each by runs of a recipe that takes a moment."""

import json
import shutil
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import TinyRecipe, make_data

from segjax.commands.evaluate import evaluate
from segjax.commands.run import Run
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
    with pytest.raises(SegjaxError, match="run: its recipe has no test split, but val. Add it to"):
        evaluate(run, split="test")


@dataclass(frozen=True, kw_only=True)
class Misnamed(TinyRecipe):
    """Its author calls the held-out data otherwise."""

    splits = ("train", "valid")


def test_other_splits_are_told(home, capsys):
    with pytest.raises(SystemExit):
        train(home, recipe=Misnamed)
    assert "has the splits train, valid; expected train and val, and" in capsys.readouterr().err
