"""The verb that tells what a recipe's training step takes, here or elsewhere, without data."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import rich
from jax.sharding import AbstractMesh, Mesh
from rich.markup import escape
from rich.table import Table

from segjax.commands.step import Parts, in_steps
from segjax.errors import SegjaxError
from segjax.training import cost as costs
from segjax.training import devices, sharding
from segjax.training.cost import Collectives, step_cost, step_flops
from segjax.training.devices import Device
from segjax.training.reckoning import bytes_per_device, reckon
from segjax.training.train import State

if TYPE_CHECKING:
    from segjax.recipe import Recipe

_GIB = 2**30
_NEAR = 0.6  # of the memory; compilers were seen to take 1.6 times what is reckoned, docs/cost.md


class Machine(NamedTuple):
    """What a step is to run on.

    device: its data sheet, where there is one.  number: of devices.  here: those to compile for, or
    None where nothing is compiled.
    """

    name: str
    device: Device | None
    number: int
    here: list[Any] | None

    @property
    def room(self) -> float:
        """Bytes of a device's memory that JAX gives to a program; NaN where unknown."""
        if self.device is None:
            return math.nan
        # Of a GPU JAX takes three quarters as it starts, and no more later.
        default = 1 if self.device.kinds[0].startswith("TPU") else 0.75
        return self.device.memory * float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", default))


class Found(NamedTuple):
    """What a step takes on each device; memory and traffic in bytes."""

    how: str
    parameters: int
    state: int
    batch: int
    temporaries: float
    memory: float
    flops: float
    traffic: float
    collectives: Collectives


def cost(
    recipe: "Recipe",
    *,
    topology: str | None = None,
    gpu: str | None = None,
    count: int | None = None,
    reckoned: bool = False,
) -> None:
    """Print what a recipe's training step takes.

    Args:
        recipe: whose shapes count; no data are read.
        topology: of a TPU slice, such as "v5e:4x4".
        gpu: a GPU's short name, such as "h100"; nothing is compiled for it.
        count: of GPUs, or of the CPU devices to make; by default one, and those that there are.
        reckoned: compile nothing.
    """
    place = machine(topology=topology, gpu=gpu, count=count, reckoned=reckoned)
    mesh: Any = AbstractMesh(  # of devices that need not be here
        sharding.mesh_shape(place.number, data=recipe.data_axis, model=recipe.model_axis),
        ("data", "model"),
    )
    sharding.check_batch_size(mesh, recipe.batch_size, parts=recipe.accumulate)
    elsewhere = topology is not None or gpu is not None
    guess = reckon_step(recipe, mesh) if elsewhere or reckoned else None
    if guess is not None:
        show(recipe, place, guess)
        if not fits(place, guess.memory):
            advise(recipe, place, mesh)
    if place.here is None:
        return
    if guess is not None:
        rich.print(f"Compiling for {place.name}, which takes minutes; --reckon leaves it out.")
    try:
        found, seconds = compile_step(recipe, place.here)
    except costs.DoesNotFit as error:
        rich.print(f"[bold]It does not fit, by the compiler.[/] {escape(str(error))}")
        advise(recipe, place, mesh, temporaries=error.need * _GIB)
        return
    show(recipe, place, found, seconds=seconds)
    if not fits(place, found.memory):
        advise(recipe, place, mesh, temporaries=found.temporaries)


def machine(*, topology: str | None, gpu: str | None, count: int | None, reckoned: bool) -> Machine:
    """The machine asked for, or this one.

    Raises:
        SegjaxError: there is none such.
    """
    if topology is not None and (gpu is not None or count is not None):
        raise SegjaxError("A topology says which devices there are: drop --gpu and --devices.")
    if count is not None and count < 1:
        raise SegjaxError(f"--devices is {count}; expected 1 or more.")
    if (topology or gpu) and "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")  # to compile for others takes none of them
    if topology is not None:
        generation, chips = costs.slice_of(topology)
        here = None
        if not reckoned:
            try:
                here = costs.slice_devices(topology)
            except costs.NoCompiler as error:
                rich.print(escape(f"{error} (Reckoned, without compiling:)"))
        return Machine(f"TPU {topology}", devices.find(generation), chips, here)
    if gpu is not None:
        device = devices.find(gpu)
        if device is None:
            names = ", ".join(d.name for d in devices.DEVICES)
            raise SegjaxError(f"There is no data sheet of {gpu!r}. There are: {names}.")
        return Machine(f"{count or 1} × {device.kinds[0]}", device, count or 1, None)
    found = jax.devices() if count is None else cpu_devices(count)
    kind = found[0].device_kind
    here = None if reckoned else found
    return Machine(f"{len(found)} × {kind}", devices.find(kind), len(found), here)


def cpu_devices(count: int) -> list[Any]:
    """That many CPU devices, made where JAX has not begun yet.

    Raises:
        SegjaxError: it has, with fewer.
    """
    try:
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError:  # it has begun
        pass
    found = jax.devices("cpu")
    if len(found) < count:
        raise SegjaxError(
            f"--devices is {count}, but JAX has begun with {len(found)} here. Run `cost` as a "
            "command of its own."
        )
    return found[:count]


