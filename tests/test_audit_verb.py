"""Audits by command, what training does about broken examples, and pictures by stated ranges."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import tifffile
from PIL import Image

from segjax import verbs
from segjax.data.augment import Example
from segjax.data.folder import Folder
from segjax.data.wrapper import Without
from segjax.errors import SegjaxError
from segjax.experiment import Recipe, Split, main
from segjax.models import UNet
from segjax.run import Run

SIZE = (16, 16)
SCRIPT = Path(__file__).parents[1] / "experiments" / "unet_camvid.py"


@dataclass(frozen=True, kw_only=True)
class Small(Recipe):
    """A U-Net of two levels on a folder of two classes."""

    data: Path
    steps: int = 2
    batch_size: int = 8
    canvas: tuple[int, int] = SIZE
    crop: tuple[int, int] = SIZE
    evaluate_every: int = 2
    ranges: tuple[tuple[float, float], ...] = ()
    """Of the pictures' values."""

    def model(self) -> UNet:
        return UNet(2, widths=(4, 8))

    def source(self, split: Split) -> Folder:
        return Folder(
            self.data,
            classes=("no", "yes"),
            palette=((0, 0, 0), (255, 0, 0)),
            split=split,
            channels=self.channels,
            ranges=self.ranges,
        )

    def augment(self, key: jax.Array, example: Example) -> Example:
        return example


def run(*arguments):
    main(Small, [str(argument) for argument in arguments])


def picture(root, split, i):
    """A pair of noise, whose picture is named i.png."""
    rng = np.random.default_rng([i, split == "val"])
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    image, mask = rng.integers(0, 256, (*SIZE, 3), np.uint8), rng.integers(0, 2, SIZE, np.uint8)
    Image.fromarray(image).save(root / f"images/{split}/{i}.png")
    Image.fromarray(mask).save(root / f"masks/{split}/{i}.png")


@pytest.fixture
def data(tmp_path):
    for split, count in (("train", 20), ("val", 3)):
        for i in range(count):
            picture(tmp_path / "data", split, i)
    return tmp_path / "data"


def break_two(data):
    """Pictures 3.png of train and 1.png of val; 3.png is not among the few that `check` reads."""
    for name in ("images/train/3.png", "images/val/1.png"):
        (data / name).write_bytes((data / name).read_bytes()[:-200])


def stopped(capsys, *arguments, status=2):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == status
    return capsys.readouterr()


def test_the_audit_of_a_recipe(data, tmp_path, capsys):
    out = tmp_path / "found"
    run("audit", "--data", data, "--out", out)
    assert json.loads((out / "audit.json").read_text())["findings"] == []
    assert str(out / "audit.html") in capsys.readouterr().out
    break_two(data)
    told = stopped(capsys, "audit", "--data", data, "--out", out, status=1).out
    assert "images/train/3.png: cannot be read" in told
    assert "images/val/1.png: cannot be read" in told
    (finding,) = json.loads((out / "audit.json").read_text())["findings"]
    assert finding["what"] == "unreadable file"
    page = (out / "audit.html").read_text()
    assert "images/val/1.png" in page
    assert page.count("<figure>") >= 8


def test_the_audit_of_a_folder(data, tmp_path, capsys):
    verbs.audit(data, out=tmp_path)
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert {name: split["examples"] for name, split in stored["splits"].items()} == {
        "train": 20,
        "val": 3,
    }
    pixels, weights = (stored["splits"]["val"][name][:2] for name in ("pixels", "class_weights"))
    assert sum(pixels) == 3 * 16 * 16
    assert pixels[0] * weights[0] == pytest.approx(pixels[1] * weights[1])  # both in each picture
    with pytest.raises(SystemExit):
        verbs.audit(data, classes=1, out=tmp_path)
    assert "mask values 1" in capsys.readouterr().out


