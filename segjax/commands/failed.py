"""The batch of a step that failed, kept for a look in the run folder."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from segjax.commands.run import as_json, write_whole
from segjax.data import pipeline
from segjax.errors import SegjaxError
from segjax.evaluation.visualise import as_shown
from segjax.training.train import NotFinite


def keep_failed(error: NotFinite, folder: Path, source: pipeline.Source) -> str:
    """Write the batch of a step that was not finite, and tell where it lies.

    In failed/step_N of the run folder: batch.npz, what the step was given; pictures and labels of
    it as PNGs; ids.json, of each row the example's number and name, and its epoch: seed, epoch and
    number make the augmentation's key. Of several processes each writes its own rows.
    """
    if error.batch is None:
        return ""
    home = folder / "failed" / f"step_{error.step}"
    if jax.process_count() > 1:
        home = home / f"process_{jax.process_index()}"
    try:
        _write(home, {name: _own(x) for name, x in error.batch.items()}, source)
    except OSError as unwritable:
        return f" Its batch could not be kept for a look: {unwritable}."
    return f" Its batch is kept for a look: {home}."


def _write(home: Path, batch: dict[str, Any], source: pipeline.Source) -> None:
    home.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(home / "batch.npz", **batch)
    for row, (image, label) in enumerate(zip(batch["image"], batch["label"], strict=True)):
        Image.fromarray(as_shown(image)).save(home / f"{row}_image.png")
        Image.fromarray(label).save(home / f"{row}_label.png")
    rows = [
        {"row": row, "record": int(record), "id": _id(source, int(record)), "epoch": int(epoch)}
        for row, (record, epoch) in enumerate(zip(batch["record"], batch["epoch"], strict=True))
    ]
    write_whole(home / "ids.json", as_json(rows))


def _own(x: Any) -> np.ndarray:
    """The rows of an array that lie on this process's devices."""
    parts = {part.index[0].start or 0: part.data for part in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _id(source: pipeline.Source, record: int) -> str | None:
    """What the source calls an example; None if it cannot be read any more."""
    try:
        return str(source[record]["id"])
    except (SegjaxError, OSError):
        return None
