"""One mesh, from a CPU to a pod: the batch is split over `data`, all else is everywhere."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from segjax.errors import SegjaxError


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


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Raise SegjaxError where a batch does not divide among the devices."""
    if batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        good = " or ".join(str(n) for n in (below, below + mesh.size) if n)
        raise SegjaxError(
            f"A batch of {batch_size} pictures does not divide among {mesh.size} devices; "
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
