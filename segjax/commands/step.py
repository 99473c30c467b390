"""A recipe's training step on a mesh, from a batch as it is read to the state after it."""

import dataclasses
import math
from collections.abc import Callable, Sized
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import optax
from jax.sharding import Mesh

from segjax.data import augment
from segjax.data.augment import Example
from segjax.errors import SegjaxError
from segjax.models.layers import crop
from segjax.training import sharding
from segjax.training.train import Batch, State, initial_state, make_train_step

if TYPE_CHECKING:
    from segjax.recipe import Recipe


def make_prepare(
    recipe: "Recipe", *, margin: int = 0
) -> Callable[[jax.Array, Batch], tuple[jax.Array, Example]]:
    """(key, batch) -> network input (B, H, W, C) and its truth, on the device: augmented, scaled.

    The truth is the augmented batch, whose pictures are not scaled. A network that loses a margin
    sees pictures mirrored by it beyond their edges, and a truth without it.
    """

    def augmented(key: jax.Array, example: Example) -> Example:
        return recipe.augment(key, augment.mirror_pad(example, margin))

    def prepare(key: jax.Array, batch: Batch) -> tuple[jax.Array, Example]:
        keys = jax.vmap(partial(augment.record_key, key))(batch["epoch"], batch["record"])
        example = Example(batch["image"], batch["label"], batch.get("weight"))
        example = jax.vmap(augmented)(keys, example)
        _, height, width = example.label.shape
        inner = partial(crop, height=height - 2 * margin, width=width - 2 * margin)
        return recipe.normalise(example.image), jax.tree.map(inner, example)

    return prepare


def in_steps(recipe: "Recipe", source: Sized) -> "Recipe":
    """The recipe, its epochs counted in steps: as many as see each picture that often."""
    if recipe.epochs is None:
        return recipe
    steps = math.ceil(recipe.epochs * len(source) / recipe.batch_size - 1e-9)  # less rounding
    return dataclasses.replace(recipe, steps=max(steps, 1), epochs=None)


def _with_remat(model: Any) -> Any:
    if not hasattr(model, "remat"):
        raise SegjaxError(
            f"memory is 'remat', but {type(model).__name__} has no field remat. Take 'plain', or "
            "--accumulate for want of memory."
        )
    return model.clone(remat=True)


class Parts:
    """What a recipe's training consists of on a mesh, for `train` and for `cost`.

    Attributes:
        model: the network.
        make_state: makes the first state, whose `shapes` and shardings are known without it.
        step: the training step.
    """

    def __init__(self, recipe: "Recipe", mesh: Mesh, *, unrolled: bool = False) -> None:
        sharding.check_batch_size(mesh, recipe.batch_size, parts=recipe.accumulate)
        self.model: Any = recipe.model()
        if recipe.memory == "remat":
            self.model = _with_remat(self.model)
        if unrolled and hasattr(self.model, "scan"):
            self.model = self.model.clone(scan=False)
        self.model.geometry.check(*recipe.crop)
        optimizer = recipe.optimizer()
        if recipe.clip is not None:
            optimizer = optax.chain(optax.clip_by_global_norm(recipe.clip), optimizer)
        parameters, steps = jax.random.split(jax.random.key(recipe.seed))
        init = initial_state(
            self.model,
            optimizer,
            image_shape=(1, *recipe.crop, recipe.channels),
            ema=recipe.ema is not None,
        )
        shapes = jax.eval_shape(init, parameters)
        self.state_sharding = sharding.state_shardings(
            shapes, mesh, shard=recipe.shard, rules=getattr(self.model, "sharding_rules", ())
        )
        self.shapes: State = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            shapes,
            self.state_sharding,
        )
        # Traced already, for it is the same function.
        self.make_state = partial(jax.jit(init, out_shardings=self.state_sharding), parameters)
        self.step = make_train_step(
            self.model,
            optimizer,
            recipe.loss,
            schedule=recipe.schedule(),
            prepare=make_prepare(recipe, margin=self.model.geometry.margin),
            key=steps,
            ema=recipe.ema,
            accumulate=recipe.accumulate,
            skip=recipe.not_finite == "skip",
            state_sharding=self.state_sharding,
            at_use=partial(sharding.at_use, shardings=self.state_sharding.params),
        )

    def averaged(self, state: State) -> Any:
        """The variables to evaluate, for `apply`: what is split is gathered where it is used."""
        return sharding.at_use(state.averaged, self.state_sharding.averaged)
