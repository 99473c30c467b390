"""The run folder: what was trained, written so that it can be used from there alone.

    recipe.json       every field of the recipe, and the network, scaling and held-out data of it
    environment.json  versions, devices and command of each start
    skipped.json      with skip_broken, the examples that cannot be read
    metrics.jsonl     what the training told
    failed/           the batch of a step that was not finite
    profile/          with --profile, a trace of some steps
    checkpoints/      the two newest and the best
    lock              while a training runs there, which
    tensorboard/      events
    wandb/            with log_to wandb, what it sends
    report/           scores, curves, pictures, of val; in report/test of test

Networks and sources are frozen dataclasses of plain values, so their class and fields are all
there is to write down (see `description`). This file knows none of them.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax

import segjax
from segjax.commands.description import describe, less_files, rebuild
from segjax.errors import SegjaxError

HeldOut = Literal["val", "test"]
# What may differ when a run is taken up again; all else would make it another run.
_LENGTH = {"steps", "epochs", "patience"}
_PLACES = {"data_axis", "model_axis", "shard"}  # where it is computed
_SAME_VALUES = {"memory", "model remat", "not_finite"}  # up to rounding
_MAY_CHANGE = _LENGTH | _PLACES | _SAME_VALUES
_MAY_CHANGE |= {"evaluate_every", "log_every", "log_to", "data", "workers", "cache"}
_NO_FIELDS: Mapping[str, Any] = MappingProxyType({})
# What a run writes to its folder but for predictions, of which other files may be kept.
_OF_A_RUN = (
    "environment.json",
    "skipped.json",
    "metrics.jsonl",
    "failed",
    "profile",
    "checkpoints",
    "tensorboard",
    "wandb",
    "report",
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _is_thing(value: Any) -> bool:
    """A dataclass as `describe` writes it."""
    held = isinstance(value, dict)
    return held and isinstance(value.get("class"), str) and isinstance(value.get("fields"), dict)


def _is_list(value: Any, of: Callable[[Any], bool], least: int = 0) -> bool:
    return isinstance(value, list) and len(value) >= least and all(map(of, value))


def _is_colour(value: Any) -> bool:
    return _is_list(value, lambda x: type(x) is int and 0 <= x <= 255) and len(value) == 3


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# What the commands use of recipe.json: what it must look like, and that in words.
_Kinds = Mapping[str, tuple[Callable[[Any], bool], str]]
_THING = (_is_thing, "a class and its fields")
_COUNT = (_is_count, "a number of at least 1")
_PARTS: _Kinds = {
    "segjax": (_is_text, "a version"),
    "recipe": (_is_text, "a name"),
    "fields": (lambda value: isinstance(value, dict), "the fields of the recipe"),
    "model": _THING,
    "normalise": _THING,
    "source": _THING,
    "classes": (partial(_is_list, of=_is_text, least=1), "names"),
    "palette": (partial(_is_list, of=_is_colour), "colours"),
}
_FIELDS: _Kinds = {
    "batch_size": _COUNT,
    "workers": _COUNT,
    "channels": _COUNT,
    "crop": (_is_size, "a height and a width"),
    "canvas": (_is_size, "a height and a width"),
    "buckets": (partial(_is_list, of=_is_size), "heights and widths"),
}


class Run:
    """A run folder that exists.

    Raises, here and on the way:
        SegjaxError: there is no run, or what is written there cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / "recipe.json"
        if folder.exists() and not folder.is_dir():
            raise SegjaxError(f"{folder}: a file, expected the folder of a run.")
        try:
            self._stored = read_json(self._path)
        except FileNotFoundError:
            raise SegjaxError(
                f"{folder}: no run here (recipe.json is missing). Train one first, or name the "
                "folder of another."
            ) from None
        self._check()

    @property
    def fields(self) -> Mapping[str, Any]:
        """Every field of the recipe by name, as plain values."""
        return self._stored["fields"]

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return self._stored["recipe"]

    @property
    def splits(self) -> tuple[HeldOut, ...]:
        """The held-out splits: val, which chose the best checkpoint, and test if there is one."""
        return ("val", "test") if self.has("test") else ("val",)

    def has(self, part: str) -> bool:
        """Whether there is such a part: not every recipe has a "baseline" or a "test" split."""
        return part in self._stored

    def rebuild(self, part: str) -> Any:
        """The "model", "normalise", "source" (of val), "test" … of the recipe, made anew."""
        try:
            return rebuild(self._stored[part])
        except SegjaxError as error:
            raise SegjaxError(f"{self._path}: its {part} cannot be rebuilt: {error}") from error
        except Exception as error:  # classes of any kind, given what the file holds
            raise SegjaxError(
                f"{self._path}: its {part} cannot be rebuilt: {error}. It was written by segjax "
                f"{self._stored['segjax']}, this is {segjax.__version__}; a class of your own must "
                "be importable from where you start the command."
            ) from error

    def _check(self) -> None:
        """Raise SegjaxError unless recipe.json holds all that the commands use, of its kind."""
        parts: Any = self._stored if isinstance(self._stored, dict) else {}
        for held, kinds, where in ((parts, _PARTS, ""), (parts.get("fields"), _FIELDS, "field ")):
            for name, (fits, expected) in kinds.items():
                if name not in held:
                    raise SegjaxError(f"{self._path}: has no {where}{name!r}. Restore the file.")
                if not fits(held[name]):
                    raise SegjaxError(
                        f"{self._path}: its {where}{name!r} is {str(held[name])[:80]}, expected "
                        f"{expected}. Restore the file."
                    )
        if len(parts["classes"]) != len(parts["palette"]):
            raise SegjaxError(
                f"{self._path}: has {len(parts['classes'])} classes and {len(parts['palette'])} "
                "colours in its palette. Restore the file."
            )

    def _compare(self, wanted: Mapping[str, Any], defaults: Mapping[str, Any] = _NO_FIELDS) -> None:
        """Raise SegjaxError unless `wanted` is the recipe that is written here.

        Fields that are not written here, for they came to the recipe later, are at their default.
        """
        if self._stored["recipe"] != wanted["recipe"]:
            raise SegjaxError(
                f"{self.folder} is a run of the recipe {self._stored['recipe']}, not "
                f"{wanted['recipe']}. Name another folder with --run."
            )
        have = _settings({**defaults, **self._stored["fields"]}, self._stored["model"])
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
                f"Give the same ones to go on. {_begin_anew(self.folder)}"
            )
        have_read, read = self._stored.get("data", {}), wanted.get("data", {})
        for split in sorted(have_read.keys() & read.keys()):
            if have_read[split] != read[split]:
                raise SegjaxError(
                    f"{self.folder}: the {split} pictures are others than at its first start: "
                    f"{_told(have_read[split], read[split])}. Put them back to go on. "
                    f"{_begin_anew(self.folder)}"
                )


