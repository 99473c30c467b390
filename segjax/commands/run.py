"""The run folder: what was trained, written so that it can be used from there alone.

    recipe.json       every field of the recipe, and the network, scaling and held-out data of it
    environment.json  versions, devices and command of each start
    skipped.json      with skip_broken, the examples that cannot be read
    metrics.jsonl     what the training told
    checkpoints/      the newest and the best
    tensorboard/      events
    report/           scores, curves, pictures

Networks and sources are frozen dataclasses of plain values, so their class and fields are all
there is to write down. This file knows none of them.
"""

import dataclasses
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import segjax
from segjax.errors import SegjaxError

# What may differ when a run is taken up again; all else would make it another run.
_MAY_CHANGE = frozenset({"steps", "evaluate_every", "log_every", "data", "workers", "cache"})
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Run:
    """A run folder that exists.

    Raises, here and on the way:
        SegjaxError: there is no run, or what is written there cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "recipe.json"
        try:
            self._stored = read_json(path)
        except FileNotFoundError:
            raise SegjaxError(
                f"{folder}: no run here (recipe.json is missing). Train one first, or name the "
                "folder of another."
            ) from None

    @property
    def fields(self) -> Mapping[str, Any]:
        """Every field of the recipe by name, as plain values."""
        return self._part("fields")

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return self._part("recipe")

    def has(self, part: str) -> bool:
        """Whether there is such a part: not every recipe has a "baseline"."""
        return part in self._stored

    def rebuild(self, part: str) -> Any:
        """The "model", "normalise", "source" (held-out data) … of the recipe, made anew."""
        try:
            return _rebuild(self._part(part))
        except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise SegjaxError(
                f"{self.folder / 'recipe.json'}: its {part} cannot be rebuilt: {error}. It was "
                f"written by segjax {self._part('segjax')}, this is {segjax.__version__}; a class "
                "of your own must be importable from where you start the command."
            ) from error

    def _part(self, name: str) -> Any:
        try:
            return self._stored[name]
        except (KeyError, TypeError):
            raise SegjaxError(
                f"{self.folder / 'recipe.json'}: has no {name!r}. Restore the file."
            ) from None

    def _compare(self, wanted: Mapping[str, Any]) -> None:
        """Raise SegjaxError unless `wanted` is the recipe that is written here."""
        if self._part("recipe") != wanted["recipe"]:
            raise SegjaxError(
                f"{self.folder} is a run of the recipe {self._part('recipe')}, not "
                f"{wanted['recipe']}. Name another folder with --run."
            )
        have = _settings(self._part("fields"), self._part("model"))
        want = _settings(wanted["fields"], wanted["model"])
        changed = [
            f"  {name}: {have.get(name)} in the run, {want.get(name)} asked for"
            for name in sorted({*have, *want} - _MAY_CHANGE)
            if have.get(name) != want.get(name)
        ]
        if changed:
            lines = "\n".join(changed)
            raise SegjaxError(
                f"{self.folder} was trained with other settings:\n{lines}\n"
                "Give the same ones to go on, or name another folder with --run."
            )


def start_run(
    folder: Path,
    *,
    name: str,
    fields: Mapping[str, Any],
    parts: Mapping[str, Any],
) -> None:
    """Make a run folder, or make sure that the one there is of the same recipe; note the start.

    Args:
        folder: of the run.
        name: of the recipe.
        fields: its fields, plain values or dataclasses of them.
        parts: what `Run.rebuild` gives back, dataclasses of plain values.

    Raises:
        SegjaxError: the folder holds another recipe, other fields of it, or other things.
    """
    wanted = {
        "segjax": segjax.__version__,
        "recipe": name,
        "fields": _describe(dict(fields)),
        **_describe(dict(parts)),
    }
    wanted = json.loads(json.dumps(wanted))  # as it would be read
    path = folder / "recipe.json"
    # Listed first, for the first process of several may be writing the recipe just now.
    held = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if path.exists():
        Run(folder)._compare(wanted)
    elif folder.is_file() or held - {"recipe.json.partial"}:
        raise SegjaxError(
            f"{folder}: exists, but holds no run (no recipe.json). Name another folder with --run."
        )
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(wanted, indent=1))
        starts = folder / "environment.json"
        before = read_json(starts) if starts.exists() else []
        write_whole(starts, json.dumps([*before, _environment()], indent=1))


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or, where the process is killed meanwhile, not at all."""
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def read_json(path: Path) -> Any:
    """What a file of a run folder holds.

    Raises:
        SegjaxError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SegjaxError(f"{path}: no valid JSON ({error}). Restore the file.") from error


def _settings(fields: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the recipe, the class of its network and that one's fields, a name each."""
    of_model = {f"model {name}": value for name, value in model["fields"].items()}
    return {**fields, "model": model["class"], **of_model}


def _describe(thing: Any) -> Any:
    """A plain value, a path, or a dataclass of such, as JSON."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        names = [f.name for f in dataclasses.fields(thing) if f.init and f.repr]
        fields = {name: _describe(getattr(thing, name)) for name in names if name not in _LINEN}
        return {"class": f"{type(thing).__module__}:{type(thing).__qualname__}", "fields": fields}
    if isinstance(thing, dict):
        return {name: _describe(value) for name, value in thing.items()}
    if isinstance(thing, tuple | list):
        return [_describe(x) for x in thing]
    if thing is None or isinstance(thing, str | int | float):
        return thing
    if isinstance(thing, Path):
        return str(thing.absolute())
    raise SegjaxError(
        f"{thing!r} cannot be written to recipe.json. Networks, sources and recipes hold numbers, "
        "strings, paths, tuples and dataclasses of these; give a dtype by its name, as 'bfloat16'."
    )


_LINEN = {"parent", "name"}  # fields that Linen gives to every module


def _rebuild(stored: Any) -> Any:
    """The inverse of `_describe`; lists come back as tuples."""
    if isinstance(stored, list):
        return tuple(_rebuild(x) for x in stored)
    if not isinstance(stored, dict):
        return stored
    module, _, name = stored["class"].partition(":")
    cls: Any = getattr(importlib.import_module(module), name)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"{stored['class']} is no dataclass")
    fields = {name: _rebuild(value) for name, value in stored["fields"].items()}
    return cls(**fields)


def _environment() -> dict[str, Any]:
    """What a result may depend on beside the recipe."""
    try:
        git = ["git", "describe", "--always", "--dirty"]
        here = Path(__file__).parent
        commit = subprocess.run(git, capture_output=True, text=True, cwd=here, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        commit = ""  # installed without its history
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "commit": commit.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"segjax": segjax.__version__}
        | {package: metadata.version(package) for package in _PACKAGES},
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS"),
    }
