"""Every loss once more, pixel by pixel in loops, from its formula: what the fast ones must equal.

Each takes (logits (…, N), labels (…), ignored) and the loss's own options; all in float64. Before
them stand the batches on which they are compared.
"""

import numpy as np

SHAPE = (8, 3, 4)
LOGITS = np.random.default_rng(0).normal(size=(*SHAPE, 5)).astype(np.float32)
LABELS = np.random.default_rng(1).choice([0, 1, 2, 3, 4, 255], SHAPE).astype(np.uint8)


def batch_of(channels):
    """Logits and labels, of which about a sixth are ignored, and the first picture wholly."""
    labels = np.where(LABELS < 255, LABELS % max(channels, 2), np.uint8(255))
    labels[0] = 255
    return LOGITS[..., :channels], labels


def masks(channels):
    """Labels of the same shape, of every kind that has ever broken a loss."""
    _, labels = batch_of(channels)
    last = max(channels, 2) - 1
    one_of_its_class, one_valid = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 255, np.uint8)
    one_of_its_class[3, 1, 2] = one_valid[3, 1, 2] = last
    return {
        "random": labels,
        "nothing ignored": labels % max(channels, 2),
        "a class is absent": np.where(labels == 1, np.uint8(255), labels),
        "another takes its place": np.where(labels == 1, np.uint8(0), labels),
        "one class": np.full(SHAPE, last, np.uint8),
        "one other class": np.zeros(SHAPE, np.uint8),
        "one pixel of its class": one_of_its_class,
        "one pixel is valid": one_valid,
        "all is ignored": np.full(SHAPE, 255, np.uint8),
    }


def pixels_of(logits, labels, ignored):
    """The pixels that are not ignored: (the logits of at least two classes, the label)."""
    for i in np.ndindex(labels.shape):
        if labels[i] != ignored:
            scores = logits[i].astype(np.float64)
            yield (np.array([0, *scores]) if len(scores) == 1 else scores), int(labels[i])


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def sigmoid(score):
    return 1 / (1 + np.exp(-score))


def entries_of(logits, labels, ignored):
    """One for each channel of a pixel that is not ignored: (the sigmoid, whether it is there)."""
    for i in np.ndindex(labels.shape):
        if labels[i] == ignored:
            continue
        for n, score in enumerate(logits[i].astype(np.float64)):
            there = labels[i] == (1 if len(logits[i]) == 1 else n)
            yield sigmoid(score), bool(there)


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def cross_entropy(logits, labels, ignored):
    return mean(-np.log(softmax(s)[y]) for s, y in pixels_of(logits, labels, ignored))


def focal(logits, labels, ignored, gamma=2):
    shares = [softmax(s)[y] for s, y in pixels_of(logits, labels, ignored)]
    return mean(-((1 - p) ** gamma) * np.log(p) for p in shares)


def binary_cross_entropy(logits, labels, ignored):
    return mean(-np.log(p if y else 1 - p) for p, y in entries_of(logits, labels, ignored))


def binary_focal(logits, labels, ignored, gamma=2, alpha=None):
    values = []
    for p, y in entries_of(logits, labels, ignored):
        right = p if y else 1 - p
        weight = 1 if alpha is None else alpha if y else 1 - alpha
        values.append(-weight * (1 - right) ** gamma * np.log(right))
    return mean(values)


def ohem_cross_entropy(logits, labels, ignored, threshold=0.7, min_share=1 / 16):
    shares = sorted(softmax(s)[y] for s, y in pixels_of(logits, labels, ignored))
    least = max(int(np.ceil(min_share * len(shares))), 1)
    return mean(-np.log(p) for i, p in enumerate(shares) if p < threshold or i < least)


def areas(logits, labels, ignored):
    """(TP, FP, FN, Σ y) of each class."""
    found = np.zeros((4, max(logits.shape[-1], 2)))
    for scores, label in pixels_of(logits, labels, ignored):
        for n, p in enumerate(softmax(scores)):
            y = n == label
            found[:, n] += (p * y, p * (1 - y), (1 - p) * y, y)
    return found.T


def parts(logits, labels, per_picture):
    """What areas are counted over."""
    return zip(logits, labels, strict=True) if per_picture else [(logits, labels)]


def tversky(logits, labels, ignored, alpha=0.3, beta=0.7, smooth=0, per_picture=False):
    values = []
    for part, truth in parts(logits, labels, per_picture):
        of_classes = areas(part, truth, ignored)[1 if logits.shape[-1] == 1 else 0 :]
        for hit, extra, missed, size in of_classes:
            if size or (smooth and (truth != ignored).any()):
                whole = hit + alpha * extra + beta * missed + smooth
                values.append(1 - (hit + smooth) / whole)
    return mean(values)


def dice(logits, labels, ignored, smooth=0, per_picture=False):
    values = []
    for part, truth in parts(logits, labels, per_picture):
        of_classes = areas(part, truth, ignored)[1 if logits.shape[-1] == 1 else 0 :]
        for hit, extra, _, size in of_classes:
            if size or (smooth and (truth != ignored).any()):
                values.append(1 - (2 * hit + smooth) / (hit + extra + size + smooth))
    return mean(values)


def generalised_dice(logits, labels, ignored, per_picture=False):
    values = []
    for part, truth in parts(logits, labels, per_picture):
        above = below = 0
        for hit, extra, _, size in areas(part, truth, ignored):
            if size:
                above += 2 * hit / size**2
                below += (hit + extra + size) / size**2
        if below:
            values.append(1 - above / below)
    return mean(values)


def lovasz_extension(errors, truth):
    """Σ m_i (Δ of the i worst pixels wrong - Δ of i - 1), Δ = 1 - IoU, each counted anew."""

    def delta(wrong):
        predicted = [y != (i in wrong) for i, y in enumerate(truth)]
        both = sum(y and p for y, p in zip(truth, predicted, strict=True))
        either = sum(y or p for y, p in zip(truth, predicted, strict=True))
        return 1 - both / either if either else 0.0

    order = np.argsort(-np.array(errors), kind="stable")
    return sum(
        max(errors[j], 0) * (delta(set(order[: i + 1])) - delta(set(order[:i])))
        for i, j in enumerate(order)
    )


def lovasz(logits, labels, ignored):
    pixels = list(pixels_of(logits, labels, ignored))
    if logits.shape[-1] == 1:
        truth = [y == 1 for _, y in pixels]
        margins = [1 - s[1] * (2 * y - 1) for s, y in pixels]
        return lovasz_extension(margins, truth)
    values = []
    for n in range(logits.shape[-1]):
        truth = [y == n for _, y in pixels]
        errors = [abs((y == n) - softmax(s)[n]) for s, y in pixels]
        if any(truth):
            values.append(lovasz_extension(errors, truth))
    return mean(values)


def bce_dice(logits, labels, ignored):
    entries = list(entries_of(logits, labels, ignored))
    both = sum(p * y for p, y in entries)
    sums = sum(p + y for p, y in entries)
    return binary_cross_entropy(logits, labels, ignored) / 2 + 1 - (2 * both + 1) / (sums + 1)
