"""One mesh, from a CPU to a pod: the batch is split over `data`, all else is everywhere."""

import os
import pickle
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from segjax.errors import SegjaxError


def join_cluster() -> None:
    """Make this process one of a cluster's; the first thing that a process does with JAX.

    Slurm, Open MPI, Kubernetes and Cloud TPU are found by JAX. Elsewhere JAX_COORDINATOR_ADDRESS
    (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID tell.

    Raises:
        SegjaxError: there is no cluster, or it cannot be joined.
    """

    def told(name: str) -> int | None:
        return int(os.environ[name]) if name in os.environ else None

    try:
        jax.distributed.initialize(
            num_processes=told("JAX_NUM_PROCESSES"), process_id=told("JAX_PROCESS_ID")
        )
    except (ValueError, RuntimeError) as error:
        raise SegjaxError(
            f"No cluster could be joined: {error} Start one process per host through Slurm, Open "
            "MPI, Kubernetes or Cloud TPU, set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID, or drop --distributed on a single host."
        ) from error


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, `data`, over the devices given, by default all of all processes."""
    devices = jax.devices() if devices is None else devices
    # Auto: make_mesh's own default is Explicit, under which Linen's Dropout fails.
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: the state."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of what is split along its first axis: the batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(mesh: Mesh, batch_size: int, *, parts: int = 1) -> None:
    """Raise SegjaxError where a batch, or each of its parts, does not divide among the devices."""
    share = mesh.size * parts
    if batch_size % share:
        below = batch_size // share * share
        good = " or ".join(str(n) for n in (below, below + share) if n)
        parted = f" in {parts} parts (accumulate)" if parts > 1 else ""
        raise SegjaxError(
            f"A batch of {batch_size} pictures{parted} does not divide among {mesh.size} devices; "
            f"take a batch size of {good}."
        )


def put(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch (NumPy, any tree) -> the global batch on the devices."""
    sharding = split(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def prefetch(batches: Iterable[Any], mesh: Mesh, *, ahead: int = 2) -> Iterator[Any]:
    """`put` batches `ahead` of their use, so that the transfer runs beside the step."""
    waiting: deque[Any] = deque()
    for batch in batches:
        waiting.append(put(batch, mesh))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def from_all_processes(thing: Any) -> list[Any]:
    """What each process gives, by its number, on every process; of whatever pickle can write."""
    if jax.process_count() == 1:
        return [thing]
    content = np.frombuffer(pickle.dumps(thing), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(content.size)).ravel()
    padded = np.zeros(sizes.max(), np.uint8)  # all have to give arrays of one size
    padded[: content.size] = content
    everyones = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(everyones, sizes, strict=True)]


def wait_for_all(what: str) -> None:
    """Return once every process of the cluster has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
