"""Whole runs through the commands, and what a user's mistakes are told."""

import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from segjax import experiment, verbs, visualise
from segjax.checkpoint import Checkpoints
from segjax.data.voc import VocSegmentation
from segjax.models import Output
from segjax.progress import RunLog
from segjax.report import read_metrics
from segjax.run import Run

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))  # as for a script that is run; some share what camvid.py has
SCRIPTS = sorted(path for path in EXPERIMENTS.glob("*.py") if "main(" in path.read_text())
SMALL = {
    "unet_shapes": "--canvas 32 32 --crop 32 32 --widths 4 8 --pictures 40 --held-out 9",
    "fcn8s_shapes": "--canvas 32 32 --crop 32 32 --widths 4 4 4 8 8 --classifier-width 8 "
    "--pictures 40 --held-out 9",
    "unet_isbi": "--canvas 40 44 --crop 32 32 --widths 4 8 --held-out 2",
    "unet_camvid": "--canvas 40 44 --crop 32 32 --widths 4 8",
    "fcn8s_camvid": "--canvas 40 44 --crop 32 32 --widths 4 4 4 8 8 --classifier-width 8",
    "setr_pup_camvid": "--canvas 40 44 --crop 32 32 --width 8 --depth 2 --heads 2 "
    "--decoder-channels 4 --auxiliary-taps 0 1",
    "unet_dsb2018": "--canvas 40 44 --crop 32 32 --widths 4 8",
    "unetplusplus_dsb2018": "--canvas 40 44 --crop 32 32 --widths 4 8",
}
SMALL["fcn8s_voc"] = SMALL["fcn8s_camvid"] + " --buckets 40 44 48 48"
SMALL["ablation_fusion_camvid"] = SMALL["fcn8s_camvid"] + " --fusion concat"
SMALL["ablation_upsampling_camvid"] = SMALL["fcn8s_camvid"] + " --upsampling learned"

FOLDERS = {"camvid": "folder", "isbi": "isbi", "dsb2018": "nuclei", "voc": "voc"}  # fixtures


def recipe_of(name):
    """The Recipe class of a script in experiments/."""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and inspect look a class up
    spec.loader.exec_module(module)
    (found,) = [
        x
        for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, experiment.Recipe) and x.__module__ == name
    ]
    return found


def run(name, *arguments, fails=None, capsys=None):
    """One command in this process; where it `fails`, the text it prints to stderr."""
    if not fails:
        experiment.main(recipe_of(name), [str(a) for a in arguments])
        return ""
    with pytest.raises(SystemExit) as stopped:
        experiment.main(recipe_of(name), [str(a) for a in arguments])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def small(name, *more):
    return ["--batch-size", 8, "--steps", 4, "--evaluate-every", 2, *SMALL[name].split(), *more]


