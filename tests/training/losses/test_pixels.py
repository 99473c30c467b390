"""The losses of pixels by hand, by PyTorch and other packages' code; their weights.

What every loss promises is in tests/test_contracts.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segjax.errors import SegjaxError
from segjax.training import sharding
from segjax.training.losses import (
    binary_cross_entropy,
    binary_focal,
    class_weights,
    cross_entropy,
    focal,
    ohem_cross_entropy,
)

# Compiled, which takes less time than the first of each of its operations does.
compiled = partial(jax.jit, static_argnames="reduction")
value_and_grad = compiled(jax.value_and_grad(cross_entropy))


def random_batch(*, ignored=255, batch=2, classes=4):
    """Logits (B, 3, 5, N), labels (B, 3, 5) of which every third pixel is ignored, weights."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(batch, 3, 5, classes)).astype(np.float32)
    labels = rng.integers(0, classes, (batch, 3, 5)).astype(np.uint8)
    labels.ravel()[::3] = ignored
    weights = {
        "class_weights": rng.uniform(0.5, 2, classes).astype(np.float32),
        "pixel_weights": rng.uniform(0.5, 2, labels.shape).astype(np.float32),
    }
    return logits, labels, weights


# Three pixels, the last ignored: softmax (1/4, 3/4) of class 1, (1/2, 1/2) of class 0.
HAND_LOGITS = np.log(np.array([[[[1, 3], [1, 1], [5, 7]]]], np.float32))
HAND_LABELS = np.array([[[1, 0, 255]]], np.uint8)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, (np.log(4 / 3) + np.log(2)) / 2),
        ({"reduction": "sum"}, np.log(4 / 3) + np.log(2)),
        ({"class_weights": (2.0, 0.5)}, (0.5 * np.log(4 / 3) + 2 * np.log(2)) / 2),
        ({"pixel_weights": np.array([[[3.0, 0, 9]]])}, 3 * np.log(4 / 3) / 2),
        (
            {
                "class_weights": (2.0, 0.5),
                "pixel_weights": np.array([[[3.0, 5, 9]]]),
                "reduction": "sum",
            },
            3 * 0.5 * np.log(4 / 3) + 5 * 2 * np.log(2),
        ),
    ],
    ids=["mean", "sum", "class weights", "pixel weights", "all"],
)
def test_cross_entropy_by_hand(options, expected):
    got = compiled(cross_entropy)(HAND_LOGITS, HAND_LABELS, **options)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_weight_map_is_divided_by_the_valid_pixels_of_the_batch():
    """By hand: a picture of weight 10 beside one of weight 1 that is ignored but for a pixel."""
    logits = np.repeat(HAND_LOGITS, 2, axis=0)
    labels = np.array([[[1, 0, 0]], [[255, 0, 255]]], np.uint8)
    weights = np.array([[[10.0, 10, 10]], [[1, 1, 1]]], np.float32)
    last = np.log(12 / 5)  # softmax (5/12, 7/12)
    expected = (10 * (np.log(4 / 3) + np.log(2) + last) + np.log(2)) / 4
    got = jax.jit(cross_entropy)(logits, labels, pixel_weights=weights)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("ignored", [255, 0])
