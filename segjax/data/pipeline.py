"""From a source to batches on the host; a batch is a function of (seed, step) alone.

Pictures are padded to one canvas, so that a step compiles once. All of Grain is here; what puts
batches on devices is `sharding.prefetch`.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from segjax.errors import SegjaxError, SegjaxWarning

IGNORE = 255
SCALED_TO_ONE = (
    "are floats in 0–1, which train as black: expected uint8 or float32 in 0–255. Multiply them by "
    "255 in the source."
)
_TOLD = 5  # values that an error names


class Source(Protocol):
    """A data set: `source[i]` is the same {"image", "label", "id"} for the same i, every time.

    image: uint8 or float32 (H, W, C) in 0–255, of one type and C in all; floats in 0–1 are black.
    label: uint8 (H, W), an index of `classes` or 255 = ignore.
    id: names it in messages.
    All may also have "weight": float32 (H, W), each pixel's factor in the loss.

    Checked by `read_example`, for every example that goes into a batch.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...


def read_example(source: Source, index: int) -> dict[str, Any]:
    """`source[index]`, once it is seen to be what `Source` promises.

    That takes under 20 µs for 512×512 pixels, where decoding them takes milliseconds.

    Raises:
        SegjaxError: it is not, naming the example; what the source raises.
    """
    example = source[index]
    given = example if isinstance(example, dict) else {}
    if missing := [name for name in ("image", "label", "id") if name not in given]:
        raise SegjaxError(
            f"Example {index} of {type(source).__name__} has no {' and no '.join(missing)}; "
            'expected a dict of "image", "label" and "id", got '
            f"{list(example) if given else type(example).__name__}."
        )
    _check_array(example, "label", ("uint8",), "(H, W)")
    _check_array(example, "image", ("uint8", "float32"), "(H, W, C)")
    if "weight" in example:
        _check_array(example, "weight", ("float32",), "(H, W)")
    _check_label(example, len(source.classes))
    return example


def _check_array(example: dict[str, Any], name: str, dtypes: Sequence[str], expected: str) -> None:
    """Raise SegjaxError unless an array has one of the types, and the axes and size expected."""
    array, size = example[name], np.shape(example["label"])
    dtype = str(getattr(array, "dtype", type(array).__name__))
    got = np.shape(array)
    if dtype not in dtypes:
        advice = f"Convert it, if that changes no value: array.astype(np.{dtypes[-1]})."
    elif len(got) != expected.count(",") + 1:
        more = len(got) > expected.count(",") + 1
        advice = "Drop an axis, as by array[..., 0]." if more else "Add one: array[..., None]."
    elif got[:2] != size:
        first = got[1:] == size
        advice = f"The label is {size}: "
        advice += (
            "move the channels, np.moveaxis(array, 0, -1)." if first else "make them one size."
        )
    else:
        return
    raise SegjaxError(
        f"{example['id']}: the {name} is {dtype} {got}; expected {' or '.join(dtypes)} {expected}. "
        + advice
    )


def _check_label(example: dict[str, Any], classes: int) -> None:
    """Raise SegjaxError where a label is neither a class nor ignored, with what it holds."""
    label = example["label"]
    # 255 wraps around to 0. In two passes, where np.bincount takes thirty times as long.
    if not label.size or (label + np.uint8(1)).max() <= classes:
        return
    values, counts = np.unique(label, return_counts=True)
    held = zip(values.tolist(), counts.tolist(), strict=True)
    wrong = [f"{value} ({n} pixels)" for value, n in held if classes <= value != IGNORE]
    raise SegjaxError(
        f"{example['id']}: the label holds {', '.join(wrong[:_TOLD])}"
        f"{', …' if len(wrong) > _TOLD else ''}; expected a class, 0 to "
        f"{classes - 1}, or {IGNORE} = ignore. Correct the label, or the source's classes."
    )


def brightest(image: np.ndarray) -> float:
    """The highest value of a float picture, 255 of any other: at most 1 is `SCALED_TO_ONE`."""
    return float(image.max(initial=0)) if image.dtype == np.float32 else 255


