"""Masks that scores are easily wrong on, for their tests."""

import numpy as np
from hypothesis import strategies as st

CLASSES = 3
VOID = 255


@st.composite
def pairs(draw):
    """Truth and prediction (H, W) of three classes, void in the truth: some plain, some mean."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.sampled_from([(1, 1), (1, 9), (9, 1), (2, 2), (7, 9), (13, 12)]))

    def blobs(values):
        coarse = rng.choice(values, (-(-size[0] // 4), -(-size[1] // 4)))
        return np.kron(coarse, np.ones((4, 4), int))[: size[0], : size[1]]

    def label(values):
        kind = draw(st.sampled_from(["noise", "blobs", "one", "one pixel"]))
        if kind == "noise":
            return rng.choice(values, size)
        if kind == "blobs":
            return blobs(values)
        plain = np.full(size, rng.choice(values))
        if kind == "one pixel":
            plain[tuple(rng.integers(0, size))] = rng.choice(values)
        return plain

    # The third class may be absent from either, and all may be void.
    truth = label(draw(st.sampled_from([[0, 1, 2], [0, 1], [0, 1, 2, VOID], [0, VOID], [VOID]])))
    near = truth % VOID if draw(st.booleans()) else label([0, 1, 2])
    predicted = np.where(rng.random(size) < 0.8, near, rng.integers(0, CLASSES, size))
    return truth.astype(np.uint8), predicted.astype(np.uint8)


ADVERSARIAL = {
    "all ignored": (np.full((3, 4), VOID), np.zeros((3, 4))),
    "one pixel": (np.array([[1]]), np.array([[1]])),
    "one wrong pixel": (np.array([[1]]), np.array([[0]])),
    "one class": (np.full((4, 5), 2), np.full((4, 5), 2)),
    "one class, all wrong": (np.full((4, 5), 2), np.zeros((4, 5))),
    "a class predicted but absent": (np.zeros((4, 5)), np.eye(4, 5) * 2),
    "a class missed": (np.eye(4, 5) * 2, np.zeros((4, 5))),
    "a pixel between void": (np.pad([[1]], 2, constant_values=VOID), np.zeros((5, 5))),
    "stripes": (np.indices((6, 7))[1] % 2, np.indices((6, 7))[0] % 2),
}
ADVERSARIAL = {
    name: (truth.astype(np.uint8), predicted.astype(np.uint8))
    for name, (truth, predicted) in ADVERSARIAL.items()
}
