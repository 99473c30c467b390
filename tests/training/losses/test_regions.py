"""The losses of areas: by hand, by slow loops with their options, and by other packages' code."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_losses
from slow_losses import batch_of, masks

from segjax.training import losses
from segjax.training.losses.regions import _jaccard_steps

# Three pixels, the last ignored; of class 1: 3/4 where it is there, and 1/2 where class 0 is.
HAND_LOGITS = np.log(np.array([[[[1, 3], [1, 1], [5, 7]]]], np.float32))
HAND_LABELS = np.array([[[1, 0, 255]]], np.uint8)
# The same probabilities of class 1, of a sigmoid.
HAND_SIGMOID = np.log(np.array([[[[3], [1], [7 / 5]]]], np.float32))


def compiled(loss):
    """Value and gradient; compiled, which takes less time than each operation by itself."""
    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize(
    "loss, logits, expected",
    [
        # Class 0: p 1/4, 1/2. Class 1: p 3/4, 1/2. Each has one pixel.
        (losses.dice, HAND_LOGITS, 1 - (1 / 2) / (3 / 4 + 1) - (3 / 4) / (5 / 4 + 1)),
        (losses.dice, HAND_SIGMOID, 1 - 2 * (3 / 4) / (5 / 4 + 1)),
        (partial(losses.dice, smooth=1.0), HAND_SIGMOID, 1 - (2 * (3 / 4) + 1) / (5 / 4 + 2)),
        (losses.tversky, HAND_SIGMOID, 1 - (3 / 4) / (3 / 4 + 0.3 / 2 + 0.7 / 4)),
        (partial(losses.tversky, alpha=1.0, beta=1.0), HAND_SIGMOID, 1 - (3 / 4) / (3 / 2)),
        (losses.generalised_dice, HAND_LOGITS, 1 - 2 * (1 / 2 + 3 / 4) / (7 / 4 + 9 / 4)),
        (losses.generalised_dice, HAND_SIGMOID, 1 - 2 * (1 / 2 + 3 / 4) / (7 / 4 + 9 / 4)),
        # Errors of both classes 1/2 (another's pixel) and 1/4 (its own). In falling order the other
        # joins the union of class 1: 1 - 1/2, then its own is lost: 1/2. Of class 0 its own is
        # lost first, 1, then nothing is left to lose.
        (losses.lovasz, HAND_LOGITS, ((1 / 2) / 2 + (1 / 4) / 2 + 1 / 2) / 2),
        # Margins 1 - log 3 < 0 of the true pixel and 1 of the other, which joins the union.
        (losses.lovasz, HAND_SIGMOID, 1 / 2),
        (
            losses.bce_dice,
            HAND_SIGMOID,
            (np.log(4 / 3) + np.log(2)) / 4 + 1 - (2 * (3 / 4) + 1) / (5 / 4 + 2),
        ),
    ],
)  # fmt: skip
def test_losses_by_hand(loss, logits, expected):
    np.testing.assert_allclose(jax.jit(loss)(logits, HAND_LABELS), expected, rtol=1e-6)


def test_a_class_that_is_absent_is_left_out_unless_smoothed():
    """By hand: four pixels of class 0, to which class 1 has a probability of 1/4 each."""
    logits = np.log(np.full((1, 2, 2, 1), 1 / 3, np.float32))
    labels = np.zeros((1, 2, 2), np.uint8)
    value, gradient = compiled(losses.dice)(logits, labels)
    assert value == 0 and not gradient.any()
    value, gradient = compiled(partial(losses.dice, smooth=1.0))(logits, labels)
    np.testing.assert_allclose(value, 1 - 1 / (1 + 1), rtol=1e-6)
    assert (gradient > 0).all()  # less of it is better


@pytest.mark.parametrize("channels", [5, 1])
@pytest.mark.parametrize(
    "name, options",
    [
        ("dice", {"per_picture": True}),
        ("dice", {"smooth": 1.0}),
        ("dice", {"smooth": 1.0, "per_picture": True}),
        ("tversky", {"alpha": 0.8, "beta": 0.1, "per_picture": True}),
        ("tversky", {"smooth": 2.0}),
        ("generalised_dice", {"per_picture": True}),
    ],
)
def test_options_are_those_of_the_slow_references(name, options, channels):
    logits, _ = batch_of(channels)
    f = compiled(partial(getattr(losses, name), **options))
    for kind, labels in masks(channels).items():
        value, gradient = f(logits, labels)
        expected = getattr(slow_losses, name)(logits, labels, 255, **options)
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-7, err_msg=kind)
        assert np.isfinite(gradient).all(), kind


def value_and_gradient(loss, logits, labels):
    """Of a loss of PyTorch, on channels first."""
    torch = pytest.importorskip("torch")
    scores = torch.tensor(np.moveaxis(logits, -1, 1), requires_grad=True)
    value = loss(scores, torch.tensor(labels).long())
    value.backward()
    return value.item(), np.moveaxis(scores.grad.numpy(), 1, -1)


def assert_same(ours, theirs, *, channels=5, ignored=True, factor=1.0):
    """Ours is theirs times the factor, with its gradient, where all classes are there."""
    logits, labels = batch_of(channels)
    logits, labels = logits[1:], labels[1:]  # a picture wholly ignored is no picture of ours
    if not ignored:
        labels = np.where(labels == 255, np.uint8(0), labels)
    value, gradient = compiled(ours)(logits, labels)
    want, want_gradient = value_and_gradient(theirs, logits, labels)
    np.testing.assert_allclose(value, factor * want, rtol=1e-5)
    np.testing.assert_allclose(gradient, factor * want_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("channels", [5, 1])
@pytest.mark.parametrize("smooth", [1e-5, 1.0])
@pytest.mark.parametrize("per_picture", [False, True])
def test_dice_and_tversky_are_monais(monai, channels, smooth, per_picture):
    theirs = {
        "smooth_nr": smooth,
        "smooth_dr": smooth,
        "batch": not per_picture,
        "ignore_index": 255,
        **({"sigmoid": True} if channels == 1 else {"softmax": True, "to_onehot_y": True}),
    }
    dice, tversky = monai.DiceLoss(**theirs), monai.TverskyLoss(**theirs, alpha=0.3, beta=0.7)
    ours = {"smooth": smooth, "per_picture": per_picture}
    assert_same(partial(losses.dice, **ours), lambda x, y: dice(x, y[:, None]), channels=channels)
    assert_same(
        partial(losses.tversky, **ours), lambda x, y: tversky(x, y[:, None]), channels=channels
    )


def test_generalised_dice_is_monais(monai):
    """Which takes nothing that is ignored."""
    loss = monai.GeneralizedDiceLoss(
        softmax=True, to_onehot_y=True, batch=True, smooth_nr=0, smooth_dr=0
    )
    assert_same(losses.generalised_dice, lambda x, y: loss(x, y[:, None]), ignored=False)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("channels", [5, 1])
def test_dice_and_tversky_are_those_of_segmentation_models_pytorch(smp, channels, smooth):
    options = {"mode": "binary" if channels == 1 else "multiclass", "ignore_index": 255}
    dice = smp.DiceLoss(**options, smooth=smooth / 2)
    tversky = smp.TverskyLoss(**options, smooth=smooth, alpha=0.3, beta=0.7)
    assert_same(partial(losses.dice, smooth=smooth), dice, channels=channels)
    assert_same(partial(losses.tversky, smooth=smooth), tversky, channels=channels)


def test_absent_classes_count_as_zero_in_segmentation_models_pytorch(smp):
    """The difference that the docstring names: there the mean is over five, here over four."""
    logits, labels = batch_of(5)
    labels = np.where(labels == 1, np.uint8(0), labels)
    theirs, _ = value_and_gradient(smp.DiceLoss("multiclass", ignore_index=255), logits, labels)
    ours = jax.jit(losses.dice)(logits, labels)
    np.testing.assert_allclose(ours * 4 / 5, theirs, rtol=1e-5)


@pytest.mark.parametrize("channels", [5, 1])
def test_lovasz_is_the_authors_code_in_segmentation_models_pytorch(smp, channels):
    mode = "binary" if channels == 1 else "multiclass"
    assert_same(losses.lovasz, smp.LovaszLoss(mode, ignore_index=255), channels=channels)


def test_the_steps_of_a_million_pixels_keep_their_digits():
    """The differences of float32 IoU, by which the authors' code finds them, have lost theirs."""
    rng = np.random.default_rng(0)
    errors, truth = rng.random(2**20, np.float32), rng.random(2**20) < 0.3
    sorted_truth = truth[np.argsort(-errors, kind="stable")]
    intersection = truth.sum() - np.cumsum(sorted_truth)
    union = truth.sum() + np.cumsum(~sorted_truth)
    steps = np.diff(1 - intersection / union, prepend=0)
    got = jax.jit(_jaccard_steps)(errors, jnp.asarray(truth))
    got = np.asarray(got)[np.argsort(-errors, kind="stable")]
    np.testing.assert_allclose(got, steps, rtol=1e-4, atol=1e-15)


