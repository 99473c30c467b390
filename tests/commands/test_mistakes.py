"""What a user's mistakes are told, and that nothing is lost by them."""

import contextlib
import json

import jax
import numpy as np
import pytest
from PIL import Image
from recipes import run, small, state_of

from segjax.commands.audit import audit as audit_verb
from segjax.data import audit
from segjax.errors import SegjaxError
from segjax.training import sharding


def test_a_run_of_another_network_is_no_start(folder, tmp_path, capsys):
    run("unet_shapes", "train", "--run", tmp_path / "unet", *small("unet_shapes", "--steps", 1))
    arguments = small("fcn8s_camvid", "--data", folder, "--start-from", tmp_path / "unet")
    told = run(
        "fcn8s_camvid", "train", "--run", tmp_path / "x", *arguments, fails=True, capsys=capsys
    )
    assert "has no array of this network's names and shapes" in told


@pytest.mark.parametrize("broken", ["images/train/5.jpg", "masks/val/3.png"])
def test_a_file_that_breaks_amid_training_loses_nothing(
    broken, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(audit, "check", lambda *_, **__: None)  # whole until then
    whole = (folder / broken).read_bytes()
    (folder / broken).write_bytes(whole[:200])
    arguments = ["--run", tmp_path / "run", *small("unet_camvid", "--data", folder)]
    arguments += ["--widths", 4, "--batch-size", 1, "--steps", 12, "--evaluate-every", 8]
    with one_device():
        told = run("unet_camvid", "train", *arguments, fails=True, capsys=capsys)
        assert broken in told and "Get the file again" in told
        done, _ = state_of(tmp_path / "run")
        (folder / broken).write_bytes(whole)
        run("unet_camvid", "train", *arguments)
    if done:
        assert f"going on from step {done} of 12" in capsys.readouterr().out
    assert done == (8 if "val" in broken else done)
    assert state_of(tmp_path / "run")[0] == 12


@contextlib.contextmanager
def one_device():
    """A mesh of one device, so that any batch size divides."""
    patch = pytest.MonkeyPatch()
    make_mesh = sharding.make_mesh
    patch.setattr(sharding, "make_mesh", lambda *_, **__: make_mesh(jax.devices()[:1]))
    try:
        yield
    finally:
        patch.undo()


def test_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path, capsys):
    home = tmp_path / "run"
    arguments = small("unet_shapes", "--steps", 40, "--evaluate-every", 1, "--compute", "float32")
    told = run(
        "unet_shapes", "train", "--run", home, *arguments, "--learning-rate", 1e38,
        fails=True, capsys=capsys,
    )  # fmt: skip
    assert "Training stopped at step" in told and "lower learning rate" in told
    step, state = state_of(home)
    assert f"at step {step + 1}" in told
    assert f"The checkpoint of step {step} is kept." in told
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_loss_that_is_not_finite_before_any_checkpoint(tmp_path, capsys):
    arguments = small("unet_shapes", "--steps", 9, "--evaluate-every", 9, "--learning-rate", 1e38)
    told = run(
        "unet_shapes", "train", "--run", tmp_path / "run", *arguments, fails=True, capsys=capsys
    )
    assert "stopped at step" in told and "held 0–6" in told and "No checkpoint yet." in told


def damage_values(data):
    mask = np.full((40, 44), 3, np.uint8)
    mask[3, 4] = 77
    Image.fromarray(mask).save(data / "masks/train/0.png")


def damage_size(data):
    Image.new("L", (44, 39)).save(data / "masks/train/0.png")


def damage_jpeg(data):
    path = data / "images/train/0.jpg"
    path.write_bytes(path.read_bytes()[:300])


def damage_empty(data):
    for path in data.glob("images/train/*"):
        path.unlink()


def damage_lone(data):
    (data / "masks/train/3.png").unlink()


def damage_rgb(data):
    Image.new("RGB", (44, 40)).save(data / "masks/train/0.png")


def damage_held_out(data):
    Image.new("RGB", (44, 40)).save(data / "masks/val/0.png")


@pytest.mark.parametrize(
    "damage, texts",
    [
        (damage_values, ["masks/train/0.png", "77 (1 pixels)", "`values`"]),
        (damage_size, ["images/train/0.jpg", "masks/train/0.png", "44 × 40", "44 × 39"]),
        (damage_jpeg, ["images/train/0.jpg", "Get the file again"]),
        (damage_empty, ["images/train", "no pictures"]),
        (damage_lone, ["3.jpg", "masks/train", "Add what is missing"]),
        (damage_rgb, ["masks/train/0.png", "class indices are expected", "palette"]),
        (damage_held_out, ["masks/val/0.png", "class indices are expected"]),
    ],
)
def test_bad_data_is_told_before_training(damage, texts, folder, tmp_path, capsys):
    damage(folder)
    arguments = ["--run", tmp_path / "run", *small("unet_camvid", "--data", folder)]
    told = run("unet_camvid", "train", *arguments, fails=True, capsys=capsys)
    assert [text for text in texts if text not in told] == []
    assert not (tmp_path / "run").exists()


