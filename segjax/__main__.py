"""Evaluate and use trained networks, and look after their data. Training is a recipe's own verb:
python experiments/unet_nuclei.py train.
"""

import runpy
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro

import segjax
from segjax.commands.command import command
from segjax.errors import SegjaxError

# Each is a function in a module of segjax.commands, both of that name.
_VERBS = ("audit", "evaluate", "export", "models", "predict", "prepare", "serve")


def _run(recipe: Path, verb: str) -> None:
    if not recipe.is_file():
        raise SegjaxError(f"{recipe}: no such file. Name the script of a recipe.")
    sys.argv = [str(recipe), verb, *sys.argv[3:]]
    sys.path.insert(0, str(recipe.parent))  # as for a script that is run
    runpy.run_path(str(recipe), run_name="__main__")


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def _show_augment(recipe: Path) -> None:
    """Draw what a recipe's augmentation makes of its training pictures, by the recipe's own verb.

    Args:
        recipe: Its script; what follows are the script's options, such as --data and --out.
    """
    _run(recipe, "show-augment")


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def _audit_recipe(recipe: Path) -> None:
    """Read the data of a recipe once and tell what is wrong with it, by the recipe's own verb.

    Args:
        recipe: Its script; what follows are the script's options, such as --data and --out.
    """
    _run(recipe, "audit")


def main() -> None:
    """The command `segjax`, also python -m segjax."""
    argv = sys.argv[1:]
    if argv == ["--version"]:
        print(f"segjax {segjax.__version__}")
        return
    # Only the verb that is asked for is imported: `models` needs no JAX.
    asked = [verb for verb in _VERBS if argv[:1] == [verb]] or _VERBS
    verbs: dict[str, Any] = {
        verb: getattr(import_module(f"segjax.commands.{verb}"), verb) for verb in asked
    }
    verbs["show-augment"] = _show_augment
    if argv[:1] in (["evaluate"], ["export"], ["predict"], ["serve"]):
        segjax.use_compilation_cache()
    if argv[1:] and argv[1].endswith(".py"):
        verbs["audit"], argv = _audit_recipe, argv[:2]  # the options are the script's
    command(verbs, description=__doc__, prog="segjax", argv=argv)


if __name__ == "__main__":
    main()
