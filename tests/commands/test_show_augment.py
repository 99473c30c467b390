"""The verb show-augment: a sheet of pictures beside what augmentation makes of them."""

import subprocess
import sys

import numpy as np
from PIL import Image
from recipes import EXPERIMENTS, recipe_of, run, small

from segjax.evaluation import visualise


def test_show_augment_draws_a_sheet(isbi, tmp_path):
    """The pictures with their labels on the left, four different augmentations beside each."""
    out = tmp_path / "new" / "sheet"
    run("unet_isbi", "show-augment", "--out", out, *small("unet_isbi", "--data", isbi))
    sheet = np.asarray(Image.open(out))
    gap, line, height = 12, 24, 240
    cells = [gap + (264 + gap) + i * (height + gap) for i in range(4)]  # after the picture, 40×44
    assert sheet.shape[1] == cells[-1] + height + gap
    for row, record in enumerate((0, 1, 2, 3)):  # the last two of six are held out
        example = recipe_of("unet_isbi")(data=isbi, held_out=2).source("train")[record]
        original = visualise.overlay(
            example["image"], example["label"], ((220, 50, 47), (238, 232, 213))
        )
        top = gap + line + row * (line + height + gap) + line
        drawn = sheet[top : top + height, gap : gap + 264]
        np.testing.assert_array_equal(drawn, Image.fromarray(original).resize((264, height)))
        augmented = [sheet[top : top + height, left : left + height] for left in cells]
        assert len({cell.tobytes() for cell in augmented}) == 4
        assert all(cell.std() > 1 for cell in augmented)


def test_show_augment_of_a_script_by_module(tmp_path):
    def shell(*command):
        return subprocess.run(
            [sys.executable, "-m", "segjax", "show-augment", *map(str, command)],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    ran = shell(EXPERIMENTS / "unet_shapes.py", "--canvas", 32, 32, "--pictures", 2)
    assert ran.returncode == 0, ran.stderr
    with Image.open(tmp_path / "unet_shapes_augment.png") as sheet:
        assert sheet.width == 12 + 5 * (240 + 12) and sheet.height > 2 * 240
    ran = shell(tmp_path / "absent.py")
    assert ran.returncode == 2 and "absent.py: no such file" in ran.stderr
