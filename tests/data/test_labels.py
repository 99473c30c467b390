"""Class names and palettes, against what is known of them from elsewhere."""

import pytest

from segjax.data import labels
from segjax.data.labels import voc_palette

# data set -> classes, colours, how many colours differ
SETS = {
    "VOC": (labels.VOC_CLASSES, voc_palette(21), 21),
    "CamVid": (labels.CAMVID_CLASSES, labels.CAMVID_PALETTE, 11),
    "Cityscapes": (labels.CITYSCAPES_CLASSES, labels.CITYSCAPES_PALETTE, 19),
    "ADE20K": (labels.ADE20K_CLASSES, labels.ADE20K_PALETTE, 149),  # road and skyscraper share one
}


@pytest.mark.parametrize("name", SETS)
def test_each_class_has_a_name_and_a_colour(name):
    classes, palette, colours = SETS[name]
    assert len(classes) == len(set(classes)) == len(palette)
    assert len(set(palette)) == colours
    assert all(name == name.strip() and "\n" not in name for name in classes)
    assert all(len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255 for colour in palette)


def test_voc_palette():
    voc = voc_palette(256)
    assert voc[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert voc[15] == (192, 128, 128)  # person
    assert voc[255] == (224, 224, 192)  # void
    assert len(set(voc)) == 256


@pytest.mark.parametrize(
    ("name", "index", "known", "colour"),
    [
        ("VOC", 20, "tvmonitor", (0, 64, 128)),
        ("CamVid", 3, "road", (128, 64, 128)),
        ("Cityscapes", 0, "road", (128, 64, 128)),
        ("Cityscapes", 13, "car", (0, 0, 142)),
        ("Cityscapes", 18, "bicycle", (119, 11, 32)),
        # the numbers of the scene parsing benchmark's own table, less 1
        ("ADE20K", 0, "wall", (120, 120, 120)),
        ("ADE20K", 12, "person", (150, 5, 61)),
        ("ADE20K", 48, "skyscraper", (140, 140, 140)),
        ("ADE20K", 89, "television receiver", (0, 255, 194)),
        ("ADE20K", 127, "bicycle", (255, 245, 0)),
        ("ADE20K", 149, "flag", (92, 0, 255)),
    ],
)
def test_known_entries(name, index, known, colour):
    classes, palette, _ = SETS[name]
    assert (classes[index], palette[index]) == (known, colour)


def test_cityscapes_ids():
    ids = dict(zip(labels.CITYSCAPES_CLASSES, labels.CITYSCAPES_IDS, strict=True))
    assert (ids["road"], ids["building"], ids["person"], ids["train"]) == (7, 11, 24, 31)
    assert list(ids.values()) == sorted(ids.values())
