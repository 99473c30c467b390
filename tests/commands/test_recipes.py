"""Recipes by their commands: each trains, evaluates, predicts, goes on, and repeats to the bit."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from recipes import EXPERIMENTS, SCRIPTS, narrow_vgg16, recipe_of, run, small, state_of

from segjax.commands.run import Run
from segjax.commands.step import make_prepare
from segjax.commands.trained import load
from segjax.data.pictures import read_picture
from segjax.evaluation import visualise
from segjax.evaluation.report import read_metrics
from segjax.models import Output
from segjax.recipe import main
from segjax.training.progress import RunLog

# Fixtures by what the names of the recipes end in.
FOLDERS = {
    "camvid": "folder",
    "isbi": "isbi",
    "dsb2018": "nuclei",
    "nuclei": "nuclei",
    "voc": "voc",
}
# What is not the recipe's but its network's is tried with these.
ONE_OF_EACH_NETWORK = ("unet_isbi", "unetplusplus_dsb2018", "fcn8s_voc", "setr_pup_camvid")


def scores_of(home):
    """What `evaluate` wrote, less what it took."""
    scores = json.loads((home / "report/scores.json").read_text())
    assert scores.pop("throughput").keys() == {"pictures_per_second", "device"}
    return scores


def assert_close(scores, others):
    """Equal, but for calibration, which sees how logits are rounded in batches of another size."""
    flat, other = (
        jax.tree.leaves_with_path(x, is_leaf=lambda y: y is None) for x in (scores, others)
    )
    assert [path for path, _ in flat] == [path for path, _ in other]
    for (path, got), (_, want) in zip(flat, other, strict=True):
        if want is not None and "calibration" in jax.tree_util.keystr(path):
            want = pytest.approx(want, rel=1e-2, abs=1e-3)
        assert got == want, path


def held_out_losses(home):
    records = read_metrics(home / "metrics.jsonl")
    return [record["loss"] for record in records if "mean_iou" in record]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_recipe_trains_evaluates_and_predicts(script, request, tmp_path, capsys):
    name, home = script.stem, tmp_path / "run"
    folder = FOLDERS.get(name.split("_")[-1])
    data = ("--data", request.getfixturevalue(folder)) if folder else ()
    run(name, "train", "--run", home, *small(name, *data))
    assert {path.name for path in home.iterdir()} >= {
        "recipe.json", "environment.json", "metrics.jsonl", "checkpoints", "tensorboard", "report"
    }  # fmt: skip
    told = capsys.readouterr().out
    assert "first step" in told and "mean_iou" in told
    report = {path.name for path in (home / "report").iterdir()}
    assert report == {
        "scores.md", "scores.json", "pictures.csv", "curves.png", "reliability.png", "preview.png",
        "overlays",
    }  # fmt: skip
    scores = scores_of(home)
    logged = [r["mean_iou"] for r in read_metrics(home / "metrics.jsonl") if "mean_iou" in r]
    assert len(logged) == 2 and scores["mean_iou"] == pytest.approx(max(logged), abs=0)

    assert all(0 < loss < 10 for loss in held_out_losses(home))
    assert ("object_f1" in scores) == (folder == "nuclei")  # its masks number the objects
    assert ("others" in scores) == (name == "unet_nuclei")  # which names a baseline
    if "others" in scores:
        logits = {"calibration_ece", "calibration_mce"}  # Otsu has none
        assert scores["others"]["Otsu"].keys() == scores["intervals"].keys() - logits
        told = (home / "report/scores.md").read_text()
        assert "| score | network | 95 % interval | Otsu |" in told

    picture = tmp_path / "odd.png"
    Image.new("RGBA", (21, 33), (9, 8, 7, 6)).save(picture)
    run(name, "predict", picture, "--run", home, "--out", tmp_path / "out")
    with Image.open(tmp_path / "out/odd.png") as label:
        assert label.mode == "P" and label.size == (21, 33)
        assert np.asarray(label).max() < len(scores["classes"])
    with Image.open(tmp_path / "out/odd_overlay.png") as overlay:
        drawn = np.asarray(overlay)
    with Image.open(tmp_path / "out/odd.png") as label:
        image = read_picture(picture, Run(home).fields["channels"])
        laid = visualise.overlay(image, label, Run(home).rebuild("palette"))
    np.testing.assert_array_equal(drawn[:33, :21], laid)  # beside and beneath it is the legend

    if name not in ONE_OF_EACH_NETWORK:
        return
    # Again: nothing left to train, the same scores; also for another batch size, and by tiles.
    run(name, "train", "--run", home, *small(name, *data))
    assert "at step 4 already, nothing is left to train" in capsys.readouterr().out
    run(name, "evaluate", "--run", home, "--batch-size", 16)
    assert_close(scores_of(home), scores)
    capsys.readouterr()
    tile = ("--tile", {"unet": 24, "setr": 48}.get(name[:4], 64))
    run(name, "evaluate", "--run", home, *tile)
    plan = "what it would give" if "setr" in name else "those of the whole picture"
    assert plan in capsys.readouterr().out
    tiled = scores_of(home)
    assert tiled["mean_iou"] == pytest.approx(scores["mean_iou"], abs=1e-4)
    run(name, "predict", picture, "--run", home, "--out", tmp_path / "tiled", *tile)
    assert (tmp_path / "tiled/odd.png").read_bytes() == (tmp_path / "out/odd.png").read_bytes()

    if "setr" in name:  # whose windows of 32 pixels are averaged
        images = np.random.default_rng(0).integers(0, 256, (1, 40, 44, 3), np.uint8)
        flat, gaussian = (
            load(home).logits(images, tile=32, gaussian=gaussian) for gaussian in (False, True)
        )
        assert np.ptp(flat - gaussian) > 0
        run(name, "evaluate", "--run", home, "--tile", 32, "--gaussian")


def test_a_weight_map_comes_to_the_loss_with_its_labels():
    """Through a margin and flips; the loss is divided by the valid pixels."""
    recipe = recipe_of("unet_shapes")(canvas=(6, 8))
    label = np.random.default_rng(0).choice([0, 1, 2, 255], (4, 6, 8)).astype(np.uint8)
    weight = 1 + 2 * label.astype(np.float32)
    batch = {
        "image": np.repeat(label[..., None], 3, -1),
        "label": label,
        "weight": weight,
        "epoch": np.zeros(4, np.int32),
        "record": np.arange(4),
    }
    images, truth = jax.jit(make_prepare(recipe, margin=2))(jax.random.key(0), batch)
    assert images.shape == (4, 10, 12, 3)
    assert truth.label.shape == truth.weight.shape == (4, 6, 8)
    np.testing.assert_array_equal(truth.weight, 1 + 2 * truth.label.astype(np.float32))
    np.testing.assert_array_equal(truth.image[..., 0], truth.label)
    assert (np.sort(truth.label, -1) == np.sort(label, -1)).all()
    assert not np.array_equal(truth.label, label)

    logits = np.zeros((4, 6, 8, 3), np.float32)  # log 3 at each pixel
    valid = np.asarray(truth.label) < 255
    want = np.log(3) * np.asarray(truth.weight)[valid].sum() / valid.sum()
    got = recipe.loss(Output(logits), truth)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(
        recipe.loss(Output(logits), truth._replace(weight=None)), np.log(3), rtol=1e-6
    )


def test_a_stage_starts_from_the_run_before_it(folder, tmp_path, capsys):
    """FCN-16s from 32s, 8s from 16s: all weights, and a further score that starts at zero."""
    data = ("--data", folder, "--batch-size", 8)

    def stage(stride, *more):
        arguments = small("fcn8s_camvid", *data, "--stride", stride, "--steps", 1, *more)
        run("fcn8s_camvid", "train", "--run", tmp_path / str(stride), *arguments)
        return state_of(tmp_path / str(stride))[1]["params"]

    before = stage(32)
    for stride, score, arrays in ((16, "score_pool4", 32), (8, "score_pool3", 34)):
        # At a learning rate of 0 what is saved is what it began with.
        params = stage(stride, "--start-from", tmp_path / str(2 * stride), "--learning-rate", 0)
        told = " ".join(capsys.readouterr().out.split())
        begun = f"step 1: {arrays} of {arrays + 2} arrays; at first values: params/{score}/bias"
        assert begun in told
        assert not params[score]["kernel"].any()
        others = {name: layer for name, layer in params.items() if name != score}
        jax.tree.map(np.testing.assert_array_equal, others, before)
        before = params


def test_fcn_starts_from_torchvisions_vgg16(folder, tmp_path, capsys):
    """At a learning rate of 0 what is saved is what it began with; a file that lacks a layer is
    told."""
    tensors = narrow_vgg16()
    np.savez(tmp_path / "vgg16.npz", **tensors)
    data = ("--data", folder, "--vgg16", tmp_path / "vgg16.npz")
    arguments = small("fcn8s_camvid", *data, "--steps", 1, "--learning-rate", 0)
    run("fcn8s_camvid", "train", "--run", tmp_path / "run", *arguments)
    params = state_of(tmp_path / "run")[1]["params"]
    stem = tensors["features.0.weight"].transpose(2, 3, 1, 0).astype(np.float32)
    np.testing.assert_array_equal(params["vgg16"]["conv1_1"]["kernel"], stem)
    np.testing.assert_array_equal(params["fc6"]["bias"], np.float32(tensors["classifier.0.bias"]))
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    assert recipe["normalise"]["fields"]["mean"] == [123.675, 116.28, 103.53]

    del tensors["features.28.weight"]
    np.savez(tmp_path / "vgg16.npz", **tensors)
    told = run(
        "fcn8s_camvid", "train", "--run", tmp_path / "x", *arguments, fails=True, capsys=capsys
    )
    assert "missing: params/vgg16/conv5_3/kernel" in told


@pytest.mark.parametrize(
    "name, fields",
    [
        ("ablation_upsampling_camvid", {"upsampling": "learned"}),
        ("fcn8s_camvid", {"channels": 1}),
        ("fcn8s_camvid", {"channels": 4}),
    ],
)
def test_learned_enlargements_and_any_channels_start_from_vgg16_too(name, fields, tmp_path):
    tensors, vgg16 = narrow_vgg16(), tmp_path / "vgg16.npz"
    np.savez(vgg16, **tensors)
    small = {"widths": (4, 4, 4, 8, 8), "classifier_width": 8}
    recipe = recipe_of(name)(data=tmp_path, vgg16=vgg16, **small, **fields)
    images = jax.ShapeDtypeStruct((1, 32, 32, recipe.channels), np.float32)
    shapes = jax.eval_shape(recipe.model().init, jax.random.key(0), images)
    begun = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    params = recipe.initial(begun)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, begun["params"])
    np.testing.assert_array_equal(
        params["vgg16"]["conv5_3"]["bias"], np.float32(tensors["features.28.bias"])
    )
    anew = {part for part, leaves in params.items() if not any(map(np.any, leaves.values()))}
    assert anew == params.keys() - {"vgg16", "fc6", "fc7"}


def test_compute_in_bfloat16(tmp_path):
    home = tmp_path / "run"
    run("unet_shapes", "train", "--run", home, *small("unet_shapes", "--compute", "bfloat16"))
    _, state = state_of(home)
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {np.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state["batch_stats"])} == {np.dtype("float32")}
    assert json.loads((home / "recipe.json").read_text())["model"]["fields"]["dtype"] == "bfloat16"


@contextlib.contextmanager
def interrupted_after(step):
    """The signal comes in the step before, as a cluster sends it."""
    told = RunLog.step

    def interrupt(log, number, *rest, **more):
        if number == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        told(log, number, *rest, **more)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(SystemExit) as stopped,
    ):
        patch.setattr(RunLog, "step", interrupt)
        yield
    assert stopped.value.code == 128 + signal.SIGTERM


def test_workers_caches_and_buckets_change_nothing(folder, tmp_path, capsys):
    """Also where a run goes on with others."""
    train = ["train", *small("unet_camvid", "--data", folder)]

    def run_as(name, *more):
        run("unet_camvid", *train, "--run", tmp_path / name, *more)
        scores = json.loads((tmp_path / name / "report/scores.json").read_text())
        return state_of(tmp_path / name)[1]["params"], scores["mean_iou"]

    params, score = run_as("plain")
    with interrupted_after(2):
        run_as("other", "--cache", "disk", "--workers", 3)
    capsys.readouterr()
    other, _ = run_as("other", "--cache", "memory", "--workers", 1)
    assert "going on from step 2 of 4" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, other, params)
    other, same = run_as("buckets", "--cache", "disk", "--buckets", 40, 44, 48, 48)
    jax.tree.map(np.testing.assert_array_equal, other, params)
    assert same == pytest.approx(score, abs=1e-4)


def test_interrupted_and_resumed_is_bit_identical(tmp_path, capsys):
    arguments = small("unet_shapes", "--steps", 7, "--evaluate-every", 6)
    run("unet_shapes", "train", "--run", tmp_path / "straight", *arguments)

    with interrupted_after(5):
        run("unet_shapes", "train", "--run", tmp_path / "resumed", *arguments)
    assert "Interrupted after step 5; the same command goes on" in capsys.readouterr().err
    assert state_of(tmp_path / "resumed")[0] == 5
    run("unet_shapes", "evaluate", "--run", tmp_path / "resumed")  # nothing is logged yet
    assert not (tmp_path / "resumed/report/curves.png").exists()
    run("unet_shapes", "train", "--run", tmp_path / "resumed", *arguments)
    assert "going on from step 5 of 7" in capsys.readouterr().out

    (step, straight), (same, resumed) = map(state_of, (tmp_path / "straight", tmp_path / "resumed"))
    assert step == same == 7
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert len(json.loads((tmp_path / "resumed/environment.json").read_text())) == 2


def test_help_says_what_fields_mean(capsys):
    with pytest.raises(SystemExit):
        main(recipe_of("unet_isbi"), ["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for text in ("Folder with images/ and masks/", "Slices held out", "Training steps", "--run"):
        assert text in told


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_keeps_each_command_on_its_line(script, capsys):
    with pytest.raises(SystemExit):
        main(recipe_of(script.stem), ["--help"])
    told = capsys.readouterr().out.splitlines()
    commands = [line.strip() for line in script.read_text().splitlines() if "$ python" in line]
    assert commands
    for command in commands:
        assert command.replace(r"\\", "\\") in told


def test_from_the_shell_twice_compiles_once_and_needs_the_folder_alone(tmp_path):
    """As a user would: other working folders, no traceback, exit status, compilation cache."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_NUM_CPU_DEVICES": "1"}

    def shell(*command):
        return subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    script = EXPERIMENTS / "unet_shapes.py"
    other = ("--steps", 3, "--learning-rate", 0.01, "--seed", 1)
    for home, fields, compiled in (("first", (), False), ("second", other, True)):
        ran = shell(script, "train", "--run", home, *small("unet_shapes", *fields))
        assert ran.returncode == 0, ran.stderr
        assert ("; 0 programs compiled" in ran.stdout) == compiled, ran.stdout

    Image.new("RGB", (50, 37)).save(tmp_path / "street.jpg")
    ran = shell("-m", "segjax", "predict", "first", "street.jpg", "--out", "out")
    assert ran.returncode == 0, ran.stderr
    with Image.open(tmp_path / "out/street.png") as label:
        assert label.size == (50, 37)
    ran = shell("-m", "segjax", "evaluate", "first")
    assert ran.returncode == 0 and "mean_iou" in ran.stdout, ran.stderr
    ran = shell("-m", "segjax", "evaluate", "absent")
    assert ran.returncode == 2 and ran.stderr.startswith("error: absent: no run here")
