"""What a recipe that someone writes for the first time lacks is told in words."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from segjax.data.shapes import CLASSES, Shapes
from segjax.models import UNet
from segjax.recipe import Recipe, main


@dataclass(frozen=True, kw_only=True)
class Whole(Recipe):
    """All that a recipe needs."""

    names: ClassVar[tuple[str, ...]] = CLASSES
    steps: int = 1
    batch_size: int = 8
    canvas: tuple[int, int] = (32, 32)
    crop: tuple[int, int] = (32, 32)

    def model(self):
        return UNet(len(self.names), widths=(4, 8))

    def source(self, split):
        return Shapes(8, size=self.canvas)

    def augment(self, key, example):
        return example


class Undecorated(Whole):
    """Its author forgot something."""

    widths: tuple[int, ...] = (4, 8)
    steps: int = 2


@dataclass(frozen=True, kw_only=True)
class Untyped(Whole):
    """Its author wrote a default as in a plain class."""

    steps = 700


@dataclass(frozen=True, kw_only=True)
class Lacking(Recipe):
    """Its author read that there is a network and data."""

    def model(self):
        return UNet(7)

    def source(self, split):
        return Shapes(8)


class Plain(Whole):
    """Other methods, no other fields."""

    names: ClassVar[tuple[str, ...]] = ("a", "b")


@pytest.mark.parametrize(
    "recipe, told",
    [
        (
            Lacking,
            "Lacking lacks what every recipe has to say. Define:\n"
            "    def augment(self, key: Array, example: Example) -> Example:\n"
            "        One example of canvas size -> one of crop size, on the device.\n",
        ),
        (
            Undecorated,
            "Undecorated is no dataclass, so what it sets (steps, widths) is no option. Write "
            "above the class: @dataclass(frozen=True, kw_only=True)\n",
        ),
        (Untyped, "Untyped sets steps without a type, which a dataclass does not see. Write"),
    ],
    ids=["no augment", "no decorator", "no type"],
)
@pytest.mark.parametrize("verb", ["train", "cost", "--help"])
def test_a_recipe_that_lacks_something_is_answered(recipe, told, verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(recipe, [verb])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")


@pytest.mark.parametrize("recipe", [Whole, Plain])
def test_a_recipe_that_is_whole_has_its_commands(recipe, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(recipe, ["--help"])
    assert stopped.value.code == 0 and "show-augment" in capsys.readouterr().out


SCRIPT = """
from dataclasses import dataclass
import optax
from test_own_recipe import Whole
from segjax.recipe import main

@dataclass(frozen=True, kw_only=True)
class Mine(Whole):
    "With the optimizer as optax's guide has it."

    def optimizer(self):
        return optax.adam(1e-3)

main(Mine)
"""


def test_a_warning_is_one_line(tmp_path, monkeypatch):
    """An optimizer with a rate of its own is told, and the command goes on."""
    (tmp_path / "mine.py").write_text(SCRIPT)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    ran = subprocess.run(
        [sys.executable, tmp_path / "mine.py", "cost", "--reckon"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "one training step of 8 × 32×32" in ran.stdout
    (told,) = [line for line in ran.stderr.splitlines() if "arning" in line]
    assert told.startswith("warning: The optimizer has a learning rate of its own, about 0.001,")