class Memory(NamedTuple):
    """What a step takes on a device as reckoned, in bytes; temporaries and traffic near."""

    state: int
    batch: int
    temporaries: int
    traffic: int

    @property
    def in_all(self) -> int:
        """At once."""
        return self.state + self.batch + self.temporaries


def reckon_memory(recipe: "Recipe", mesh: Any) -> Memory:
    """What a step takes on a device of the mesh, without compiling.

    What a device does with its share of the batch is what a lone one does with that many pictures.
    What a split of layers over `model` saves within them is left out.
    """
    _, state, batch = step_in_shapes(recipe, mesh)
    return memory_of(recipe, mesh, state, batch)


def memory_of(recipe: "Recipe", mesh: Any, state: State, batch: Any) -> Memory:
    """`reckon_memory` of a state and a batch whose shapes are known."""
    taken = reckon(*step_in_shapes(share_of(recipe, mesh), lone()))
    held = bytes_per_device(state), bytes_per_device(batch)
    return Memory(*held, taken.temporaries, taken.traffic)


def share_of(recipe: "Recipe", mesh: Any) -> "Recipe":
    """The recipe of what one device does."""
    share = recipe.batch_size // mesh.shape["data"]
    return dataclasses.replace(recipe, batch_size=share, data_axis=None, model_axis=1, shard="no")


def lone() -> Mesh:
    """A mesh of one device."""
    return sharding.make_mesh(jax.devices()[:1])


def flops_of(recipe: "Recipe", mesh: Any) -> float:
    """FLOPs of a device, of a step without loops: a loop's body would be counted once."""
    whole = dataclasses.replace(share_of(recipe, mesh), accumulate=1)
    return step_flops(*step_in_shapes(whole, lone(), unrolled=True)) / mesh.shape["model"]


def reckon_step(recipe: "Recipe", mesh: Any) -> Found:
    """What a step takes, without compiling: exact for state and batch, else near.

    The collectives are the gradient's, or those of parameters that are gathered; those of batch
    norm, and within layers that are split over `model`, are left out.
    """
    _, state, batch = step_in_shapes(recipe, mesh)
    memory = memory_of(recipe, mesh, state, batch)
    whole, part = bytes_of(state.params), bytes_per_device(state.params)
    collectives: Collectives = {}
    if mesh.shape["data"] > 1 and recipe.shard == "data":
        # Parameters forward and backward, and the gradient to where it is needed.
        collectives = {"all-gather": (2, 2 * part), "reduce-scatter": (1, whole)}
    elif mesh.shape["data"] > 1:
        collectives = {"all-reduce": (1, part)}
    return Found(
        "reckoned",
        parameters=costs.count(state.params),
        state=memory.state,
        batch=memory.batch,
        temporaries=memory.temporaries,
        memory=memory.in_all,
        flops=flops_of(recipe, mesh),
        traffic=memory.traffic,
        collectives=collectives,
    )


def bytes_of(tree: Any) -> int:
    """Of a tree's leaves, as if each were whole."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compile_step(recipe: "Recipe", here: list[Any]) -> tuple[Found, float]:
    """What a step takes as its compiler has it, and the seconds that took; FLOPs are reckoned.

    Raises:
        DoesNotFit: a TPU's compiler refuses.
    """
    mesh = sharding.make_mesh(here, data=recipe.data_axis, model=recipe.model_axis)
    step, state, batch = step_in_shapes(recipe, mesh)
    found = step_cost(step, state, batch)
    compiled = Found(
        "compiled",
        found.parameters,
        bytes_per_device(state),
        bytes_per_device(batch),
        temporaries=found.temporaries,
        memory=found.memory,
        flops=flops_of(recipe, mesh),
        traffic=found.bytes_accessed,
        collectives=found.collectives,
    )
    return compiled, found.compile_seconds


def show(recipe: "Recipe", place: Machine, found: Found, *, seconds: float | None = None) -> None:
    """Print what a step takes, and how fast it can be at most where the device is known."""
    height, width = recipe.crop
    table = Table(
        title=f"one training step of {recipe.batch_size} × {height}×{width} on {place.name}, "
        "per device",
        show_header=False,
    )
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("")
    table.add_row("parameters", f"{found.parameters:,}", "exact")
    table.add_row("state", _bytes(found.state), "exact")
    table.add_row("batch", _bytes(found.batch), "exact")
    table.add_row("temporaries", _bytes(found.temporaries), found.how)
    table.add_row("memory in all", _bytes(found.memory), found.how)
    table.add_row("FLOPs per device", f"{found.flops / 1e9:,.3f} G", "reckoned")
    table.add_row("memory traffic", f"{found.traffic / 1e9:,.3f} GB", found.how)
    for kind, (number, size) in sorted(found.collectives.items()):
        table.add_row(f"{number} × {kind}", f"{size / 1e6:,.3f} MB", found.how)
    if place.device is not None:
        for row in speed(recipe, place, found):
            table.add_row(*row)
    if not math.isnan(place.room):
        word = verdict(place, found.memory, near=found.how == "reckoned")
        share = f"{found.memory / place.room:.0%} of {_bytes(place.room)}"
        table.add_row(word, share, found.how)
    if seconds is not None:
        table.add_row("compile time", f"{seconds:.1f} s", "")
    rich.print(table)


def speed(recipe: "Recipe", place: Machine, found: Found) -> Iterator[tuple[str, str, str]]:
    """Rows of the roofline: what a step takes at least."""
    assert place.device is not None
    line = costs.roofline(
        place.device,
        flops=found.flops,
        traffic=found.traffic,
        collectives=found.collectives,
        devices=place.number,
        float32=jnp.dtype(getattr(recipe.model(), "dtype", None) or jnp.float32) == jnp.float32,
    )
    for name, seconds in line._asdict().items():
        yield f"{name} at its peak", f"{1e3 * seconds:.3f} ms", place.device.source
    yield f"{line.bound} bound: a step", f"≥ {1e3 * line.seconds:.3f} ms", "a bound"
    yield "pictures", f"≤ {recipe.batch_size / line.seconds:,.0f} a second", "a bound"


def fits(place: Machine, memory: float) -> bool:
    """Whether it does; of a device that is not known it is taken for granted."""
    return not memory > place.room


def verdict(place: Machine, memory: float, *, near: bool) -> str:
    """In words; `near` is of what was reckoned without a compiler's figure."""
    if near and _NEAR < memory / place.room <= 1:
        return "may fit"
    return "fits" if fits(place, memory) else "does not fit"


