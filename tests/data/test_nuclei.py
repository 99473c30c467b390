"""The photographs that are kept beside the demo are whole, small, and told apart by two lists."""

from pathlib import Path

import numpy as np
from PIL import Image

HOME = Path(__file__).parents[2] / "experiments/nuclei"


def test_every_picture_has_its_mask_and_is_in_one_list():
    names = {split: (HOME / f"{split}.txt").read_text().split() for split in ("train", "val")}
    listed = names["train"] + names["val"]
    assert 40 <= len(listed) <= 60 and len(set(listed)) == len(listed)
    for kind in ("images", "masks"):
        assert {path.stem for path in (HOME / kind).iterdir()} == set(listed)
    for stem in listed:
        with Image.open(HOME / f"images/{stem}.png") as image:
            assert image.size == (256, 256) and image.mode == "L"
        with Image.open(HOME / f"masks/{stem}.png") as mask:
            numbers = np.unique(np.asarray(mask))
        assert numbers.tolist() == list(range(len(numbers))) and len(numbers) > 1


def test_they_are_small_and_their_origin_is_told():
    assert sum(path.stat().st_size for path in HOME.rglob("*")) < 1.5e6
    told = (HOME / "README.md").read_text()
    assert "BBBC038" in told and "CC0" in told
