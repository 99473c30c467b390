"""Calibration against a loop over pixels, as Guo et al. write it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import CLASSES, VOID

from segjax.evaluation.calibration import BINS, counts_of, ece, histogram, mce, reliability

NAN = float("nan")
ROUNDED = 2**-16  # of the confidence that is added up


def counted(logits, labels, **options):
    return counts_of(
        jax.jit(histogram)(logits, labels) if not options else histogram(logits, labels, **options)
    )


def slow(logits, labels, bins=BINS):
    """(pixels, right, confidence) of each bin, of all pictures together."""
    found = np.zeros((3, bins))
    for scores, label in zip(
        np.reshape(logits, (-1, logits.shape[-1])), labels.ravel(), strict=True
    ):
        if label == VOID:
            continue
        scores = np.array(scores, np.float64)
        if len(scores) == 1:
            p = 1 / (1 + np.exp(-scores[0]))
            probabilities = [1 - p, p]
        else:
            probabilities = np.exp(scores - scores.max())
            probabilities = list(probabilities / probabilities.sum())
        confidence = max(probabilities)
        for k in range(bins):
            if k / bins < confidence <= (k + 1) / bins:
                found[:, k] += 1, probabilities.index(confidence) == label, confidence
    return found


def slow_errors(found):
    gaps = [(n, abs(right / n - sure / n)) for n, right, sure in found.T if n]
    if not gaps:
        return NAN, NAN
    total = sum(n for n, _ in gaps)
    return sum(n / total * gap for n, gap in gaps), max(gap for _, gap in gaps)


def drawn(seed, channels, void=True):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, rng.choice([0.1, 1, 5]), (2, 3, 4, channels)).astype(np.float32)
    classes = max(channels, 2)
    labels = rng.choice([*range(classes), VOID] if void else classes, (2, 3, 4)).astype(np.uint8)
    return logits, labels


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, CLASSES]))
@settings(max_examples=25, deadline=None)
def test_errors_are_those_of_a_slow_loop(seed, channels):
    logits, labels = drawn(seed, channels)
    counts, want = counted(logits, labels).sum(0), slow(logits, labels)
    np.testing.assert_array_equal(counts[:2], want[:2])
    np.testing.assert_allclose(counts[2], want[2], atol=labels.size * ROUNDED)
    expected, maximum = slow_errors(want)
    np.testing.assert_allclose(ece(counts), expected, atol=ROUNDED)
    np.testing.assert_allclose(mce(counts), maximum, atol=ROUNDED)


def test_by_hand():
    """Four pixels sure to 0.75 of which two are right; one sure to all but 1, which is."""
    odds = np.log(3)
    logits = np.array([[[[0, odds], [0, odds], [odds, 0], [odds, 0], [40, 0], [9, 9]]]], np.float32)
    labels = np.array([[[1, 0, 0, 1, 0, 255]]], np.uint8)
    counts = counted(logits, labels)[0]
    assert counts[:, 11].tolist() == pytest.approx([4, 2, 3], abs=1e-4)
    assert counts[:, 14].tolist() == [1, 1, 1]
    assert counts[0].sum() == 5
    assert ece(counts) == pytest.approx(4 / 5 * 0.25, abs=1e-5)
    assert mce(counts) == pytest.approx(0.25, abs=1e-5)
    confidence, accuracy = reliability(counts)
    assert (confidence[11], accuracy[11]) == pytest.approx((0.75, 0.5), abs=1e-5)
    assert np.isnan(confidence[0]) and np.isnan(accuracy[0])


def test_many_are_scored_at_once():
    counts = np.stack([counted(*drawn(seed, 2)).sum(0) for seed in (0, 1)])
    for score in (ece, mce):
        assert score(counts).tolist() == [score(one) for one in counts]


def test_nothing_is_nan_without_a_warning():
    logits, labels = drawn(0, 2)
    counts = counted(logits, np.full_like(labels, VOID))
    assert not counts.any()
    assert np.isnan(ece(counts)).all() and np.isnan(mce(counts)).all()


def test_the_label_to_ignore_and_the_number_of_bins_are_arguments():
    logits, labels = drawn(0, 2, void=False)
    counts = counted(logits, labels, bins=4, ignore_label=0)
    want = slow(logits, np.where(labels == 0, VOID, labels), bins=4)
    np.testing.assert_allclose(counts.sum(0), want, atol=labels.size * ROUNDED)


@pytest.mark.parametrize("size", [(3, 2**15), (1, 2**16), (1, 2**16 + 1)])
def test_sums_are_whole_beyond_float32_and_uint32(size):
    """2¹⁶ pixels of the greatest confidence just fit an uint32."""
    logits = jnp.broadcast_to(jnp.array([50.0, 0.0]), (1, *size, 2))
    counts = counted(logits, np.zeros((1, *size), np.uint8))
    pixels = np.prod(size)
    np.testing.assert_array_equal(counts[0, :, -1], [pixels] * 3)
    assert ece(counts) == mce(counts) == 0
