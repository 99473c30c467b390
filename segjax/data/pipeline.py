"""From a source to batches on the host; a batch is a function of (seed, step) alone.

Pictures are padded to one canvas, so that a step compiles once. All of Grain is here; what puts
batches on devices is `sharding.prefetch`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from segjax.errors import SegjaxError

IGNORE = 255


class Source(Protocol):
    """A data set: `source[i]` is the same {"image", "label", "id"} for the same i, every time.

    image: uint8 or float32 (H, W, C) in 0–255.  label: uint8 (H, W), class index or 255.
    id: names it in messages.
    It may also have "weight": float32 (H, W), each pixel's factor in the loss.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...


def pad_to_canvas(example: dict[str, Any], canvas: tuple[int, int]) -> dict[str, np.ndarray]:
    """Put a picture at the top left of a canvas: mirrored beyond its edge, the label ignored.

    A "weight" (H, W) goes with it, 0 there.

    Raises:
        SegjaxError: the picture is larger than the canvas.
    """
    image, label = example["image"], example["label"]
    below, right = canvas[0] - label.shape[0], canvas[1] - label.shape[1]
    if below < 0 or right < 0:
        raise SegjaxError(
            f"{example['id']}: the picture is {label.shape[0]}×{label.shape[1]} (height × width), "
            f"larger than the canvas of {canvas[0]}×{canvas[1]}; set a canvas that holds the "
            "largest picture."
        )
    if below or right:
        image = np.pad(image, ((0, below), (0, right), (0, 0)), mode="reflect")
        label = np.pad(label, ((0, below), (0, right)), constant_values=IGNORE)
    padded = {"image": image, "label": label}
    if "weight" in example:
        padded["weight"] = np.pad(example["weight"], ((0, below), (0, right)))
    return padded


def train_batches(
    source: Source,
    *,
    batch_size: int,
    canvas: tuple[int, int],
    seed: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches without end: every record once an epoch, each epoch in an order of its own.

    Args:
        source: the data set.
        batch_size: B, of all processes together; a multiple of `processes`.
        canvas: height and width to which pictures are padded.
        seed: of the order.
        start: steps already done; the first batch is that of step `start` + 1.
        process, processes: which rows of the batch are read here: the process-th equal part.
        threads: that read ahead; the batches do not depend on it.

    Yields:
        image uint8 (B/processes, H, W, C), label uint8 (…, H, W), and int32 (…,) `epoch` and
        `record`, of which augmentation makes its keys; weight float32 (…, H, W) if the source has.

    Raises:
        SegjaxError: the source is empty; what the source raises.
    """
    if not len(source):
        raise SegjaxError("The training data is empty: nothing to train on.")
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()

    def load(position: int) -> dict[str, np.ndarray]:
        record = int(order[position])
        example = pad_to_canvas(source[record], canvas)
        example["epoch"] = np.asarray(position // len(source), np.int32)
        example["record"] = np.asarray(record, np.int32)
        return example

    steps = grain.MapDataset.range(start, np.iinfo(np.int32).max)
    return _read(steps, load, batch_size, process, processes, threads)


def evaluation_batches(
    source: Source,
    *,
    batch_size: int,
    canvases: Sequence[tuple[int, int]],
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Every record once, at its own resolution, in few shapes.

    Each picture is padded to the smallest canvas that holds it, in batches of one canvas each, the
    first one's first; a last batch is filled up with pictures that are all ignored.

    Args:
        source: the data set; of several canvases, its method `size_of` tells heights and widths, if
            it has one, or every record is read twice.
        canvases: heights and widths.

    The other arguments and the errors are those of `train_batches`; yields `image` and `label`.
    """
    if not len(source):
        raise SegjaxError("The evaluation data is empty: nothing to evaluate on.")
    batches = []
    for canvas, records in _by_canvas(source, canvases):
        fill = -len(records) % batch_size
        rows = [(record, canvas, False) for record in records] + [
            (records[-1], canvas, True)
        ] * fill
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]

    def load(position: int) -> dict[str, np.ndarray]:
        record, canvas, filling = batches[position // batch_size][position % batch_size]
        example = pad_to_canvas(source[record], canvas)
        if filling:
            example["label"] = np.full_like(example["label"], IGNORE)
        return example

    numbers = grain.MapDataset.range(len(batches))
    return _read(numbers, load, batch_size, process, processes, threads)


def _by_canvas(
    source: Source, canvases: Sequence[tuple[int, int]]
) -> list[tuple[tuple[int, int], list[int]]]:
    """The records of each canvas that has any."""
    if len(canvases) == 1:
        return [(canvases[0], list(range(len(source))))]
    size = getattr(source, "size_of", lambda record: source[record]["label"].shape)
    held: dict[tuple[int, int], list[int]] = {canvas: [] for canvas in canvases}
    for record in range(len(source)):
        height, width = size(record)
        fitting = [canvas for canvas in canvases if canvas[0] >= height and canvas[1] >= width]
        # Where none holds it, `pad_to_canvas` will say so.
        held[min(fitting, key=math.prod, default=max(canvases, key=math.prod))].append(record)
    return [(canvas, records) for canvas, records in held.items() if records]


def _read(
    numbers: grain.MapDataset,
    load: Callable[[int], dict[str, np.ndarray]],
    batch_size: int,
    process: int,
    processes: int,
    threads: int,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the numbered batches; row r of batch n is at position n·B + r."""
    rows = batch_size // processes

    def batch(number: int) -> dict[str, np.ndarray]:
        first = number * batch_size + process * rows
        examples = [load(position) for position in range(first, first + rows)]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}

    options = grain.ReadOptions(threads, prefetch_buffer_size=2 * threads)
    return iter(numbers.map(batch).to_iter_dataset(options))
