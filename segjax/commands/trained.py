"""What a run has trained: its network with the variables of a checkpoint, and its data."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from segjax.commands.run import HeldOut, Run
from segjax.errors import SegjaxError
from segjax.inference.predict import make_predict, make_tiled_predict
from segjax.training import sharding
from segjax.training.checkpoint import Checkpoints

Which = Literal["best", "newest"]
_PLACES = ("root", "data_dir")  # fields of sources that name their folder


def load(
    run: Run,
    checkpoint: Which,
    *,
    tile: int | None = None,
    gaussian: bool = False,
    batch_size: int = 1,
) -> tuple[int, Callable[..., Any], Any]:
    """The step of a checkpoint, the run's `make_predict`, and the variables (NumPy) it takes.

    With `tile` it computes so many tiles at a time on this process's devices.
    """
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
    with Checkpoints(run.folder / "checkpoints") as checkpoints:
        step = checkpoints.best if checkpoint == "best" else checkpoints.newest
        if step is None:
            raise SegjaxError(f"{run.folder}: no checkpoint yet. Train it first.")
        # Of a moving average of the weights, where the run has one, are the scores.
        if checkpoints.holds("ema", step=step):
            variables = checkpoints.restore({"ema": dict(like)}, step=step)["ema"]
        else:
            variables = checkpoints.restore(dict(like), step=step)
    if model.num_classes != (classes := len(run.rebuild("classes"))):
        raise SegjaxError(
            f"{run.folder / 'recipe.json'}: its network has {model.num_classes} classes, but "
            f"{classes} are named. Restore the file."
        )
    if not tile:
        return step, make_predict(model, normalise=normalise), variables
    put = partial(sharding.put, mesh=sharding.make_mesh(jax.local_devices()))
    predict = make_tiled_predict(
        model,
        normalise=normalise,
        tile=tile,
        batch_size=batch_size,
        gaussian=gaussian,
        put=put,
    )
    return step, predict, variables


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