def test_size_that_the_network_cannot_take(tmp_path, capsys):
    arguments = small("unet_shapes", "--run", tmp_path / "run", "--crop", 30, 31)
    told = run("unet_shapes", "train", *arguments, fails=True, capsys=capsys)
    assert "got 30×31" in told and "widths: 30 or 32" in told


def test_picture_larger_than_the_canvas(folder, tmp_path, capsys):
    arguments = ["--run", tmp_path / "run", *small("unet_camvid", "--data", folder)]
    told = run("unet_camvid", "train", *arguments, "--canvas", 40, 40, fails=True, capsys=capsys)
    assert "40×44" in told and "canvas of 40×40" in told


def test_batch_that_does_not_divide_among_devices(tmp_path, capsys):
    arguments = small("unet_shapes", "--run", tmp_path / "run", "--batch-size", 12)
    told = run("unet_shapes", "train", *arguments, fails=True, capsys=capsys)
    assert "8 devices" in told and "8 or 16" in told


def test_run_folders_of_others(tmp_path, capsys):
    home = tmp_path / "run"
    run("unet_shapes", "train", "--run", home, *small("unet_shapes"))

    other = run(
        "fcn8s_shapes", "train", "--run", home, *small("fcn8s_shapes"), fails=True, capsys=capsys
    )
    assert "a run of the recipe unet_shapes, not fcn8s_shapes" in other
    wider = small("unet_shapes", "--seed", 3)
    told = run("unet_shapes", "train", "--run", home, *wider, fails=True, capsys=capsys)
    assert "seed: 0 in the run, 3 asked for" in told
    run("unet_shapes", "train", "--run", home, *small("unet_shapes", "--steps", 6))
    assert "going on from step 4 of 6" in capsys.readouterr().out

    # A network of another class count than the checkpoint's.
    stored = json.loads((home / "recipe.json").read_text())
    stored["model"]["fields"]["num_classes"] = 9
    (home / "recipe.json").write_text(json.dumps(stored))
    told = run("unet_shapes", "evaluate", "--run", home, fails=True, capsys=capsys)
    assert "params.logits.bias: (7,) stored, (9,) wanted" in told and "class count" in told


def test_no_run_and_foreign_folder(tmp_path, capsys):
    told = run("unet_shapes", "evaluate", "--run", tmp_path / "no", fails=True, capsys=capsys)
    assert "no run here" in told
    (tmp_path / "thesis.tex").touch()
    arguments = small("unet_shapes", "--run", tmp_path)
    told = run("unet_shapes", "train", *arguments, fails=True, capsys=capsys)
    assert "holds no run" in told and "--run" in told


def test_predict_does_all_that_it_can(tmp_path, capsys):
    home = tmp_path / "run"
    run("unet_shapes", "train", "--run", home, *small("unet_shapes"))
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (40, 30)).save(good)
    bad.write_text("no picture")
    command = ["predict", "--run", home, bad, good, tmp_path / "none.png"]
    told = run("unet_shapes", *command, fails=True, capsys=capsys)
    assert "bad.png" in told and "none.png" in told and "The other 1 of 3 is done" in told
    assert (home / "predictions/good.png").exists()
    told = run("unet_shapes", "predict", "--run", home, good, good, fails=True, capsys=capsys)
    assert "Several pictures would be written to" in told


def test_moved_data(folder, tmp_path, capsys):
    home, moved = tmp_path / "run", tmp_path / "moved"
    arguments = ["--run", home, *small("unet_camvid", "--widths", 4)]
    run("unet_camvid", "train", *arguments, "--data", folder)
    scores = (home / "report/scores.json").read_text()
    folder.rename(moved)
    told = run("unet_camvid", "evaluate", "--run", home, fails=True, capsys=capsys)
    remedy = f"{folder}: no data there. Name the folder where it lies with --data"
    assert remedy in told
    told = run("unet_camvid", "train", *arguments, "--data", folder, fails=True, capsys=capsys)
    assert remedy in told
    with pytest.raises(SegjaxError, match=r"no data there.*--data"):
        audit_verb(home, out=tmp_path / "audit")
    run("unet_camvid", "evaluate", "--run", home, "--data", moved)
    assert (home / "report/scores.json").read_text() == scores
    run("unet_camvid", "train", *arguments, "--data", moved, "--steps", 6)


@pytest.mark.parametrize(
    "wrong, answer",
    [
        (["--stepz", 3], "Perhaps you meant: --steps INT"),
        (["--steps", "many"], "invalid literal for int() with base 10: 'many'"),
        (["--compute", "float8"], "float32"),
        (["--batch-size", 0], "batch_size is 0; expected at least 1"),
        (["--seed", -1], "seed is -1; expected at least 0"),
    ],
)
def test_wrong_fields_are_answered(wrong, answer, capsys):
    told = run("unet_shapes", "train", *wrong, fails=True, capsys=capsys)
    assert answer in " ".join(told.split())


def test_no_cluster_to_join(tmp_path, capsys):
    arguments = ["--run", tmp_path / "run", *small("unet_shapes", "--distributed")]
    told = run("unet_shapes", "train", *arguments, fails=True, capsys=capsys)
    assert "No cluster was found" in told and "JAX_NUM_PROCESSES" in told
