"""The first state of a training: the recipe's initial variables, or another run's weights."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax.commands.run import Run
from segjax.commands.trained import load_step
from segjax.errors import SegjaxError
from segjax.training.train import State

if TYPE_CHECKING:
    from segjax.recipe import Recipe


def first_state(recipe: "Recipe", state: State) -> State:
    """The first state, with the weights that the recipe starts from."""
    variables = recipe.initial(state.variables)
    if recipe.start_from is not None:
        step, theirs = load_step(Run(recipe.start_from), "best")
        variables, told = _take_over(variables, theirs.variables)
        if jax.process_index() == 0:
            print(f"Starting from {recipe.start_from}, step {step}: {told}.")
    # Leaf by leaf; what is left as it was may lie on other processes too.
    placed = jax.tree.map(
        lambda old, new: (
            new if new is old else jax.device_put(np.asarray(new, old.dtype), old.sharding)
        ),
        state.variables,
        state.variables | dict(variables),  # a network without statistics has no part for them
    )
    state = state.replace(**placed)
    if state.ema is None:
        return state
    lies = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(State.with_ema, out_shardings=lies)(state)


def _take_over(ours: Any, theirs: Any) -> tuple[Any, str]:
    """Our variables with theirs of the same names and shapes, and what was not taken in words."""
    mine, given = (flatten_dict(dict(tree), sep="/") for tree in (ours, theirs))
    taken = {
        path: given[path]
        for path, leaf in mine.items()
        if path in given and given[path].shape == leaf.shape
    }
    if not taken:
        raise SegjaxError("The run to start from has no array of this network's names and shapes.")
    told = f"{len(taken)} of {len(mine)} arrays"
    for what, paths in (
        ("at first values", set(mine) - set(taken)),
        ("unused", set(given) - set(taken)),
    ):
        if paths:
            told += f"; {what}: {', '.join(sorted(paths))}"
    return unflatten_dict(mine | taken, sep="/"), told
