"""The field memory: which way a step is taken, by what there is, and what is told where none is."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from recipes import state_of
from tiny import TinyRecipe, make_data

from segjax.commands import fitting
from segjax.commands.cost import step_in_shapes
from segjax.commands.run import Run
from segjax.errors import SegjaxError
from segjax.evaluation import report
from segjax.inference import memory
from segjax.models import SETRNaive
from segjax.recipe import main
from segjax.training import sharding
from segjax.training.cost import step_cost


@dataclass(frozen=True, kw_only=True)
class Deep(TinyRecipe):
    """A SETR: of its blocks XLA keeps less with remat on CPUs, too."""

    batch_size: int = 8
    crop: tuple[int, int] = (32, 32)
    canvas: tuple[int, int] = (32, 32)
    evaluate_every: int = 2

    def model(self):
        encoder = {"depth": 6, "width": 16, "heads": 2, "patch": 4, "grid": (4, 4)}
        return SETRNaive(2, channels=4, auxiliary_taps=(), **encoder)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(report, "plot_curves", lambda *_, **__: None, raising=False)
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda *_, **__: make_mesh(jax.devices()[:1]))


def needs():
    """What a step takes in each way, by the compiler."""
    mesh = sharding.make_mesh(jax.devices()[:1])

    def need(**fields):
        recipe = replace(Deep(data=Path()), **fields)
        return step_cost(*step_in_shapes(recipe, mesh)).memory

    return {
        "plain": need(),
        "remat": need(memory="remat"),
        "parts": need(memory="remat", accumulate=2),
    }


@pytest.fixture
def room(monkeypatch):
    """Says how much a step may take."""
    return lambda size: monkeypatch.setattr(memory, "left", lambda: size / memory.SHARE)


def test_the_first_way_that_fits_is_taken_and_a_run_goes_on_where_another_does(
    tmp_path, room, capsys, monkeypatch
):
    """All in one, for two workers would compile each way twice."""
    need = needs()
    assert need["parts"] < need["remat"] < 0.7 * need["plain"]
    mesh = sharding.make_mesh()

    def known(recipe, _):
        return need["parts" if recipe.accumulate > 1 else recipe.memory]

    with monkeypatch.context() as patch:  # for each would be compiled again
        patch.setattr(fitting, "_need", known)
        choose(need, room, mesh)

    # On another machine: the network's field is another, its values are not.
    home = make_data(tmp_path / "data")

    def train(run, steps, *more):
        options = ["--data", str(home), "--run", str(run), "--steps", str(steps), *more]
        main(Deep, ["train", *options, "--learning-rate", "0"])
        return state_of(run)[1]["params"]

    room(1.001 * need["remat"])
    begun = train(tmp_path / "run", 2, "--memory", "fit")
    assert re.search(r"memory: remat; plain takes .*, remat takes", capsys.readouterr().out)
    run = Run(tmp_path / "run")
    assert run.fields["memory"] == "fit" and run.rebuild("model").remat
    resumed = train(tmp_path / "run", 4)
    assert "going on from step 2 of 4" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, resumed, begun)  # at a rate of 0


def choose(need, room, mesh):
    """Which way is taken, and what is told."""
    for way in ("plain", "remat"):
        room(1.001 * need[way])
        taken, told = fitting.fitted(Deep(data=Path(), memory="fit"), mesh)
        assert taken == Deep(data=Path(), memory=way)
        assert told.startswith(f"memory: {way}; plain takes ") and told.endswith("for each device")
    # Where none fits, what would is told.
    room(1.001 * need["parts"])
    said = r"step of 8 × 32×32 on 1 × cpu takes .*B \(plain\) and .*B \(remat\) .*"
    with pytest.raises(SegjaxError, match=said + r" With --accumulate 2 it takes [\d.]+ .iB;"):
        fitting.fitted(Deep(data=Path(), memory="fit"), mesh)


def test_of_a_network_without_remat_only_the_plain_way_is_tried(room):
    room(1000)
    with pytest.raises(SegjaxError, match=r"takes [\d.]+ .iB \(plain\) of memory") as told:
        fitting.fitted(TinyRecipe(data=Path(), memory="fit", batch_size=1), sharding.make_mesh())
    assert "One picture at a time does not fit either" in str(told.value)


def test_devices_that_share_the_host_share_its_memory(room):
    room(800)
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices())
    assert fitting._room(mesh) == pytest.approx(100)


def test_a_network_that_knows_no_remat_is_told(capsys):
    with pytest.raises(SystemExit):
        main(TinyRecipe, ["cost", "--batch-size", "8", "--memory", "remat"])
    assert "Tiny has no field remat. Take 'plain'" in capsys.readouterr().err
