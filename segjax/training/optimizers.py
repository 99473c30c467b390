"""Learning-rate schedules, optimisers with the field's defaults, and groups of parameters.

An optimiser says where to go, at a rate of 1; a schedule says how far at each step. A schedule is a
pytree of its numbers: they are arguments of the compiled step, so that another rate or number of
steps compiles nothing. That is why optax's schedules, whose numbers are constants, do not serve.

A group is a pattern: a regular expression that is searched for in the paths of parameters, such as
"vit/blocks/qkv/kernel". So "head" is what has it in its name, "bias$" every bias.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from segjax.errors import SegjaxError

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


def staircase(rate: float, *, at: Sequence[int], factor: float = 0.1) -> Schedule:
    """A rate that is multiplied by a factor at each of some steps."""
    return Partial(_staircase, rate=rate, at=tuple(map(float, at)), factor=factor)


def warmed(schedule: Schedule, steps: int) -> Schedule:
    """A schedule of this module whose first steps rise linearly from 0: · min(1, t/steps)."""
    return Partial(_warmed, schedule=schedule, steps=float(steps))


def _polynomial(
    step: ArrayLike, *, rate: jax.Array, end: jax.Array, steps: jax.Array, power: jax.Array
) -> jax.Array:
    return (rate - end) * jnp.clip(1 - step / steps, 0, 1) ** power + end


def _cosine(step: ArrayLike, *, rate: jax.Array, steps: jax.Array, warmup: jax.Array) -> jax.Array:
    rising = step / jnp.maximum(warmup, 1)
    done = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1), 0, 1)
    return rate * jnp.where(step < warmup, rising, 0.5 * (1 + jnp.cos(jnp.pi * done)))


def _staircase(
    step: ArrayLike, *, rate: jax.Array, at: tuple[jax.Array, ...], factor: jax.Array
) -> jax.Array:
    stairs = sum((jnp.asarray(step >= begin) for begin in at), start=jnp.int32(0))
    return rate * factor**stairs


def _warmed(step: ArrayLike, *, schedule: Schedule, steps: jax.Array) -> jax.Array:
    return schedule(step) * jnp.clip(step / jnp.maximum(steps, 1), 0, 1)


def sgd(
    *, momentum: float = 0.9, weight_decay: float | Mapping[str, float] = 0.0
) -> optax.GradientTransformation:
    """v ← momentum · v + g + weight_decay · w; w ← w - rate · v.

    Args:
        momentum: of the velocity v.
        weight_decay: of kernels, not of biases nor the norms' scales (as in the FCN authors' code);
            or by pattern, where the last one that matches counts, and without any it is 0.
    """
    return optax.chain(_decayed(weight_decay), optax.sgd(1.0, momentum=momentum))


def adamw(*, weight_decay: float | Mapping[str, float] = 1e-4) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Args:
        weight_decay: as of `sgd`.
    """
    return optax.chain(optax.scale_by_adam(), _decayed(weight_decay), optax.scale(-1.0))


def scaled(
    optimizer: optax.GradientTransformation, factors: Mapping[str, float]
) -> optax.GradientTransformation:
    """The optimiser at a learning rate of its own for each group.

    scaled(sgd(weight_decay=5e-4), {"head": 10, "bias$": 2}): heads learn ten times as fast, biases
    twice, a head's biases twenty times. As Caffe's lr_mult, a factor holds for a decay, too.

    Args:
        optimizer: whose updates are multiplied.
        factors: by pattern; those of all patterns that match are multiplied.

    Raises, where the state is made:
        SegjaxError: a pattern matches no parameter.
    """

    def of(path: str) -> float:
        return math.prod(x for pattern, x in factors.items() if re.search(pattern, path))

    return _multiplied(optimizer, lambda leaves: {path: of(path) for path in leaves}, [*factors])


