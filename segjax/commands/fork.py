"""A new run from the whole state of another: parameters, optimiser, moving average and step."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from segjax.commands.run import Run, never_saved, read_json
from segjax.commands.trained import read
from segjax.errors import SegjaxError
from segjax.training.checkpoint import Checkpoints
from segjax.training.train import State


class Fork(NamedTuple):
    """Where a run begins: the run that it goes on from, the step, and the state to train."""

    run: Path
    step: int
    state: State

    @property
    def note(self) -> dict[str, Any]:
        """For environment.json."""
        return {"forked_from": {"run": str(self.run), "step": self.step}}

    def __str__(self) -> str:
        return f"a new run, from the whole state of {self.run} at step {self.step}"


def fork(
    folder: Path,
    of: Path | None,
    *,
    like: State,
    until: int,
    restart: bool = False,
) -> Fork | None:
    """The newest state of another run, to begin one in `folder` with; None where none is asked for.

    Nor where the run in `folder`, which was begun so, has a checkpoint by now: the same command
    goes on from there.

    Args:
        folder: of the new run.
        of: the other run's folder; by default what environment.json notes at the first start.
        like: shapes and shardings of a state of the new run. A moving average that the other run
            has not starts at its parameters.
        until: the number of the new run's last step.
        restart: a run in `folder` will be removed, and counts for nothing.

    Raises:
        SegjaxError: `folder` holds a run that was begun otherwise, there is no such run, or its
            state is of another network or optimiser, each difference named.
    """
    noted = None if restart else _noted(folder)
    if of is not None and of.absolute() == folder.absolute():
        raise SegjaxError(
            f"{folder}: a run cannot be begun from itself. Name another folder with --run."
        )
    there = not restart and not never_saved(folder)
    if of is not None and there and noted != of.absolute():
        told = f"begun from {noted}" if noted else "not begun from another"
        raise SegjaxError(
            f"{folder}: holds a run that was {told}. Drop --fork to go on with it, or name another "
            "folder with --run."
        )
    of = of or noted
    if of is None:
        return None
    if there:
        return None

    def state(checkpoints: Checkpoints, step: int) -> State:
        if like.ema is None or checkpoints.holds("ema", step=step):
            return checkpoints.restore(like, step=step)
        restored = checkpoints.restore(like.replace(ema=None), step=step)
        return jax.jit(State.with_ema)(restored)

    step, restored = read(Run(of).folder, "newest", state)
    if jax.process_count() > 1:
        steps = {int(x) for x in multihost_utils.process_allgather(np.int32(step)).ravel()}
        if len(steps) > 1:
            raise SegjaxError(
                f"{of}: is training, so that the processes here have read different steps of it: "
                f"{', '.join(map(str, sorted(steps)))}. Start again when it has ended."
            )
    if step >= until:
        raise SegjaxError(
            f"{of} is at step {step}, and the new run ends at step {until}: nothing is left to "
            f"train. Ask for more, as --steps {2 * step}; they count from the other run's first."
        )
    return Fork(of.absolute(), step, restored)


def _noted(folder: Path) -> Path | None:
    """The run that the one in a folder was begun from, by its environment.json.

    The last that was noted: first starts may have failed.
    """
    path = folder / "environment.json"
    starts: Any = read_json(path) if path.exists() else []
    for start in reversed(starts if isinstance(starts, list) else []):
        forked = start.get("forked_from") if isinstance(start, dict) else None
        run = forked.get("run") if isinstance(forked, dict) else None
        if isinstance(run, str):
            return Path(run)
    return None
