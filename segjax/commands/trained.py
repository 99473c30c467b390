"""What a run has trained: its network with the variables of a checkpoint, and its data."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp

from segjax.commands import exported
from segjax.commands.run import HeldOut, Run
from segjax.data.wrapper import bare
from segjax.errors import SegjaxError
from segjax.segmenter import Segmenter
from segjax.training.checkpoint import Checkpoints, Vanished

Which = Literal["best", "newest"]
_PLACES = ("root", "data_dir")  # fields of sources that name their folder
T = TypeVar("T")


def load(run: str | Path | Run, checkpoint: Which = "best") -> Segmenter:
    """What a run has trained, ready to use: `segjax.load("runs/x").predict("photo.jpg")`.

    Args:
        run: the run folder; or the weights.safetensors that `segjax export` has made of one.
        checkpoint: the best one by its held-out score, or the newest; of a run.

    Raises:
        SegjaxError: there is no such run, it has no checkpoint yet, or it is damaged.
    """
    if str(run).endswith(".safetensors"):
        return exported.load(Path(str(run)))
    return load_step(run if isinstance(run, Run) else Run(Path(run)), checkpoint)[1]


def load_step(run: Run, checkpoint: Which) -> tuple[int, Segmenter]:
    """The step of a checkpoint, and what it has trained, its variables on the host."""
    model: Any = run.rebuild("model")
    normalise = run.rebuild("normalise")
    images = jnp.zeros((1, *run.fields["crop"], run.fields["channels"]), jnp.uint8)
    try:
        like = jax.eval_shape(lambda: model.init(jax.random.key(0), normalise(images)))
    except Exception as error:  # of any network and scaling, given what the file holds
        raise SegjaxError(
            f"{run.folder / 'recipe.json'}: its network or scaling cannot be used: {error}. "
            "Restore the file."
        ) from error

    def variables_of(checkpoints: Checkpoints, step: int) -> Any:
        # Of a moving average of the weights, where the run has one, are the scores.
        if checkpoints.holds("ema", step=step):
            return checkpoints.restore({"ema": dict(like)}, step=step)["ema"]
        return checkpoints.restore(dict(like), step=step)

    step, variables = read(run.folder, checkpoint, variables_of)
    try:
        return step, Segmenter(
            model=model,
            variables=variables,
            normalise=normalise,
            classes=run.rebuild("classes"),
            palette=run.rebuild("palette"),
            channels=run.fields["channels"],
            ranges=getattr(bare(run.rebuild("source")), "ranges", ()),
            window=max(run.fields["crop"]),
        )
    except SegjaxError as error:
        raise SegjaxError(f"{run.folder / 'recipe.json'}: {error} Restore the file.") from error


def read(
    run: Path, checkpoint: Which, what: Callable[[Checkpoints, int], T], *, tries: int = 50
) -> tuple[int, T]:
    """The step of a checkpoint, and what is read of it, whose files are as they were written.

    The run may be training, and remove the checkpoint meanwhile: then another is there, and is read
    instead.
    """
    for _ in range(tries):
        with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
            try:
                step = checkpoints.best if checkpoint == "best" else checkpoints.newest
                if step is None:
                    raise SegjaxError(f"{run}: no checkpoint yet. Train it first.")
                checkpoints.verify(step)
                return step, what(checkpoints, step)
            except Vanished:
                continue
    raise SegjaxError(
        f"{run}: the training there replaces its checkpoints faster than they can be read. Let it "
        "save less often (--evaluate-every), or wait for its end."
    )


def held_out(run: Run, data: Path | None = None, split: HeldOut = "val") -> Any:
    """The held-out data of a run, or what lies in the folder `data` now.

    Raises:
        SegjaxError: the run has no such split; its folder is not there, or it is not read from one.
    """
    if split not in run.splits:
        raise SegjaxError(
            f"{run.folder}: its recipe has no {split} split, but {', '.join(run.splits)}. Add it "
            "to the recipe's `splits` and to what its `source` gives, and train."
        )
    source = run.rebuild("source" if split == "val" else split)
    if data is not None:
        source = moved(source, data)
    check_folder(source)
    return source


def check_folder(source: Any) -> None:
    """Raise SegjaxError where the folder that a source is read from is not there."""
    while hasattr(source, "source"):
        source = source.source
    for place in _PLACES:
        folder = getattr(source, place, None)
        if folder is not None and not Path(folder).exists():
            raise SegjaxError(
                f"{folder}: no data there. Name the folder where it lies with --data."
            )


def moved(source: Any, root: Path) -> Any:
    """The source, whose files lie in another folder now."""
    for place in _PLACES:
        if hasattr(source, place):
            return dataclasses.replace(source, **{place: root})
    if hasattr(source, "source"):
        return dataclasses.replace(source, source=moved(source.source, root))
    raise SegjaxError(f"{type(source).__name__} is not read from a folder; drop --data.")
