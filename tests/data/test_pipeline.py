"""Batches are a function of (seed, step), whatever reads them, and every record counts once."""

import itertools
import re
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from segjax.data.pipeline import (
    evaluation_batches,
    pad_to_canvas,
    read_example,
    train_batches,
)
from segjax.errors import SegjaxError, SegjaxWarning
from segjax.evaluation import metrics
from segjax.training import sharding

CANVAS = (3, 4)
BROKEN = "images/cat.png: cannot be read as a picture: truncated. Get the file again."


@dataclass(frozen=True)
class Numbers:
    """Pictures filled with their index, record `broken` a file that cannot be read."""

    length: int
    broken: int | None = None
    classes = tuple(f"class {n}" for n in range(20))
    palette = ((0, 0, 0),) * 20

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == self.broken:
            raise SegjaxError(BROKEN)
        image = np.full((2 + index % 2, 4, 3), index, np.uint8)
        return {"image": image, "label": image[..., 0], "id": f"number {index}"}


def padded(example, canvas):
    return {name: array[0] for name, array in pad_to_canvas([example], canvas).items()}


def take(count, length=7, **options):
    defaults = {"batch_size": 4, "canvas": CANVAS, "seed": 5}
    return list(itertools.islice(train_batches(Numbers(length), **defaults | options), count))


def records(batches):
    return np.concatenate([batch["record"] for batch in batches]).tolist()