def start_run(
    folder: Path,
    *,
    name: str,
    fields: Mapping[str, Any],
    parts: Mapping[str, Any],
    defaults: Mapping[str, Any] = _NO_FIELDS,
    data: Mapping[str, Any] = _NO_FIELDS,
    note: Mapping[str, Any] = _NO_FIELDS,
    restart: bool = False,
) -> None:
    """Make a run folder, or make sure that the one there is of the same recipe; note the start.

    A first start that failed before its first checkpoint binds nobody to its recipe.

    Args:
        folder: of the run.
        name: of the recipe.
        fields: its fields, plain values or dataclasses of them.
        parts: what `Run.rebuild` gives back, dataclasses of plain values.
        defaults: of fields, for a run that was started before the recipe had them.
        data: of each split that counts, which pictures it has: `wrapper.listing`.
        note: what environment.json says of this start beside the rest.
        restart: of a run there, remove what it has written instead.

    Raises:
        SegjaxError: the folder holds another recipe, other fields of it, or other things; or a run
            of other pictures, or one whose checkpoints are gone.
    """
    wanted = {
        "segjax": segjax.__version__,
        "recipe": name,
        "fields": describe(dict(fields)),
        **describe(dict(parts)),
        "data": dict(data),
    }
    wanted = json.loads(json.dumps(wanted))  # as it would be read
    path = folder / "recipe.json"
    # Listed first, for the first process of several may be writing the recipe just now.
    held = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if path.exists():
        if not restart and not never_saved(folder):
            Run(folder)._compare(wanted, json.loads(json.dumps(describe(dict(defaults)))))
            _check_checkpoints(folder)
    elif folder.is_file() or held - {"recipe.json.partial", "lock"}:
        raise SegjaxError(
            f"{folder}: exists, but holds no run (no recipe.json). Name another folder with --run."
        )
    if jax.process_index() == 0:
        if restart:
            _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, as_json(wanted))
        starts = folder / "environment.json"
        before = read_json(starts) if starts.exists() else []
        if not isinstance(before, list):
            raise SegjaxError(f"{starts}: no list of starts. Restore the file, or move it away.")
        write_whole(starts, as_json([*before, {**_environment(), **note}]))


