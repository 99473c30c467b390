"""Checkpoints of a run, the newest and the best, written in the background; all of Orbax."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from segjax.errors import SegjaxError

# Orbax tells every save at length, and what it raises as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints in one folder; use as a context manager, which waits for the last write.

    Args:
        folder: made where it is missing.
        best: the score whose highest value marks the best checkpoint.
    """

    def __init__(self, folder: Path, *, best: str = "mean_iou") -> None:
        self.folder = Path(folder).absolute()
        self._best = best

        def score(metrics: Mapping[str, float]) -> float:
            value = metrics.get(best, math.nan) if isinstance(metrics, dict) else None
            if not isinstance(value, int | float):
                raise ValueError(f"{value!r} is no number")
            return -math.inf if math.isnan(value) else value  # Orbax would take NaN for the best

        if self.folder.exists() and not self.folder.is_dir():
            raise SegjaxError(f"{self.folder}: no folder of checkpoints. Remove what is there.")
        options = ocp.CheckpointManagerOptions(
            best_fn=score,
            preservation_policy=policy.AnyPreservationPolicy(
                [policy.LatestN(1), policy.BestN(n=1, get_metric_fn=score)]
            ),
        )
        try:
            self._manager = ocp.CheckpointManager(
                self.folder, item_handlers=ocp.PyTreeCheckpointHandler(), options=options
            )
            self._manager.best_step()  # reads them all
        except (ValueError, RecursionError) as error:  # JSON
            raise SegjaxError(
                f"{self.folder}: the scores of a checkpoint, <step>/metrics/metrics, cannot be "
                f"read ({error}). Remove the folder of that step to go on from another."
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint, None without any."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint; the newest where none has a score."""
        return self._manager.best_step() or self.newest

    def holds(self, field: str, *, step: int) -> bool:
        """Whether a checkpoint has arrays of a field of the state, as "ema"."""
        self._manager.wait_until_finished()  # it may be the one that is being written
        return any(name.split(".")[0] == field for name in self._stored(step))

    def save(self, step: int, state: Any, scores: Mapping[str, float] | None = None) -> None:
        """Write `state` in the background, with the scores that tell the best one.

        A step that is there already is left alone.
        """
        if step not in self._manager.all_steps():
            metrics = {name: float(x) for name, x in (scores or {}).items()}
            self._manager.save(step, args=ocp.args.PyTreeSave(state), metrics=metrics)

    def restore(self, like: Any, *, step: int) -> Any:
        """Read the checkpoint of a step.

        Args:
            like: tree of arrays or `jax.ShapeDtypeStruct` with the structure, shapes and shardings
                wanted: the saved state, or a dict of some of its fields ("params", "batch_stats").
            step: `newest` or `best`, or any that was kept.

        Raises:
            SegjaxError: no such checkpoint, or one of another tree or other shapes, each named.
        """
        self._manager.wait_until_finished()  # it may be the one that is being written
        where, stored, wanted = self.folder / str(step), self._stored(step), _shapes(like)
        fields = {name.split(".")[0] for name in wanted}
        stored = {name: shape for name, shape in stored.items() if name.split(".")[0] in fields}
        differences = [
            f"  {name}: {stored.get(name, 'absent')} stored, {wanted.get(name, 'absent')} wanted"
            for name in sorted({*stored, *wanted})
            if stored.get(name) != wanted.get(name)
        ]
        if differences:
            more = f"\n  … and {len(differences) - 8} more" if len(differences) > 8 else ""
            raise SegjaxError(
                f"{where}: the checkpoint is of another network, class count or optimiser:\n"
                + "\n".join(differences[:8])
                + more
                + "\nUse the recipe that it was trained with, or another run folder."
            )
        try:
            return self._manager.restore(
                step,
                args=ocp.args.PyTreeRestore(
                    like,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                    partial_restore=True,
                ),
            )
        except Exception as error:
            raise _unreadable(where, error) from error

    def _stored(self, step: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the arrays of a checkpoint by their paths."""
        where = self.folder / str(step)
        if step not in self._manager.all_steps():
            have = ", ".join(map(str, self._manager.all_steps())) or "none"
            raise SegjaxError(f"{self.folder}: no checkpoint of step {step}; there are: {have}.")
        try:
            stored = _shapes(self._manager.item_metadata(step))
        except Exception as error:
            raise _unreadable(where, error) from error
        if not stored:
            raise _unreadable(where, "its list of arrays is missing")
        return stored


def _unreadable(where: Path, reason: object) -> SegjaxError:
    """Of files that are damaged; the reason's first line, for Orbax appends pages."""
    line = (str(reason).splitlines() or [type(reason).__name__])[0]
    return SegjaxError(
        f"{where}: the checkpoint cannot be read ({line[:200]}). Remove this folder to go on from "
        "an earlier one."
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array of a tree, the paths as Orbax's metadata spells them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(x.shape)
        for path, x in leaves
        if hasattr(x, "shape")
    }