@pytest.mark.parametrize("reduction, weighted", [("mean", False), ("sum", False), ("sum", True)])
def test_cross_entropy_and_its_gradient_are_pytorchs(ignored, reduction, weighted):
    torch = pytest.importorskip("torch")
    logits, labels, weights = random_batch(ignored=ignored)
    options = {"class_weights": weights["class_weights"]} if weighted else {}
    value, gradient = value_and_grad(
        logits, labels, ignore_label=ignored, reduction=reduction, **options
    )
    scores = torch.tensor(logits, requires_grad=True)
    want = torch.nn.functional.cross_entropy(
        scores.permute(0, 3, 1, 2),
        torch.tensor(labels).long(),
        weight=torch.tensor(weights["class_weights"]) if weighted else None,
        ignore_index=ignored,
        reduction=reduction,
    )
    want.backward()
    np.testing.assert_allclose(value, want.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, scores.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_is_the_finite_difference(reduction):
    logits, labels, weights = random_batch()
    f = jax.jit(lambda x: cross_entropy(x, labels, reduction=reduction, **weights))
    check_grads(f, (logits,), order=1, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignored", [255, 0, -1])
def test_ignored_pixels_are_as_if_not_there(ignored, reduction):
    logits, labels, weights = random_batch(ignored=255)
    labels = labels.astype(np.int32)
    labels[labels == ignored] = 1
    labels.ravel()[::3] = ignored
    valid = labels != ignored
    f = compiled(cross_entropy)
    got = f(logits, labels, ignore_label=ignored, reduction=reduction, **weights)
    want = f(
        logits[valid][None, None],
        labels[valid][None, None],
        ignore_label=254,
        reduction=reduction,
        class_weights=weights["class_weights"],
        pixel_weights=weights["pixel_weights"][valid][None, None],
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_valid_is_zero_with_zero_gradients(reduction):
    logits, labels, weights = random_batch()
    value, gradient = value_and_grad(
        logits, np.full_like(labels, 255), reduction=reduction, **weights
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_stands_at_ignored_pixels_never_matters(bad):
    logits, labels, weights = random_batch()
    value, gradient = value_and_grad(logits, labels, **weights)
    ignored = labels == 255
    logits[ignored, 1] = bad
    weights["pixel_weights"][ignored] = bad
    got_value, got_gradient = value_and_grad(logits, labels, **weights)
    assert got_value == value
    np.testing.assert_array_equal(got_gradient, gradient)
    np.testing.assert_array_equal(gradient[ignored], np.zeros_like(logits[ignored]))


@pytest.mark.parametrize("wrong", [4, 254, -1])
def test_a_label_that_is_no_class_gives_nan(wrong):
    logits, labels, weights = random_batch()
    labels = labels.astype(np.int32)
    labels[0, 0, 1] = wrong
    f = compiled(cross_entropy)
    assert np.isnan(f(logits, labels))
    assert np.isnan(f(logits, labels, reduction="sum", **weights))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_logits_are_computed_in_float32(dtype):
    logits, labels, weights = random_batch()
    narrow = jnp.asarray(logits, dtype)
    value, gradient = value_and_grad(narrow, labels, **weights)
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    assert value == value_and_grad(narrow.astype(jnp.float32), labels, **weights)[0]


def test_extreme_logits_stay_finite():
    logits = np.array([[[[1e4, -1e4], [-1e4, 1e4]]]], np.float32)
    for labels, expected in (([0, 1], 0), ([1, 0], 2e4)):
        value, gradient = value_and_grad(logits, np.array([[labels]]))
        assert value == expected
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_jit_is_eager(reduction):
    logits, labels, weights = random_batch()
    f = partial(cross_entropy, reduction=reduction, **weights)
    np.testing.assert_allclose(jax.jit(f)(logits, labels), f(logits, labels), rtol=1e-6)


def test_the_mean_is_that_of_the_batch_on_all_devices():
    logits, labels, _ = random_batch(batch=4)
    labels[0] = 255  # the first device has nothing, the others have pixels
    labels[1, 0] = 255
    on_devices = sharding.put((logits, labels), sharding.make_mesh(jax.devices()[:4]))
    got = jax.jit(cross_entropy)(*on_devices)
    np.testing.assert_allclose(got, cross_entropy(logits, labels), rtol=1e-6)


def compiled_gradient(loss):
    return jax.jit(jax.value_and_grad(loss))


def of_torch(loss, logits, labels):
    """Value and gradient of a loss of PyTorch on channels first."""
    torch = pytest.importorskip("torch")
    scores = torch.tensor(np.moveaxis(logits, -1, 1), requires_grad=True)
    value = loss(scores, torch.tensor(labels))
    value.backward()
    return value.item(), np.moveaxis(scores.grad.numpy(), 1, -1)


def assert_same(ours, theirs):
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def binary_batch():
    """Logits (B, 3, 5, 1), labels 0, 1 and ignored, weights of pixels."""
    logits, labels, weights = random_batch()
    return logits[..., :1], np.where(labels == 255, labels, labels % 2), weights["pixel_weights"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_of_one_channel_is_that_of_its_sigmoid(reduction):
    torch = pytest.importorskip("torch")
    logits, labels, _ = binary_batch()
    loss = torch.nn.BCEWithLogitsLoss(reduction=reduction)
    valid = labels != 255
    theirs = of_torch(lambda x, y: loss(x[:, 0][y != 255], y[y != 255].float()), logits, labels)
    assert_same(value_and_grad(logits, labels, reduction=reduction), theirs)
    if reduction == "mean":
        assert_same(compiled_gradient(binary_cross_entropy)(logits, labels), theirs)
    two = np.concatenate([0 * logits, logits], -1)  # of a softmax over two classes
    weights = {"class_weights": (0.5, 3.0), "reduction": reduction}
    np.testing.assert_allclose(
        cross_entropy(logits, labels, **weights), cross_entropy(two, labels, **weights), rtol=1e-6
    )
    assert valid.any() and not valid.all()


def test_binary_cross_entropy_of_masks_that_overlap_is_pytorchs():
    """A mask for each channel, each with its own ignored entries."""
    torch = pytest.importorskip("torch")
    logits, _, _ = random_batch()
    masks = np.random.default_rng(1).choice([0, 1, 255], logits.shape).astype(np.uint8)

    def theirs(x, y):
        x = x.permute(0, 2, 3, 1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        return loss(x[y != 255], y[y != 255].float())

    assert_same(
        compiled_gradient(binary_cross_entropy)(logits, masks), of_torch(theirs, logits, masks)
    )
    masks[0, 1, 2, 3] = 2
    assert np.isnan(binary_cross_entropy(logits, masks))


def test_binary_cross_entropy_of_classes_is_of_each_against_the_rest():
    logits, labels, _ = random_batch()
    masks = (labels[..., None] == np.arange(4)).astype(np.uint8)
    masks[labels == 255] = 255
    for loss in (binary_cross_entropy, binary_focal):
        np.testing.assert_allclose(loss(logits, labels), loss(logits, masks), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, (0.1, 0.2, 0.3, 0.4)])
def test_focal_is_monais_times_the_classes(monai, gamma, alpha):
    """Which divides by the entries of all classes."""
    logits, labels, _ = random_batch()
    loss = monai.FocalLoss(
        use_softmax=True, to_onehot_y=True, gamma=gamma, alpha=alpha, ignore_index=255,
        reduction="sum",
    )  # fmt: skip
    # Its sum is over pictures and classes of the means over the valid pixels of each.
    logits, labels = logits[:1], labels[:1]
    ours = compiled_gradient(partial(focal, gamma=gamma, class_weights=alpha))
    theirs = of_torch(lambda x, y: loss(x, y[:, None].long()), logits, labels)
    assert_same(ours(logits, labels), theirs)


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_of_one_channel_is_monais_and_segmentation_models_pytorchs(monai, smp, alpha):
    logits, labels, _ = binary_batch()
    weights = None if alpha is None else (1 - alpha, alpha)
    ours = compiled_gradient(partial(binary_focal, alpha=alpha))(logits, labels)
    assert_same(compiled_gradient(partial(focal, class_weights=weights))(logits, labels), ours)
    of_smp = smp.FocalLoss("binary", alpha=alpha, ignore_index=255)
    assert_same(ours, of_torch(of_smp, logits, labels))
    of_monai = monai.FocalLoss(alpha=alpha, ignore_index=255)
    assert_same(ours, of_torch(lambda x, y: of_monai(x, y[:, None]), logits, labels))


def test_binary_focal_of_classes_is_that_of_segmentation_models_pytorch(smp):
    logits, labels, _ = random_batch()
    ours = compiled_gradient(binary_focal)(logits, labels)
    assert_same(ours, of_torch(smp.FocalLoss("multiclass", ignore_index=255), logits, labels))


@pytest.mark.parametrize("loss", [focal, binary_focal])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_of_extreme_logits_is_finite(loss, gamma):
    """Where p is 1 in float32, (1 - p)^0.5 has an infinite gradient."""
    for channels in (1, 3):
        logits = np.array([-1e4, 1e4, 40], np.float32)[:, None].repeat(3, 0).reshape(1, 3, 3, 1)
        logits = logits * np.array([1.0, -1, 0], np.float32)[:channels]
        labels = np.array([[[0, 1, 0], [1, 0, 1], [0, 1, 0]]])
        value, gradient = compiled_gradient(partial(loss, gamma=gamma))(logits, labels)
        assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_allclose(focal(logits, labels, gamma=0.0), cross_entropy(logits, labels))


# Four pixels of class 1 whose probabilities of it are 1/5, 1/2, 3/4, 3/4, and an ignored one.
HARD_LOGITS = np.log(np.array([[[[1 / 4], [1], [3], [3], [1 / 99]]]], np.float32))
HARD_LABELS = np.array([[[1, 1, 1, 1, 255]]], np.uint8)


@pytest.mark.parametrize(
    "options, kept",
    [
        ({}, [1 / 5, 1 / 2]),
        ({"threshold": 0.3}, [1 / 5]),
        ({"threshold": 0.0}, [1 / 5]),  # the hardest pixel always
        ({"threshold": 0.3, "min_share": 0.5}, [1 / 5, 1 / 2]),
        # The third pixel, and the fourth is as hard.
        ({"threshold": 0.3, "min_share": 0.51}, [1 / 5, 1 / 2, 3 / 4, 3 / 4]),
        ({"threshold": 1.0}, [1 / 5, 1 / 2, 3 / 4, 3 / 4]),
    ],
)  # fmt: skip
def test_ohem_by_hand(options, kept):
    f = jax.jit(partial(ohem_cross_entropy, **options))
    got = f(HARD_LOGITS, HARD_LABELS)
    np.testing.assert_allclose(got, -np.log(kept).mean(), rtol=1e-6)
    weights = {"pixel_weights": 2 * np.ones((1, 1, 5)), "class_weights": (7, 3)}
    got = f(HARD_LOGITS, HARD_LABELS, **weights)
    np.testing.assert_allclose(got, -6 * np.log(kept).mean(), rtol=1e-6)


@pytest.mark.parametrize("loss", [binary_cross_entropy, binary_focal, focal, ohem_cross_entropy])
def test_weights_of_pixels_are_factors_that_the_divisor_does_not_see(loss):
    """A map of 0 and 2 is twice the loss of the pixels that have 2, for their share."""
    logits, labels, _ = random_batch()
    ours = partial(loss, threshold=1.0) if loss is ohem_cross_entropy else loss
    chosen = np.random.default_rng(2).random(labels.shape) < 0.5
    weights = np.where(labels == 255, np.inf, 2.0 * chosen).astype(np.float32)
    got, gradient = compiled_gradient(ours)(logits, labels, pixel_weights=weights)
    alone = np.where(chosen, labels, np.uint8(255))
    share = (alone != 255).sum() / (labels != 255).sum()
    np.testing.assert_allclose(got, 2 * share * jax.jit(ours)(logits, alone), rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_weights_of_another_shape_are_refused():
    logits, labels, weights = random_batch()
    with pytest.raises(SegjaxError, match=r"class_weights has shape \(1,\), expected \(4,\)"):
        cross_entropy(logits, labels, class_weights=[1.0])
    with pytest.raises(SegjaxError, match=r"expected \(2,\).*network of one channel has two"):
        focal(logits[..., :1], labels, class_weights=weights["class_weights"])
    for loss in (cross_entropy, binary_cross_entropy):
        with pytest.raises(SegjaxError, match=r"\(3, 5\), expected \(2, 3, 5\)"):
            loss(logits, labels, pixel_weights=weights["pixel_weights"][0])


@pytest.mark.parametrize(
    "counts, expected",
    [
        # Shares 1/2, 3/8, 1/8: the median is 3/8.
        ([4, 3, 1], [3 / 4, 1, 3]),
        # Class 1 occurs in the first picture alone, of 10 pixels: shares 25/30, 5/10, none.
        ([[5, 5, 0], [20, 0, 0]], [(2 / 3) / (5 / 6), (2 / 3) / (1 / 2), 0]),
        ([7], [1]),
    ],
    ids=["all pictures together", "by picture", "one class"],
)
def test_class_weights_by_hand(counts, expected):
    got = class_weights(np.array(counts))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got.dtype == np.float32


def test_class_weights_of_nothing():
    with pytest.raises(SegjaxError, match="no pixel of any class"):
        class_weights(np.zeros((3, 2), int))