def pad_to_canvas(
    examples: Sequence[dict[str, Any]], canvas: tuple[int, int]
) -> dict[str, np.ndarray]:
    """A batch of pictures at the top left of a canvas: mirrored beyond their edges, label ignored.

    A "weight" (H, W) goes with each, 0 there.

    Raises:
        SegjaxError: a picture is larger than the canvas, or another is of another kind.
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
        if _kind(example) != _kind(first):
            raise SegjaxError(
                f"{example['id']} is {_kind(example)}, {first['id']} {_kind(first)}; expected one "
                "type and number of channels, and weights for all or none. Give all alike."
            )
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


def _kind(example: dict[str, Any]) -> str:
    """What the examples of a batch have in common."""
    image = example["image"]
    weighted = " with a weight" if "weight" in example else ""
    return f"{image.dtype} of {image.shape[-1]} channels{weighted}"


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
        SegjaxError: the source is empty; an example is not what `Source` promises; what the source
            raises.

    Warns:
        SegjaxWarning: all pictures of a batch are floats in 0–1.
    """
    if not len(source):
        raise SegjaxError("The training data is empty: nothing to train on.")
    import grain  # takes a moment to import, and only batches need it

    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()

    def batch(positions: range) -> dict[str, np.ndarray]:
        records = [int(order[position]) for position in positions]
        return {
            **_padded([read_example(source, record) for record in records], canvas),
            "epoch": np.array([position // len(source) for position in positions], np.int32),
            "record": np.array(records, np.int32),
        }

    return _read(
        range(start, np.iinfo(np.int32).max), batch, batch_size, process, processes, threads
    )


def evaluation_batches(
    source: Source,
    *,
    batch_size: int,
    canvases: Sequence[tuple[int, int]],
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    note: Callable[[int, dict[str, Any]], None] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Every record once, at its own resolution, in few shapes.

    Each picture is padded to the smallest canvas that holds it, in batches of one canvas each, the
    first one's first; a last batch is filled up with pictures that are all ignored.

    Args:
        source: the data set; of several canvases, its method `size_of` tells heights and widths, if
            it has one, or every record is read twice.
        canvases: heights and widths.
        note: given the number and the example of each picture once it is read, in the thread that
            reads, before its batch comes: for what no batch holds, as its id.

    The other arguments, what is raised and what is warned of are those of `train_batches`; yields
    `image`, `label` and int32 (…,) `record`, the picture's number, -1 of one that only fills up.
    """
    if not len(source):
        raise SegjaxError("The evaluation data is empty: nothing to evaluate on.")
    rows = []  # the canvas, the record, and whether it only fills a batch up
    for canvas, records in _by_canvas(source, canvases):
        rows += [(canvas, record, False) for record in records]
        rows += [(canvas, records[-1], True)] * (-len(records) % batch_size)

    def batch(positions: range) -> dict[str, np.ndarray]:
        (canvas, *_), *_ = chosen = [rows[position] for position in positions]
        examples = [read_example(source, record) for _, record, _ in chosen]
        filling = np.array([filling for *_, filling in chosen])
        for (_, record, fills), example in zip(chosen, examples, strict=True):
            if note and not fills:
                note(record, example)
        padded = _padded(examples, canvas)
        padded["label"][filling] = IGNORE
        numbers = np.array([record for _, record, _ in chosen], np.int32)
        return {**padded, "record": np.where(filling, np.int32(-1), numbers)}

    return _read(range(len(rows) // batch_size), batch, batch_size, process, processes, threads)


def _padded(examples: Sequence[dict[str, Any]], canvas: tuple[int, int]) -> dict[str, np.ndarray]:
    """Some examples as a batch."""
    if 0 < max(brightest(example["image"]) for example in examples) <= 1:
        # One text for all batches, for Python shows it once; no error: a picture may be dark.
        warnings.warn(f"The pictures of a batch {SCALED_TO_ONE}", SegjaxWarning, stacklevel=2)
    return pad_to_canvas(examples, canvas)


def _by_canvas(
    source: Source, canvases: Sequence[tuple[int, int]]
) -> list[tuple[tuple[int, int], list[int]]]:
    """The records of each canvas that has any."""
    if len(canvases) == 1:
        return [(canvases[0], list(range(len(source))))]
    size = getattr(source, "size_of", lambda i: read_example(source, i)["label"].shape)
    held: dict[tuple[int, int], list[int]] = {canvas: [] for canvas in canvases}
    for record in range(len(source)):
        height, width = size(record)
        fitting = [canvas for canvas in canvases if canvas[0] >= height and canvas[1] >= width]
        # Where none holds it, `pad_to_canvas` will say so.
        held[min(fitting, key=math.prod, default=max(canvases, key=math.prod))].append(record)
    return [(canvas, records) for canvas, records in held.items() if records]


def _read(
    numbers: range,
    batch: Callable[[range], dict[str, np.ndarray]],
    batch_size: int,
    process: int,
    processes: int,
    threads: int,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the numbered batches; row r of batch n is at position n·B + r."""
    import grain  # takes a moment to import, and only batches need it

    rows = batch_size // processes

    def read(number: int) -> dict[str, np.ndarray]:
        first = number * batch_size + process * rows
        return batch(range(first, first + rows))

    options = grain.ReadOptions(threads, prefetch_buffer_size=2 * threads)
    return iter(grain.MapDataset.source(numbers).map(read).to_iter_dataset(options))
