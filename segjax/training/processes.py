"""Several processes that train as one: how they find and tell each other."""

import os
import pickle
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

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