@pytest.fixture
def folder(tmp_path):
    """A folder data set of CamVid's and ISBI's layouts in one: 8 pictures a split."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (40, 44, 3), np.uint8)
            mask = rng.integers(0, 12, (40, 44), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"data/images/{split}/{i}.jpg")
            Image.fromarray(mask).save(tmp_path / f"data/masks/{split}/{i}.png")
    return tmp_path / "data"


@pytest.fixture
def isbi(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "isbi" / kind).mkdir(parents=True)
    for i in range(6):
        cells = rng.integers(0, 2, (40, 44), np.uint8) * 255
        Image.fromarray(cells).save(tmp_path / f"isbi/images/{i}.png")
        Image.fromarray(cells).save(tmp_path / f"isbi/masks/{i}.png")
    return tmp_path / "isbi"


@pytest.fixture
def nuclei(tmp_path):
    rng = np.random.default_rng(0)
    home = tmp_path / "dsb2018"
    for kind in ("images", "masks_instance"):
        (home / kind).mkdir(parents=True)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 44, 4), np.uint8)).save(home / f"images/{i}.png")
        numbers = rng.integers(0, 370, (40, 44)).astype(np.uint16)
        Image.fromarray(numbers).save(home / f"masks_instance/{i}.png")
    (home / "train.txt").write_text("0\n1\n2\n3\n4\n5\n")
    (home / "val.txt").write_text("6\n7\n")
    return home


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """As `prepare` leaves it."""
    rng = np.random.default_rng(0)

    def encoded(pixels, kind):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        return file.getvalue()

    def examples(height):
        for i in range(8):
            picture = rng.integers(0, 256, (height, 44 - i), np.uint8)
            mask = rng.choice([0, 1, 20, 255], picture.shape).astype(np.uint8)
            picture = encoded(np.stack([picture] * 3, -1), "jpeg")
            yield i, {"image": picture, "mask": encoded(mask, "png"), "id": f"2007_{i}"}

    builder = VocSegmentation(config="2012_sbd", data_dir=tmp_path / "voc")
    # Held-out pictures fit the second of the buckets, but not the canvas.
    splits = {"trainaug": examples(40), "val": examples(46)}
    monkeypatch.setattr(builder, "_split_generators", lambda downloads: splits)
    builder.download_and_prepare(file_format="array_record")
    return tmp_path / "voc"


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
    assert report == {"scores.md", "scores.json", "curves.png", "preview.png", "overlays"}
    scores = json.loads((home / "report/scores.json").read_text())
    logged = [r["mean_iou"] for r in read_metrics(home / "metrics.jsonl") if "mean_iou" in r]
    assert len(logged) == 2 and scores["mean_iou"] == pytest.approx(max(logged), abs=0)

    assert ("object_f1" in scores) == (folder == "nuclei")  # its masks number the objects

    # Again: nothing left to train, the same scores; also for another batch size.
    run(name, "train", "--run", home, *small(name, *data))
    assert "going on from step 4 of 4" in capsys.readouterr().out
    run(name, "evaluate", "--run", home, "--batch-size", 16)
    assert json.loads((home / "report/scores.json").read_text()) == scores
    capsys.readouterr()
    tile = ("--tile", {"unet": 24, "setr": 48}.get(name[:4], 64))
    run(name, "evaluate", "--run", home, *tile)
    plan = "what it would give" if "setr" in name else "those of the whole picture"
    assert plan in capsys.readouterr().out
    tiled = json.loads((home / "report/scores.json").read_text())
    assert tiled["mean_iou"] == pytest.approx(scores["mean_iou"], abs=1e-4)

    picture = tmp_path / "odd.png"
    Image.new("RGBA", (21, 33), (9, 8, 7, 6)).save(picture)
    run(name, "predict", picture, "--run", home, "--out", tmp_path / "out")
    with Image.open(tmp_path / "out/odd.png") as label:
        assert label.mode == "P" and label.size == (21, 33)
        assert np.asarray(label).max() < len(scores["classes"])
    with Image.open(tmp_path / "out/odd_overlay.png") as overlay:
        assert overlay.size == (21, 33)
    run(name, "predict", picture, "--run", home, "--out", tmp_path / "tiled", *tile)
    assert (tmp_path / "tiled/odd.png").read_bytes() == (tmp_path / "out/odd.png").read_bytes()

    if "setr" in name:  # whose windows of 32 pixels are averaged
        images = np.random.default_rng(0).integers(0, 256, (1, 40, 44, 3), np.uint8)
        logits = []
        for gaussian in (False, True):
            loaded = verbs.load(Run(home), "best", tile=32, gaussian=gaussian, batch_size=8)
            logits.append(loaded[1](loaded[2], images))
        assert np.ptp(logits[0] - logits[1]) > 0
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
    images, truth = jax.jit(experiment.make_prepare(recipe, margin=2))(jax.random.key(0), batch)
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


def test_show_augment_draws_a_sheet(isbi, tmp_path):
    """The pictures with their labels on the left, four different augmentations beside each."""
    out = tmp_path / "new" / "sheet"
    run("unet_isbi", "show-augment", "--out", out, *small("unet_isbi", "--data", isbi))
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (8 + 4 * (40 + 8), 8 + (44 + 8) + 4 * (32 + 8), 3)
    for row, record in enumerate((0, 1, 2, 3)):  # the last two of six are held out
        example = recipe_of("unet_isbi")(data=isbi, held_out=2).source("train")[record]
        original = visualise.overlay(
            example["image"], example["label"], ((220, 50, 47), (238, 232, 213))
        )
        top = 8 + row * 48
        np.testing.assert_array_equal(sheet[top : top + 40, 8:52], original)
        cells = [sheet[top : top + 32, left : left + 32] for left in range(60, 220, 40)]
        assert len({cell.tobytes() for cell in cells}) == 4
        assert all(cell.std() > 1 for cell in cells)


def test_show_augment_of_a_script_by_module(tmp_path):
    def shell(*command):
        return subprocess.run(
            [sys.executable, "-m", "segjax", "show-augment", *map(str, command)],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    ran = shell(EXPERIMENTS / "unet_shapes.py", "--canvas", 32, 32, "--pictures", 2)
    assert ran.returncode == 0, ran.stderr
    with Image.open(tmp_path / "unet_shapes_augment.png") as sheet:
        assert sheet.size == (8 + 5 * 40, 8 + 2 * 40)
    ran = shell(tmp_path / "absent.py")
    assert ran.returncode == 2 and "absent.py: no such file" in ran.stderr


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


def narrow_vgg16():
    """Tensors as torchvision's, of the widths of SMALL."""
    rng = np.random.default_rng(0)
    layers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    widths = (3,) + (4,) * 7 + (8,) * 6
    shapes = {
        f"features.{n}": (width, channels, 3, 3)
        for n, width, channels in zip(layers, widths[1:], widths[:-1], strict=True)
    } | {"classifier.0": (8, 8 * 49), "classifier.3": (8, 8), "classifier.6": (1000, 8)}
    tensors = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
    return tensors | {f"{name}.bias": rng.normal(size=shape[0]) for name, shape in shapes.items()}


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


