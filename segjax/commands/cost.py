"""The verb that tells what a recipe's training step takes, without data."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import rich
from jax.sharding import Mesh
from rich.table import Table

from segjax.commands.step import Parts, in_steps
from segjax.training import sharding
from segjax.training.cost import step_cost, step_flops
from segjax.training.train import State

if TYPE_CHECKING:
    from segjax.recipe import Recipe


def cost(recipe: "Recipe") -> None:
    """Compile the training step for the recipe's shapes, without data, and print what it takes."""
    mesh = sharding.make_mesh(data=recipe.data_axis, model=recipe.model_axis)
    found = step_cost(*step_in_shapes(recipe, mesh))
    # Of a network without loops, for a loop's body is counted once.
    flops = step_flops(*step_in_shapes(recipe, mesh, unrolled=True)) / mesh.size
    table = Table(
        show_header=False,
        title=f"one training step of {recipe.batch_size} × {recipe.crop[0]}×{recipe.crop[1]} "
        f"on {mesh.size} × {jax.devices()[0].device_kind}",
    )
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("FLOPs per device", f"{flops / 1e9:,.3f} G")
    for what in ("arguments", "temporaries", "outputs"):
        table.add_row(f"memory per device: {what}", f"{getattr(found, what) / 2**20:,.1f} MiB")
    table.add_row("compile time", f"{found.compile_seconds:.1f} s")
    rich.print(table)


def step_in_shapes(
    recipe: "Recipe", mesh: Mesh, *, unrolled: bool = False
) -> tuple[Callable[..., Any], State, dict[str, jax.ShapeDtypeStruct]]:
    """A recipe's training step, and the shapes of the state and of the batch that it takes."""
    # The number of steps is an argument of the program: any serves.
    parts = Parts(in_steps(recipe, ()), mesh, unrolled=unrolled)
    split = sharding.split(mesh)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(parts.make_state),
        parts.state_sharding,
    )

    def rows(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((recipe.batch_size, *shape), dtype, sharding=split)

    batch = {
        "image": rows(*recipe.canvas, recipe.channels, dtype=jnp.uint8),
        "label": rows(*recipe.canvas, dtype=jnp.uint8),
        "epoch": rows(dtype=jnp.int32),
        "record": rows(dtype=jnp.int32),
    }
    return parts.step, state, batch
