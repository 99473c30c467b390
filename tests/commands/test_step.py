"""A run on a mesh: its fields, and how it goes on where there are other devices."""

import re
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from recipes import state_of
from tiny import TinyRecipe, make_data

import segjax
from segjax.commands.evaluate import evaluate
from segjax.commands.step import Parts
from segjax.errors import SegjaxError
from segjax.models import Output
from segjax.models.geometry import Geometry
from segjax.recipe import main
from segjax.training import optimizers, sharding


class Wide(nn.Module):
    """A kernel that is large enough to be split."""

    num_classes: int

    geometry = Geometry(step=1, minimum=1, stride=1, halo=0, context=(0, 0))

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.relu(nn.Conv(256, (1, 1))(images))
        x = nn.relu(nn.Conv(256, (1, 1), name="wide")(x))
        return Output(nn.Conv(self.num_classes, (1, 1))(x))


@dataclass(frozen=True, kw_only=True)
class WideRecipe(TinyRecipe):
    """The tiny one with a wide network, at a rate that knows no end."""

    batch_size: int = 8
    ema: float | None = 0.9
    evaluate_every: int = 2

    def model(self):
        return Wide(2)

    def schedule(self):
        return optimizers.constant(0.01)

    def optimizer(self):
        return optimizers.sgd()


def test_a_run_goes_on_over_other_devices(tmp_path, capsys, monkeypatch):
    """Split over data, over model, on one device: one training, and used on one device."""
    home = make_data(tmp_path / "data")

    def train(run, *options):
        main(WideRecipe, ["train", "--data", str(home), "--run", str(run), *options])

    one, other = tmp_path / "one", tmp_path / "other"
    train(other, "--shard", "data")
    train(other, "--steps", "4", "--shard", "model", "--model-axis", "2")
    assert "going on from step 2 of 4" in capsys.readouterr().out
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda *_, **__: make_mesh(jax.devices()[:1]))
    train(other, "--steps", "6")
    assert "going on from step 4 of 6" in capsys.readouterr().out
    train(one, "--steps", "6")
    (step, expected), (same, got) = map(state_of, (one, other))
    assert step == same == 6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), expected, got)
    assert evaluate(other) == pytest.approx(evaluate(one), abs=1e-4)
    picture = np.zeros((16, 16, 3), np.uint8)
    assert segjax.load(other).predict(picture).shape == (16, 16)


def test_parts_say_where_the_state_lies():
    """And it is made there, and stays there."""
    mesh = sharding.make_mesh(data=4, model=2)
    fields = {"data": Path(), "data_axis": 4, "model_axis": 2}
    for shard, spec in {"data": ("data", "model"), "model": (None, "model")}.items():
        parts = Parts(WideRecipe(shard=shard, **fields), mesh)
        state = parts.make_state()
        assert jax.tree.map(lambda x: x.sharding, state) == parts.state_sharding
        kernel = state.params["wide"]["kernel"]
        assert kernel.sharding.spec[2:] == spec
        assert state.ema["params"]["wide"]["kernel"].sharding == kernel.sharding


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"data_axis": 0}, "data_axis is 0; expected at least 1 part of the batch."),
        ({"model_axis": 0}, "model_axis is 0; expected at least 1."),
        ({"shard": "all"}, "shard is 'all'; expected no, data or model."),
        ({"shard": "model"}, "shard is model, but model_axis is 1, over which nothing is split"),
        ({"model_axis": 2}, "model_axis is 2, but shard is no, so its devices would all compute"),
    ],
)
def test_fields_of_the_mesh_are_checked(fields, told):
    with pytest.raises(SegjaxError, match=re.escape(told)):
        WideRecipe(data=Path(), **fields)


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"data_axis": 3}, "data_axis 3 × model_axis 1 are 3 devices, and there are 8"),
        ({"model_axis": 3, "shard": "model"}, "model_axis is 3, which does not divide 8 devices"),
        ({"batch_size": 6, "model_axis": 2, "shard": "model"}, "6 pictures does not divide among "
         "4 parts of 8 devices; take a batch size of 4 or 8."),
    ],
)  # fmt: skip
def test_a_mesh_that_cannot_be_is_told(fields, told, tmp_path, capsys):
    home = make_data(tmp_path / "data")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
    with pytest.raises(SystemExit) as stopped:
        main(WideRecipe, ["train", "--data", str(home), "--run", str(tmp_path / "run"), *options])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
