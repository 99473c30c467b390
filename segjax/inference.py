"""From uint8 pictures to logits. A predict function is `uint8 (B, H, W, C) -> (B, H, W, N)`;
what wraps one (tiles, flips, scales) takes such a function and returns one.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Predict = Callable[[jax.Array], jax.Array]


class Network(Protocol):
    """What is asked of a network here; those of `segjax.models` have it."""

    @property
    def geometry(self) -> Any: ...
    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


def make_predict(
    model: Network, *, normalise: Callable[[jax.Array], jax.Array]
) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
    """The jitted prediction of a network, for pictures of any size.

    Where the network cannot take a size, the picture is mirrored beyond its edges and the logits
    are cropped back; so is the margin that a network of valid convolutions loses. Each new size
    compiles once.

    Args:
        model: a network of `segjax.models`.
        normalise: what the network was trained with, uint8 -> float32.

    Returns:
        (variables, uint8 images (B, H, W, C)) -> float32 logits (B, H, W, N). Bind the variables,
        `partial(make_predict(…), variables)`, for a predict function.
    """
    geometry = model.geometry
    margin = geometry.margin

    @jax.jit
    def predict(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        _, height, width, _ = images.shape
        rows = (margin, geometry.fit(height) - height - margin)
        columns = (margin, geometry.fit(width) - width - margin)
        images = jnp.pad(images, ((0, 0), rows, columns, (0, 0)), mode="reflect")
        logits = model.apply(variables, normalise(images), train=False).logits
        return logits[:, :height, :width]

    return predict


def predict_label(predict: Predict, image: np.ndarray) -> np.ndarray:
    """uint8 picture (H, W, C) -> uint8 label (H, W), the most likely class of each pixel."""
    return np.asarray(predict(jnp.asarray(image[None]))[0].argmax(-1).astype(jnp.uint8))
