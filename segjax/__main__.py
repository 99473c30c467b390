"""What needs no recipe: the verbs on a run folder, as python -m segjax predict RUN IMAGE…, and a
table of the networks, python -m segjax models; prepare, which brings in a data set; and two of a
recipe's, audit and show-augment.
"""

import runpy
import sys
from pathlib import Path

import tyro

from segjax.commands.audit import audit
from segjax.commands.command import command
from segjax.commands.evaluate import evaluate
from segjax.commands.models import models
from segjax.commands.predict import predict
from segjax.commands.prepare import prepare
from segjax.errors import SegjaxError


def _run(recipe: Path, verb: str) -> None:
    if not recipe.is_file():
        raise SegjaxError(f"{recipe}: no such file. Name the script of a recipe.")
    sys.argv = [str(recipe), verb, *sys.argv[3:]]
    sys.path.insert(0, str(recipe.parent))  # as for a script that is run
    runpy.run_path(str(recipe), run_name="__main__")


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def show_augment(recipe: Path) -> None:
    """Draw what a recipe's augmentation makes of its training pictures, by the recipe's own verb.

    Args:
        recipe: Its script; what follows are the script's options, such as --data and --out.
    """
    _run(recipe, "show-augment")


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def audit_recipe(recipe: Path) -> None:
    """Read the data of a recipe once and tell what is wrong with it, by the recipe's own verb.

    Args:
        recipe: Its script; what follows are the script's options, such as --data and --out.
    """
    _run(recipe, "audit")


if __name__ == "__main__":
    of_recipe = sys.argv[2:] and sys.argv[2].endswith(".py")
    verbs = {
        "audit": audit_recipe if of_recipe else audit,
        "evaluate": evaluate,
        "predict": predict,
        "models": models,
        "prepare": prepare,
        "show-augment": show_augment,
    }
    argv = sys.argv[1:3] if of_recipe else sys.argv[1:]
    command(verbs, description=__doc__, prog="python -m segjax", argv=argv)
