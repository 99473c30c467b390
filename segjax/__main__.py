"""Train networks on folders of pictures and masks, evaluate and use them, and look after data.

A recipe has verbs of its own: python experiments/unet_nuclei.py train.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro

import segjax
from segjax.commands.command import command, run_script
from segjax.errors import SegjaxError

# Each is a function in a module of segjax.commands, both of that name but for _MODULES.
_VERBS = (
    "audit",
    "evaluate",
    "export",
    "models",
    "predict",
    "prepare",
    "report",
    "serve",
    "train",
)
_MODULES = {"train": "train_folder"}  # `commands.train` trains a recipe


def _run(recipe: Path, verb: str) -> None:
    if not recipe.is_file():
        raise SegjaxError(f"{recipe}: no such file. Name the script of a recipe.")
    run_script(recipe, [verb, *sys.argv[3:]])


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def _show_augment(recipe: Path) -> None:
    """Draw what a recipe's augmentation makes of its training pictures, by the recipe's own verb.

    Args:
        recipe: Its script; what follows are the script's options, such as --data and --out.
    """
    _run(recipe, "show-augment")


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def _train_recipe(recipe: Path) -> None:
    """Train a recipe, by its own verb.

    Args:
        recipe: Its script; what follows are the script's options, such as --data and --run.
    """
    _run(recipe, "train")


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
        verb: getattr(import_module(f"segjax.commands.{module}"), module)
        for verb, module in ((verb, _MODULES.get(verb, verb)) for verb in asked)
    }
    verbs["show-augment"] = _show_augment
    if argv[:1] in [[v] for v in ("evaluate", "export", "predict", "report", "serve", "train")]:
        segjax.use_compilation_cache()
    if argv[1:] and argv[1].endswith(".py"):  # the options are the script's
        verbs |= {"audit": _audit_recipe, "train": _train_recipe}
        argv = argv[:2]
    command(verbs, description=__doc__, prog="segjax", argv=argv)


if __name__ == "__main__":
    main()
