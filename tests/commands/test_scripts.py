"""A network, a source and a helper of a recipe's own script: the run is used from its folder."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import Tiny, TinyRecipe, make_data

from segjax.commands.description import describe, rebuild
from segjax.commands.run import Run
from segjax.commands.train import train
from segjax.errors import SegjaxError
from segjax.recipe import main

SCRIPT = '''
"""A recipe with classes of its own."""

from dataclasses import dataclass

import flax.linen as nn
import numpy as np
from helper import COLOURS

from segjax.data.augment import random_flip
from segjax.models import Output
from segjax.models.geometry import Geometry
from segjax.recipe import Recipe, main


class Mine(nn.Module):
    num_classes: int
    geometry = Geometry(step=1, minimum=1, stride=1, halo=0, context=(0, 0))

    @nn.compact
    def __call__(self, images, *, train=False):
        return Output(nn.Conv(self.num_classes, (1, 1))(images))


@dataclass(frozen=True)
class Noise:
    count: int
    classes = ("dark", "light")
    palette = COLOURS

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        image = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        return {"image": image, "label": (image[..., 0] > 127).astype(np.uint8), "id": str(i)}


@dataclass(frozen=True, kw_only=True)
class MyRecipe(Recipe):
    steps: int = 2
    batch_size: int = 2
    canvas: tuple[int, int] = (16, 16)
    crop: tuple[int, int] = (16, 16)

    def model(self):
        return Mine(2)

    def source(self, split):
        return Noise(4)

    def augment(self, key, example):
        return random_flip(key, example)


if __name__ == "__main__":
    main(MyRecipe)
'''


@pytest.fixture
def shell(tmp_path):
    """Runs Python in a folder; gives what it prints, and what it tells where it `fails`."""

    def shell(*command, cwd=".", fails=False, text=None):
        (tmp_path / cwd).mkdir(exist_ok=True)
        ran = subprocess.run(
            [sys.executable, *map(str, command)], cwd=tmp_path / cwd, input=text,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == (2 if fails else 0) and "Traceback" not in ran.stderr, ran.stderr
        return ran.stderr if fails else ran.stdout

    return shell


def test_a_run_of_a_scripts_own_classes_is_used_from_its_folder(shell, tmp_path):
    (tmp_path / "mine").mkdir()
    script, home = tmp_path / "mine/recipe.py", tmp_path / "runs/recipe"
    script.write_text(SCRIPT)
    (tmp_path / "mine/helper.py").write_text("COLOURS = ((0, 0, 0), (255, 255, 255))")
    shell("mine/recipe.py", "train")
    stored = json.loads((home / "recipe.json").read_text())
    assert stored["model"]["class"] == "recipe:Mine" and stored["source"]["class"] == "recipe:Noise"
    assert stored["model"]["file"] == stored["source"]["file"] == str(script)

    def scored(where):
        scores = json.loads((where / "scores.json").read_text())
        return scores | {"throughput": None}  # the one thing that differs

    scores = scored(home / "report")
    shell("-m", "segjax", "evaluate", home, cwd="other")
    assert scored(home / "report") == scores
    shell("-m", "segjax", "predict", home, home / "report/preview.png", cwd="other")
    assert (home / "predictions/preview.png").exists()
    shell("mine/recipe.py", "evaluate", "--run", "runs/recipe", "--out", "scored")
    assert scored(tmp_path / "scored") == scores
    assert "going on from step 2 of 3" in shell("mine/recipe.py", "train", "--steps", 3)

    (tmp_path / "mine").rename(tmp_path / "moved")
    told = shell("-m", "segjax", "evaluate", home, fails=True)
    assert f"{script}: gone. The run's classes are defined in it: put it back; or" in told
    shell("moved/recipe.py", "train", "--steps", 3)  # which notes the new place
    shell("-m", "segjax", "evaluate", home)


@pytest.mark.parametrize("command", [("-",), ("-c",)], ids=["standard input", "command"])
def test_classes_without_a_file_are_refused_at_once(command, shell, tmp_path):
    (tmp_path / "helper.py").write_text("COLOURS = ((0, 0, 0), (255, 255, 255))")
    given = {"text": SCRIPT} if command == ("-",) else {}
    command += () if given else (SCRIPT,)
    told = shell(*command, "train", fails=True, **given)
    assert "class Mine could not be found again from the run folder" in told
    assert "Move it to the top of a file, my_mine.py" in told and not (tmp_path / "runs").exists()


def test_a_local_class_is_refused_before_data_is_read(trained, tmp_path):
    class Local(Tiny):
        pass

    class Recipe(TinyRecipe):
        def model(self):
            return Local(2)

    data = make_data(tmp_path / "data")
    next(data.glob("images/train/*")).write_text("no picture, which would be told first")
    with pytest.raises(
        SegjaxError, match=r"<locals>.Local could not be found again.* my_local\.py"
    ):
        train(Recipe(data=data), tmp_path / "run", name="x")
    assert not (tmp_path / "run").exists()


def test_a_module_of_a_file_is_loaded_once(tmp_path):
    (tmp_path / "once.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Thing:\n    size: int\n"
    )
    stored = {"class": "once:Thing", "file": str(tmp_path / "once.py"), "fields": {"size": 3}}
    first, second = rebuild(stored), rebuild(stored)
    assert type(first) is type(second) and first == second and describe(first) == stored
    assert sys.modules["once"].__file__ == stored["file"] and str(tmp_path) not in sys.path

    # Another script of the same name, as of another run.
    (tmp_path / "b").mkdir()
    (tmp_path / "b/once.py").write_text((tmp_path / "once.py").read_text().replace("int", "str"))
    other = stored | {"file": str(tmp_path / "b/once.py")}
    assert type(rebuild(other)) is not type(first) and describe(rebuild(other)) == other
    del sys.modules["once"], sys.modules[other["file"]]


@pytest.mark.parametrize("content", ["1 / 0", "def", "import sys; sys.exit(3)", "import nowhere"])
def test_a_script_that_cannot_be_imported_is_named(content, tmp_path):
    (tmp_path / "bad.py").write_text(content)
    stored = {"class": "bad:Thing", "file": str(tmp_path / "bad.py"), "fields": {}}
    with pytest.raises(SegjaxError, match=r"bad\.py: the run's classes .*beneath `if __name__ =="):
        rebuild(stored)
    assert "bad" not in sys.modules


def test_a_script_that_moved_is_the_same_setting(trained, tmp_path):
    stored = json.loads((trained / "run/recipe.json").read_text())
    moved = json.loads(json.dumps(stored).replace("tests/tiny.py", "elsewhere/tiny.py"))
    assert moved != stored
    Run(trained / "run")._compare(moved)


# Starting over


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def restart(home, *more):
    main(TinyRecipe, ["train", "--data", str(home), "--run", str(home / "run"), *more])


def test_restart_asks_or_wants_to_be_told(trained, capsys, monkeypatch):
    run, kept = trained / "run", trained / "run/notes.txt"
    kept.write_text("mine")
    (run / "predictions").mkdir()
    (run / "predictions/a.png").write_text("mine")
    before = files(run)
    with pytest.raises(SystemExit) as stopped:
        restart(trained, "--restart")  # no terminal
    assert stopped.value.code == 2 and "Say so with --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "no")
    with pytest.raises(SystemExit):
        restart(trained, "--restart")
    assert files(run) == before

    other = ["--learning-rate", "0.1", "--skip-broken"]  # another run of another setting
    monkeypatch.setattr("builtins.input", lambda _: "y")
    restart(trained, "--restart", *other)
    assert "going on" not in capsys.readouterr().out
    assert Run(run).fields["learning_rate"] == 0.1
    assert len(json.loads((run / "environment.json").read_text())) == 1
    assert kept.read_text() == (run / "predictions/a.png").read_text() == "mine"


def test_restart_removes_nothing_but_a_run(trained, tmp_path, capsys):
    home = tmp_path / "thesis"
    home.mkdir()
    (home / "report").write_text("long")
    with pytest.raises(SystemExit):
        main(
            TinyRecipe,
            ["train", "--data", str(trained), "--run", str(home), "--restart", "--yes"],
        )
    assert "holds no run" in capsys.readouterr().err and (home / "report").read_text() == "long"


def test_a_mistake_in_the_fields_removes_nothing(trained, capsys):
    before = files(trained / "run")
    for wrong, told in (
        (["--canvas", "8", "8"], "canvas of 8×8"),
        (["--start-from", str(trained / "run")], "cannot be removed and be started from"),
    ):
        with pytest.raises(SystemExit):
            restart(trained, "--restart", "--yes", *wrong)
        assert told in capsys.readouterr().err and files(trained / "run") == before


def test_restart_of_a_damaged_run(trained, capsys):
    (trained / "run/recipe.json").write_text("[")
    restart(trained, "--restart", "--yes")
    assert dataclasses.is_dataclass(Run(trained / "run").rebuild("model"))
    assert Path(trained / "run/report/scores.json").exists()
