"""Learning-rate schedules and optimisers with the field's defaults.

An optimiser says where to go, at a rate of 1; a schedule says how far at each step. A schedule is a
pytree of its numbers: they are arguments of the compiled step, so that another rate or number of
steps compiles nothing. That is why optax's schedules, whose numbers are constants, do not serve.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jax.typing import ArrayLike

Schedule = Callable[[ArrayLike], jax.Array]  # steps done -> learning rate of the next one


def constant(rate: float) -> Schedule:
    """The same learning rate at every step."""
    return Partial(_polynomial, rate=rate, end=rate, steps=1.0, power=1.0)


def polynomial(rate: float, *, steps: int, power: float = 0.9, end: float = 0.0) -> Schedule:
    """rate(t) = (rate - end) · (1 - t/steps)^power + end, DeepLab's and SETR's "poly"."""
    return Partial(_polynomial, rate=rate, end=end, steps=float(steps), power=float(power))


def cosine(rate: float, *, steps: int, warmup: int = 0) -> Schedule:
    """Linear from 0 over `warmup` steps, then half a cosine down to 0 at `steps`."""
    return Partial(_cosine, rate=rate, steps=float(steps), warmup=float(warmup))


def _polynomial(
    step: ArrayLike, *, rate: jax.Array, end: jax.Array, steps: jax.Array, power: jax.Array
) -> jax.Array:
    return (rate - end) * jnp.clip(1 - step / steps, 0, 1) ** power + end


def _cosine(step: ArrayLike, *, rate: jax.Array, steps: jax.Array, warmup: jax.Array) -> jax.Array:
    rising = step / jnp.maximum(warmup, 1)
    done = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1), 0, 1)
    return rate * jnp.where(step < warmup, rising, 0.5 * (1 + jnp.cos(jnp.pi * done)))


def _kernels(params: optax.Params) -> optax.Params:
    """What decays: kernels, not biases nor the norms' scales (as in the FCN authors' code)."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def sgd(*, momentum: float = 0.9, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """v ← momentum · v + g + weight_decay · w; w ← w - rate · v; only kernels decay."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_kernels),
        optax.sgd(1.0, momentum=momentum),
    )


def adamw(*, weight_decay: float = 1e-4) -> optax.GradientTransformation:
    """Adam with decoupled weight decay of the kernels (Loshchilov and Hutter 2019)."""
    return optax.adamw(1.0, weight_decay=weight_decay, mask=_kernels)
