"""Batches reach the devices whole and in order; processes together are one machine."""

import os
import re
import socket
import subprocess
import sys
from itertools import count, islice
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.training import sharding


@pytest.fixture
def mesh():
    return sharding.make_mesh()


def batch_of(number, size=8):
    return {"image": np.full((size, 2, 3), number), "id": np.arange(size) + size * number}


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_mesh_takes_all_devices(mesh):
    assert mesh.size == jax.device_count() == 8 and dict(mesh.shape) == {"data": 8, "model": 1}
    assert sharding.make_mesh(jax.devices()[2:4]).devices.ravel().tolist() == jax.devices()[2:4]


@pytest.mark.parametrize("axes", [{"model": 2}, {"data": 4, "model": 2}, {"data": 8}, {"model": 8}])
def test_a_mesh_of_two_axes(axes):
    shape = sharding.make_mesh(**axes).shape
    assert shape["data"] * shape["model"] == 8 and axes.items() <= shape.items()


@pytest.mark.parametrize(
    "axes, told",
    [
        ({"model": 3}, "model_axis is 3, which does not divide 8 devices; take one of 1, 2, 4, 8."),
        ({"model": 16}, "model_axis is 16, which does not divide 8 devices; take one of"),
        ({"data": 3}, "data_axis 3 × model_axis 1 are 3 devices, and there are 8: set data_axis "
         "to 8, or leave it out."),
        ({"data": 8, "model": 2}, "data_axis 8 × model_axis 2 are 16 devices, and there are 8: "
         "set data_axis to 4"),
    ],
)  # fmt: skip
def test_axes_that_do_not_make_up_the_devices_are_told(axes, told):
    with pytest.raises(SegjaxError, match=re.escape(told)):
        sharding.make_mesh(**axes)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_put_gives_each_device_its_rows(n):
    mesh = sharding.make_mesh(jax.devices()[:n])
    batch = sharding.put(batch_of(3), mesh)
    assert_equal(batch, batch_of(3))
    for x in batch.values():
        assert x.sharding == sharding.split(mesh)
        assert [s.index[0].start or 0 for s in x.addressable_shards] == list(range(0, 8, 8 // n))
    state = jax.device_put(batch_of(3), sharding.replicated(mesh))
    assert all(s.data.shape == (8, 2, 3) for s in state["image"].addressable_shards)


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("batches", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_prefetch_keeps_order_and_contents(n, batches, ahead):
    mesh = sharding.make_mesh(jax.devices()[:n])
    got = list(sharding.prefetch(map(batch_of, range(batches)), mesh, ahead=ahead))
    assert_equal(got, [batch_of(number) for number in range(batches)])
    assert all(x["id"].sharding == sharding.split(mesh) for x in got)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_prefetch_asks_for_so_many_batches_ahead(mesh, ahead):
    asked = count()
    batches = sharding.prefetch((batch_of(next(asked)) for _ in count()), mesh, ahead=ahead)
    list(islice(batches, 4))
    assert next(asked) == 4 + ahead


def test_what_the_batches_raise_passes_through(mesh):
    def batches():
        yield batch_of(0)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(sharding.prefetch(batches(), mesh))


@pytest.mark.parametrize(
    "size, good", [(12, "8 or 16"), (1, "8"), (7, "8"), (9, "8 or 16"), (23, "16 or 24")]
)
def test_a_batch_that_does_not_divide_is_refused_with_those_that_do(mesh, size, good):
    with pytest.raises(
        SegjaxError,
        match=rf"^A batch of {size} pictures does not divide among 8 devices; .* size of {good}\.$",
    ):
        sharding.check_batch_size(mesh, size)


@pytest.mark.parametrize("size", [8, 16, 80])
def test_a_batch_that_divides_is_taken(mesh, size):
    sharding.check_batch_size(mesh, size)


# Three steps of a small network. Each process has its share of the rows and of the devices.
TRAINING = """
import sys
import jax
import numpy as np

process, processes, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
model_axis, shard = int(sys.argv[5]), sys.argv[6]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4 // processes)
jax.config.update("jax_disable_most_optimizations", True)
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", processes, process, initialization_timeout=120)
assert jax.device_count() == 4 and jax.process_count() == processes

from functools import partial
from segjax.training import losses, optimizers, sharding, train
from segjax.training.processes import from_all_processes
from segjax.models import UNet

model, optimizer = UNet(3, widths=(4,), dropout=0.3), optimizers.sgd()
mesh = sharding.make_mesh(model=model_axis)
share, shares = sharding.share(mesh)
make = partial(
    train.make_state, model, optimizer, key=jax.random.key(0), image_shape=(1, 8, 8, 3), ema=True
)
lies = sharding.state_shardings(jax.eval_shape(make), mesh, shard=shard, whole_below=0)
state = make(sharding=lies)
step = train.make_train_step(
    model, optimizer, lambda output, labels: losses.cross_entropy(output.logits, labels),
    schedule=optimizers.constant(0.1),
    prepare=lambda key, batch: (batch["image"], batch["label"]), key=jax.random.key(1), ema=0.9,
    state_sharding=lies, at_use=partial(sharding.at_use, shardings=lies.params),
)

def batches():
    for number in range(3):
        rng = np.random.default_rng(number)
        label = rng.integers(0, 3, (8, 8, 8), np.uint8)
        label[: 2 + number] = 255  # the first process has fewer valid pixels than the second
        batch = {"image": rng.normal(size=(8, 8, 8, 3)).astype(np.float32), "label": label}
        rows = slice(share * 8 // shares, (share + 1) * 8 // shares)
        yield {name: x[rows] for name, x in batch.items()}

state = train.fit(state, step, sharding.prefetch(batches(), mesh), until=3)
assert step.func._cache_size() == 1
everyones = from_all_processes({"number": process, "text": "a" * 10**process})
assert everyones == [{"number": i, "text": "a" * 10**i} for i in range(processes)]
split = [x for x in jax.tree.leaves(state) if not x.is_fully_replicated]
assert bool(split) == (shard != "no")
state = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(state)
if process == 0:
    leaves = [np.asarray(x).ravel() for x in jax.tree.leaves((state.variables, state.ema))]
    np.save(out, np.concatenate(leaves))
"""


def train_in_processes(folder, processes, model_axis=1, shard="no") -> np.ndarray:
    """The parameters and batch statistics after the training, on four devices in all."""
    script, out = folder / "training.py", folder / f"{processes}.npy"
    script.write_text(TRAINING)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            [
                *(sys.executable, script, str(process), str(processes), str(port), out),
                *(str(model_axis), shard),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={name: x for name, x in os.environ.items() if not name.startswith(("JAX", "XLA"))},
        )
        for process in range(processes)
    ]
    try:
        told = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(told)
    return np.load(out)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return train_in_processes(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize(
    "processes, model_axis, shard", [(2, 1, "no"), (4, 1, "data"), (4, 2, "model")]
)
def test_processes_train_as_one(processes, model_axis, shard, one_process, tmp_path):
    """Over gloo on this machine, as hosts of a cluster would; also where two share their rows."""
    several = train_in_processes(tmp_path, processes, model_axis, shard)
    assert np.abs(one_process).max() > 0.1
    np.testing.assert_allclose(several, one_process, rtol=1e-5, atol=1e-6)


def on_processes(shape, per_process):
    """A mesh of devices that are not here."""
    numbers = np.arange(np.prod(shape))
    devices = [SimpleNamespace(id=i, process_index=i // per_process) for i in numbers]
    return SimpleNamespace(
        devices=np.array(devices).reshape(shape),
        shape={"data": shape[0], "model": shape[1]},
        local_devices=devices[:per_process],
    )


@pytest.mark.parametrize(
    "shape, per_process, readers",
    [
        ((4, 1), 2, [[0], [1]]),
        ((4, 2), 4, [[0], [1]]),
        ((4, 2), 1, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ((1, 4), 1, [[0, 1, 2, 3]]),
        ((2, 4), 2, [[0, 1], [2, 3]]),
    ],
)
def test_processes_of_one_row_read_the_same_share(shape, per_process, readers):
    assert sharding.readers(on_processes(shape, per_process)) == readers


def test_a_row_that_cuts_through_a_process_is_refused():
    with pytest.raises(SegjaxError, match="model_axis 3 cuts through processes"):
        sharding.readers(on_processes((4, 3), 2))
