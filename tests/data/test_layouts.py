"""Well-known data sets are found in the folders in which they are handed out."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from segjax.data import layouts
from segjax.data.labels import VOC_CLASSES
from segjax.errors import SegjaxError

SIZE = (4, 6)


def put(root, name, values):
    """A picture of the values, or a mask: rows of them, repeated."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.uint8(values), SIZE)).save(path)


def test_voc(tmp_path):
    for stem in ("2007_000032", "2007_000033", "2008_000001"):
        put(tmp_path, f"JPEGImages/{stem}.jpg", [0])
    for stem in ("2007_000032", "2007_000033"):
        put(tmp_path, f"SegmentationClass/{stem}.png", [0, 20, 255])
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000033\n")
    (lists / "val.txt").write_text("2007_000032\n")
    (example,) = layouts.voc(tmp_path, "train")
    assert example["id"] == "2007_000033"
    np.testing.assert_array_equal(np.unique(example["label"]), [0, 20, 255])
    assert [pair.id for pair in layouts.voc(tmp_path, "val").pairs] == ["2007_000032"]
    assert layouts.voc(tmp_path).classes == VOC_CLASSES
    with pytest.raises(SegjaxError, match=r"ImageSets.Segmentation \(train, val\)"):
        len(layouts.voc(tmp_path, "trainaug"))


def test_cityscapes(tmp_path):
    for city in ("ulm", "aachen"):
        for frame in ("000000_000019", "000001_000019"):
            name = f"{city}/{city}_{frame}"
            put(tmp_path, f"leftImg8bit/train/{name}_leftImg8bit.png", [[[0, 0, 0]]])
            put(tmp_path, f"gtFine/train/{name}_gtFine_labelIds.png", range(24))
            put(tmp_path, f"gtFine/train/{name}_gtFine_labelTrainIds.png", [0, 18, 255])
            put(tmp_path, f"gtFine/train/{name}_gtFine_color.png", [[[0, 0, 0]]])
            (tmp_path / f"gtFine/train/{name}_gtFine_polygons.json").write_text("{}")
    source = layouts.cityscapes(tmp_path)
    assert [pair.id for pair in source.pairs] == [
        "aachen_000000_000019",
        "aachen_000001_000019",
        "ulm_000000_000019",
        "ulm_000001_000019",
    ]
    expected = [*[255] * 7, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10]
    np.testing.assert_array_equal(source[0]["label"].ravel(), expected)
    ids = layouts.cityscapes(tmp_path, ids="labelTrainIds")
    np.testing.assert_array_equal(np.unique(ids[3]["label"]), [0, 18, 255])


def test_cityscapes_maps_every_id():
    values = dict(layouts.cityscapes("x").values)
    assert sorted(values) == list(range(34))
    assert sorted(c for c in values.values() if c != 255) == list(range(19))
    assert (values[26], values[29], values[33]) == (13, 255, 18)  # car, caravan, bicycle


def test_ade20k(tmp_path):
    for split, folder in (("train", "training"), ("val", "validation")):
        put(tmp_path, f"images/{folder}/ADE_{split}_00000001.jpg", [0])
        put(tmp_path, f"annotations/{folder}/ADE_{split}_00000001.png", [0, 1, 2, 150])
    (example,) = layouts.ade20k(tmp_path)
    assert example["id"] == "ADE_train_00000001"
    np.testing.assert_array_equal(example["label"][0, :4], [255, 0, 1, 149])
    assert layouts.ade20k(tmp_path, "validation")[0]["id"] == "ADE_val_00000001"


def test_camvid(tmp_path):
    for split in ("train", "val"):
        put(tmp_path, f"{split}/{split}_1.png", [0])
        put(tmp_path, f"{split}annot/{split}_1.png", [0, 10, 11])
    (example,) = layouts.camvid(tmp_path, "val")
    assert example["id"] == "val_1"
    np.testing.assert_array_equal(example["label"][0, :3], [0, 10, 255])


def test_isbi(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (30, *SIZE), np.uint8)
    for name, pages in (("volume", volume), ("labels", (volume > 99) * np.uint8(255))):
        tifffile.imwrite(tmp_path / f"train-{name}.tif", pages, photometric="minisblack")
    train, val = layouts.isbi(tmp_path, (None, -6)), layouts.isbi(tmp_path, (-6, None))
    assert (len(train), len(val)) == (24, 6)
    np.testing.assert_array_equal(val[0]["image"][..., 0], volume[24])
    np.testing.assert_array_equal(val[0]["label"], volume[24] > 99)
