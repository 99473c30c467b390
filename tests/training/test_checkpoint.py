"""Checkpoints: bit for bit what was saved, the right ones kept, and every damage told plainly."""

import gc
import json
import os
import shutil
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.errors import SegjaxError
from segjax.training import optimizers, sharding
from segjax.training.checkpoint import Checkpoints
from segjax.training.train import State

SGD = optimizers.sgd()
ADAMW = optimizers.adamw()


def make_state(step=1, *, optimizer=SGD, classes=4, features=3) -> State:
    """Random, on all devices."""
    rng = np.random.default_rng(step)
    params = {
        "down": {"kernel": rng.normal(size=(3, 3, 3, features)).astype(np.float32)},
        "logits": {"kernel": rng.normal(size=(features, classes)).astype(np.float32)},
    }
    opt_state = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(x.dtype), optimizer.init(params)
    )
    stats = {"norm": {"mean": rng.normal(size=features).astype(np.float32)}}
    state = State(np.int32(step), params, stats, opt_state)
    return jax.device_put(state, sharding.replicated(sharding.make_mesh()))


def assert_equal(got, want):
    """In structure, in every bit and in where it lies."""
    assert jax.tree.structure(got) == jax.tree.structure(want)

    def equal(a, b):
        assert a.sharding == b.sharding and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)

    jax.tree.map(equal, got, want)


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        yield checkpoints


def kept(checkpoints) -> set[int]:
    """After a restart: what is on disk."""
    with Checkpoints(checkpoints.folder) as again:
        assert (again.newest, again.best) == (checkpoints.newest, checkpoints.best)
    return {int(path.name) for path in checkpoints.folder.iterdir()}


def save(checkpoints, step, mean_iou=None):
    checkpoints.save(step, make_state(step), None if mean_iou is None else {"mean_iou": mean_iou})
    checkpoints._manager.wait_until_finished()


@pytest.mark.parametrize("optimizer", [SGD, ADAMW, optax.sgd(0.1)], ids=["sgd", "adamw", "plain"])
def test_a_state_comes_back_bit_for_bit(checkpoints, optimizer):
    state = make_state(3, optimizer=optimizer)
    checkpoints.save(3, state)
    assert_equal(checkpoints.restore(make_state(0, optimizer=optimizer), step=3), state)


def test_shapes_are_enough_to_restore_and_name_the_devices(checkpoints):
    state = make_state(3)
    checkpoints.save(3, state)
    two = sharding.replicated(sharding.make_mesh(jax.devices()[:2]))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=two), state)
    assert_equal(checkpoints.restore(like, step=3), jax.device_put(state, two))


def test_a_state_without_batch_statistics(checkpoints):
    state = make_state(3).replace(batch_stats={})
    checkpoints.save(3, state)
    assert_equal(checkpoints.restore(state, step=3), state)
    like = {"params": state.params, "batch_stats": {}}
    assert_equal(checkpoints.restore(like, step=3), like)


@pytest.mark.parametrize("names", [("params",), ("params", "batch_stats"), ("step",)], ids=str)
def test_some_fields_alone(checkpoints, names):
    state = make_state(3)
    checkpoints.save(3, state)
    want = {name: getattr(state, name) for name in names}
    assert_equal(checkpoints.restore(jax.tree.map(jnp.zeros_like, want), step=3), want)


def test_an_average_is_kept_and_can_be_asked_for(checkpoints):
    state = make_state(3).with_ema()
    checkpoints.save(2, make_state(2), {"mean_iou": 0.6})
    checkpoints.save(3, state)
    assert checkpoints.holds("ema", step=3) and not checkpoints.holds("ema", step=2)
    assert_equal(checkpoints.restore(make_state(0).with_ema(), step=3), state)
    assert_equal(checkpoints.restore({"ema": state.ema}, step=3), {"ema": state.ema})
    with pytest.raises(SegjaxError, match="no checkpoint of step 7"):
        checkpoints.holds("ema", step=7)


class Before(flax.struct.PyTreeNode):
    """The state as it was before there were averages."""

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any


def test_a_checkpoint_from_before_averages_is_restored(checkpoints):
    state = make_state(3)
    old = Before(state.step, state.params, state.batch_stats, state.opt_state)
    checkpoints.save(3, old, {"mean_iou": 0.6})
    checkpoints.save(4, state)
    assert_equal(checkpoints.restore(make_state(0), step=3), state)
    assert_equal(checkpoints.restore(old, step=4), old)  # and the other way round
    with pytest.raises(SegjaxError, match=r"ema\.params\.down\.kernel: absent stored"):
        checkpoints.restore(state.with_ema(), step=3)


def test_nothing_is_there_at_first(checkpoints):
    assert checkpoints.newest is None and checkpoints.best is None


def test_the_newest_and_the_best_are_kept(checkpoints):
    for step, score in [(10, 0.2), (20, 0.6), (30, 0.5), (40, 0.1)]:
        save(checkpoints, step, score)
    assert (checkpoints.newest, checkpoints.best) == (40, 20)
    assert kept(checkpoints) == {20, 40}
    for step in (20, 40):
        assert_equal(checkpoints.restore(make_state(0), step=step), make_state(step))


@pytest.mark.parametrize("score", [None, float("nan")], ids=["none", "nan"])
def test_no_score_is_never_the_best(checkpoints, score):
    save(checkpoints, 1, 0.3)
    save(checkpoints, 2, score)
    save(checkpoints, 3, score)
    assert (checkpoints.newest, checkpoints.best) == (3, 1)
    assert kept(checkpoints) == {1, 3}


