"""From uint8 pictures to logits. A predict function is `uint8 (B, H, W, C) -> (B, H, W, N)`;
what wraps one (tiles, flips, scales) takes such a function and returns one.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import SegjaxError, SegjaxWarning
from segjax.inference import tiles

Predict = Callable[[Any], Any]  # arrays of JAX or NumPy


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
        `partial(make_predict(…), variables)`, for a predict function. It raises SegjaxError for
        other axes, and warns of NumPy's floats in 0–1, for it expects 0–255.
    """
    geometry = model.geometry
    margin, ahead = max(geometry.margin, 0), max(-geometry.margin, 0)

    @jax.jit
    def forward(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        _, height, width, _ = images.shape
        rows = (margin, geometry.fit(height) - height - margin)
        columns = (margin, geometry.fit(width) - width - margin)
        images = jnp.pad(images, ((0, 0), rows, columns, (0, 0)), mode="reflect")
        logits = model.apply(variables, normalise(images), train=False).logits
        return logits[:, ahead : ahead + height, ahead : ahead + width]

    def predict(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        _check(images)
        return forward(variables, images)

    return predict


def make_tiled_predict(
    model: Network,
    *,
    normalise: Callable[[jax.Array], jax.Array],
    tile: int,
    batch_size: int,
    gaussian: bool = False,
    put: Callable[[np.ndarray], jax.Array] = jnp.asarray,
) -> Callable[[Mapping[str, Any], Any], np.ndarray]:
    """The prediction of a network by tiles, of which alone the device holds a batch.

    The logits are those of `make_predict`, or the mean of windows where the network sees the whole
    picture at once: `tiles.plan` tells which. One shape is compiled for all pictures, but where a
    picture is smaller than a tile, or a side modulo the stride decides the size of the tile.

    Args:
        model: a network of `segjax.models`.
        normalise: what the network was trained with, uint8 -> float32.
        tile: greatest side of the network's input, in pixels.
        batch_size: tiles at a time.
        gaussian: weigh the pixels of such windows, as `tiles.stitch`.
        put: moves a batch of tiles to the device or devices.

    Returns:
        (variables, uint8 images (B, H, W, C)) -> float32 logits (B, H, W, N), a NumPy array. It
        raises and warns as that of `make_predict`.
    """

    @jax.jit
    def forward(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return model.apply(variables, normalise(images), train=False).logits

    def predict(variables: Mapping[str, Any], images: Any) -> np.ndarray:
        images = np.asarray(images)
        _check(images)
        plan = tiles.plan(model, images.shape[1:3], tile)
        return tiles.stitch(
            lambda batch: forward(variables, put(batch)),
            images,
            plan,
            batch_size=batch_size,
            gaussian=gaussian,
        )

    return predict


def _check(images: Any) -> None:
    """Raise SegjaxError unless it is a batch; warn of pictures that are black to the network."""
    if images.ndim != 4:
        raise SegjaxError(
            f"The images are {images.shape}; expected (B, H, W, C). A picture (H, W, C) alone is "
            "images[None], a grey one (H, W) images[None, ..., None]."
        )
    # Not of JAX's arrays, for whose values the device would have to be waited for.
    if isinstance(images, np.ndarray) and images.dtype.kind == "f" and 0 < images.max() <= 1:
        warnings.warn(
            "The images are floats in 0–1, which are black to the network: expected uint8 or "
            "float32 in 0–255. Multiply them by 255.",
            SegjaxWarning,
            stacklevel=3,
        )


def predict_label(predict: Predict, image: np.ndarray) -> np.ndarray:
    """uint8 picture (H, W, C) -> uint8 label (H, W), the most likely class of each pixel."""
    if image.ndim != 3:
        raise SegjaxError(f"The image is {image.shape}; expected one picture (H, W, C).")
    return np.asarray(predict(image[None])[0].argmax(-1).astype(np.uint8))
