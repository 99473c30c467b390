"""A picture that is larger than memory: labelled strip by strip, and on again where it stopped."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from segjax.commands.checks import save_png
from segjax.commands.run import read_json, write_whole
from segjax.data.rows import Rows
from segjax.data.tiff_writer import write_tiff
from segjax.errors import SegjaxError
from segjax.evaluation import visualise
from segjax.inference.predict import probabilities_of
from segjax.segmenter import Segmenter

_THUMBNAIL = 2048  # greatest side of the overlay of a picture that nobody could open whole


def label_by_strips(
    segmenter: Segmenter,
    rows: Rows,
    target: Path,
    *,
    identity: Mapping[str, Any],
    tile: int | None = None,
    gaussian: bool = False,
    views: Any = (),
    probabilities: bool = False,
    tags: Any = (),
) -> None:
    """Label a picture strip by strip; write `NAME.tif`, its overlay in small, and probabilities.

    Finished strips lie in `NAME.tif.partial`, one byte a pixel (and one for each probability), and
    `NAME.tif.journal` says how many rows, of which picture and network. Both are removed at last.

    Args:
        segmenter: the network.
        rows: the picture.
        target: where the results go, without a suffix.
        identity: what a half-done result must be of to be gone on with, plain values.
        tile, gaussian, views: as of `Segmenter.strips`.
        probabilities: write them too.
        tags: for the TIFFs, such as a georeference.

    Raises:
        SegjaxError: the picture cannot be read, or the disk would not hold the results.
    """
    (height, width), classes = rows.size, segmenter.classes
    plan = segmenter.plan_strips(rows.size, tile=tile, views=views)
    print(plan)
    deep = 1 + (len(classes) if probabilities else 0)
    label_file = target.with_name(f"{target.name}.tif")
    begun, journal = (target.with_name(f"{target.name}.tif.{n}") for n in ("partial", "journal"))
    target.parent.mkdir(parents=True, exist_ok=True)
    asked = {**identity, "plan": str(plan), "size": [height, width, deep]}
    asked = json.loads(json.dumps(asked, ensure_ascii=True))
    start = _rows_done(begun, journal, asked)
    _check_disk(target.parent, (height - start) * width * deep)
    if start:
        print(f"{journal}: {start} of {height} rows were done before; it goes on there.")

    with begun.open("r+b" if start else "w+b") as file, _bar(height, start) as advance:
        for first, strip in segmenter.strips(
            rows.read,
            rows.size,
            of=partial(in_bytes, segmenter, probabilities=probabilities),
            tile=tile,
            gaussian=gaussian,
            views=views,
            start=start,
        ):
            file.seek(first * width * deep)
            file.write(strip.tobytes())
            file.flush()
            os.fsync(file.fileno())  # before the journal says that it is there
            write_whole(journal, json.dumps({**asked, "rows": first + len(strip)}))
            advance(first + len(strip))
        stored = _stored(file, (width, deep))
        _write(stored, rows, label_file, segmenter, probabilities=probabilities, tags=tags)
    begun.unlink()
    journal.unlink()


def fingerprint(segmenter: Segmenter) -> str:
    """What tells a network with its variables from another: a hash of all of it."""
    found = hashlib.blake2b(digest_size=16)
    parts = (segmenter.model, segmenter.normalise, segmenter.ranges, segmenter.threshold)
    found.update(repr(parts).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(segmenter.variables):
        found.update(repr(path).encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def _rows_done(partial: Path, journal: Path, asked: Mapping[str, Any]) -> int:
    """How many rows an earlier, interrupted command has left; 0 where it was another one."""
    if not (partial.exists() and journal.exists()):
        return 0
    try:
        told = read_json(journal)
        rows = told.pop("rows")
    except (SegjaxError, AttributeError, KeyError, TypeError):
        told, rows = None, 0
    _, width, deep = asked["size"]
    if told == asked and partial.stat().st_size >= rows * width * deep:
        return int(rows)
    print(f"{journal}: of another picture, network or option; it is begun anew.")
    return 0


def _check_disk(folder: Path, needed: int) -> None:
    """Raise SegjaxError where the disk has no room for so many bytes, and half as many deflated."""
    free = shutil.disk_usage(folder).free
    if free < 1.5 * needed:
        raise SegjaxError(
            f"{folder}: {free / 2**30:.1f} GiB are free on the disk, and the results need up to "
            f"{1.5 * needed / 2**30:.1f}. Name another folder with --out."
        )


@contextmanager
def _bar(rows: int, start: int) -> Iterator[Callable[[int], None]]:
    """A bar of rows on a terminal; gives what moves it to a row."""
    text = TextColumn("{task.completed:.0f} of {task.total:.0f} rows", markup=False)
    with Progress(text, BarColumn(bar_width=None), TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=rows, completed=start)
        yield lambda row: progress.update(task, completed=row)


def _stored(file: BinaryIO, of_row: tuple[int, int]) -> Callable[[int, int], np.ndarray]:
    """The reader of finished rows, (rows, W, 1 + N) uint8."""
    width, deep = of_row

    def read(first: int, last: int) -> np.ndarray:
        file.seek(first * width * deep)
        data = file.read((last - first) * width * deep)
        return np.frombuffer(data, np.uint8).reshape(last - first, width, deep)

    return read


def _write(
    stored: Callable[[int, int], np.ndarray],
    rows: Rows,
    file: Path,
    segmenter: Segmenter,
    *,
    probabilities: bool,
    tags: Any,
) -> None:
    """The results of finished rows."""
    name, classes, palette = file.stem, segmenter.classes, segmenter.palette

    def labels(first: int, last: int) -> np.ndarray:
        return stored(first, last)[..., 0]

    write_tiff(file, labels, rows.size, palette=palette, description=told(classes), tags=tags)
    picture, small = _thumbnail(rows, labels)
    overlay = visualise.overlay(picture, small, palette)
    laid = visualise.with_legend(overlay, small, classes, palette)
    save_png(laid, file.with_name(f"{name}_overlay.png"))
    if probabilities:
        write_tiff(
            file.with_name(f"{name}_probabilities.tif"),
            lambda a, z: stored(a, z)[..., 1:],
            rows.size,
            bands=len(classes),
            description=told(classes),
            tags=tags,
        )


def in_bytes(segmenter: Segmenter, logits: Any, *, probabilities: bool) -> Any:
    """What is kept of logits (…, N): uint8 (…, 1), the label, or (…, 1 + N) with probabilities.

    These as they are written, 0–255 for 0–1; left where they are computed, so that the device is
    never waited for.
    """
    labels = segmenter.labels_unmoved(logits)[..., None]
    if not probabilities:
        return labels
    shares = jnp.rint(255 * probabilities_of(logits)).astype(jnp.uint8)
    return jnp.concatenate([labels, shares], -1)


def told(classes: Any) -> str:
    """A TIFF's description: the classes, whose indices or bands are in their order."""
    return json.dumps({"classes": list(classes)})


def _thumbnail(
    rows: Rows, labels: Callable[[int, int], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Picture and label, one pixel for each block: the mean of its colours, its middle's class."""
    height, width = rows.size
    block = max(-(-max(height, width) // _THUMBNAIL), 1)
    down, across = max(height // block, 1), max(width // block, 1)
    block_rows, block_columns = min(block, height), min(block, width)
    at_once = max(512 // block, 1)
    pictures, middles = [], []
    for first in range(0, down, at_once):
        number = min(at_once, down - first)
        top, bottom = first * block, first * block + number * block_rows
        picture = rows.read(top, bottom)[:, : across * block_columns]
        blocks = picture.reshape(number, block_rows, across, block_columns, -1)
        pictures.append(blocks.mean((1, 3), dtype=np.float32))
        label = labels(top, bottom)[:, : across * block_columns]
        middles.append(label[block_rows // 2 :: block_rows, block_columns // 2 :: block_columns])
    return np.concatenate(pictures), np.concatenate(middles)