def assert_equal(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
            assert a[name].dtype == b[name].dtype


def joined(parts):
    """The global batches from the rows that each process reads."""
    return [
        {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
        for rows in zip(*parts, strict=True)
    ]


# Training


def test_a_batch_holds_the_records_that_it_names():
    for batch in take(4):
        shapes = {name: (array.shape, array.dtype) for name, array in batch.items()}
        assert shapes == {
            "image": ((4, *CANVAS, 3), np.uint8),
            "label": ((4, *CANVAS), np.uint8),
            "epoch": ((4,), np.int32),
            "record": ((4,), np.int32),
        }
        for image, label, record in zip(
            batch["image"], batch["label"], batch["record"], strict=True
        ):
            want = padded(Numbers(7)[int(record)], CANVAS)
            np.testing.assert_array_equal(image, want["image"])
            np.testing.assert_array_equal(label, want["label"])


@pytest.mark.parametrize("start", [1, 5, 40])
def test_to_start_at_a_step_is_to_skip_the_batches_before_it(start):
    assert_equal(take(3, start=start), take(start + 3)[start:])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_batches_do_not_depend_on_the_threads(threads):
    assert_equal(take(8, threads=threads), take(8))


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_rows_make_the_global_batch(processes):
    parts = [take(5, process=i, processes=processes) for i in range(processes)]
    assert_equal(joined(parts), take(5))


def test_a_restart_with_other_threads_and_processes_goes_on_as_before():
    options = {"start": 5, "threads": 1, "processes": 2}
    parts = [take(4, process=i, **options) for i in range(2)]
    assert_equal(joined(parts), take(9, threads=3)[5:])


@pytest.mark.parametrize("length, batch_size", [(7, 4), (6, 3), (3, 5), (1, 2)])
def test_every_record_comes_once_an_epoch(length, batch_size):
    batches = take(3 * length, length, batch_size=batch_size)
    order = records(batches)
    epochs = np.concatenate([batch["epoch"] for batch in batches])
    np.testing.assert_array_equal(epochs, np.arange(len(order)) // length)
    for first in range(0, len(order), length):
        assert sorted(order[first : first + length]) == list(range(length))


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    orders = []
    for seed in (0, 1, 2**32):
        order = records(take(15, 20, seed=seed))
        assert order == records(take(15, 20, seed=seed))
        orders += [tuple(order[:20]), tuple(order[20:40]), tuple(order[40:])]
    assert len(set(orders)) == 9
    assert tuple(range(20)) not in orders


# Evaluation


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4, 6, 8, 10])
@pytest.mark.parametrize("length", [1, 6, 7])
def test_evaluation_reads_every_record_once_in_order(length, batch_size, processes):
    source = Numbers(length)
    options = {"batch_size": batch_size, "canvases": [CANVAS], "processes": processes}
    batches = joined([evaluation_batches(source, process=i, **options) for i in range(processes)])
    assert len(batches) == -(-length // batch_size)
    assert {batch["image"].shape for batch in batches} == {(batch_size, *CANVAS, 3)}
    assert {batch["label"].shape for batch in batches} == {(batch_size, *CANVAS)}
    images, labels = (np.concatenate([b[name] for b in batches]) for name in ("image", "label"))
    for i in range(length):
        want = padded(source[i], CANVAS)
        np.testing.assert_array_equal(images[i], want["image"])
        np.testing.assert_array_equal(labels[i], want["label"])
    assert (labels[length:] == 255).all()


@pytest.mark.parametrize("threads", [1, 4])
def test_evaluation_does_not_depend_on_the_threads(threads):
    options = {"batch_size": 2, "canvases": [CANVAS]}
    got = evaluation_batches(Numbers(7), threads=threads, **options)
    assert_equal(list(got), list(evaluation_batches(Numbers(7), **options)))


class Sized(Numbers):
    """Of 2 × 4 and 3 × 4 pixels in turn, as its method says without reading."""

    def size_of(self, index):
        return 2 + index % 2, 4


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", [Numbers, Sized])
def test_evaluation_pads_each_picture_to_the_smallest_canvas_that_holds_it(kind, processes):
    options = {"batch_size": 2, "canvases": [(5, 6), (2, 5), (3, 4)], "processes": processes}
    batches = joined([evaluation_batches(kind(7), process=i, **options) for i in range(processes)])
    shapes = [batch["image"].shape[1:3] for batch in batches]
    assert shapes == [(2, 5), (2, 5), (3, 4), (3, 4)]
    valid = [label[label != 255] for batch in batches for label in batch["label"]]
    assert [v[0] for v in valid if v.size] == [0, 2, 4, 6, 1, 3, 5]
    assert sum(v.size for v in valid) == (4 * 2 + 3 * 3) * 4


def test_an_evaluation_compiles_once_a_canvas():
    predict = jax.jit(lambda images: jax.nn.one_hot(images[..., 0], 8))
    mesh, canvases = sharding.make_mesh(jax.devices()[:1]), [(2, 5), (3, 4)]
    before = metrics._count_all._cache_size()
    for _ in range(2):
        batches = evaluation_batches(Numbers(7), batch_size=2, canvases=canvases)
        got = metrics.evaluate(predict, sharding.prefetch(batches, mesh), num_classes=8)
        np.testing.assert_array_equal(np.diag(got), [8, 12, 8, 12, 8, 12, 8, 0])
    assert predict._cache_size() == metrics._count_all._cache_size() - before == 2


def test_a_picture_larger_than_every_canvas_is_named():
    batches = evaluation_batches(Numbers(2), batch_size=1, canvases=[(2, 4), (2, 9), (1, 4)])
    with pytest.raises(SegjaxError, match=r"number 1: the picture is 3×4 .* canvas of 2×9"):
        list(batches)


# Canvas


def example(height, width):
    image = np.arange(height * width, dtype=np.uint8).reshape(height, width, 1)
    return {"image": image, "label": image[..., 0], "id": "cat"}


def test_padding_by_hand():
    got = padded(example(2, 3), (4, 5))
    image = [[0, 1, 2, 1, 0], [3, 4, 5, 4, 3], [0, 1, 2, 1, 0], [3, 4, 5, 4, 3]]
    np.testing.assert_array_equal(got["image"][..., 0], image)
    label = [[0, 1, 2, 255, 255], [3, 4, 5, 255, 255], [255] * 5, [255] * 5]
    np.testing.assert_array_equal(got["label"], label)
    assert got.keys() == {"image", "label"}
    assert got["image"].dtype == got["label"].dtype == np.uint8


@pytest.mark.parametrize("canvas", [(2, 3), (9, 3), (2, 11), (9, 11)])
def test_padding_of_any_size_keeps_the_picture(canvas):
    """Also by more than the picture itself holds."""
    got = padded(example(2, 3), canvas)
    assert got["image"].shape == (*canvas, 1)
    np.testing.assert_array_equal(got["image"][:2, :3], example(2, 3)["image"])
    np.testing.assert_array_equal(got["label"][:2, :3], example(2, 3)["label"])
    assert (got["label"] == 255).sum() == canvas[0] * canvas[1] - 6


@pytest.mark.parametrize("canvas", [(3, 6), (4, 5), (3, 9), (9, 5)])
def test_a_picture_larger_than_the_canvas_is_named(canvas):
    text = f"cat: the picture is 4×6 (height × width), larger than the canvas of {canvas[0]}×"
    with pytest.raises(SegjaxError, match=f"^{re.escape(text)}"):
        padded(example(4, 6), canvas)


# Errors


@pytest.mark.parametrize("threads", [1, 3])
def test_what_the_source_raises_arrives_as_it_is(threads):
    source = Numbers(7, broken=4)
    options = {"batch_size": 2, "threads": threads}
    for batches in (
        train_batches(source, seed=0, canvas=CANVAS, **options),
        evaluation_batches(source, canvases=[CANVAS], **options),
    ):
        with pytest.raises(SegjaxError) as error:
            list(itertools.islice(batches, 4))
        assert type(error.value) is SegjaxError
        assert str(error.value) == BROKEN


def test_the_batches_before_a_broken_record_still_arrive():
    batches = evaluation_batches(Numbers(7, broken=4), batch_size=2, canvases=[CANVAS])
    assert [batch["image"][0, 0, 0, 0] for batch in itertools.islice(batches, 2)] == [0, 2]


GOOD = {
    "image": np.zeros((4, 6, 3), np.uint8),
    "label": np.array([0, 1, 2, 1, 0, 255] * 4, np.uint8).reshape(4, 6),
    "id": "cat",
}


@dataclass(frozen=True)
class Given:
    """A source of the examples given."""

    examples: tuple
    classes = ("a", "b", "c")
    palette = ((0, 0, 0),) * 3

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def every_way(source, canvas=(4, 6)):
    """The first batch of each kind of reading."""
    n = len(source)
    yield lambda: next(train_batches(source, batch_size=n, canvas=canvas, seed=0))
    yield lambda: next(evaluation_batches(source, batch_size=n, canvases=[canvas]))
    yield lambda: next(evaluation_batches(source, batch_size=n, canvases=[canvas, (9, 9)]))


def with_pixels(*values):
    label = GOOD["label"].copy()
    label.flat[: len(values)] = values
    return label


WRONG = {
    "a value outside the classes": (
        {"label": with_pixels(77, 77, 3)},
        "cat: the label holds 3 (1 pixels), 77 (2 pixels); expected a class, 0 to 2, or 255 = ",
    ),
    "the value below the one that is ignored": (
        {"label": with_pixels(254)},
        "cat: the label holds 254 (1 pixels);",
    ),
    "many values": (
        {"label": with_pixels(*range(10, 20))},
        "14 (1 pixels), …; expected",
    ),
    "a label with an axis for its one channel": (
        {"label": GOOD["label"][..., None]},
        "cat: the label is uint8 (4, 6, 1); expected uint8 (H, W). Drop an axis, as by array[..., ",
    ),
    "int64 label": (
        {"label": GOOD["label"].astype(np.int64)},
        "cat: the label is int64 (4, 6); expected uint8 (H, W). Convert it, if that changes no "
        "value: array.astype(np.uint8).",
    ),
    "channels first": (
        {"image": np.zeros((3, 4, 6), np.uint8)},
        "cat: the image is uint8 (3, 4, 6); expected uint8 or float32 (H, W, C). The label is "
        "(4, 6): move the channels, np.moveaxis(array, 0, -1).",
    ),
    "two sizes": (
        {"image": np.zeros((5, 6, 3), np.uint8)},
        "cat: the image is uint8 (5, 6, 3); expected uint8 or float32 (H, W, C). The label is "
        "(4, 6): make them one size.",
    ),
    "grey without an axis for it": (
        {"image": np.zeros((4, 6), np.uint8)},
        "cat: the image is uint8 (4, 6); expected uint8 or float32 (H, W, C). Add one: array[..., ",
    ),
    "float64 image": (
        {"image": np.zeros((4, 6, 3))},
        "cat: the image is float64 (4, 6, 3); expected uint8 or float32 (H, W, C). Convert it",
    ),
    "no array": ({"image": [[[0]]]}, "cat: the image is list (1, 1, 1); expected"),
    "weight of another size": (
        {"weight": np.ones((4, 5), np.float32)},
        "cat: the weight is float32 (4, 5); expected float32 (H, W). The label is (4, 6)",
    ),
    "float64 weight": (
        {"weight": np.ones((4, 6))},
        "cat: the weight is float64 (4, 6); expected float32 (H, W). Convert it",
    ),
}


@pytest.mark.parametrize("changed, told", WRONG.values(), ids=WRONG)
def test_an_example_that_breaks_the_contract_is_named(changed, told):
    for read in every_way(Given((GOOD | changed,))):
        with pytest.raises(SegjaxError) as error:
            read()
        assert told in str(error.value)


@pytest.mark.parametrize("key", ["image", "label", "id"])
def test_an_example_that_lacks_a_key_is_named_by_its_number(key):
    lacking = {name: value for name, value in GOOD.items() if name != key}
    told = f"Example 1 of Given has no {key}; expected a dict of"
    for read in every_way(Given((GOOD, lacking))):
        with pytest.raises(SegjaxError, match=told):
            read()
    with pytest.raises(SegjaxError, match=r"Example 0 of Given has no image .*, got tuple"):
        read_example(Given(((GOOD["image"], GOOD["label"]),)), 0)


@pytest.mark.parametrize(
    "other, told",
    [
        ({"image": np.zeros((4, 6, 1), np.uint8)}, "dog is uint8 of 1 channels, cat uint8 of 3"),
        ({"image": np.zeros((4, 6, 3), np.float32)}, "dog is float32 of 3 channels, cat uint8"),
        ({"weight": np.ones((4, 6), np.float32)}, "dog is uint8 of 3 channels with a weight, cat"),
    ],
)
def test_examples_of_two_kinds_make_no_batch(other, told):
    examples = GOOD, GOOD | {"id": "dog"} | other
    with pytest.raises(SegjaxError, match=told):
        pad_to_canvas(examples, (4, 6))


def in_floats(highest, **more):
    image = np.linspace(0, highest, 72, dtype=np.float32).reshape(4, 6, 3)
    return GOOD | {"image": image} | more


def test_pictures_scaled_to_one_are_warned_of():
    black = GOOD | {"image": np.zeros((4, 6, 3), np.float32)}
    for read in every_way(Given((in_floats(1), black))):
        with pytest.warns(SegjaxWarning, match="floats in 0–1, which train as black"):
            read()


@pytest.mark.parametrize(
    "examples",
    [(in_floats(1), in_floats(1.5)), (in_floats(0), in_floats(0)), (GOOD, GOOD)],
    ids=["one of two is dark", "black", "bytes"],
)
def test_dark_pictures_among_others_are_not_warned_of(examples):
    for read in every_way(Given(examples)):
        read()


def test_an_empty_source_is_told_at_once():
    with pytest.raises(SegjaxError, match="The training data is empty"):
        train_batches(Numbers(0), batch_size=2, canvas=CANVAS, seed=0)
    with pytest.raises(SegjaxError, match="The evaluation data is empty"):
        evaluation_batches(Numbers(0), batch_size=2, canvases=[CANVAS])
