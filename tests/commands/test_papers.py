"""Recipes of experiments/papers: their fields are the papers', and each takes two steps."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tifffile
from PIL import Image
from recipes import PAPERS, narrow_vgg16, recipe_of, run, small

from segjax.models.vit import resize_positions
from segjax.training import sharding

# The papers' figures, or where they say nothing, the authors' code's.
WIDTHS = {"fcn": (64, 128, 256, 512, 512), "unet": (64, 128, 256, 512, 1024)}
CAFFE = {"weight_decay": 5e-4, "normalise": ((122.67892, 116.66877, 104.00699), (1.0, 1.0, 1.0))}
FIELDS = {
    "fcn_voc": CAFFE
    | {"steps": 300_000, "batch_size": 1, "learning_rate": 1e-10, "momentum": 0.99}
    | {"stride": 8, "at_once": True, "widths": WIDTHS["fcn"], "classifier_width": 4096},
    "fcn_alexnet_voc": CAFFE
    | {"steps": 100_000, "batch_size": 20, "accumulate": 20, "learning_rate": 1e-4, "momentum": 0.9}
    | {"widths": (96, 256, 384, 384, 256), "classifier_width": 4096},
    "fcn_googlenet_voc": {"batch_size": 20, "learning_rate": 5e-5, "momentum": 0.9}
    | {"weight_decay": 5e-4, "normalise": ((127.5,) * 3, (127.5,) * 3)},
    "unet_isbi": {"batch_size": 1, "crop": (572, 572), "momentum": 0.99, "elastic": 10.0}
    | {"dropout": 0.5, "weighted": True, "widths": WIDTHS["unet"], "weight_decay": 0.0},
    "unetplusplus_nuclei": {"crop": (96, 96), "learning_rate": 3e-4, "losses": ("bce_dice",)}
    | {"dropout": 0.5, "weight_decay": 2e-4, "widths": (32, 64, 128, 256, 512)},
    "setr_cityscapes": {"steps": 80_000, "batch_size": 8, "crop": (768, 768), "learning_rate": 0.01}
    | {"weight_decay": 0.0, "auxiliary_weight": 0.4, "depth": 24, "width": 1024, "heads": 16}
    | {"normalise": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))},
}
NETWORKS = {
    "fcn_voc": {"padding": "authors", "upsampling": "fixed", "dropout": 0.5, "at_once": True},
    "fcn_alexnet_voc": {"variant": "caffe", "upsampling": "fixed", "dropout": 0.5},
    "fcn_googlenet_voc": {"variant": "torchvision", "upsampling": "fixed"},
    "unet_isbi": {"padding": "valid", "norm": "none", "up": "upconv", "dropout": 0.5},
    "unetplusplus_nuclei": {"norm": "none", "up": "upconv", "deep_supervision": True},
    "setr_cityscapes": {"auxiliary_taps": (9, 14, 19, 23), "grid": (48, 48), "channels": 256},
}
PUBLISHED = {
    "fcn_voc": [0.654],
    "fcn_alexnet_voc": [0.480],
    "fcn_googlenet_voc": [0.425],
    "unet_isbi": [0.000353, 0.0382, 0.0611],
    "unetplusplus_nuclei": [0.9252],
    "setr_cityscapes": [0.7934],
}
each_paper = pytest.mark.parametrize("name", [path.stem for path in PAPERS])


@each_paper
def test_fields_are_the_papers(name):
    recipe = recipe_of(f"papers/{name}")(data=Path("nowhere"))
    for field, value in FIELDS[name].items():
        found = getattr(recipe, field)
        found = (found.mean, found.deviation) if field == "normalise" else found
        assert found == value, field
    model = recipe.model()
    for field, value in NETWORKS[name].items():
        assert getattr(model, field) == value, field
    assert [figure.value for figure in recipe.published] == PUBLISHED[name]
    model.geometry.check(*recipe.crop)
    assert recipe.schedule()(0) == pytest.approx(recipe.learning_rate)


def test_other_networks_have_their_own_figures():
    def published(name, **fields):
        (figure,) = recipe_of(f"papers/{name}")(data=Path("nowhere"), **fields).published
        return figure.value

    stages = {32: 0.636, 16: 0.650, 8: 0.655}
    assert {s: published("fcn_voc", stride=s, at_once=False) for s in stages} == stages
    networks = {"unet": 0.9077, "wide-unet": 0.9092, "unetplusplus": 0.9263}
    assert {n: published("unetplusplus_nuclei", network=n) for n in networks} == networks
    decoders = {"naive": 0.7790, "pup": 0.7934, "mla": 0.7724}
    assert {d: published("setr_cityscapes", decoder=d) for d in decoders} == decoders


def test_u_net_plus_plus_decays_by_its_gradient_what_keras_does():
    """Convolutions by twice their factor times the weights; no up-convolution and no bias."""
    recipe = recipe_of("papers/unetplusplus_nuclei")(data=Path("x"), widths=(2, 3), dropout=0.0)
    nothing = zeros_of(recipe, 8)["params"]
    params = jax.tree.map(np.ones_like, nothing)
    optimizer = recipe.optimizer()
    updates, _ = jax.jit(optimizer.update)(nothing, jax.jit(optimizer.init)(params), params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, update in jax.tree_util.tree_leaves_with_path(updates)
        if np.any(update)
    }
    assert moved == {f"x_{ij}/conv_{n}/kernel" for ij in ("0_0", "0_1", "1_0") for n in (0, 1)} | {
        "head_1/kernel"
    }


@pytest.fixture
def isbi_stacks(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "isbi").mkdir()
    cells = rng.integers(0, 2, (6, 40, 44), np.uint8) * 255
    for name in ("volume", "labels"):
        tifffile.imwrite(tmp_path / f"isbi/train-{name}.tif", cells, photometric="minisblack")
    return tmp_path / "isbi"


@pytest.fixture
def cityscapes(tmp_path):
    rng = np.random.default_rng(0)
    for i, split in enumerate(["train"] * 8 + ["val"]):
        for kind, end, high in (
            ("leftImg8bit", "leftImg8bit", 256),
            ("gtFine", "gtFine_labelIds", 34),
        ):
            path = tmp_path / f"cityscapes/{kind}/{split}/ulm/ulm_{i:06}_000019_{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, high, (48, 48, 3), np.uint8)
            Image.fromarray(pixels if high == 256 else pixels[..., 0]).save(path)
    return tmp_path / "cityscapes"


# Not AlexNet's and GoogLeNet's, whose networks alone are others than VGG16's: see below.
DATA = {
    "fcn_voc": "voc",
    "unet_isbi": "isbi_stacks",
    "unetplusplus_nuclei": "nuclei",
    "setr_cityscapes": "cityscapes",
}


@pytest.mark.parametrize("name", DATA)
def test_two_steps_on_the_papers_layout(name, request, tmp_path, monkeypatch):
    """And the challenge's scores of U-Net's beside its figures; the others are not scored again."""
    one = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda *_, **__: one)
    if name != "unet_isbi":
        monkeypatch.setattr("segjax.commands.train.evaluate", lambda *_, **__: {})
    data, home = request.getfixturevalue(DATA[name]), tmp_path / "run"
    options = ("--data", data, "--steps", 2, "--batch-size", 1, "--accumulate", 1)
    run(f"papers/{name}", "train", "--run", home, *small(f"papers/{name}", *options))
    told = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert told[-1]["step"] == 2 and "mean_iou" in told[-1]
    figures = json.loads((home / "recipe.json").read_text())["published"]
    assert [figure["value"] for figure in figures] == PUBLISHED[name]
    if name == "unet_isbi":
        scores = json.loads((home / "report/scores.json").read_text())
        assert all(0 <= scores[figure["metric"]] <= 1 for figure in figures)
        assert "isbi_rand_thinned" in scores["intervals"]


def test_alexnet_has_a_cost(capsys):
    run("papers/fcn_alexnet_voc", "cost", "--batch-size", 8, "--accumulate", 1, "--reckon")
    assert "FLOPs" in capsys.readouterr().out


def test_fcn_starts_from_caffes_vgg16_whose_colours_are_turned(tmp_path):
    tensors = narrow_vgg16()
    np.savez(tmp_path / "vgg16.npz", **tensors)
    recipe = recipe_of("papers/fcn_voc")(
        data=tmp_path, vgg16=tmp_path / "vgg16.npz", widths=(4, 4, 4, 8, 8), classifier_width=8
    )
    params = recipe.initial(zeros_of(recipe, 32))["params"]
    stem = tensors["features.0.weight"][:, ::-1].transpose(2, 3, 1, 0).astype(np.float32)
    np.testing.assert_array_equal(params["vgg16"]["conv1_1"]["kernel"], stem)
    anew = {part for part, leaves in params.items() if not any(map(np.any, leaves.values()))}
    assert anew == {"score_fr", "score_pool4", "score_pool3"}


def zeros_of(recipe, side):
    """Variables of its network, all zero."""
    images = np.zeros((1, side, side, recipe.channels))
    shapes = jax.eval_shape(recipe.model().init, jax.random.key(0), images)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.mark.parametrize("decoder", ["pup", "mla"])
def test_setr_starts_from_timms_vit_its_positions_resized(decoder, tmp_path):
    pytest.importorskip("torch")
    import torch_networks

    small = {"depth": 2, "width": 8, "heads": 2}
    tensors = torch_networks._ViT(**small, grid=(3, 3)).state_dict()
    tensors = {name: tensor.numpy() for name, tensor in tensors.items()}
    rest = {"norm.weight": np.ones(8), "head.bias": np.ones(1000)}
    np.savez(tmp_path / "vit.npz", **tensors, **rest)
    recipe = recipe_of("papers/setr_cityscapes")(
        **small, data=tmp_path, vit=tmp_path / "vit.npz", crop=(64, 64), decoder_channels=4,
        decoder=decoder, taps=(0, 1),
    )  # fmt: skip
    begun = zeros_of(recipe, 64)
    params = recipe.initial(begun)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, begun["params"])
    positions = tensors["pos_embed"][0, 1:].reshape(3, 3, 8)
    np.testing.assert_array_equal(params["vit"]["positions"], resize_positions(positions, (4, 4)))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(params["vit"]["patch"]))
    assert not any(
        np.any(x) for part in params.keys() - {"vit"} for x in jax.tree.leaves(params[part])
    )
