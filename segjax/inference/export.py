"""The whole way from pictures to labels as one artefact of `jax.export`, for any size and platform.

It is `make_predict` and `labels_of` traced with the number of pictures and their sides left open:
what stands here is only how that is asked for. Weights are no part of it, they are an argument: as
constants XLA would fold them into each other, which takes long and gives other last bits than the
network in use.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from segjax.errors import SegjaxError
from segjax.inference.predict import Network, labels_of, make_predict

PLATFORMS = ("cpu", "cuda", "tpu")


def export_labels(
    model: Network,
    variables: Mapping[str, Any],
    *,
    normalise: Callable[[jax.Array], jax.Array],
    channels: int,
    dtype: Any = jnp.uint8,
    threshold: float = 0.5,
    size: tuple[int, int] | None = None,
) -> export.Exported:
    """Pictures to labels: scaled, mirrored to a size the network takes, computed, cropped, decided.

    Args:
        model: a network of `segjax.models`, or one that keeps to their contract.
        variables: what its `apply` takes, arrays or their shapes.
        normalise: the scaling that it was trained with.
        channels: C of a picture.
        dtype: of a picture, uint8 or float32 of 0–255.
        threshold: probability in 0–1, for a network of one channel.
        size: height and width, if they are to be fixed; by default any.

    Returns:
        `.call(weights, images)` gives uint8 labels (B, H, W) of pictures (B, H, W, C), weights
        being `flat(variables)`; `.serialize()` its bytes. For the CPU, CUDA and TPU.

    Raises:
        SegjaxError: the network's shapes cannot be told for sizes left open.
    """
    predict = make_predict(model, normalise=normalise)

    def labels(weights: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        logits = predict(unflatten_dict(weights, sep="/"), images)
        return labels_of(logits, threshold=threshold).astype(jnp.uint8)

    sides = "h, w" if size is None else f"{size[0]}, {size[1]}"
    shape = export.symbolic_shape(f"b, {sides}, {channels}")
    weights = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat(variables).items()
    }
    images = jax.ShapeDtypeStruct(shape, dtype)
    try:
        return export.export(jax.jit(labels), platforms=PLATFORMS)(weights, images)
    except Exception as error:  # of any network, given sizes that are no numbers
        left_open = "its sides left open" if size is None else f"{size[0]}×{size[1]} pixels"
        raise SegjaxError(
            f"{type(model).__name__} cannot be exported for any number of pictures with "
            f"{left_open}: {error}. Name one size with --size, or write the network so that no "
            "shape is compared or made a number."
        ) from error


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables by their paths, "params/down_0/conv_0/kernel": an artefact's weights."""
    return flatten_dict(dict(variables), sep="/")
