"""A first start that fails binds nobody, and data that teach nothing are no training."""

import sys

import jax
import numpy as np
import pytest
from PIL import Image
from recipes import state_of
from tiny import TinyRecipe, make_data

from segjax.commands.run import never_saved
from segjax.recipe import main
from segjax.training import sharding


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sys.modules["segjax.commands.train"], "evaluate", lambda *_, **__: {})
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda *_, **__: make_mesh(jax.devices()[:1]))


@pytest.fixture
def home(tmp_path):
    return make_data(tmp_path / "data")


def train(home, *options):
    main(TinyRecipe, ["train", "--data", str(home), "--run", str(home / "run"), *map(str, options)])


def fails(capsys, home, *options):
    with pytest.raises(SystemExit) as stopped:
        train(home, *options)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_training_that_came_to_no_checkpoint(home, capsys, monkeypatch):
    """So another rate may be tried in its folder, which binds from then on."""
    with monkeypatch.context() as patch:
        patch.setattr(TinyRecipe, "loss", lambda self, output, _: output.logits.sum() * np.nan)
        assert "No checkpoint yet" in fails(capsys, home, "--learning-rate", 1e10)
    assert never_saved(home / "run")
    train(home, "--learning-rate", 0.1)
    assert state_of(home / "run")[0] == 2
    said = fails(capsys, home, "--learning-rate", 0.2)
    assert "learning_rate: 0.1 in the run, 0.2 asked for" in said


def test_a_run_to_start_from_that_is_not_there(home, capsys):
    said = fails(capsys, home, "--start-from", home / "rum")
    assert f"{home / 'rum'}: no run here" in said
    assert not (home / "run").exists()
    train(home)


def test_a_run_whose_checkpoints_were_removed_has_saved(home):
    run = home / "run"
    run.mkdir()
    assert never_saved(run)
    (run / "metrics.jsonl").write_text('{"step": 20, "loss": 1.0}\n')
    (run / "checkpoints/3.orbax-checkpoint-tmp").mkdir(parents=True)
    assert never_saved(run)
    (run / "checkpoints/3").mkdir()
    assert not never_saved(run)
    (run / "checkpoints/3").rmdir()
    (run / "metrics.jsonl").write_text('{"step": 20, "mean_iou": null}\n')
    assert not never_saved(run)


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_that_are_all_ignored(split, home, capsys):
    for path in (home / "masks" / split).iterdir():
        Image.fromarray(np.full((16, 16), 255, np.uint8)).save(path)
    said = fails(capsys, home)
    assert f"The 2 masks of {split} hold nothing but 255 = ignore" in said
    assert not (home / "run").exists()


def test_a_mask_that_is_all_ignored_among_others_is_none_of_it(home):
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(home / "masks/train/0.png")
    train(home, "--batch-size", 1)
    assert state_of(home / "run")[0] == 2


def test_nothing_to_score(trained, tmp_path, capsys):
    data, scores = make_data(tmp_path / "other"), trained / "run/report/scores.json"
    before = scores.read_bytes()
    for path in (data / "masks/val").iterdir():
        Image.fromarray(np.full((16, 16), 255, np.uint8)).save(path)
    with pytest.raises(SystemExit):
        main(TinyRecipe, ["evaluate", "--run", str(trained / "run"), "--data", str(data)])
    assert "Every pixel of the 2 pictures of val is 255" in capsys.readouterr().err
    assert scores.read_bytes() == before