def test_unetplusplus_loss_has_the_gradients_of_the_authors_formula():
    """½ BCE - Dice, as `bce_dice_loss` has it: less by 1, of the same gradients."""
    logits, labels = batch_of(1)
    valid, truth = (labels != 255)[..., None], (labels == 1)[..., None]

    def theirs(logits):
        p = jax.nn.sigmoid(logits)
        cross_entropy = -jnp.where(truth, jnp.log(p), jnp.log1p(-p))
        both, sums = jnp.where(truth, p, 0).sum(), jnp.where(valid, p + truth, 0).sum()
        return 0.5 * jnp.where(valid, cross_entropy, 0).sum() / valid.sum() - (2 * both + 1) / (
            sums + 1
        )

    value, gradient = compiled(losses.bce_dice)(logits, labels)
    want, want_gradient = compiled(theirs)(jnp.asarray(logits))
    np.testing.assert_allclose(value, want + 1, rtol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=1e-8)


def test_where_classes_overlap_unetplusplus_loss_takes_a_mask_for_each():
    """Two channels, whose masks overlap, are a network of one channel on twice the pixels."""
    logits, labels = batch_of(1)
    loss = jax.jit(losses.bce_dice)
    both = np.stack([logits[..., 0], logits[..., 0][::-1]], -1)
    masks = np.stack([labels, labels[::-1]], -1)
    np.testing.assert_allclose(
        loss(both, masks),
        loss(both.reshape(8, 3, 8, 1), masks.reshape(8, 3, 8)),
        rtol=1e-6,
    )
