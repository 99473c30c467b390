"""Losses that compare areas: of what is predicted, by probabilities, and of what is there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from segjax.training.losses.masked import mean, of_channels, of_pixels


def dice(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    smooth: float = 0.0,
    per_picture: bool = False,
) -> jax.Array:
    """Soft Dice loss: the mean over the classes of 1 - Dice, by probabilities.

    1 - (2 Σ p y + ε) / (Σ p + Σ y + ε), sums over the valid pixels of the batch. Where N = 1 the
    foreground is the only class.

    A class that the truth lacks has Dice 0 whatever the network gives, and no gradient. With ε = 0
    it is left out of the mean, as of the scores. With ε > 0 it counts, and costs the more the more
    of it is predicted: for pictures without any foreground.

    Args:
        logits: (B, H, W, N) scores; of a sigmoid where N = 1.
        labels: (B, H, W) integers in 0…N-1 (0 and 1 where N = 1), or `ignore_label`.
        ignore_label: the label of pixels that do not count.
        smooth: ε ≥ 0, in pixels.
        per_picture: take the sums of each picture alone, and the mean over pictures and their
            classes: small objects then weigh as much as large ones of other pictures.

    Returns:
        A float32 scalar. MONAI's `DiceLoss` has ε = 1e-5 and is per picture by default;
        segmentation_models.pytorch's has ε = 0 (its `smooth` is half of ours) and counts absent
        classes as 0, in the mean. With all classes there, these three agree.

    Raises:
        SegjaxError: logits and labels of shapes that do not fit.

    Source: Milletari, Navab, Ahmadi 2016 (V-Net), section 3, whose divisor has squares, p² and y²,
    which have gone out of use.
    """
    return tversky(
        logits,
        labels,
        ignore_label=ignore_label,
        alpha=0.5,
        beta=0.5,
        smooth=smooth / 2,
        per_picture=per_picture,
    )


def tversky(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 0.0,
    per_picture: bool = False,
) -> jax.Array:
    """Tversky loss: Dice in which what is missed may cost more than what is made up.

    1 - (TP + ε) / (TP + α FP + β FN + ε), the mean over the classes, with TP = Σ p y,
    FP = Σ p (1 - y) and FN = Σ (1 - p) y over the valid pixels of the batch. α = β = 0.5 is `dice`
    (at twice this ε), α = β = 1 the soft Jaccard loss.

    Args:
        logits: (B, H, W, N) scores; of a sigmoid where N = 1, whose foreground is the only class.
        labels: (B, H, W) integers in 0…N-1 (0 and 1 where N = 1), or `ignore_label`.
        ignore_label: the label of pixels that do not count.
        alpha: weight α of false positives, by default the paper's best; 0.5 in other packages.
        beta: weight β of false negatives.
        smooth: ε ≥ 0, in pixels; absent classes count where it is above 0, as in `dice`.
        per_picture: as of `dice`.

    Returns:
        A float32 scalar, as of MONAI's `TverskyLoss` and segmentation_models.pytorch's, with the
        differences that `dice` names.

    Raises:
        SegjaxError: logits and labels of shapes that do not fit.

    Source: Salehi, Erdogmus, Gholipour 2017.
    """
    counts = _counts(logits, labels, ignore_label, per_picture=per_picture)
    counted = (counts.size > 0) | ((smooth > 0) & counts.any_valid[..., None])
    errors = alpha * counts.extra + beta * counts.missed
    whole = counts.hit + errors + smooth
    # Not 1 less a ratio, which near 0 has no digits.
    values = errors / jnp.where(counted & (whole > 0), whole, 1)
    if logits.shape[-1] == 1:
        values, counted = values[..., 1:], counted[..., 1:]
    return jnp.where(counts.any_wrong, jnp.nan, mean(values, counted))


def generalised_dice(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int = 255,
    per_picture: bool = False,
) -> jax.Array:
    """Generalised Dice loss: one Dice of all classes, each by the inverse square of its size.

    1 - 2 Σ_n w_n Σ p_n y_n / Σ_n w_n Σ (p_n + y_n), w_n = 1 / (Σ y_n)², sums over the valid pixels
    of the batch. Where N = 1 the classes are two, background and foreground.

    Args:
        logits: (B, H, W, N) scores; of a sigmoid where N = 1.
        labels: (B, H, W) integers in 0…N-1 (0 and 1 where N = 1), or `ignore_label`.
        ignore_label: the label of pixels that do not count.
        per_picture: take weights and sums of each picture alone, and the mean over pictures.

    Returns:
        A float32 scalar. A class that the truth lacks has weight 0; in MONAI's
        `GeneralizedDiceLoss`, which is per picture by default and adds 1e-5 above and below, it has
        the greatest weight of the others. With all classes there they agree.

    Raises:
        SegjaxError: logits and labels of shapes that do not fit.

    Source: Sudre et al. 2017.
    """
    counts = _counts(logits, labels, ignore_label, per_picture=per_picture)
    size = counts.size.astype(jnp.float32)  # whose square is beyond int32
    weights = jnp.where(size > 0, 1 / jnp.maximum(size, 1) ** 2, 0)
    errors = (weights * (counts.extra + counts.missed)).sum(-1)
    whole = errors + 2 * (weights * counts.hit).sum(-1)
    values = errors / jnp.where(whole > 0, whole, 1)
    return jnp.where(counts.any_wrong, jnp.nan, mean(values, counts.any_valid))


def lovasz(logits: jax.Array, labels: jax.Array, *, ignore_label: int = 255) -> jax.Array:
    """Lovász-softmax loss: the IoU loss of each class, made convex; of one channel, Lovász hinge.

    Σ_i m_i g_i, the errors m in falling order, g_i = Δ(i first pixels wrong) - Δ(i - 1), with Δ of
    a set of wrong pixels 1 - IoU. The errors are |y - p|, and the mean is over the classes that the
    truth has; where N = 1 they are max(0, 1 - s (2y - 1)), of the foreground alone. The set is all
    valid pixels of the batch: each class is sorted once, on all devices together.

    Args:
        logits: (B, H, W, N) scores; of a sigmoid where N = 1.
        labels: (B, H, W) integers in 0…N-1 (0 and 1 where N = 1), or `ignore_label`.
        ignore_label: the label of pixels that do not count.

    Returns:
        A float32 scalar, as of the authors' code with `per_image=False` and of
        segmentation_models.pytorch, which is a copy of it. A step g_i is computed from the counts
        and not as the difference of two IoU, which for a million pixels has hardly a digit left.

    Raises:
        SegjaxError: logits and labels of shapes that do not fit.

    Source: Berman, Rannen Triki, Blaschko 2018, definition 2, with the authors' code; Yu and
    Blaschko 2015 for the hinge.
    """
    pixels = of_pixels(logits, labels, ignore_label)
    if logits.shape[-1] == 1:
        truth, score = pixels.truth[..., 1:], pixels.logits[..., 1:]
        margins = 1 - jnp.where(truth, score, -score)
        errors, counted = jax.nn.relu(margins), jnp.array([True])
    else:
        truth, shares = pixels.truth, jax.nn.softmax(pixels.logits)
        errors = margins = jnp.where(truth, 1 - shares, shares)
        counted = truth.any(range(labels.ndim))
    order = jnp.where(pixels.valid[..., None], jax.lax.stop_gradient(margins), -jnp.inf)
    by_class = (jnp.moveaxis(x, -1, 0).reshape(x.shape[-1], -1) for x in (order, truth))
    steps = jax.vmap(_jaccard_steps)(*by_class).reshape(-1, *labels.shape)
    steps = jnp.moveaxis(steps, 0, -1)
    values = jnp.where(pixels.valid[..., None], errors * steps, 0).sum(range(labels.ndim))
    return jnp.where(pixels.wrong.any(), jnp.nan, mean(values, counted))


def bce_dice(logits: jax.Array, labels: jax.Array, *, ignore_label: int = 255) -> jax.Array:
    """U-Net++'s loss of a head: ½ binary cross-entropy + 1 - Dice, one Dice of the whole batch.

    Dice = (2 Σ p y + 1) / (Σ p + Σ y + 1), p = σ(s), sums over all valid pixels of the batch and
    all channels. The authors' code has ½ BCE - Dice, less by 1: the gradients are the same, and
    this one is 0 for a perfect network. One for each head, added up.

    Args:
        logits: (B, H, W, N) scores of sigmoids, in the paper N = 1.
        labels: (B, H, W) or (B, H, W, N), as of `binary_cross_entropy`.
        ignore_label: the label of what does not count.

    Returns:
        A float32 scalar.

    Raises:
        SegjaxError: logits and labels of shapes that do not fit.

    Source: `bce_dice_loss` and `dice_coef`, `keras/helper_functions.py` of the authors' code. The
    paper's equation 2 has neither the 1, nor the term of BCE for y = 0.
    """
    entries = of_channels(logits, labels, ignore_label)
    score, truth = entries.logits, entries.truth
    shares = jnp.where(entries.valid, jax.nn.sigmoid(score), 0)
    overlap = 2 * jnp.where(truth, shares, 0).sum() + 1
    per_entry = jax.nn.softplus(jnp.where(truth, -score, score))
    loss = 0.5 * mean(per_entry, entries.valid) + 1 - overlap / (shares.sum() + truth.sum() + 1)
    return jnp.where(entries.wrong.any(), jnp.nan, loss)


class _Counts(NamedTuple):
    """Soft counts of pixels by class, (N,) of the batch or (B, N) of each picture.

    hit: Σ p y.  extra: Σ p (1 - y).  missed: Σ (1 - p) y.  size: Σ y.  any_valid: () or (B,).
    any_wrong: (), whether a label in the batch is no class.
    """

    hit: jax.Array
    extra: jax.Array
    missed: jax.Array
    size: jax.Array
    any_valid: jax.Array
    any_wrong: jax.Array


def _counts(
    logits: jax.Array, labels: jax.Array, ignore_label: int, *, per_picture: bool
) -> _Counts:
    """Over the valid pixels; of a network of one channel, N = 2, background and foreground."""
    pixels = of_pixels(logits, labels, ignore_label)
    over = tuple(range(1 if per_picture else 0, labels.ndim))
    shares, truth = jax.nn.softmax(pixels.logits), pixels.truth
    extra = ~truth & pixels.valid[..., None]
    return _Counts(
        hit=jnp.where(truth, shares, 0).sum(over),
        extra=jnp.where(extra, shares, 0).sum(over),
        missed=jnp.where(truth, 1 - shares, 0).sum(over),
        size=truth.sum(over),
        any_valid=pixels.valid.any(over),
        any_wrong=pixels.wrong.any(),
    )


def _jaccard_steps(errors: jax.Array, truth: jax.Array) -> jax.Array:
    """By how much 1 - IoU grows as each pixel in falling order of errors becomes a wrong one.

    A true pixel leaves the intersection: I / U - (I - 1) / U = 1 / U. Another joins the union:
    I / (U - 1) - I / U = I / (U (U - 1)). The first of them all where there is no true pixel is the
    step from nothing wrong, 0, to 1.

    Args:
        errors: (P,) of all pixels, -inf for those that do not count.
        truth: (P,) whether a pixel is of the class.

    Returns:
        (P,) the steps, in the order of the pixels; of no meaning where a pixel does not count.
    """
    order = jnp.argsort(errors, descending=True)
    truth = truth[order]
    # Counted in integers: float32 stops at 2^24.
    intersection = (truth.sum() - jnp.cumsum(truth)).astype(jnp.float32)
    union = (truth.sum() + jnp.cumsum(~truth)).astype(jnp.float32)
    joined = jnp.where(union > 1, intersection / union / jnp.maximum(union - 1, 1), 1)
    steps = jnp.where(truth, 1 / union, joined)
    # Back to their pixels here, so that the gradient, errors times steps, needs no scatter.
    return jnp.zeros_like(steps).at[order].set(steps, unique_indices=True)