def test_the_audit_of_a_folder_without_splits_and_of_one_with_lists(data, tmp_path):
    (data / "images/train").rename(data / "flat")
    (data / "masks/train").rename(data / "flat-masks")
    flat = tmp_path / "flat"
    flat.mkdir()
    (data / "flat").rename(flat / "images")
    (data / "flat-masks").rename(flat / "masks")
    verbs.audit(flat, out=tmp_path)
    assert [*json.loads((tmp_path / "audit.json").read_text())["splits"]] == ["flat"]
    (flat / "some.txt").write_text("1\n2")
    verbs.audit(flat, out=tmp_path)
    assert json.loads((tmp_path / "audit.json").read_text())["splits"]["some"]["examples"] == 2
    with pytest.raises(SegjaxError, match="nowhere: no such folder"):
        verbs.audit(tmp_path / "nowhere", out=tmp_path)


def test_the_audit_of_a_script_by_python_m(data, tmp_path):
    command = [sys.executable, "-m", "segjax", "audit"]
    options = ["--data", data, "--out", tmp_path]
    ran = subprocess.run([*command, SCRIPT, *options], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "building" in (tmp_path / "audit.html").read_text()
    (data / "masks/val/0.png").write_text("")
    ran = subprocess.run([*command, data, "--out", tmp_path], capture_output=True, text=True)
    assert ran.returncode == 1, ran.stderr
    assert "masks/val/0.png: not a picture" in ran.stdout


def test_training_skips_what_is_broken_only_when_asked(data, tmp_path, capsys):
    break_two(data)
    home = tmp_path / "run"
    told = stopped(capsys, "train", "--data", data, "--run", home).err
    assert "images/val/1.png" in told or "images/train/3.png" in told
    assert not home.exists()

    asked = ["train", "--data", data, "--run", home, "--skip-broken"]
    run(*asked)
    told = capsys.readouterr().out
    assert "images/train/3.png" in told and "images/val/1.png" in told
    assert "train: 1 examples are skipped" in told and "val: 1 examples are skipped" in told
    skipped = json.loads((home / "skipped.json").read_text())
    place = [pair.id for pair in Small(data=data).source("train").pairs].index("3")
    assert [*skipped["train"]] == [str(place)] and [*skipped["val"]] == ["1"]
    held_out = Run(home).rebuild("source")
    assert isinstance(held_out, Without) and held_out.skipped == (1,)
    verbs.evaluate(home, data=data)

    # Mended meanwhile, they are still left out: a batch is a function of (seed, step).
    picture(data, "train", 3)
    picture(data, "val", 1)
    assert "skip_broken: True in the run" in stopped(capsys, *asked[:-1], "--steps", 4).err
    run(*asked, "--steps", 4)
    assert json.loads((home / "skipped.json").read_text()) == skipped
    verbs.audit(home, out=tmp_path)
    assert json.loads((tmp_path / "audit.json").read_text())["splits"]["val"]["examples"] == 2
    (home / "skipped.json").write_text("{")
    assert "skipped.json: no valid JSON" in stopped(capsys, *asked, "--steps", 5).err


def test_pictures_of_many_channels_are_trained_on_and_predicted_by_their_ranges(data, tmp_path):
    rng = np.random.default_rng(0)
    for path in [*data.glob("images/*/*.png")]:
        path.unlink()
        pixels = rng.uniform(-1, 4000, (*SIZE, 5)).astype(np.float32)
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(path.with_suffix(".tif"), pixels, **options)
    home = tmp_path / "run"
    ranges = ["--channels", 5, "--ranges", -1, 4000]
    # With --skip-broken, for then the source is one within another.
    run("train", "--data", data, "--run", home, *ranges, "--canvas", 20, 24, "--skip-broken")
    verbs.predict(home, (data / "images/val/0.tif",))
    with Image.open(home / "predictions/0.png") as label:
        assert label.size == SIZE
    outside = tmp_path / "outside.tif"
    tifffile.imwrite(outside, pixels + 4000, **options)
    with pytest.raises(SegjaxError, match=r"outside.tif: channel . holds values from"):
        verbs.predict(home, (outside,))
