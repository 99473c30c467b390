"""Checkpoints: bit for bit what was saved, the right ones kept, and every damage told plainly."""

import gc
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.errors import SegjaxError, SegjaxWarning
from segjax.training import optimizers, sharding
from segjax.training.checkpoint import Checkpoints, Damaged, Vanished
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


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """What other tests have left is not looked through at every collection here."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        yield checkpoints


def kept(checkpoints) -> set[int]:
    """After a restart: what is on disk."""
    with Checkpoints(checkpoints.folder) as again:
        assert (again.newest, again.best) == (checkpoints.newest, checkpoints.best)
    return {int(path.name) for path in checkpoints.folder.iterdir()}


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def save(checkpoints, step, mean_iou=None):
    checkpoints.save(step, make_state(step), None if mean_iou is None else {"mean_iou": mean_iou})
    checkpoints.wait()


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


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in [(5, 0.3), (10, 0.2), (20, 0.6), (30, 0.5), (40, 0.1), (50, 0.1)]:
            save(checkpoints, step, score)
            assert {f"{kept}" for kept in checkpoints._scores} <= names(tmp_path)
        assert (checkpoints.newest, checkpoints.best) == (50, 20)
    assert names(tmp_path) == {"20", "40", "50"}  # after the end
    checkpoints = Checkpoints(tmp_path)
    for step in (20, 40, 50):
        assert_equal(checkpoints.restore(make_state(0), step=step), make_state(step))


@pytest.mark.parametrize("score", [None, float("nan")], ids=["none", "nan"])
def test_no_score_is_never_the_best(checkpoints, score):
    save(checkpoints, 1, 0.3)
    save(checkpoints, 2, score)
    save(checkpoints, 3, score)
    assert (checkpoints.newest, checkpoints.best) == (3, 1)
    assert kept(checkpoints) == {1, 2, 3}


def test_the_newest_is_the_best_where_none_has_a_score(checkpoints):
    for step in (1, 2, 3):
        save(checkpoints, step)
    assert (checkpoints.newest, checkpoints.best) == (3, 3)
    checkpoints._prune()
    checkpoints._removing.shutdown()
    assert kept(checkpoints) == {2, 3}


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


def test_an_optimiser_without_arrays_is_another_too(checkpoints):
    checkpoints.save(5, make_state(optimizer=SGD))
    with pytest.raises(SegjaxError, match=r"opt_state.*: \(3, 3, 3, 3\) stored, absent wanted"):
        checkpoints.restore(make_state(optimizer=optax.sgd(0.1)), step=5)


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


def flip(path: Path, place: float) -> None:
    """One bit of a file: disks do that, and nothing in Orbax notices."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def scores(step: Path) -> Path:
    return step / "metrics" / "metrics"