def test_the_newest_is_the_best_where_none_has_a_score(checkpoints):
    for step in (1, 2, 3):
        save(checkpoints, step)
    assert (checkpoints.newest, checkpoints.best) == (3, 3)
    assert kept(checkpoints) == {3}


def test_the_best_is_by_mean_iou_unless_told_otherwise(tmp_path):
    scores = {1: {"mean_iou": 0.1, "accuracy": 0.9}, 2: {"mean_iou": 0.2, "accuracy": 0.8}}
    for folder, options, best in (("a", {}, 2), ("b", {"best": "accuracy"}, 1)):
        with Checkpoints(tmp_path / folder, **options) as checkpoints:
            for step, values in scores.items():
                checkpoints.save(step, make_state(step), values)
            assert checkpoints.best == best


def test_a_step_that_is_there_is_left_alone(checkpoints):
    save(checkpoints, 1, 0.5)
    checkpoints.save(1, make_state(7), {"mean_iou": 0.9})
    assert_equal(checkpoints.restore(make_state(0), step=1), make_state(1))
    scores = checkpoints.folder / "1" / "metrics" / "metrics"
    assert json.loads(scores.read_text()) == {"mean_iou": 0.5}


@pytest.mark.parametrize("features", [3, 20_000])
def test_a_save_is_of_the_state_at_that_moment(tmp_path, features):
    """Though the arrays are donated to the next steps while the files are being written."""

    @jax.jit
    def double(state):
        return jax.tree.map(lambda x: x * 2, state)

    donating = jax.jit(double, donate_argnums=0)
    for attempt in range(3):
        state = make_state(1, features=features)
        want = jax.tree.map(np.array, state)
        with Checkpoints(tmp_path / str(attempt)) as checkpoints:
            checkpoints.save(1, state)
            for _ in range(4):
                state = donating(state)
        with Checkpoints(tmp_path / str(attempt)) as checkpoints:
            got = checkpoints.restore(state, step=1)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_another_class_count_is_named_with_both_shapes(checkpoints):
    checkpoints.save(5, make_state(classes=4))
    text = (
        r"checkpoints/5: the checkpoint is of another network, class count or optimiser:\n"
        r"(.*\n)*  params.logits.kernel: \(3, 4\) stored, \(3, 6\) wanted\n"
        r"Use the recipe that it was trained with"
    )
    with pytest.raises(SegjaxError, match=text):
        checkpoints.restore(make_state(classes=6), step=5)
    with pytest.raises(SegjaxError, match="logits"):
        checkpoints.restore({"params": make_state(classes=6).params}, step=5)


def test_another_optimiser_is_named(checkpoints):
    checkpoints.save(5, make_state(optimizer=SGD))
    with pytest.raises(SegjaxError, match=r"opt_state.0.mu.down.kernel: absent stored, \(3, 3, 3"):
        checkpoints.restore(make_state(optimizer=ADAMW), step=5)


def test_a_long_list_of_differences_is_cut(checkpoints):
    params = {f"layer_{i}": jnp.zeros(i + 1) for i in range(12)}
    checkpoints.save(5, {"params": params})
    with pytest.raises(SegjaxError, match=r"layer_5.*\n  … and 4 more\nUse the recipe"):
        checkpoints.restore({"params": {name: jnp.zeros(99) for name in params}}, step=5)


def test_a_step_that_is_not_there(checkpoints):
    with pytest.raises(SegjaxError, match="no checkpoint of step 3; there are: none"):
        checkpoints.restore(make_state(0), step=3)
    save(checkpoints, 1, 0.5)
    save(checkpoints, 2, 0.4)
    with pytest.raises(SegjaxError, match="no checkpoint of step 3; there are: 1, 2"):
        checkpoints.restore(make_state(0), step=3)


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGE = {
    "largest truncated": lambda step: os.truncate(largest(step), 500),
    "largest deleted": lambda step: largest(step).unlink(),
    "manifest deleted": lambda step: (step / "default/manifest.ocdbt").unlink(),
    "manifest emptied": lambda step: os.truncate(step / "default/manifest.ocdbt", 0),
    "tree deleted": lambda step: (step / "default/_METADATA").unlink(),
    "tree truncated": lambda step: os.truncate(step / "default/_METADATA", 99),
    "shapes truncated": lambda step: os.truncate(step / "default/array_metadatas/process_0", 99),
    "all arrays deleted": lambda step: shutil.rmtree(step / "default"),
}


# Orbax drops the other reads when one has failed, and Python tells so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_named_with_the_remedy(checkpoints, damage):
    save(checkpoints, 1, 0.5)
    state = make_state(2, features=200)
    checkpoints.save(2, state, {"mean_iou": 0.1})
    checkpoints._manager.wait_until_finished()
    damage(checkpoints.folder / "2")
    with Checkpoints(checkpoints.folder) as again:
        message = r"checkpoints/2: the checkpoint cannot be read \(.+\)\. Remove this folder"
        with pytest.raises(SegjaxError, match=message) as caught:
            again.restore(state, step=2)
        assert len(str(caught.value)) < 600
    del caught
    gc.collect()
    # The remedy helps.
    shutil.rmtree(checkpoints.folder / "2")
    with Checkpoints(checkpoints.folder) as again:
        assert again.newest == 1
        assert_equal(again.restore(make_state(0), step=1), make_state(1))


def test_damaged_scores_are_told_at_once(checkpoints):
    save(checkpoints, 1, 0.5)
    os.truncate(checkpoints.folder / "1" / "metrics" / "metrics", 3)
    with pytest.raises(SegjaxError, match="checkpoints: the scores of a checkpoint, <step>/metr"):
        Checkpoints(checkpoints.folder)