def advise(recipe: "Recipe", place: Machine, mesh: Any, *, temporaries: float = math.nan) -> None:
    """Print what to change so that it fits, with what each would take.

    Args:
        recipe, place, mesh: what does not fit.
        temporaries: as the compiler has them, where it said so: what is reckoned is scaled to them.
    """
    now = reckon_memory(recipe, mesh)
    scale = 1.0 if math.isnan(temporaries) else temporaries / now.temporaries
    table = Table(title="so that it fits, reckoned", show_header=False)
    for what, changed in remedies(recipe, place, mesh, now, scale):
        need = _scaled(changed, scale)
        word = verdict(place, need, near=math.isnan(temporaries))
        table.add_row(what, _bytes(need), f"{need / place.room:.0%}", word)
    rich.print(table)


def _scaled(memory: Memory, scale: float) -> float:
    return memory.state + memory.batch + scale * memory.temporaries


def remedies(
    recipe: "Recipe", place: Machine, mesh: Any, now: Memory, scale: float
) -> Iterator[tuple[str, Memory]]:
    """(Options, what the step takes with them): those of memory and sharding that help, a batch."""
    helping: dict[str, Any] = {}
    for name, value in {"memory": "remat", "shard": "data"}.items():
        change: dict[str, Any] = {name: value}
        changed = reckon_memory(dataclasses.replace(recipe, **change), mesh)
        if changed.in_all < now.in_all:
            helping[name] = value
            yield f"--{name} {value}", changed
    if len(helping) == 2:
        yield (
            " ".join(f"--{name} {value}" for name, value in helping.items()),
            reckon_memory(dataclasses.replace(recipe, **helping), mesh),
        )
    # Memory grows in a line with the pictures.
    unit = mesh.shape["data"] * recipe.accumulate
    share = recipe.batch_size // unit
    if share == 1:
        return
    one = reckon_memory(dataclasses.replace(recipe, batch_size=unit), mesh)
    slope = (_scaled(now, scale) - _scaled(one, scale)) / (share - 1)
    most = max(1, min(share - 1, 1 + int((place.room - _scaled(one, scale)) / slope)))
    fewer = dataclasses.replace(recipe, batch_size=most * unit)
    yield f"--batch-size {most * unit}", reckon_memory(fewer, mesh)


def _bytes(size: float) -> str:
    return f"{size / _GIB:,.2f} GiB" if size >= _GIB else f"{size / 2**20:,.1f} MiB"


def step_in_shapes(
    recipe: "Recipe", mesh: Any, *, unrolled: bool = False
) -> tuple[Callable[..., Any], State, dict[str, jax.ShapeDtypeStruct]]:
    """A recipe's training step, and the shapes of the state and of the batch that it takes."""
    # The number of steps is an argument of the program: any serves.
    parts = Parts(in_steps(recipe, ()), mesh, unrolled=unrolled)
    split = sharding.split(mesh)

    def rows(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((recipe.batch_size, *shape), dtype, sharding=split)

    batch = {
        "image": rows(*recipe.canvas, recipe.channels, dtype=jnp.uint8),
        "label": rows(*recipe.canvas, dtype=jnp.uint8),
        "epoch": rows(dtype=jnp.int32),
        "record": rows(dtype=jnp.int32),
    }
    return parts.step, parts.shapes, batch
