"""Which way to take a training step so that it fits the memory at hand."""

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
from jax.sharding import Mesh

from segjax.commands.cost import step_in_shapes
from segjax.errors import SegjaxError
from segjax.inference import memory
from segjax.training.cost import step_cost
from segjax.training.processes import from_all_processes

if TYPE_CHECKING:
    from segjax.recipe import Recipe

_GIB = 2**30


def fitted(recipe: "Recipe", mesh: Mesh) -> tuple["Recipe", str]:
    """The recipe, whose memory="fit" has become "plain" or "remat", and why, in a line.

    The step is compiled for shapes, and training finds it in the compilation cache. Of several
    processes all choose alike: what fits each.

    Raises:
        SegjaxError: neither fits; with what would.
    """
    room = _room(mesh)
    needs: dict[str, float] = {}
    for way in ("plain", "remat") if hasattr(recipe.model(), "remat") else ("plain",):
        tried = dataclasses.replace(recipe, memory=way)
        needs[way] = _need(tried, mesh)
        # A backend that does not tell says NaN: there it is tried.
        if not any(from_all_processes(needs[way] > room)):
            told = ", ".join(f"{name} takes {_size(need)}" for name, need in needs.items())
            return tried, f"memory: {way}; {told} of {_size(room)} for each device"
    raise SegjaxError(_told(tried, mesh, needs, room))


def _told(recipe: "Recipe", mesh: Mesh, needs: dict[str, float], room: float) -> str:
    """What does not fit, and what to change."""
    share = recipe.batch_size // mesh.shape["data"]
    each = " and ".join(f"{_size(need)} ({way})" for way, need in needs.items())
    told = (
        f"A step of {recipe.batch_size} × {recipe.crop[0]}×{recipe.crop[1]} on {mesh.size} × "
        f"{mesh.devices.flat[0].device_kind} takes {each} of memory on each device; {_size(room)} "
        "are there for it."
    )
    for parts in range(recipe.accumulate + 1, share + 1):
        if share % parts:
            continue
        need = _need(dataclasses.replace(recipe, accumulate=parts), mesh)
        if need <= room:
            return (
                f"{told} With --accumulate {parts} it takes {_size(need)}; or take a smaller batch."
            )
    split = ", or split the state (--shard data)" if mesh.size > 1 and recipe.shard == "no" else ""
    return (
        f"{told} One picture at a time does not fit either (--accumulate): take smaller crops or a "
        f"smaller network{split}."
    )


def _need(recipe: "Recipe", mesh: Mesh) -> float:
    """Bytes of a step on each device; infinite where the compiler itself refuses it."""
    try:
        return step_cost(*step_in_shapes(recipe, mesh)).memory
    except jax.errors.JaxRuntimeError as error:
        if memory.exhausted(error):
            return math.inf
        raise


def _room(mesh: Mesh) -> float:
    """Bytes that a step may take on each device; on the host they share what is free."""
    stats = jax.local_devices()[0].memory_stats() or {}
    sharing = 1 if "bytes_limit" in stats else len(mesh.local_devices)
    return memory.SHARE * memory.left() / sharing


def _size(size: float) -> str:
    if math.isinf(size):
        return "more than the device has"
    return f"{size / _GIB:.2f} GiB" if size >= _GIB else f"{size / 2**20:.1f} MiB"