def test_a_run_of_another_network_is_no_start(folder, tmp_path, capsys):
    run("unet_shapes", "train", "--run", tmp_path / "unet", *small("unet_shapes", "--steps", 1))
    arguments = small("fcn8s_camvid", "--data", folder, "--start-from", tmp_path / "unet")
    told = run(
        "fcn8s_camvid", "train", "--run", tmp_path / "x", *arguments, fails=True, capsys=capsys
    )
    assert "has no array of this network's names and shapes" in told


def test_compute_in_bfloat16(tmp_path):
    home = tmp_path / "run"
    run("unet_shapes", "train", "--run", home, *small("unet_shapes", "--compute", "bfloat16"))
    _, state = state_of(home)
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {np.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state["batch_stats"])} == {np.dtype("float32")}
    assert json.loads((home / "recipe.json").read_text())["model"]["fields"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_cost_needs_no_data(script, capsys):
    name = script.stem
    data = [] if name.endswith("shapes") else ["--data", "nowhere"]
    run(name, "cost", *small(name, *data))
    told = capsys.readouterr().out
    for row in ("parameters", "FLOPs", "temporaries", "compile time"):
        assert row in told


def test_cost_counts_all_blocks_of_a_loop(capsys):
    """SETR's blocks are one loop, of which XLA counts the body once."""

    def flops(depth):
        small = "--canvas 32 32 --crop 32 32 --width 128 --decoder-channels 4 --auxiliary-taps 0 1"
        run("setr_pup_camvid", "cost", "--data", "nowhere", *small.split(), "--depth", depth)
        return float(re.search(r"FLOPs per device\W+([\d.]+) G", capsys.readouterr().out)[1])

    # Two blocks more: 24 W² FLOPs a token, forward and twice backward; and attention, norms …
    assert 1 < (flops(4) - flops(2)) / (2 * 3 * 24 * 128**2 * 4 / 1e9) < 1.5


def state_of(home):
    """The step and the arrays of a run's newest checkpoint."""
    with Checkpoints(home / "checkpoints") as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax: no shardings are given
        return checkpoints.newest, checkpoints._manager.restore(checkpoints.newest)


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
        pytest.raises(SystemExit, match=f"Interrupted after step {step}; the same command"),
    ):
        patch.setattr(RunLog, "step", interrupt)
        yield


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
    assert state_of(tmp_path / "resumed")[0] == 5
    run("unet_shapes", "evaluate", "--run", tmp_path / "resumed")  # nothing is logged yet
    assert not (tmp_path / "resumed/report/curves.png").exists()
    run("unet_shapes", "train", "--run", tmp_path / "resumed", *arguments)
    assert "going on from step 5 of 7" in capsys.readouterr().out

    (step, straight), (same, resumed) = map(state_of, (tmp_path / "straight", tmp_path / "resumed"))
    assert step == same == 7
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert len(json.loads((tmp_path / "resumed/environment.json").read_text())) == 2


