"""A batch taken in parts, one after the other, as if it were taken at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import SegjaxError

# (parameters, batch statistics, batch) -> (a tree of arrays with a row for each picture, the new
# batch statistics)
Forward = Callable[[Any, Any, Any], tuple[Any, Any]]


def in_parts(forward: Forward, parts: int) -> Forward:
    """A function of a batch, taken in parts: the same of what has a row for each picture.

    Of a part nothing is kept for the gradient but its rows of the result; the rest is computed
    again. So memory is that of one part and of all logits, and time that of a forward pass more.
    In return whatever follows, such as any loss, is that of the whole batch, and so are dropout's
    masks where a network draws them by `nn.Dropout`. What is taken over pictures in `forward`, as
    batch norm's statistics are, is of each part; the running ones take in one part after the other.

    Part p has the rows p, p + parts, p + 2 parts, …: some of every device's, so that none moves.

    Args:
        forward: which is pure.
        parts: their number; 1 gives `forward` itself.

    Returns:
        A function that raises SegjaxError where a batch does not divide into the parts.

    Source: Gao, Zhang, Han and Callan 2021 (GradCache), by rematerialisation.
    """
    if parts == 1:
        return forward

    def whole(params: Any, stats: Any, batch: Any) -> tuple[Any, Any]:
        def one(stats: Any, part: tuple[jax.Array, Any]) -> tuple[Any, Any]:
            number, rows = part
            with nn.intercept_methods(_dropout_of_the_whole(number, parts)):
                found, stats = forward(params, stats, rows)
            return jax.lax.stop_gradient(stats), found

        # In a loop nothing can be merged with what was computed before.
        one = jax.checkpoint(one, prevent_cse=False)
        rows = jax.tree.map(lambda x: jnp.moveaxis(_of_parts(x, parts), 1, 0), batch)
        stats, found = jax.lax.scan(one, stats, (jnp.arange(parts), rows))
        return jax.tree.map(lambda x: _joined(jnp.moveaxis(x, 0, 1)), found), stats

    return whole


def _of_parts(x: jax.Array, parts: int) -> jax.Array:
    """(B, …) -> (B / parts, parts, …); row i belongs to part i % parts."""
    if x.shape[0] % parts:
        raise SegjaxError(
            f"A batch of {x.shape[0]} rows does not divide into {parts} parts (accumulate). Take "
            "another number of parts, or of pictures."
        )
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:])


def _joined(x: jax.Array) -> jax.Array:
    """(B / parts, parts, …) -> (B, …)."""
    return x.reshape(-1, *x.shape[2:])


def _dropout_of_the_whole(part: jax.Array, parts: int) -> Callable[..., Any]:
    """Of `nn.intercept_methods`: each mask is drawn for the whole batch, and its rows taken."""

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if not isinstance(module, nn.Dropout) or module.rate in (0, 1):
            return call(*args, **kwargs)
        x, *others = args
        drawn = call(jnp.ones((len(x) * parts, *x.shape[1:]), x.dtype), *others, **kwargs)
        mask = jax.lax.dynamic_index_in_dim(_of_parts(drawn != 0, parts), part, 1, keepdims=False)
        return jnp.where(mask, x / (1 - module.rate), 0)

    return intercept
