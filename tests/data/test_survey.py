"""What a folder is like: sizes, values, shares, objects, and whether it has an up."""

import numpy as np
import pytest
from PIL import Image

from segjax.data.folder import Folder
from segjax.data.survey import are_grey, survey
from segjax.errors import SegjaxError


def make(root, masks, pictures=None, **options):
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for i, mask in enumerate(masks):
        mask = np.asarray(mask, np.uint8)
        picture = np.full((*mask.shape, 3), 40, np.uint8) if pictures is None else pictures[i]
        Image.fromarray(picture).save(root / f"images/{i}.png")
        Image.fromarray(mask).save(root / f"masks/{i}.png")
    options = {"classes": ("a", "b", "c"), "palette": ((0, 0, 0),) * 3} | options
    return Folder(root, **options)


def squares(side, number, size=64):
    mask = np.zeros((size, size), np.uint8)
    for i in range(number):
        mask[8 * i : 8 * i + side, 8 * i : 8 * i + side] = 1
    return mask


def test_mean_deviation_and_shares(tmp_path):
    pictures = [np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 100, np.uint8)]
    masks = [np.zeros((4, 6)), np.r_[np.ones((2, 6)), np.full((2, 6), 255)]]

    found = survey({"train": make(tmp_path, masks, pictures)})

    assert found.mean == (50, 50, 50) and found.deviation == (50, 50, 50)
    np.testing.assert_allclose(found.shares, [24 / 36, 12 / 36, 0])
    assert found.sizes == {"train": {(4, 6): 2}}


def test_the_scale_is_that_of_objects_by_their_pixels(tmp_path):
    masks = [squares(6, 5), squares(6, 3), squares(2, 4)]

    assert survey({"train": make(tmp_path, masks)}).scale == 6


def test_numbered_objects_that_touch_are_several(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[:4, :4], mask[:4, 4:8] = 1, 2
    folder = make(
        tmp_path, [mask], instances=True, classes=("a", "b"), palette=((0, 0, 0), (1, 1, 1))
    )

    assert survey({"train": folder}).scale == 4


def test_scenes_have_an_up_and_cells_have_none(tmp_path):
    rng = np.random.default_rng(0)
    scenes = [np.repeat((np.arange(32) > rng.integers(12, 20))[:, None], 32, 1) for _ in range(9)]
    cells = [squares(6, 7)[:, :: rng.choice([1, -1])][:: rng.choice([1, -1])] for _ in range(9)]
    for name, masks in (("scenes", scenes), ("cells", cells)):
        (tmp_path / name).mkdir()
        assert survey({"train": make(tmp_path / name, masks)}).upright == (name == "scenes")


def test_pictures_of_three_equal_channels_are_grey(tmp_path):
    grey = [np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4, 1), 3, 2)] * 2
    folder = make(tmp_path, [np.zeros((4, 4))] * 2, grey)
    assert are_grey(folder)

    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "images/1.png")
    assert not are_grey(folder)


def test_what_is_wrong_is_told_by_file(tmp_path):
    folder = make(tmp_path, [np.zeros((4, 4))] * 7)
    for i in range(7):
        (tmp_path / f"masks/{i}.png").write_bytes(b"")
    with pytest.raises(SegjaxError, match=r"(?s)0.png: an empty file.*4.png.*\n… and 2 more"):
        survey({"train": folder})
