"""Checkpoints of a run: the two newest and the best, written in the background; all of Orbax.

2000/                      arrays in default/, scores in metrics/, and checksums.json of both
3000.orbax-checkpoint-tmp  one that is being written; what a killed process has left of it
1000.deleted               one on its way out
1500.damaged               one that is no longer as it was written, set aside: never removed
"""

import json
import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from segjax.errors import SegjaxError, SegjaxWarning
from segjax.training import checksums

# Orbax tells every save at length, and what it raises as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)

_NEWEST = 2  # kept beside the best: should the last one be damaged, the one before it is there
_SCORES = "metrics/metrics"


class Damaged(SegjaxError):
    """The files of a checkpoint are not as they were written; `why` says which."""

    def __init__(self, where: Path, why: str, remedy: str) -> None:
        super().__init__(f"{where}: the checkpoint is damaged: {why}. {remedy}")
        self.why = why


class Vanished(SegjaxError):
    """The training has removed a checkpoint, for newer ones are there, while it was being read."""


class Checkpoints:
    """The checkpoints in one folder; use as a context manager, which waits for the last write.

    Args:
        folder: made where it is missing, unless it is only read.
        best: the score whose highest value marks the best checkpoint.
        read_only: change nothing there, for another process may be training.
    """

    def __init__(self, folder: Path, *, best: str = "mean_iou", read_only: bool = False) -> None:
        self.folder = Path(folder).absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise SegjaxError(
                f"{self.folder}: no folder of checkpoints. Move away what is there, and put the "
                "checkpoints back."
            )
        self._best, self._read_only = best, read_only
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._closing = ExitStack()
        self._place = self._closing.enter_context(_plainly_named(self.folder))
        self._reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        self._closing.callback(self._reader.close)
        self._writer: ocp.AsyncCheckpointer | None = None
        self._writing: int | None = None
        self._removing = self._closing.enter_context(ThreadPoolExecutor(1))
        # By step. A checkpoint without scores has None; one whose scores are damaged is in both.
        self._bad: dict[int, str] = {}
        self._scores: dict[int, float | None] = self._listed()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._closing:
            try:
                self.wait()
                if self._writer is not None:  # else nothing has changed
                    self._prune()
                    self._writer.close()
            except SegjaxError as failed:
                if error is None:
                    raise
                warnings.warn(str(failed), SegjaxWarning, stacklevel=2)  # beside what ends it

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint, None without any."""
        return max(self._scores, default=None)

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint; the newest where none has a score.

        Raises:
            Damaged: the scores of one cannot be read, which may be the best.
        """
        for step, why in self._bad.items():
            raise self._damaged(step, why)
        return self._best_but_for_damaged()

    def holds(self, field: str, *, step: int) -> bool:
        """Whether a checkpoint has arrays of a field of the state, as "ema"."""
        self.wait()  # it may be the one that is being written
        return any(name.split(".")[0] == field for name in self._stored(step))

    def save(self, step: int, state: Any, scores: Mapping[str, float] | None = None) -> None:
        """Write `state` in the background, with the scores that tell the best one.

        It gets its name once it is whole, its checksums included. A step that is there already is
        left alone, but for scores that it lacks.

        Raises:
            SegjaxError: it cannot be written, or the one before it could not.
        """
        metrics = {name: float(x) for name, x in (scores or {}).items()}
        self.wait()
        if step in self._scores:
            if metrics and not self.scored(step):
                self._add_scores(step, metrics)
            return
        self._prune()
        if self._writer is None:
            self._writer = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler(
                    default=ocp.PyTreeCheckpointHandler(),
                    metrics=ocp.JsonCheckpointHandler(filename="metrics"),
                ),
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            )
        args = ocp.args.Composite(
            default=ocp.args.PyTreeSave(state), metrics=ocp.args.JsonSave(metrics)
        )
        self._writing, self._scores[step] = step, _score(metrics, self._best)
        try:
            self._writer.save(self._place / str(step), args=args)
        except Exception as error:
            raise self._unwritten(error) from error

    def scored(self, step: int) -> bool:
        """Whether a checkpoint was saved with scores."""
        return self._scores.get(step) is not None

    def wait(self) -> None:
        """Return once all that was saved is written.

        Raises:
            SegjaxError: it cannot be.
        """
        if self._writing is None or self._writer is None:
            return
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error
        self._writing = None

    def resume(self, like: Any) -> tuple[int, Any]:
        """Step and state of the newest checkpoint that is whole; 0 and `like` without any.

        The newest and the best are compared with their checksums. What is damaged is set aside,
        with a SegjaxWarning, and the one before it takes its place. What a killed process has left
        of checkpoints that it wrote or removed is removed. All processes take the same step.

        Args:
            like: as `restore` takes it.

        Raises:
            SegjaxError: all are damaged, or the newest is of another tree or other shapes.
        """
        while True:
            if jax.process_index() == 0:
                self._tidy()
            step = self.newest or 0
            if jax.process_count() > 1:
                step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
                # Of a file system that all share, which may show the folder as it was before.
                there = {s: x for s, x in self._listed().items() if s < step}
                self._scores = there | ({step: None} if step else {})
            if not step:
                if any(".damaged" in path.name for path in self.folder.iterdir()):
                    raise SegjaxError(
                        f"{self.folder}: every checkpoint was damaged and is set aside there, as "
                        "<step>.damaged: none is left to go on from. Put back a copy of one, begin "
                        "anew with --restart, or name another folder with --run."
                    )
                return 0, like
            try:
                return step, self.restore(like, step=step)
            except Damaged as error:  # of before there were checksums
                if jax.process_count() > 1:
                    raise
                self._set_aside(step, error.why)

    def restore(self, like: Any, *, step: int) -> Any:
        """Read the checkpoint of a step.

        Args:
            like: tree of arrays or `jax.ShapeDtypeStruct` with the structure, shapes and shardings
                wanted: the saved state, or a dict of some of its fields ("params", "batch_stats").
            step: `newest` or `best`, or any that was kept.

        Raises:
            Damaged: it cannot be read.
            Vanished: another process has removed it meanwhile.
            SegjaxError: no such checkpoint, or one of another tree or other shapes, each named.
        """
        self.wait()  # it may be the one that is being written
        stored, wanted = self._stored(step), _shapes(like)
        fields = _fields(like)
        stored = {name: shape for name, shape in stored.items() if name.split(".")[0] in fields}
        differences = [
            f"  {name}: {stored.get(name, 'absent')} stored, {wanted.get(name, 'absent')} wanted"
            for name in sorted({*stored, *wanted})
            if stored.get(name) != wanted.get(name)
        ]
        if differences:
            more = f"\n  … and {len(differences) - 8} more" if len(differences) > 8 else ""
            raise SegjaxError(
                f"{self.folder / str(step)}: the checkpoint is of another network, class count or "
                "optimiser:\n"
                + "\n".join(differences[:8])
                + more
                + "\nUse the recipe that it was trained with, or another run folder, where its "
                "weights alone can be taken: --start-from."
            )
        try:
            return self._reader.restore(
                self._place / str(step) / "default",
                args=ocp.args.PyTreeRestore(
                    like,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                    partial_restore=True,
                ),
            )
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # of this machine
        except Exception as error:
            raise self._failed(step, error) from error

    def verify(self, step: int) -> None:
        """Raise Damaged (or Vanished) where the files of a checkpoint are not as written."""
        self.wait()
        if why := self._damage(step):
            raise self._damaged(step, why)

    def _listed(self) -> dict[int, float | None]:
        """The checkpoints that are there by step, with their scores."""
        scores: dict[int, float | None] = {}
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        for step in sorted(int(name) for name in names if name.isascii() and name.isdecimal()):
            where = self.folder / str(step)
            scores[step] = None
            try:
                text = (where / "metrics" / "metrics").read_text(encoding="utf-8")
                scores[step] = _score(json.loads(text), self._best)
            except (FileNotFoundError, NotADirectoryError):
                if not where.exists():  # removed by the training meanwhile
                    del scores[step]
            except (ValueError, RecursionError) as error:
                self._bad[step] = f"its scores, metrics/metrics, cannot be read ({error})"
        return scores

    def _best_but_for_damaged(self) -> int | None:
        scored = [(score, step) for step, score in self._scores.items() if score is not None]
        return max(scored)[1] if scored else self.newest

    def _stored(self, step: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the arrays of a checkpoint by their paths."""
        if step not in self._scores:
            have = ", ".join(map(str, sorted(self._scores))) or "none"
            raise SegjaxError(f"{self.folder}: no checkpoint of step {step}; there are: {have}.")
        try:
            metadata: Any = self._reader.metadata(self._place / str(step) / "default")
            stored = _shapes(metadata.item_metadata)
        except Exception as error:
            raise self._failed(step, error) from error
        if not stored:
            raise self._damaged(step, "its list of arrays is missing")
        return stored

    def _failed(self, step: int, error: Exception) -> SegjaxError:
        """The error of a checkpoint that could not be read."""
        where, line = self.folder / str(step), _first_line(error)
        why = self._damage(step)
        if not why and (where / checksums.NAME).exists():
            return SegjaxError(
                f"{where}: the checkpoint cannot be read ({line}), though its files are as they "
                "were written. It may be of another release of JAX or Orbax: environment.json has "
                "those that the run was trained with."
            )
        return self._damaged(step, why or f"it cannot be read ({line})")

    def _damaged(self, step: int, why: str) -> SegjaxError:
        """The error of a checkpoint that cannot be used, with what to do."""
        where = self.folder / str(step)
        if not where.exists():
            return Vanished(f"{where}: the checkpoint was removed while it was read. Try again.")
        others = [str(other) for other in sorted(self._scores) if other != step]
        remedy = "It is the only one of the run: put back a copy of it."
        if others:
            of = f"steps {', '.join(others)}" if len(others) > 1 else f"step {others[0]}"
            remedy = (
                f"The run has another, of {of}: --checkpoint newest or best may name it. To train "
                "on, by the same command, sets the damaged one aside and goes on from one that is "
                "whole."
            )
        return Damaged(where, why, remedy)

    def _unwritten(self, error: Exception) -> SegjaxError:
        """The error of a checkpoint that could not be written."""
        step, self._writing = self._writing, None
        self._scores.pop(step or 0, None)
        kept = f"goes on from step {self.newest}" if self.newest else "begins anew"
        return SegjaxError(
            f"{self.folder / str(step)}: the checkpoint could not be written "
            f"({_first_line(error)}). Free the disk, or correct the folder's permissions; the same "
            f"command {kept}."
        )

    def _seal(self) -> None:
        """Write the checksums of a checkpoint whose files are whole, before it gets its name.

        In Orbax's own thread, of the first process, when all processes have written their files.
        """
        checksums.seal(self.folder / f"{self._writing}{ocp.utils.TMP_DIR_SUFFIX}")

    def _add_scores(self, step: int, metrics: Mapping[str, float]) -> None:
        """Give scores to a checkpoint whose evaluation was broken off."""
        self._scores[step] = _score(metrics, self._best)
        if jax.process_index():
            return
        checksums.replace(self.folder / str(step), _SCORES, json.dumps(metrics))

    def _damage(self, step: int) -> str:
        """What is wrong with the files of a checkpoint; nothing where they are as written.

        Of one from before there were checksums, only reading it can tell. Scores that are not there
        yet are no damage.
        """
        where = self.folder / str(step)
        if step in self._bad:
            return self._bad[step]
        if not (where / "default").is_dir():
            return "its arrays, default/, are missing"
        return checksums.damage(where, may_be_empty=_SCORES)

    def _tidy(self) -> None:
        """Remove the rests of a killed process, and set the damaged aside."""
        for path in [*self.folder.iterdir()]:
            rest = ocp.utils.TMP_DIR_SUFFIX in path.name or path.name.endswith(".deleted")
            if path.name.isdecimal() and path.is_dir():  # folders alone, without a file
                rest = all(inner.is_dir() for inner in path.rglob("*"))
            if rest:
                shutil.rmtree(path, ignore_errors=True)
        self._bad = {}
        self._scores = self._listed()
        for step, why in [*self._bad.items()]:
            self._set_aside(step, why)
        whole: set[int | None] = {None}
        while unseen := {self.newest, self._best_but_for_damaged()} - whole:
            step = max(step for step in unseen if step is not None)
            if why := self._damage(step):
                self._set_aside(step, why)
            else:
                whole.add(step)

    def _set_aside(self, step: int, why: str) -> None:
        """Give a damaged checkpoint another name, under which nobody takes it for one."""
        where = self.folder / str(step)
        names = [f"{step}.damaged", *(f"{step}.damaged-{i}" for i in range(2, 1000))]
        aside = next(where.with_name(n) for n in names if not where.with_name(n).exists())
        where.rename(aside)
        self._scores.pop(step, None)
        self._bad.pop(step, None)
        warnings.warn(
            f"{where}: the checkpoint is damaged: {why}. It is set aside as {aside.name}.",
            SegjaxWarning,
            stacklevel=2,
        )

    def _prune(self) -> None:
        """Remove all but the newest and the best.

        Each is renamed first: at any moment it is there whole, or not at all.
        """
        keep = {*sorted(self._scores)[-_NEWEST:], self._best_but_for_damaged()}
        for step in self._scores.keys() - keep:
            del self._scores[step]
            if jax.process_index() == 0:
                where = self.folder / str(step)
                with suppress(FileNotFoundError):  # the folder is gone, which is told elsewhere
                    deleted = where.rename(where.with_name(f"{step}.deleted"))
                    self._removing.submit(shutil.rmtree, deleted, ignore_errors=True)


@contextmanager
def _plainly_named(folder: Path) -> Iterator[Path]:
    """The folder, by a name that Orbax and TensorStore take as it stands.

    Orbax finds what each process has written by a pattern that begins with the folder's name, in
    which brackets have a meaning; TensorStore takes a backslash for a slash.
    """
    if not set("[]*?\\") & set(folder.as_posix()):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="segjax-") as home:
        link = Path(home) / "checkpoints"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _score(metrics: Any, name: str) -> float | None:
    """One of the scores of a checkpoint, -∞ for NaN; None where they have it not.

    Raises:
        ValueError: these are no scores.
    """
    value = metrics.get(name) if isinstance(metrics, dict) else math.nan
    if not isinstance(metrics, dict) or (name in metrics and not isinstance(value, int | float)):
        raise ValueError(f"{str(metrics)[:80]} are no scores")
    return -math.inf if value is not None and math.isnan(value) else value


def _first_line(reason: object) -> str:
    """Of what Orbax says, which appends pages."""
    return (str(reason).splitlines() or [type(reason).__name__])[0][:200]


def _fields(tree: Any) -> set[str]:
    """The names at the top of a tree, less those that hold None; also where nothing has arrays."""
    children, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, child in children
        if child is not None
    }


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array of a tree, the paths as Orbax's metadata spells them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(x.shape)
        for path, x in leaves
        if hasattr(x, "shape")
    }