DAMAGE = {
    "a bit flipped": lambda step: flip(largest(step), 0.5),
    "the last bit flipped": lambda step: flip(largest(step), 0.9999),
    "largest truncated": lambda step: os.truncate(largest(step), 500),
    "largest deleted": lambda step: largest(step).unlink(),
    "manifest deleted": lambda step: (step / "default/manifest.ocdbt").unlink(),
    "manifest emptied": lambda step: os.truncate(step / "default/manifest.ocdbt", 0),
    "tree deleted": lambda step: (step / "default/_METADATA").unlink(),
    "tree truncated": lambda step: os.truncate(step / "default/_METADATA", 99),
    "shapes truncated": lambda step: os.truncate(step / "default/array_metadatas/process_0", 99),
    "all arrays deleted": lambda step: shutil.rmtree(step / "default"),
    "all deleted": lambda step: (shutil.rmtree(step), step.mkdir(), (step / "x").touch()),
    "scores truncated": lambda step: os.truncate(scores(step), 3),
    "scores changed": lambda step: scores(step).write_text('{"mean_iou": 0.9}'),
    "scores deleted": lambda step: shutil.rmtree(step / "metrics"),
    "checksums truncated": lambda step: os.truncate(step / "checksums.json", 99),
    "checksums of another kind": lambda step: (step / "checksums.json").write_text("[3]"),
    "a file in its place": lambda step: (shutil.rmtree(step), step.touch()),
}
# What can be told of a checkpoint from before there were checksums.
OLD = {
    name: damage
    for name, damage in DAMAGE.items()
    if not any(word in name for word in ("flip", "checksums", "changed", "scores deleted"))
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder of two checkpoints, of which the second is the newest and the best."""
    folder = tmp_path_factory.mktemp("two")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, make_state(1, features=200), {"mean_iou": 0.1})
        checkpoints.save(2, make_state(2, features=200), {"mean_iou": 0.5})
    return folder


@pytest.fixture
def copied(two, tmp_path):
    return Path(shutil.copytree(two, tmp_path / "checkpoints"))


# Orbax drops the other reads when one has failed, and Python tells so.
DROPPED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@DROPPED
@pytest.mark.parametrize(
    "damage, old",
    [
        *((damage, False) for damage in DAMAGE.values()),
        *((damage, True) for damage in OLD.values()),
    ],
    ids=[*DAMAGE, *(f"{name}, without checksums" for name in OLD)],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(copied, damage, old):
    step = copied / "2"
    if old:
        (step / "checksums.json").unlink()
    damage(step)
    found = sorted(step.rglob("*"))
    with Checkpoints(copied) as checkpoints:
        with pytest.warns(SegjaxWarning) as warned:
            got = checkpoints.resume(make_state(0, features=200))
        (told,) = warned
        assert f"{step}: the checkpoint is damaged: " in str(told.message)
        assert str(told.message).endswith("It is set aside as 2.damaged.")
        assert got[0] == 1
        assert_equal(got[1], make_state(1, features=200))
        assert (checkpoints.newest, checkpoints.best) == (1, 1)
        checkpoints.save(
            2, make_state(2, features=200), {"mean_iou": 0.7}
        )  # the training comes there again
    gc.collect()
    assert names(copied) == {"1", "2", "2.damaged"}
    assert len([*(copied / "2.damaged").rglob("*")]) == len(found)  # nothing of it is lost
    with Checkpoints(copied) as checkpoints:
        assert_equal(
            checkpoints.resume(make_state(0, features=200))[1], make_state(2, features=200)
        )


@DROPPED
@pytest.mark.parametrize("name", DAMAGE)
def test_who_only_reads_is_told_and_changes_nothing(copied, name):
    DAMAGE[name](copied / "2")
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with Checkpoints(copied, read_only=True) as checkpoints:
        with pytest.raises(Damaged) as caught:
            _ = checkpoints.best
            checkpoints.verify(2)
        assert str(caught.value).startswith(f"{copied / '2'}: the checkpoint is damaged: ")
        assert "The run has another, of step 1: --checkpoint newest or best" in str(caught.value)
        assert len(str(caught.value)) < 600
        checkpoints.verify(1)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_nothing_but_the_checksum_notices_a_flipped_bit(copied):
    """Orbax restores it: other parameters, in silence."""
    flip(largest(copied / "2"), 0.5)
    state = make_state(2, features=200)
    with Checkpoints(copied, read_only=True) as checkpoints:
        restored = checkpoints.restore(state, step=2)
        with pytest.raises(AssertionError):
            assert_equal(restored, state)
        with pytest.raises(Damaged, match="is not as it was written"):
            checkpoints.verify(2)


def test_every_bit_of_every_file_counts(copied):
    """Or changes nothing: of what Orbax notes of a checkpoint as a whole, nothing is read."""
    state = make_state(2, features=200)
    told = 0
    for path in sorted(p for p in (copied / "2").rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for place in (0, 0.3, 0.999):
            flip(path, place)
            with Checkpoints(copied, read_only=True) as checkpoints:
                if checkpoints._damage(2):
                    told += 1
                else:
                    assert path.parent == copied / "2"
                    assert_equal(checkpoints.restore(state, step=2), state)
            path.write_bytes(whole)
    assert told > 20


@DROPPED
def test_a_crash_at_any_byte_leaves_one_of_the_two(copied, tmp_path):
    """Whatever file of the newest is cut or gone, as after a power cut, or has no name yet."""
    run, like = tmp_path / "run", {"step": jnp.int32(0)}

    def resumed(damage, *of) -> int:
        shutil.copytree(copied, run)
        damage(*of)
        with warnings.catch_warnings(), Checkpoints(run) as checkpoints:
            warnings.simplefilter("ignore", SegjaxWarning)
            step, got = checkpoints.resume(like)
        assert int(got["step"]) == step
        held = names(run)
        shutil.rmtree(run)
        assert held == (
            {"1", "2"} if step == 2 else {"1", "2.damaged"} if "2.damaged" in held else {"1"}
        )
        return step

    def unnamed(file):
        (run / "2").rename(run / "2.orbax-checkpoint-tmp")
        (run / "2.orbax-checkpoint-tmp" / file).unlink()

    reached = []
    for path in [*(copied / "2").rglob("*")]:
        if path.is_file():
            file, size = path.relative_to(copied / "2"), path.stat().st_size
            reached += [resumed(os.unlink, run / "2" / file)]
            for length in (0, size - 1):
                reached += [resumed(os.truncate, run / "2" / file, length)]
            assert resumed(unnamed, file) == 1
    assert set(reached) == {1, 2} and reached.count(1) > 20


def test_what_a_killed_process_leaves_is_removed_at_the_next_start(copied):
    (copied / "3.orbax-checkpoint-tmp/default/ocdbt.process_0/d").mkdir(parents=True)
    (copied / "3.orbax-checkpoint-tmp/default/ocdbt.process_0/d/x").write_text("half")
    shutil.copytree(copied / "1", copied / "0.deleted")
    (copied / "7/default").mkdir(parents=True)  # of former releases, which removed file by file
    (copied / "notes.txt").write_text("mine")
    with Checkpoints(copied, read_only=True) as checkpoints:
        checkpoints.verify(2)
    assert len(names(copied)) == 6
    with Checkpoints(copied) as checkpoints:
        assert checkpoints.resume({"step": jnp.int32(0)})[0] == 2
    assert names(copied) == {"1", "2", "notes.txt"}


def test_a_kill_during_a_removal_leaves_a_rest_that_is_known_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step)
    assert names(tmp_path) == {"1.deleted", "2", "3"}


def test_the_newest_and_the_best_are_verified_and_a_third_is_taken(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in [(1, 0.9), (2, 0.2), (3, 0.3)]:
            checkpoints.save(step, make_state(step), {"mean_iou": score})
    flip(largest(tmp_path / "1"), 0.5)
    flip(largest(tmp_path / "3"), 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.warns(SegjaxWarning) as warned:
            step, got = checkpoints.resume(make_state(0))
        told = [str(w.message).partition(": the checkpoint is damaged")[0] for w in warned]
        assert told == [f"{tmp_path / '3'}", f"{tmp_path / '1'}"]
        assert (step, checkpoints.newest, checkpoints.best) == (2, 2, 2)
        assert_equal(got, make_state(2))


def test_where_all_are_damaged_nothing_begins_anew_unsaid(copied):
    for step in ("1", "2"):
        flip(largest(copied / step), 0.5)
    for _ in range(2):  # nor at the next start
        with warnings.catch_warnings(), Checkpoints(copied) as checkpoints:
            warnings.simplefilter("ignore", SegjaxWarning)
            with pytest.raises(SegjaxError, match="every checkpoint was damaged and is set aside"):
                checkpoints.resume(make_state(0))
    assert names(copied) == {"1.damaged", "2.damaged"}


def test_set_aside_twice(copied):
    shutil.copytree(copied / "1", copied / "2.damaged")
    flip(largest(copied / "2"), 0.5)
    with Checkpoints(copied) as checkpoints, pytest.warns(SegjaxWarning, match=r"2.damaged-2\.$"):
        checkpoints.resume({"step": jnp.int32(0)})
    assert names(copied) == {"1", "2.damaged", "2.damaged-2"}


def test_without_checkpoints_the_state_is_the_one_given(tmp_path):
    state = make_state(0)
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.resume(state) == (0, state)


def test_a_training_whose_first_batch_failed_has_a_checkpoint_of_step_0(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, make_state(0))
    with Checkpoints(tmp_path) as checkpoints:
        state = make_state(5)
        assert checkpoints.resume(state) == (0, state)


def test_who_only_reads_makes_no_folder(tmp_path):
    with Checkpoints(tmp_path / "none", read_only=True) as checkpoints:
        assert checkpoints.newest is None and checkpoints.best is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["run[lr=1e-3]", "a*b", "[", "b]", "what?", "back\\slash", "ä {}"])
def test_any_name_of_a_folder(tmp_path, name):
    folder = tmp_path / name / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), {"mean_iou": 0.5})
    with Checkpoints(folder) as checkpoints:
        step, got = checkpoints.resume(make_state(0))
    assert step == 3
    assert_equal(got, make_state(3))
    assert names(folder) == {"2", "3"} and names(tmp_path) == {name}


def test_a_checkpoint_that_cannot_be_written_is_told_and_forgotten(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, 0.5)

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            checkpoints.save(2, make_state(2), {"mean_iou": 0.9})
            with pytest.raises(
                SegjaxError,
                match=r"/2: the checkpoint could not be written \(.*No space .*goes on from step 1",
            ):
                checkpoints.save(3, make_state(3))
        assert (checkpoints.newest, checkpoints.best) == (1, 1)
        checkpoints.save(3, make_state(3))
        assert_equal(checkpoints.restore(make_state(0), step=3), make_state(3))


def test_a_read_while_another_process_removes(copied):
    with Checkpoints(copied, read_only=True) as checkpoints:
        shutil.rmtree(copied / "1")
        for read in (
            lambda: checkpoints.verify(1),
            lambda: checkpoints.holds("ema", step=1),
            lambda: checkpoints.restore({"step": jnp.int32(0)}, step=1),
        ):
            with pytest.raises(Vanished, match="/1: the checkpoint was removed while it was read"):
                read()