def layerwise(
    optimizer: optax.GradientTransformation,
    decay: float,
    *,
    layers: Sequence[str],
    stacked: str = "blocks/",
) -> optax.GradientTransformation:
    """The optimiser at rates that fall from the output to the input, as to tune an encoder finely.

    With n layers that of index i learns at decay^(n - i), and what is in none at 1. For a SETR that
    is layerwise(sgd(), 0.75, layers=("vit/[pc]", "vit/blocks/")).

    Args:
        optimizer: whose updates are multiplied.
        decay: from a layer to the one before it.
        layers: patterns, from the input on; a parameter belongs to the first one that matches.
        stacked: the pattern of parameters that hold many layers along their first axis, as a Vision
            Transformer's blocks do; each of these counts.

    Raises, where the state is made:
        SegjaxError: a pattern matches no parameter.

    Source: Bao, Dong, Piao and Wei 2022 (BEiT), `get_layer_id_for_vit` of the authors' code.
    """

    def factors(leaves: Mapping[str, jax.Array]) -> dict[str, Any]:
        layer = {path: i for path in leaves if (i := _first(layers, path)) is not None}
        many = {path for path in layer if re.search(stacked, path)}
        lengths = [1] * len(layers)
        for path in many:
            lengths[layer[path]] = leaves[path].shape[0]

        def of(path: str) -> Any:
            n = sum(lengths[layer[path] :])  # layers from this one, or its first, to the output
            if path not in many:
                return decay**n
            shape = leaves[path].shape
            each = decay ** np.arange(n, n - shape[0], -1.0)
            return each.astype(np.float32).reshape(-1, *[1] * (len(shape) - 1))

        return {path: of(path) if path in layer else 1.0 for path in leaves}

    return _multiplied(optimizer, factors, layers)


def frozen(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformation:
    """The optimiser of all parameters but those of some groups, which stay as they are.

    Of frozen ones it keeps no momentum. Their gradients still count in `gradient_norm` and for
    clipping; and batch norm goes on to use the batch's statistics, and to average them.

    Raises, where the state is made:
        SegjaxError: a pattern matches no parameter.
    """

    def kinds(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda key, _: "others" if _first(patterns, _path(key)) is None else "frozen", params
        )

    both = optax.partition({"others": optimizer, "frozen": optax.set_to_zero()}, kinds)
    return optax.GradientTransformationExtraArgs(_checked(both.init, patterns), both.update)


def _multiplied(
    optimizer: optax.GradientTransformation,
    factors: Callable[[Mapping[str, jax.Array]], Mapping[str, Any]],
    patterns: Sequence[str],
) -> optax.GradientTransformation:
    """The optimiser, each of its updates times a factor: path -> update, to path -> factor."""

    def update(updates: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, Any]:
        updates, state = inner.update(updates, state, params, **more)
        of = factors(dict(_paths(updates)))
        return jax.tree_util.tree_map_with_path(lambda key, x: x * of[_path(key)], updates), state

    inner = optax.with_extra_args_support(optimizer)
    return optax.GradientTransformationExtraArgs(_checked(inner.init, patterns), update)


def _decayed(weight_decay: float | Mapping[str, float]) -> optax.GradientTransformation:
    """Adds weight decay to what is to become the update."""
    if not isinstance(weight_decay, Mapping):
        return optax.add_decayed_weights(weight_decay, mask=_kernels)
    patterns = tuple(weight_decay)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(key: Any, update: jax.Array, param: jax.Array) -> jax.Array:
            i = _first(patterns[::-1], _path(key))
            return update if i is None else update + weight_decay[patterns[::-1][i]] * param

        return jax.tree_util.tree_map_with_path(one, updates, params), state

    return optax.GradientTransformation(_checked(optax.init_empty_state, patterns), update)


def _kernels(params: optax.Params) -> optax.Params:
    """What decays: no biases and no scales, also not where a leaf stacks those of many layers."""

    def is_kernel(key: Any, param: Any) -> bool:
        return param.ndim > 1 and not re.search("(bias|scale)$", _path(key))

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def _path(key: Any) -> str:
    return jax.tree_util.keystr(key, simple=True, separator="/")


def _paths(tree: Any) -> list[tuple[str, Any]]:
    return [(_path(key), leaf) for key, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _first(patterns: Sequence[str], path: str) -> int | None:
    """The index of the first pattern that a path has."""
    return next((i for i, pattern in enumerate(patterns) if re.search(pattern, path)), None)


def _checked(init: Callable[[Any], Any], patterns: Sequence[str]) -> Callable[[Any], Any]:
    """An optimiser's `init` that refuses patterns which no parameter has."""

    def checked(params: Any) -> Any:
        paths = [path for path, _ in _paths(params)]
        for pattern in patterns:
            if not any(re.search(pattern, path) for path in paths):
                parts = {part for path in paths for part in path.split("/")}
                near = difflib.get_close_matches(pattern, [*parts, *paths], n=4, cutoff=0.4)
                raise SegjaxError(
                    f"No parameter has {pattern!r} in its path. "
                    f"{'Near are' if near else 'There are'} {', '.join(near or paths[:8])}."
                )
        return init(params)

    return checked