def never_saved(folder: Path) -> bool:
    """Whether a training there, if any, has come to no checkpoint: it may begin anew as another.

    One whose checkpoints someone has removed has told of evaluations, or lacks their folder, which
    is made before the log. One whose checkpoints are damaged has them set aside.
    """
    log, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    told = log.read_bytes() if log.is_file() else b""
    if checkpoints.is_dir():
        names = [path.name for path in checkpoints.iterdir()]
        saved = any(name.isdecimal() or ".damaged" in name for name in names)
        return not saved and b'"mean_iou"' not in told
    return not told and not checkpoints.exists()


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or, where the process is killed meanwhile, not at all."""
    unfinished = path.with_name(path.name + ".partial")
    # A name of a file that is no Unicode becomes JSON's escape of it.
    unfinished.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    os.replace(unfinished, path)


def as_json(value: Any) -> str:
    """JSON for people too: indented, letters as they are."""
    return json.dumps(value, indent=1, ensure_ascii=False)


def read_json(path: Path) -> Any:
    """What a file of a run folder holds.

    Raises:
        FileNotFoundError: it is not there.
        SegjaxError: it is damaged.
    """
    if path.exists() and not path.is_file():
        raise SegjaxError(f"{path}: no file. Restore it, and move away what is in its place.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SegjaxError(f"{path}: no valid JSON ({error}). Restore the file.") from error


def may_clear(folder: Path, *, yes: bool) -> bool:
    """Whether there is a run to remove; asked on a terminal, unless `yes`.

    Raises:
        SegjaxError: the answer is no, or there is no terminal to ask on.
    """
    if not (folder / "recipe.json").exists():
        return False
    question = f"Remove the run in {folder}, its checkpoints, logs and report?"
    if yes or (sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")):
        return True
    raise SegjaxError(f"{question} Say so with --yes, or name another folder with --run.")


def _clear(folder: Path) -> None:
    """Remove what a run has written to its folder, and nothing else.

    But for recipe.json, which is written anew next: the folder holds a run all the time.
    """
    for name in _OF_A_RUN:
        for path in (folder / f"{name}.partial", folder / name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _check_checkpoints(folder: Path) -> None:
    """Raise SegjaxError where a run has lost its checkpoints: it would begin at step 1, unsaid."""
    log, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    if not log.is_file() or not log.stat().st_size:
        return  # stopped before its first step
    told = "its folder checkpoints/ is missing"
    if checkpoints.exists():
        # Set aside is told by those who read them. Two evaluations may come before the first one of
        # which a process has seen that it is saved.
        held = not checkpoints.is_dir() or any(p.name[0].isdecimal() for p in checkpoints.iterdir())
        if held or log.read_bytes().count(b'"mean_iou"') <= 2:
            return
        told = "its folder checkpoints/ is empty"
    raise SegjaxError(
        f"{folder}: its log, metrics.jsonl, tells of a training, but {told}. Put it back to go on, "
        "train anew with --restart, or name another folder with --run."
    )


def _begin_anew(folder: Path) -> str:
    return (
        f"Or begin a new run, from this one's state with --fork {folder} or from nothing: name "
        "another folder with --run."
    )


def _told(have: Any, want: Any) -> str:
    """How many pictures there are of each listing."""
    before, now = (x.get("pictures") if isinstance(x, dict) else x for x in (have, want))
    return f"{before} then, {now} now" if before != now else f"{now} as then, of other names"


def _settings(fields: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the recipe, the class of its network and that one's fields, a name each."""
    of_model = {f"model {name}": value for name, value in model["fields"].items()}
    return less_files({**fields, "model": model["class"], **of_model})


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
