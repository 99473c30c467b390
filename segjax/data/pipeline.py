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


def pad_to_canvas(
    examples: Sequence[dict[str, Any]], canvas: tuple[int, int]
) -> dict[str, np.ndarray]:
    """A batch of pictures at the top left of a canvas: mirrored beyond their edges, label ignored.

    A "weight" (H, W) goes with each, 0 there.

    Raises:
        SegjaxError: a picture is larger than the canvas.
    """
    first = examples[0]
    shape = (len(examples), *canvas)
    # Filled in place: np.pad and np.stack take several times as long.
    images = np.empty((*shape, *first["image"].shape[2:]), first["image"].dtype)
    labels = np.full(shape, IGNORE, np.uint8)
    batch = {"image": images, "label": labels}
    if "weight" in first:
        batch["weight"] = np.zeros(shape, np.float32)
    for row, example in enumerate(examples):
        height, width = example["label"].shape
        if height > canvas[0] or width > canvas[1]:
            raise SegjaxError(
                f"{example['id']}: the picture is {height}×{width} (height × width), larger than "
                f"the canvas of {canvas[0]}×{canvas[1]}; set a canvas that holds the largest "
                "picture."
            )
        for name, array in batch.items():
            array[row, :height, :width] = example[name]
        wide = images[row, :height]
        wide[:, width:] = wide[:, _mirrored(width, canvas[1])]
        images[row, height:] = images[row, _mirrored(height, canvas[0])]
    return batch


def _mirrored(length: int, whole: int) -> np.ndarray:
    """Of which pixels those from `length` to `whole` are the mirror images."""
    return np.pad(np.arange(length), (0, whole - length), mode="reflect")[length:]


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

    def batch(positions: range) -> dict[str, np.ndarray]:
        records = [int(order[position]) for position in positions]
        return {
            **pad_to_canvas([source[record] for record in records], canvas),
            "epoch": np.array([position // len(source) for position in positions], np.int32),
            "record": np.array(records, np.int32),
        }

    steps = grain.MapDataset.range(start, np.iinfo(np.int32).max)
    return _read(steps, batch, batch_size, process, processes, threads)


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
    rows = []  # the canvas, the record, and whether it only fills a batch up
    for canvas, records in _by_canvas(source, canvases):
        rows += [(canvas, record, False) for record in records]
        rows += [(canvas, records[-1], True)] * (-len(records) % batch_size)

    def batch(positions: range) -> dict[str, np.ndarray]:
        (canvas, *_), *_ = chosen = [rows[position] for position in positions]
        padded = pad_to_canvas([source[record] for _, record, _ in chosen], canvas)
        padded["label"][[filling for *_, filling in chosen]] = IGNORE
        return padded

    numbers = grain.MapDataset.range(len(rows) // batch_size)
    return _read(numbers, batch, batch_size, process, processes, threads)


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
    batch: Callable[[range], dict[str, np.ndarray]],
    batch_size: int,
    process: int,
    processes: int,
    threads: int,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the numbered batches; row r of batch n is at position n·B + r."""
    rows = batch_size // processes

    def read(number: int) -> dict[str, np.ndarray]:
        first = number * batch_size + process * rows
        return batch(range(first, first + rows))

    options = grain.ReadOptions(threads, prefetch_buffer_size=2 * threads)
    return iter(numbers.map(read).to_iter_dataset(options))
