"""From uint8 pictures to logits. A predict function is `uint8 (B, H, W, C) -> (B, H, W, N)`;
what wraps one (tiles, flips, scales) takes such a function and returns one.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import max_dim

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
        other axes.
    """
    geometry = model.geometry
    margin, ahead = max(geometry.margin, 0), max(-geometry.margin, 0)

    @jax.jit
    def predict(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        _check_batch(images)
        _, height, width, _ = images.shape
        rows = (margin, geometry.fit(height) - height - margin)
        columns = (margin, geometry.fit(width) - width - margin)
        images = _mirrored(_mirrored(images, 1, *rows), 2, *columns)
        logits = model.apply(variables, normalise(images), train=False).logits
        return logits[:, ahead : ahead + height, ahead : ahead + width]

    return predict


def make_forward(
    model: Network, *, normalise: Callable[[jax.Array], jax.Array]
) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
    """The jitted network alone, for tiles: nothing is mirrored nor cropped.

    Args:
        model: a network of `segjax.models`.
        normalise: what the network was trained with, uint8 -> float32.

    Returns:
        (variables, uint8 images (B, H, W, C) of a size that the network takes) -> float32 logits
        (B, h, w, N), its margin off.
    """

    @jax.jit
    def forward(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return model.apply(variables, normalise(images), train=False).logits

    return forward


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
        raises SegjaxError for other axes.
    """

    forward = make_forward(model, normalise=normalise)

    def predict(variables: Mapping[str, Any], images: Any) -> np.ndarray:
        images = np.asarray(images)
        _check_batch(images)
        plan = tiles.plan(model, images.shape[1:3], tile)
        return tiles.stitch(
            lambda batch: forward(variables, put(batch)),
            images,
            plan,
            batch_size=batch_size,
            gaussian=gaussian,
        )

    return predict


def _mirrored(images: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    """As `jnp.pad` by "reflect", which takes no sizes that an export leaves open."""
    size = images.shape[axis]
    if (before, after) == (0, 0):
        return images
    period = max_dim(2 * (size - 1), 1)
    at = (jnp.arange(before + size + after) - before) % period
    at = jnp.minimum(at, period - at) if size != 1 else at
    return jnp.take(images, at, axis, mode="clip")


def _check_batch(images: Any) -> None:
    if images.ndim != 4:
        raise SegjaxError(
            f"The images are {images.shape}; expected (B, H, W, C). A picture (H, W, C) alone is "
            "images[None], a grey one (H, W) images[None, ..., None]."
        )


def labels_of(logits: jax.Array, *, threshold: float = 0.5) -> jax.Array:
    """The class of each pixel: the likeliest; of one channel, 1 where σ(logit) > threshold.

    Args:
        logits: (…, N). A network of one channel is a sigmoid's, its classes background and object.
        threshold: in 0–1, of one channel; of more it is not asked.

    Returns:
        (…) int32.
    """
    if logits.shape[-1] > 1:
        return logits.argmax(-1).astype(jnp.int32)
    return (logits[..., 0] > math.log(threshold / (1 - threshold))).astype(jnp.int32)


def probabilities_of(logits: jax.Array) -> jax.Array:
    """The probability of each class, softmax; of one channel, 1 - σ and σ.

    Args:
        logits: (…, N).

    Returns:
        (…, N) float32, or (…, 2) of one channel.
    """
    logits = jnp.asarray(logits, jnp.float32)
    if logits.shape[-1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
    return jax.nn.softmax(logits)


def predict_label(predict: Predict, image: np.ndarray) -> np.ndarray:
    """uint8 picture (H, W, C) -> uint8 label (H, W), as of `labels_of`.

    Raises:
        SegjaxError: the picture has other axes.

    Warns:
        SegjaxWarning: it is of floats in 0–1.
    """
    if image.ndim != 3:
        raise SegjaxError(f"The image is {image.shape}; expected one picture (H, W, C).")
    warn_of_fractions(image)
    return np.asarray(labels_of(predict(image[None])[0]), np.uint8)


def warn_of_fractions(image: np.ndarray) -> None:
    """Warn of a picture of floats in 0–1, where 0–255 is meant."""
    if image.dtype.kind == "f" and image.size and 0 < image.max() <= 1:
        warnings.warn(
            "The image is of floats in 0–1, which are black to the network: expected uint8 or "
            "float32 in 0–255. Multiply it by 255.",
            SegjaxWarning,
            stacklevel=3,
        )
