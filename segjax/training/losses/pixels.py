"""Losses that are means over pixels, and weights of classes for them."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from segjax.errors import SegjaxError
from segjax.training.losses.masked import Masked, mean, of_channels, of_pixels


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    class_weights: ArrayLike | None = None,
    pixel_weights: ArrayLike | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> jax.Array:
    """Softmax cross-entropy over the pixels that are not ignored; of one channel, the sigmoid's.

    L = Σ_x c[y(x)] · w(x) · (log Σ_n exp s_n(x) - s_{y(x)}(x)), divided for the mean by the number
    of valid pixels x of the whole batch. Under jit that batch is the global one, on all devices.
    Weights do not enter the divisor (torch's weighted mean divides by the sum of the weights), so a
    weight map keeps its meaning: a pixel of weight 10 counts as ten pixels, in any batch.

    With one channel this is `binary_cross_entropy`: two classes of logits 0 and s. So a recipe's
    default loss, and the held-out loss of its runs, are right for binary networks too.

    Args:
        logits: (B, H, W, N) scores s; of a sigmoid where N = 1.
        labels: (B, H, W) integers y in 0…N-1 (0 and 1 where N = 1), or `ignore_label`. Any other
            value gives NaN, rather than a loss that looks right.
        ignore_label: the label of pixels that do not count.
        class_weights: (N,) factors c, by default 1; (2,) where N = 1.
        pixel_weights: (B, H, W) factors w, by default 1 (U-Net's weight map, equation 1).
        reduction: "mean", or "sum" as in the FCN authors' code.

    Returns:
        A float32 scalar; 0, with zero gradients, where no pixel is valid.

    Raises:
        SegjaxError: logits, labels or class weights of shapes that do not fit.
    """
    pixels = of_pixels(logits, labels, ignore_label)
    values = _weighted(_cross_entropies(pixels), pixels, class_weights, pixel_weights)
    total = jnp.where(pixels.valid, values, 0).sum()
    return total if reduction == "sum" else total / jnp.maximum(pixels.valid.sum(), 1)


def binary_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    pixel_weights: ArrayLike | None = None,
) -> jax.Array:
    """Cross-entropy of sigmoids, one for each channel: the mean over valid pixels and channels.

    -y log σ(s) - (1 - y) log(1 - σ(s)), y = 1 where the channel's class is there. With class
    indices and several channels that is each class against the rest.

    Args:
        logits: (B, H, W, N) scores s.
        labels: (B, H, W) integers in 0…N-1 (0 and 1 where N = 1), or `ignore_label`; or (B, H, W,
            N), 0 and 1 for each channel, where classes overlap. Each entry may be ignored.
        ignore_label: the label of what does not count.
        pixel_weights: (B, H, W) factors, by default 1; they do not enter the divisor.

    Returns:
        A float32 scalar, as of `torch.nn.BCEWithLogitsLoss`.

    Raises:
        SegjaxError: logits and labels of shapes that do not fit.
    """
    entries = of_channels(logits, labels, ignore_label)
    values = jax.nn.softplus(-_for_truth(entries))
    return mean(_weighted(values, entries, None, pixel_weights), entries.valid)


def focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    gamma: float = 2.0,
    class_weights: ArrayLike | None = None,
    pixel_weights: ArrayLike | None = None,
) -> jax.Array:
    """Focal loss of the softmax: cross-entropy in which pixels that are right hardly count.

    -c[y] (1 - p_y)^γ log p_y, the mean over the valid pixels. γ = 0 is cross-entropy. Where N = 1
    it is that of the sigmoid, and α of the paper is class_weights=(1 - α, α).

    Args:
        logits: (B, H, W, N) scores; of a sigmoid where N = 1.
        labels: (B, H, W) integers in 0…N-1 (0 and 1 where N = 1), or `ignore_label`.
        ignore_label: the label of pixels that do not count.
        gamma: γ ≥ 0.
        class_weights: (N,) factors c, by default 1; (2,) where N = 1.
        pixel_weights: (B, H, W) factors, by default 1; no weights enter the divisor.

    Returns:
        A float32 scalar, as of MONAI's `FocalLoss` with `use_softmax` where N > 1, times N: it
        divides by pixels times classes. Its `alpha`, one number, weighs all classes but the first.
        That of segmentation_models.pytorch is `binary_focal`.

    Raises:
        SegjaxError: logits, labels or class weights of shapes that do not fit.

    Source: Lin et al. 2017, equations 4 and 5.
    """
    pixels = of_pixels(logits, labels, ignore_label)
    # (1 - p)^γ by the logarithm of 1 - p, the other classes' share: near p = 1 the difference has
    # no digits, and the power of a γ < 1 no finite gradient.
    others = jax.nn.logsumexp(jnp.where(pixels.truth, -jnp.inf, pixels.logits), axis=-1)
    log_rest = others - jax.nn.logsumexp(pixels.logits, axis=-1)
    values = jnp.exp(gamma * log_rest) * _cross_entropies(pixels)
    return mean(_weighted(values, pixels, class_weights, pixel_weights), pixels.valid)


def binary_focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    gamma: float = 2.0,
    alpha: float | None = None,
    pixel_weights: ArrayLike | None = None,
) -> jax.Array:
    """Focal loss of sigmoids, one for each channel: the mean over valid pixels and channels.

    -α_t (1 - p_t)^γ log p_t, where p_t is the probability given to what is so, p or 1 - p, and
    α_t is α or 1 - α. With class indices and several channels: each class against the rest.

    Args:
        logits: (B, H, W, N) scores.
        labels: (B, H, W) integers in 0…N-1 (0 and 1 where N = 1), or `ignore_label`; or (B, H, W,
            N), 0 and 1 for each channel, each of which may be ignored.
        ignore_label: the label of what does not count.
        gamma: γ ≥ 0.
        alpha: weight α of what is there, against 1 - α of what is not; by default neither. The
            paper's 0.25 is for boxes, of which one in a thousand is an object.
        pixel_weights: (B, H, W) factors, by default 1; no weights enter the divisor.

    Returns:
        A float32 scalar, as of MONAI's `FocalLoss` and segmentation_models.pytorch's.

    Raises:
        SegjaxError: logits and labels of shapes that do not fit.

    Source: Lin et al. 2017, equations 4 and 5.
    """
    entries = of_channels(logits, labels, ignore_label)
    for_truth = _for_truth(entries)
    values = jnp.exp(-gamma * jax.nn.softplus(for_truth)) * jax.nn.softplus(-for_truth)
    if alpha is not None:
        values *= jnp.where(entries.truth, alpha, 1 - alpha)
    return mean(_weighted(values, entries, None, pixel_weights), entries.valid)


def ohem_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    threshold: float = 0.7,
    min_share: float = 1 / 16,
    class_weights: ArrayLike | None = None,
    pixel_weights: ArrayLike | None = None,
) -> jax.Array:
    """Cross-entropy of the hard pixels alone (OHEM, bootstrapped): the mean over those kept.

    Kept is what gives its true class a probability below the threshold, and in any case the
    hardest of the valid pixels up to the least share, with all that are as hard as the last one.

    Args:
        logits: (B, H, W, N) scores; of a sigmoid where N = 1.
        labels: (B, H, W) integers in 0…N-1 (0 and 1 where N = 1), or `ignore_label`.
        ignore_label: the label of pixels that do not count.
        threshold: probability of the true class, 0 to 1, below which a pixel is hard.
        min_share: least share of the valid pixels that is kept, 0 to 1. One pixel always is.
        class_weights: (N,) factors, by default 1; (2,) where N = 1.
        pixel_weights: (B, H, W) factors, by default 1. Weights choose nothing, nor enter the
            divisor.

    Returns:
        A float32 scalar. Others bound the least number in pixels (mmsegmentation 100,000 a
        picture), which ties it to the size of the crop.

    Raises:
        SegjaxError: logits, labels or class weights of shapes that do not fit.

    Source: Wu, Shen, van den Hengel 2016, "online bootstrapping", after Shrivastava et al. 2016.
    """
    pixels = of_pixels(logits, labels, ignore_label)
    values = _cross_entropies(pixels)
    hardness = jnp.where(pixels.valid, jax.lax.stop_gradient(values), -jnp.inf)
    least = jnp.maximum(jnp.ceil(min_share * pixels.valid.sum()), 1).astype(jnp.int32)
    last = jnp.sort(hardness, axis=None, descending=True)[least - 1]
    kept = pixels.valid & ((hardness > -jnp.log(threshold)) | (hardness >= last) | pixels.wrong)
    return mean(_weighted(values, pixels, class_weights, pixel_weights), kept)


def class_weights(counts: ArrayLike) -> np.ndarray:
    """Class weights by median frequency, for `cross_entropy`: rare classes count for more.

    c_n = median(f) / f_n, where f_n is class n's share of the valid pixels of those pictures that
    it occurs in, and the median is over the classes that occur.

    Args:
        counts: (pictures, N) pixels of each class in each picture. (N,) of all pictures together
            takes each class for occurring in all of them.

    Returns:
        (N,) float32; 0 for a class that never occurs.

    Raises:
        SegjaxError: there is no pixel at all.

    Reference: Eigen, Fergus, 2015, section 3.3; used by SegNet (Badrinarayanan et al., 2015).
    """
    counts = np.atleast_2d(counts)
    pixels = counts.sum(0)
    if not pixels.any():
        raise SegjaxError(
            "class_weights: got no pixel of any class, expected counts of the training data."
        )
    among = ((counts > 0) * counts.sum(1, keepdims=True)).sum(0)
    share = np.divide(pixels, among, where=pixels > 0, out=np.zeros(pixels.shape))
    median = np.median(share[pixels > 0])
    return np.divide(median, share, where=pixels > 0, out=np.zeros(share.shape)).astype(np.float32)


def _cross_entropies(pixels: Masked) -> jax.Array:
    """(B, H, W) softmax cross-entropy of each pixel."""
    of_truth = jnp.where(pixels.truth, pixels.logits, 0).sum(-1)
    return jax.nn.logsumexp(pixels.logits, axis=-1) - of_truth


def _for_truth(entries: Masked) -> jax.Array:
    """(B, H, W, N) logits of what is so: s of what is there, -s of what is not."""
    return jnp.where(entries.truth, entries.logits, -entries.logits)


def _weighted(
    values: jax.Array,
    masked: Masked,
    class_weights: ArrayLike | None,
    pixel_weights: ArrayLike | None,
) -> jax.Array:
    """The values, of pixels or of channels, times their weights; NaN where the label is wrong."""
    if class_weights is not None:
        weights, classes = jnp.asarray(class_weights, jnp.float32), masked.truth.shape[-1]
        if weights.shape != (classes,):
            raise SegjaxError(
                f"class_weights has shape {weights.shape}, expected ({classes},): one for each "
                "class, of which a network of one channel has two."
            )
        values = values * jnp.where(masked.truth, weights, 0).sum(-1)
    if pixel_weights is not None:
        weights = jnp.asarray(pixel_weights, jnp.float32)
        if weights.shape != masked.truth.shape[:-1]:
            raise SegjaxError(
                f"pixel_weights has shape {weights.shape}, expected {masked.truth.shape[:-1]}, "
                "that of the labels."
            )
        values = values * weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim))
    return jnp.where(masked.wrong, jnp.nan, values)
