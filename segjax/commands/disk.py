"""A training's work, kept where the disk is full or someone removes its folder."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from segjax.commands.system_error import chain, told
from segjax.errors import SegjaxError
from segjax.training.checkpoint import Checkpoints

_COMPRESSED = 0.8  # of a state's bytes, which no checkpoint is smaller than
_LATE = "a checkpoint was not written in time: the disk hangs, or the clock has jumped ahead."
_OF_A_RUN = ("recipe.json", "environment.json", "skipped.json")  # written at its start


class _NoRoom(SegjaxError):
    """For a checkpoint; what is kept is known once the one before it is whole."""


@contextmanager
def telling_what_is_kept(folder: Path) -> Iterator[None]:
    """Tell an error of the disk amid a training, and from where this can go on."""
    try:
        yield
    except Exception as error:
        for one in chain(error):  # what the end of the writer has raised upon it says less
            if isinstance(one, SegjaxError):
                more = f" {kept(folder)}" if isinstance(one, _NoRoom) else ""
                raise SegjaxError(f"{one}{more}") from error
            if isinstance(one, TimeoutError):
                raise SegjaxError(f"{folder}: {_LATE} {kept(folder)}") from error
        if (line := told(error)) is None:
            raise
        raise SegjaxError(f"{line} {kept(folder)}") from error


def kept(folder: Path) -> str:
    """What checkpoint a run can go on from, in a sentence."""
    where = folder / "checkpoints"
    steps = [int(path.name) for path in where.glob("*") if path.name.isdecimal()]
    if not steps:
        return "There is no checkpoint yet; the same command begins anew."
    return f"The checkpoint of step {max(steps)} is kept; the same command goes on from there."


class Saver:
    """Saves the states of a training, unless the disk has no room or the folder has gone.

    Args:
        folder: the run's, just started.
        checkpoints: of it.
    """

    def __init__(self, folder: Path, checkpoints: Checkpoints) -> None:
        self._folder, self._checkpoints, self._ended = folder, checkpoints, False
        files = (folder / name for name in _OF_A_RUN)
        self._files = {path: path.read_bytes() for path in files if path.exists()}

    def __call__(self, step: int, state: Any, scores: Mapping[str, float] | None = None) -> None:
        """Save, in the background; nothing more after the first time that it failed.

        Raises:
            SegjaxError: there is no room; or someone has removed the folder, which was then made
                anew and holds this state.
            Exception: of the library that writes, perhaps of the state before.
        """
        if self._ended:
            return
        self._ended = True
        if jax.process_count() == 1 and not (self._folder / "recipe.json").exists():
            self._save_anew(step, state, scores)
        self._check_room(step, state)
        try:
            self._checkpoints.save(step, state, scores)
        except TimeoutError:  # of the one before, as where the clock has jumped ahead
            self._checkpoints.save(step, state, scores)
        self._ended = False

    def _save_anew(self, step: int, state: Any, scores: Mapping[str, float] | None) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for path, content in self._files.items():
            path.write_bytes(content)
        with Checkpoints(self._folder / "checkpoints") as checkpoints:
            checkpoints.save(step, state, scores)
        raise SegjaxError(
            f"{self._folder}: was removed amid the training. The recipe and the state after step "
            f"{step} are written there anew; log and checkpoints of before are gone. The same "
            "command goes on from there."
        )

    def _check_room(self, step: int, state: Any) -> None:
        need = _COMPRESSED * sum(x.nbytes for x in jax.tree.leaves(state) if hasattr(x, "nbytes"))
        free = shutil.disk_usage(self._folder).free
        if jax.process_count() == 1 and free < need:
            raise _NoRoom(
                f"{self._folder}: no room for the checkpoint of step {step}: {free / 2**20:,.1f} "
                f"MiB are free, it takes {need / 2**20:,.1f} or more. Free the disk."
            )