@pytest.mark.parametrize("broken", ["images/train/5.jpg", "masks/val/3.png"])
def test_a_file_that_breaks_amid_training_loses_nothing(
    broken, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(experiment.audit, "check", lambda *_, **__: None)  # whole until then
    whole = (folder / broken).read_bytes()
    (folder / broken).write_bytes(whole[:200])
    arguments = ["--run", tmp_path / "run", *small("unet_camvid", "--data", folder)]
    arguments += ["--batch-size", 1, "--steps", 12, "--evaluate-every", 8]
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
    make_mesh = experiment.sharding.make_mesh
    patch.setattr(experiment.sharding, "make_mesh", lambda *_: make_mesh(jax.devices()[:1]))
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
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


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
    assert "bad.png" in told and "none.png" in told and "The other 1 of 3 are done" in told
    assert (home / "predictions/good.png").exists()
    told = run("unet_shapes", "predict", "--run", home, good, good, fails=True, capsys=capsys)
    assert "Several pictures would be written to" in told


def test_moved_data(folder, tmp_path, capsys):
    home, moved = tmp_path / "run", tmp_path / "moved"
    arguments = ["--run", home, *small("unet_camvid")]
    run("unet_camvid", "train", *arguments, "--data", folder)
    scores = (home / "report/scores.json").read_text()
    folder.rename(moved)
    told = run("unet_camvid", "evaluate", "--run", home, fails=True, capsys=capsys)
    assert str(folder) in told
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


def test_help_says_what_fields_mean(capsys):
    with pytest.raises(SystemExit):
        experiment.main(recipe_of("unet_isbi"), ["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for text in ("Folder with images/ and masks/", "Slices held out", "Training steps", "--run"):
        assert text in told


def test_two_processes_train_as_one(tmp_path):
    """The whole command in two processes of one device each, and in one of two devices."""

    def start(home, **environment):
        command = [sys.executable, EXPERIMENTS / "unet_shapes.py", "train", "--run", home]
        command += small("unet_shapes") + ["--distributed"] * bool(len(environment) > 1)
        return subprocess.Popen(
            list(map(str, command)),
            cwd=tmp_path, env=os.environ | environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = {
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    started = [start("two", **both, JAX_PROCESS_ID=str(i)) for i in range(2)]
    started.append(start("one", JAX_NUM_CPU_DEVICES="2"))
    for process in started:
        told = process.communicate(timeout=300)[1]
        assert process.returncode == 0, told

    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 3  # a line of training, two of scores
    assert one[1]["loss"] == pytest.approx(two[1]["loss"], rel=1e-5)
    scores = [json.loads((tmp_path / n / "report/scores.json").read_text()) for n in ("one", "two")]
    counted = [np.sum(score["confusion"], axis=1).tolist() for score in scores]
    assert counted[0] == counted[1]  # every held-out pixel once
    assert scores[0]["mean_iou"] == pytest.approx(scores[1]["mean_iou"], abs=1e-3)


def test_no_cluster_to_join(tmp_path, capsys, monkeypatch):
    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    arguments = ["--run", tmp_path / "run", *small("unet_shapes", "--distributed")]
    told = run("unet_shapes", "train", *arguments, fails=True, capsys=capsys)
    assert "No cluster could be joined" in told and "JAX_NUM_PROCESSES" in told


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
