"""Batches are a function of (seed, step), whatever reads them, and every record counts once."""

import itertools
import re
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from segjax.data.pipeline import evaluation_batches, pad_to_canvas, train_batches
from segjax.errors import SegjaxError
from segjax.evaluation import metrics
from segjax.training import sharding

CANVAS = (3, 4)
BROKEN = "images/cat.png: cannot be read as a picture: truncated. Get the file again."


@dataclass(frozen=True)
class Numbers:
    """Pictures filled with their index, record `broken` a file that cannot be read."""

    length: int
    broken: int | None = None
    classes = ("nothing",)
    palette = ((0, 0, 0),)

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
    before = metrics.confusion_matrix._cache_size()
    for _ in range(2):
        batches = evaluation_batches(Numbers(7), batch_size=2, canvases=canvases)
        got = metrics.evaluate(predict, sharding.prefetch(batches, mesh), num_classes=8)
        np.testing.assert_array_equal(np.diag(got), [8, 12, 8, 12, 8, 12, 8, 0])
    assert predict._cache_size() == metrics.confusion_matrix._cache_size() - before == 2


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


def test_an_empty_source_is_told_at_once():
    with pytest.raises(SegjaxError, match="The training data is empty"):
        train_batches(Numbers(0), batch_size=2, canvas=CANVAS, seed=0)
    with pytest.raises(SegjaxError, match="The evaluation data is empty"):
        evaluation_batches(Numbers(0), batch_size=2, canvases=[CANVAS])
