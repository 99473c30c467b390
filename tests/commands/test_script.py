"""Planned scripts: formatted as ruff does, complete, and what the plan says."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from test_plan import found

from segjax.commands.networks import NETWORKS, network
from segjax.commands.plan import Where, make_plan
from segjax.commands.script import write
from segjax.data.augment import Example
from segjax.data.wrapper import Pieces
from segjax.models import Output
from segjax.models.variants import VARIANTS

ROOT = Path(__file__).parents[2]
RUFF = shutil.which("ruff", path=Path(sys.executable).parent) or shutil.which("ruff")


def planned(model="unet", platform="cpu", *, train=None, val=None, sizes=(((96, 96), 9),), **of):
    data = found(dict(sizes), **of)
    data = data._replace(train=train or data.train, val=val or data.val)
    return make_plan(data, network(model), platform=platform)


def recipe(text):
    module = ModuleType("planned")
    exec(compile(text, "planned", "exec"), vars(module))
    (cls,) = [x for x in vars(module).values() if getattr(x, "__module__", "") == "planned"]
    return cls()


@pytest.mark.parametrize("name", NETWORKS)
def test_on_an_accelerator_a_network_is_the_papers(name):
    title = {"unetplusplus": "U-Net++ L4"}.get(name, NETWORKS[name].title)
    paper = VARIANTS[title].network
    for field, option in NETWORKS[name].options.items():
        assert getattr(paper, option.argument or field) == option.paper


LONG = tuple(f"a class of a rather long name {i}" for i in range(7))
PLANS = {
    **{model: planned(model) for model in NETWORKS},
    **{f"{model} on a GPU": planned(model, "gpu") for model in NETWORKS},
    "weights and heads": planned("unetplusplus", shares=(0.6, 0.3, 0.095, 0.005), upright=True),
    "weights and auxiliary heads": planned("setr-pup", shares=(0.99, 0.01)),
    "names": planned(classes=LONG, palette=((1, 2, 3),) * 7, shares=(1 / 7,) * 7),
    "quotes": planned(classes=('5" pipe', "man's"), root=Path('a "b"/c\'d')),
    "colours": planned(colours=(((0, 0, 0), 0), ((255, 0, 0), 1), ((9, 9, 9), 255))),
    "all options": planned(
        values=((11, 255),),
        train=Where(
            "train", images="some/long/folder/of/images", masks="some/long/folder/of/masks"
        ),
        val=Where("val", images="some/long/folder/of/images", masks="some/long/folder/of/masks"),
        endings=("_picture", "_mask"),
        channels=1,
    ),
    "held out": planned(train=Where(None, (None, -2)), val=Where(None, (-2, None))),
    "folders of splits": planned(
        train=Where(images="train/images", masks="train/masks"),
        val=Where(images="val/images", masks="val/masks"),
    ),
    "folders of other splits": planned(
        train=Where(images="training/a", masks="training/b"),
        val=Where(images="valid/a", masks="valid/b"),
    ),
    "other names": planned(train=Where("training"), val=Where("validation")),
    "cut": planned(sizes=(((96, 96), 9), ((500, 96), 2)), scale=5.0),
    "all cut": planned(sizes=(((3000, 3000), 9),)),
    "ranges": planned(ranges=((0.0, 4095.0),), channels=5),
}


@pytest.mark.skipif(RUFF is None, reason="ruff is not installed")
def test_scripts_are_formatted_as_by_ruff(tmp_path):
    for i, plan in enumerate(PLANS.values()):
        (tmp_path / f"plan_{i}.py").write_text(
            write(plan, name=f"plan_{i}", command="segjax train " + "x" * 120)
        )
    for arguments in (["format", "--diff"], ["check"]):
        ruff = [RUFF, *arguments, "--no-cache", "--config", str(ROOT / "pyproject.toml")]
        # what is long in a command is not wrapped
        ran = subprocess.run(
            [*ruff, *(["--ignore", "E501"] if arguments == ["check"] else []), str(tmp_path)],
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
def test_a_script_is_the_plan(plan):
    made = recipe(write(plan, name="planned", command=""))

    for name in ("steps", "batch_size", "canvas", "crop", "learning_rate", "compute", "scale"):
        assert getattr(made, name) == getattr(plan, name)
    assert made.channels == plan.found.folder.channels
    assert made.normalise.mean == plan.found.survey.mean
    assert set(made.buckets or (made.canvas,)) == set(plan.buckets)
    model = made.model()
    assert model.num_classes == len(plan.found.folder.classes)
    model.geometry.check(*made.crop)
    for split, where in (("train", plan.found.train), ("val", plan.found.val)):
        source = made.source(split)
        assert isinstance(source, Pieces) == plan.cut[split == "val"]
        source = getattr(source, "source", source)
        assert (source.split, source.part, source.images, source.masks) == where
        for name in ("classes", "palette", "values", "colours", "endings", "ranges"):
            assert getattr(source, name) == getattr(plan.found.folder, name)


@pytest.mark.parametrize("model", ["unet", "unetplusplus", "setr-naive"])
@pytest.mark.parametrize("shares", [(0.6, 0.4), (0.99, 0.01)])
def test_the_loss_takes_every_head_and_the_weights(model, shares):
    plan = planned(model, shares=shares)
    made = recipe(write(plan, name="planned", command=""))
    logits = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    label = jax.random.randint(jax.random.key(1), (2, 4, 4), 0, 2)

    output = Output(logits, (2 * logits, 3 * logits))
    weights = np.array(plan.class_weights or (1, 1))

    def entropy(factor):
        every = -jax.nn.log_softmax(factor * logits)
        chosen = np.take_along_axis(np.asarray(every), np.asarray(label)[..., None], -1)[..., 0]
        return (weights[np.asarray(label)] * chosen).mean()

    expected = {
        "unet": entropy(1),
        "unetplusplus": entropy(2) + entropy(3),
        "setr-naive": entropy(1) + 0.4 * (entropy(2) + entropy(3)),
    }[model]
    np.testing.assert_allclose(made.loss(output, Example(None, label)), expected, rtol=1e-5)


def test_ignored_pixels_have_no_weight_and_other_losses_may_be_named():
    plan = planned(shares=(0.99, 0.01))
    text = write(plan, name="planned", command="")
    logits = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    label = np.array([[[0, 1, 255, 0]] * 4] * 2, np.uint8)
    some = [0, 1, 3]

    def loss(which, logits, label):
        return replace(recipe(text), losses=which).loss(Output(logits), Example(None, label))

    for which in (("cross_entropy",), ("focal", "dice")):
        without = loss(which, logits[:, :, some], label[:, :, some])
        np.testing.assert_allclose(loss(which, logits, label), without, rtol=1e-5)
