"""One mesh, from a CPU to a pod: the batch is split over `data`, the state over neither axis,
over `data` (FSDP) or over `model` (tensor parallelism), by rules on the paths of parameters.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import flax
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from segjax.errors import SegjaxError

# Pattern of a parameter's path, "vit/blocks/qkv/kernel", and the axis that is split over `model`;
# None for none.
Rules = Sequence[tuple[str, int | None]]
# Elements. Of a smaller leaf a collective takes its latency, some 10 µs, and not its bytes, and all
# of a network's biases and norms together are a thousandth of it.
WHOLE_BELOW = 2**14
_RULES: Rules = (("kernel$", -1),)  # of what a network says nothing: by output channels


def make_mesh(
    devices: Sequence[jax.Device] | None = None, *, data: int | None = None, model: int = 1
) -> Mesh:
    """A mesh of two axes, `data` and `model`.

    Args:
        devices: by default all of all processes.
        data: how many parts the batch has; by default as many as there are devices for.
        model: over how many devices each part of the batch is computed together.

    Raises:
        SegjaxError: the two do not make up the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(len(devices), data=data, model=model)
    # Auto: make_mesh's own default is Explicit, under which Linen's Dropout fails.
    types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, ("data", "model"), types, devices=devices)


def mesh_shape(count: int, *, data: int | None = None, model: int = 1) -> tuple[int, int]:
    """The lengths of `data` and `model` on that many devices; raises as `make_mesh`."""
    if count % model:
        good = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise SegjaxError(
            f"model_axis is {model}, which does not divide {count} devices; take one of {good}."
        )
    if data not in (None, count // model):
        raise SegjaxError(
            f"data_axis {data} × model_axis {model} are {data * model} devices, and there are "
            f"{count}: set data_axis to {count // model}, or leave it out."
        )
    return count // model, model


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: the state."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of what is split along its first axis: the batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_shardings(
    state: Any,
    mesh: Mesh,
    *,
    shard: Literal["no", "data", "model"],
    rules: Rules = (),
    whole_below: int = WHOLE_BELOW,
) -> Any:
    """Where each leaf of a state lies: whole on each device, or split over some.

    "data" splits each along its largest axis that divides (FSDP): a device holds 1/n of it, and
    gathers a layer's parameters when they are computed with. The first of three or more axes is
    never split: it is a kernel's height, or the depth of stacked blocks, which are computed with
    one after the other.
    "model" splits a parameter by rules: devices compute each a part of a layer's outputs (tensor
    parallelism). With "data" on a mesh whose `model` axis is longer than 1, the rules come first.
    An optimiser's moments and a moving average lie as their parameters, whose paths end theirs.

    Args:
        state: a `State`, or its shapes.
        mesh: of `make_mesh`.
        shard: over what.
        rules: of the network, the first that matches; a kernel without one is split along its last
            axis. Where the axis does not divide, nothing is split over `model`.
        whole_below: elements of a leaf under which it is not split.

    Returns:
        A tree of `NamedSharding`.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(state.params)
    shapes = {_words(path): leaf.shape for path, leaf in paths}

    def place(path: Any, leaf: Any) -> NamedSharding:
        axes: list[str | None] = [None] * leaf.ndim
        if shard == "no" or leaf.size < whole_below:
            return replicated(mesh)
        words = _words(path)
        names = (words[i:] for i in range(len(words)) if shapes.get(words[i:]) == leaf.shape)
        axis = _rule((*rules, *_RULES), next(names, ()))
        if axis is not None and leaf.shape[axis] % mesh.shape["model"] == 0:
            axes[axis] = "model" if mesh.shape["model"] > 1 else None
        if shard == "data":
            able = [
                (length, i)
                for i, length in enumerate(leaf.shape)
                if axes[i] is None and length % mesh.shape["data"] == 0 and (i or leaf.ndim < 3)
            ]
            if able:
                axes[max(able)[1]] = "data"
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(place, state)


def at_use(params: Any, shardings: Any) -> Any:
    """Parameters that lie split over `data`, for `model.apply`: each is gathered where it is used.

    Left to itself the compiler splits a layer's computation as its parameters lie, and moves
    activations and sums of them between all devices. Flax opens these boxes where a layer asks for
    its parameter: there it is gathered, within a loop over blocks that of one block, and its
    gradient is left split as the parameter lies.

    Args:
        params: arrays, as they lie; of a loop over stacked blocks the module has to ask for its
            parameters by `self.param(…, unbox=False)`, and give the boxes to the loop.
        shardings: theirs, of `state_shardings`.

    Returns:
        The tree with a box around each array that is split over `data`.
    """

    def boxed(array: Any, sharding: NamedSharding) -> Any:
        return _AtUse(array, sharding) if "data" in sharding.spec else array

    return jax.tree.map(boxed, params, shardings)


class _AtUse(flax.struct.PyTreeNode, flax.core.meta.AxisMetadata[Any]):
    """A parameter that is gathered when it is opened; or a slice of it, which lacks first axes."""

    value: Any
    sharding: NamedSharding = flax.struct.field(pytree_node=False)

    def unbox(self) -> Any:
        spec = self.sharding.spec[len(self.sharding.spec) - self.value.ndim :]
        return _gathered(self.value, NamedSharding(self.sharding.mesh, PartitionSpec(*spec)))

    def replace_boxed(self, val: Any) -> Any:
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Any:
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Any:
        return self


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    spec = PartitionSpec(*(None if axis == "data" else axis for axis in sharding.spec))
    return jax.lax.with_sharding_constraint(array, NamedSharding(sharding.mesh, spec))


def _gathered_forward(array: jax.Array, sharding: NamedSharding) -> tuple[jax.Array, None]:
    return _gathered(array, sharding), None


def _gathered_backward(sharding: NamedSharding, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, sharding),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _words(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _rule(rules: Rules, words: Sequence[str]) -> int | None:
    """The axis that the first matching rule names for a parameter; None for what is none."""
    path = "/".join(words)
    return next((axis for pattern, axis in rules if re.search(pattern, path)), None)


def check_batch_size(mesh: Mesh, batch_size: int, *, parts: int = 1) -> None:
    """Raise SegjaxError where a batch, or each of its parts, does not divide over `data`."""
    axis = mesh.shape["data"]
    share = axis * parts
    if batch_size % share:
        below = batch_size // share * share
        good = " or ".join(str(n) for n in (below, below + share) if n)
        parted = f" in {parts} parts (accumulate)" if parts > 1 else ""
        among = f"{axis} devices" if axis == mesh.size else f"{axis} parts of {mesh.size} devices"
        raise SegjaxError(
            f"A batch of {batch_size} pictures{parted} does not divide among {among}; "
            f"take a batch size of {good}."
        )


def readers(mesh: Mesh) -> list[list[int]]:
    """The processes that read each share of a batch; several where `model` spans processes.

    Raises:
        SegjaxError: shares would overlap.
    """
    rows: dict[int, set[int]] = {}
    for (row, _), device in np.ndenumerate(mesh.devices):
        rows.setdefault(device.process_index, set()).add(row)
    shares: dict[tuple[int, ...], list[int]] = {}
    for process in sorted(rows):
        shares.setdefault(tuple(sorted(rows[process])), []).append(process)
    if sum(map(len, shares)) > mesh.shape["data"] or len({*map(len, shares)}) > 1:
        raise SegjaxError(
            f"model_axis {mesh.shape['model']} cuts through processes: take a divisor or a "
            f"multiple of the {len(mesh.local_devices)} devices of each."
        )
    return [shares[key] for key in sorted(shares)]


def share(mesh: Mesh) -> tuple[int, int]:
    """Which share of a batch this process reads, from 0, and of how many."""
    shares = readers(mesh)
    return next(i for i, of in enumerate(shares) if jax.process_index() in of), len(shares)


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
