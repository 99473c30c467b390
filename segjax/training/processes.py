"""Several processes that train as one: how they find each other, and agree."""

import atexit
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from segjax.errors import SegjaxError
from segjax.training.peers import Peers, lasting, meet

_ADVICE = (
    "Start one process per host through Slurm, Open MPI, Kubernetes or Cloud TPU, set "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or drop --distributed on a "
    "single host."
)
_PAUSE = 3.0  # seconds in which the watch finds the dead process that an exception comes of


class Stopped(SystemExit):
    """All processes have agreed to end, with this status; nothing is lost."""


@contextmanager
def join_cluster(*, within: float = 120.0) -> Iterator[None]:
    """Make this process one of a cluster's; the first thing that a process does with JAX.

    Slurm, Open MPI, Kubernetes and Cloud TPU are found by JAX. Elsewhere JAX_COORDINATOR_ADDRESS
    (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID tell.

    In the context the processes watch each other. Where one dies, or has not been heard of for half
    a minute, the others end by a line that names it, with status 75; where one leaves the context
    by an error, they end by its text.

    Args:
        within: seconds to wait for the others.

    Raises:
        SegjaxError: there is no cluster, or it cannot be joined.
        Lost: a process has not come.
    """
    address, processes, process, local = _place(within)
    peers: Peers | None = None
    if processes > 1:

        def say(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        peers = meet(address, process=process, processes=processes, within=within, say=say)
        # JAX's own ear for SIGTERM hears nothing else, and lets no other listen.
        jax.config.update("jax_enable_preemption_service", False)
        port = lasting(peers.service) if process else peers.service[1]
        address = "localhost", port
    try:
        jax.distributed.initialize(
            f"{address[0]}:{address[1]}",
            processes,
            process,
            local,
            cluster_detection_method="deactivate",
            shutdown_timeout_seconds=60,
        )
    except (ValueError, RuntimeError) as error:
        raise SegjaxError(f"No cluster could be joined: {error} {_ADVICE}") from error
    if peers is None:
        yield
        return
    try:
        yield
    except Stopped:
        peers.leave()
        raise
    except BaseException as error:
        status, text = _told(error)
        if not isinstance(error, SegjaxError | OSError | SystemExit | KeyboardInterrupt):
            time.sleep(_PAUSE)
        peers.fail(text, status)
        atexit.register(_end, status)  # before JAX's own end, which would wait for the others
        raise
    peers.leave()


def _told(error: BaseException) -> tuple[int, str]:
    """The exit status of an error, and its text for those it ends too."""
    if isinstance(error, KeyboardInterrupt):
        number = error.args[0] if error.args else signal.SIGINT
        return 128 + number, f"ended by {signal.Signals(number).name}"
    if isinstance(error, SystemExit):
        return (error.code if isinstance(error.code, int) else 1), "ended"
    return getattr(error, "status", 1), str(error) or type(error).__name__


def _end(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _place(within: float) -> tuple[tuple[str, int], int, int, Sequence[int] | None]:
    """Where the first process is, how many there are, which one this is, and its devices."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes, process = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
    local = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    devices: Sequence[int] | None = [*map(int, local.split(","))] if local else None
    if None in (address, processes, process):
        try:
            # Not public, but within `initialize`, which begins to wait at once.
            from jax._src.clusters import ClusterEnv

            address, processes, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
                address, processes, process, devices, None, int(within)
            )
        except Exception as error:  # of five kinds of clusters
            raise SegjaxError(f"No cluster could be joined: {error} {_ADVICE}") from error
    lacking = [
        name
        for name, value in (
            ("JAX_COORDINATOR_ADDRESS", address),
            ("JAX_NUM_PROCESSES", processes),
            ("JAX_PROCESS_ID", process),
        )
        if value is None
    ]
    if lacking:
        raise SegjaxError(f"No cluster was found, and {', '.join(lacking)} not set. {_ADVICE}")
    assert address is not None and processes is not None and process is not None
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise SegjaxError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}; expected host:port of the first process, as "
            "node1:1234."
        )
    if processes < 1 or not 0 <= process < processes:
        raise SegjaxError(
            f"JAX_PROCESS_ID is {process} and JAX_NUM_PROCESSES {processes}; expected a number of "
            "processes and one from 0 to below it."
        )
    return (host.strip("[]"), int(port)), processes, process, devices


def _number(name: str) -> int | None:
    """Of the environment."""
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise SegjaxError(f"{name} is {text!r}; expected a whole number.") from None


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


def check_alike(given: Mapping[str, Any]) -> None:
    """Raise SegjaxError, on all processes, unless each was given the same.

    Args:
        given: by name what must not differ.
    """
    everyones = from_all_processes(dict(given))
    first = everyones[0]
    for number, other in enumerate(everyones):
        names = [n for n in {**first, **other} if first.get(n) != other.get(n)]
        if names:
            told = [
                f"{n} is {first.get(n)} in process 0, {other.get(n)} in process {number}"
                for n in names[:3]
            ]
            raise SegjaxError(
                f"The processes would not train the same: {'; '.join(told)}. Start all of them "
                "with the same command and versions."
            )


class Agreement:
    """Makes all processes see at the same step what one of them has seen, a step later.

    After each step a maximum over all processes is sent off to the devices, behind the step, and
    the one sent off before is read, which is there by then: nothing waits. All processes call it
    equally often.
    """

    def __init__(self) -> None:
        self._sent: jax.Array | None = None
        if jax.process_count() > 1:
            devices = jax.devices()
            mesh = jax.make_mesh((len(devices),), ("all",), (AxisType.Auto,), devices=devices)
            self._sharding = NamedSharding(mesh, PartitionSpec("all"))
            self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, seen: int) -> int:
        """The highest number that a process has given at the call before; alone, this one."""
        if jax.process_count() == 1:
            return seen
        before = self._sent
        mine = np.full(jax.local_device_count(), seen, np.int32)
        self._sent = self._highest(jax.make_array_from_process_local_data(self._sharding, mine))
        return 0 if before is None else int(before)
