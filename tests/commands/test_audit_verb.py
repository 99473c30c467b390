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

from segjax.commands import audit as verb
from segjax.commands.command import command
from segjax.commands.evaluate import evaluate
from segjax.commands.models import models
from segjax.commands.predict import predict
from segjax.commands.run import Run
from segjax.data.augment import Example
from segjax.data.folder import Folder
from segjax.data.wrapper import Without
from segjax.errors import SegjaxError
from segjax.models import UNet
from segjax.recipe import Recipe, Split, main

SIZE = (16, 16)
SCRIPT = Path(__file__).parents[2] / "experiments" / "unet_camvid.py"


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


def audit(*arguments):
    """python -m segjax audit, in this process."""
    several = {"audit": verb.audit, "models": models}  # the only verb would go unnamed
    command(several, description="", argv=["audit", *map(str, arguments)])


def stopped(capsys, *arguments, status=2, verb=run):
    with pytest.raises(SystemExit) as stop:
        verb(*arguments)
    assert stop.value.code == status
    return capsys.readouterr()


def examples(out):
    """How many, by split, as audit.json says."""
    splits = json.loads((out / "audit.json").read_text())["splits"]
    return {name: split["examples"] for name, split in splits.items()}


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
    verb.audit(data, out=tmp_path)
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert {name: split["examples"] for name, split in stored["splits"].items()} == {
        "train": 20,
        "val": 3,
    }
    pixels, weights = (stored["splits"]["val"][name][:2] for name in ("pixels", "class_weights"))
    assert sum(pixels) == 3 * 16 * 16
    assert pixels[0] * weights[0] == pytest.approx(pixels[1] * weights[1])  # both in each picture
    with pytest.raises(SystemExit):
        verb.audit(data, classes=1, out=tmp_path)
    assert "mask values 1" in capsys.readouterr().out


def test_the_audit_of_a_folder_without_splits_and_of_one_with_lists(data, tmp_path):
    (data / "images/train").rename(data / "flat")
    (data / "masks/train").rename(data / "flat-masks")
    flat = tmp_path / "flat"
    flat.mkdir()
    (data / "flat").rename(flat / "images")
    (data / "flat-masks").rename(flat / "masks")
    verb.audit(flat, out=tmp_path)
    assert [*json.loads((tmp_path / "audit.json").read_text())["splits"]] == ["flat"]
    (flat / "some.txt").write_text("1\n2")
    verb.audit(flat, out=tmp_path)
    assert json.loads((tmp_path / "audit.json").read_text())["splits"]["some"]["examples"] == 2
    with pytest.raises(SegjaxError, match="nowhere: no such folder"):
        verb.audit(tmp_path / "nowhere", out=tmp_path)


def test_a_text_that_is_no_list_is_not_taken_for_a_split(data, tmp_path, capsys):
    (data / "README.txt").write_text("Pictures of 2 cameras.\n1\n2\n")
    (data / "empty.txt").write_text("")
    audit(data, "--out", tmp_path)
    assert examples(tmp_path) == {"train": 20, "val": 3}
    assert "README.txt: not taken for a split" in capsys.readouterr().out
    for i, split in ((1, "train"), (2, "val")):
        for kind in ("images", "masks"):
            (data / f"{kind}/{split}/{i}.png").rename(data / f"{kind}/no. {i}.png")
    (data / "some.txt").write_text("\ufeff\n no. 2 \r\n\nno. 1\n", "utf-8")
    audit(data, "--out", tmp_path)
    assert examples(tmp_path) == {"some": 2, "train": 19, "val": 2}
    (data / "some.txt").write_text("images/no. 2.png\n")
    told = stopped(capsys, data, "--out", tmp_path, verb=audit, status=1).out
    assert "some.txt, line 1: 'images/no. 2.png' is the stem of no picture" in told


LAYOUTS = {  # the numbers of pictures by split; their names, the masks' and values in these
    "voc": ({"train": 2, "val": 1}, "JPEGImages/{}{}.png", "SegmentationClass/{}{}.png", (0, 20)),
    "cityscapes": (
        {"train": 1, "val": 2},
        "leftImg8bit/{}/ulm/{}_leftImg8bit.png",
        "gtFine/{}/ulm/{}_gtFine_labelIds.png",
        (0, 33),
    ),
    "ade20k": (
        {"training": 2, "validation": 1},
        "images/{}/{}.png",
        "annotations/{}/{}.png",
        (0, 150),
    ),
    "camvid": ({"test": 1, "train": 2}, "{}/{}.png", "{}annot/{}.png", (10, 11)),
}


def noise(seed, values=(0, 1)):
    """A picture and a mask of the values."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*SIZE, 3), np.uint8), rng.choice(np.uint8(values), SIZE)


def put(root, name, pixels):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_audit_of_a_layout_reads_the_splits_that_are_there(layout, tmp_path, capsys):
    root = tmp_path / "data"
    assert "data: no such folder" in stopped(capsys, root, "--layout", layout, verb=audit).err
    splits, image, mask, values = LAYOUTS[layout]
    for split, count in splits.items():
        for i in range(count):
            pixels, stored = noise(i + 9 * len(split), values)
            put(root, image.format(split, i), pixels)
            put(root, mask.format(split, i), stored)
    if layout == "voc":
        lists = root / "ImageSets/Segmentation"
        lists.mkdir(parents=True)
        names = {split: [f"{split}{i}" for i in range(n)] for split, n in splits.items()}
        names["trainval"] = names["train"] + names["val"]
        for split, stems in names.items():
            (lists / f"{split}.txt").write_text("\n".join(stems))
    (root / "leftImg8bit/test/ulm").mkdir(parents=True)  # Cityscapes hands out no masks of these
    audit(root, "--layout", layout, "--out", tmp_path)
    assert examples(tmp_path) == splits


def test_the_audit_of_isbi(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    images, masks = zip(*(noise(i, (0, 255)) for i in range(3)), strict=True)
    tifffile.imwrite(data / "train-volume.tif", np.array(images)[..., 0], photometric="minisblack")
    tifffile.imwrite(data / "train-labels.tif", np.array(masks), photometric="minisblack")
    audit(data, "--layout", "isbi", "--out", tmp_path)
    assert examples(tmp_path) == {"train": 3}


def folder_of(root, images, masks):
    """TIFF pictures, of any type and number of channels, and PNG masks."""
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        put(root, f"masks/{i}.png", mask)
        (root / "images").mkdir(exist_ok=True)
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(root / f"images/{i}.tif", image, **options)
    return root


def test_the_audit_of_a_folder_of_many_channels_and_mapped_values(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 4000, (2, *SIZE, 5)).astype(np.float32)
    data = folder_of(tmp_path / "data", images, rng.choice(np.uint8([3, 255]), (2, *SIZE)))
    options = ["--channels", 5, "--ranges", 0, 4000, "--out", tmp_path, "--classes", 2]
    audit(data, *options, "--values", 3, 0, 255, 1)
    split = json.loads((tmp_path / "audit.json").read_text())["splits"]["data"]
    assert len(split["histogram"]) == 5
    assert sum(split["pixels"]) == 2 * 16 * 16 and min(split["pixels"]) > 0
    assert "values 3" in stopped(capsys, data, *options, verb=audit, status=1).out


def test_the_audit_of_a_folder_of_instances(tmp_path):
    images, masks = zip(*(noise(i, (0, 7, 9)) for i in range(2)), strict=True)
    masks = [mask.astype(np.uint16) * 100 for mask in masks]
    data = folder_of(tmp_path / "data", [image[..., 0] for image in images], masks)
    audit(data, "--instances", "--channels", 1, "--out", tmp_path)
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert stored["classes"] == ["0", "1"]
    assert stored["splits"]["data"]["pixels"][0] == sum((mask == 0).sum() for mask in masks)


@pytest.mark.parametrize(
    "options", [["--classes", 2], ["--values", 255, 1], ["--channels", 1], ["--instances"]]
)
def test_what_describes_a_folder_is_refused_elsewhere(tmp_path, options, capsys):
    told = stopped(capsys, tmp_path, "--layout", "voc", *options, verb=audit).err
    assert "--layout know their pictures" in told
    assert "no run folder" in stopped(capsys, tmp_path, "--data", tmp_path, verb=audit).err
    (tmp_path / "recipe.json").write_text("{}")
    for given in (options, ["--layout", "voc"]):
        assert "a run folder and" in stopped(capsys, tmp_path, *given, verb=audit).err


def test_all_that_can_be_wrong_with_a_folder_is_told(tmp_path, capsys):
    data = tmp_path / "data"
    for i in range(8):
        image, mask = noise(i, (0, 1, 2))
        put(data, f"images/{i}.png", image)
        put(data, f"masks/{i}.png", mask)
    put(data, "masks/1.png", image)
    put(data, "masks/2.png", np.where(mask, np.uint8(255), np.uint8(0)))
    put(data, "masks/3.png", mask[1:])
    (data / "masks/4.png").write_text("")
    put(data, "images/5.png", image)
    put(data, "masks/6.png", np.full(SIZE, 255, np.uint8))
    put(data, "masks/0.png", mask + 7)
    expected = {
        "colour mask": [[1]],
        "mask of nothing but 0 and 255": [[2]],
        "sizes differ": [[3]],
        "unreadable file": [[4]],
        "same picture several times": [[5, 7]],
        "no valid pixel": [[6]],
    }
    for options, more in (
        ([], {"value that few masks hold": [[0]] * 3}),  # 7, 8 and 9
        (["--classes", 3], {"values outside the classes": [[0]]}),
    ):
        stopped(capsys, data, "--out", tmp_path, *options, verb=audit, status=1)
        findings = json.loads((tmp_path / "audit.json").read_text())["findings"]
        assert {
            finding["what"]: [[i for _, i in case["examples"]] for case in finding["cases"]]
            for finding in findings
        } == expected | more
        page = (tmp_path / "audit.html").read_text().partition("<h2>Classes")[0]
        sections = {part.partition(" (")[0].strip(): part for part in page.split("</span>")[1:]}
        assert sections.keys() == (expected | more).keys()
        assert all("<figure>" in part for part in sections.values())


def test_what_stands_alone_and_what_is_no_picture_are_told_together(data, tmp_path, capsys):
    """Three times over the audit once stopped at the first of these."""
    (data / "images/train/notes.txt").write_text("seen")
    (data / "masks/train/Thumbs.db").write_bytes(b"seen")
    (data / "masks/train/7.png").unlink()
    break_two(data)
    told = stopped(capsys, data, "--out", tmp_path, verb=audit, status=1).out
    assert "passed over, for they are no pictures: 2 (notes.txt, Thumbs.db)" in told
    assert "train: 19 examples, of which 18 can be used" in told
    findings = json.loads((tmp_path / "audit.json").read_text())["findings"]
    assert {finding["what"]: len(finding["cases"]) for finding in findings} == {
        "picture without a mask": 1,
        "unreadable file": 2,
    }
    told = stopped(capsys, "train", "--data", data, "--run", tmp_path / "run").err
    assert "images/train/7.png: a picture without a mask" in told  # training refuses it


def test_colour_masks_leave_their_pictures_readable(data, tmp_path, capsys):
    for path in data.glob("masks/*/*.png"):
        Image.open(path).convert("RGB").save(path)
    told = stopped(capsys, data, "--out", tmp_path, verb=audit, status=1).out
    line = "train: 20 examples, of which none can be used; height × width: 16×16 (20); channels: 3."
    assert line in told and "without a pixel" not in told
    findings = (tmp_path / "audit.html").read_text().partition("<h2>Classes")[0]
    assert findings.count("<img") == 12 and "<figcaption>train: 0<" in findings


def test_the_audit_of_a_folder_by_its_names(tmp_path, capsys):
    """Pictures and masks in one folder, a split of it, and what is mistaken, all in options."""
    data = tmp_path / "data"
    for i in range(3):
        image, mask = noise(i, (0, 255))
        put(data, f"{i}.png", image)
        put(data, f"{i}_mask.png", mask)
    (data / "val.txt").write_text("2\n")
    names = ["--images", ".", "--masks", ".", "--out", tmp_path]
    told = stopped(capsys, data, *names, verb=audit).err
    assert 'Say with --endings how their names differ: --endings "" _mask for' in told
    names += ["--endings", "", "_mask"]
    audit(data, *names, "--split", "val", "--values", 255, 1)
    assert examples(tmp_path) == {"val": 1}
    assert "<title>Audit of " + str(data) in (tmp_path / "audit.html").read_text()
    told = stopped(capsys, data, *names, verb=audit, status=1).out
    assert "say --values 255 1; --values 255 255 says" in told and "values=" not in told
    told = stopped(capsys, data, *names, "--split", "test", verb=audit).err
    assert "Choose --split from" in told and "split=" not in told
    told = stopped(capsys, data, *names, "--values", 3, 7, "--classes", 2, verb=audit).err
    assert "--values 3 7: cannot map 3 to 7" in told
    (data / "val.txt").unlink()
    audit(data, *names, "--values", 255, 1, "--part", 1, "None")
    assert examples(tmp_path) == {"data": 2}
    told = stopped(capsys, data, *names, "--part", 5, "None", verb=audit).err
    assert "--part 5 None leaves none of the 3 pairs" in told
    told = stopped(capsys, data, "--out", tmp_path, verb=audit).err
    assert "correct the folder, --images, --masks or --split" in told and "`" not in told


def test_the_audit_of_a_script_by_python_m(data, tmp_path):
    command = [sys.executable, "-m", "segjax", "audit"]
    options = ["--data", data, "--out", tmp_path]
    ran = subprocess.run([*command, SCRIPT, *options], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "building" in (tmp_path / "audit.html").read_text()
    (data / "masks/val/0.png").write_text("")
    ran = subprocess.run([*command, data, "--out", tmp_path], capture_output=True, text=True)
    assert ran.returncode == 1, ran.stderr
    assert "masks/val/0.png: an empty file" in ran.stdout


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
    assert "train: 1 example is skipped" in told and "val: 1 example is skipped" in told
    skipped = json.loads((home / "skipped.json").read_text())
    place = [pair.id for pair in Small(data=data).source("train").pairs].index("3")
    assert [*skipped["train"]] == [str(place)] and [*skipped["val"]] == ["1"]
    held_out = Run(home).rebuild("source")
    assert isinstance(held_out, Without) and held_out.skipped == (1,)
    evaluate(home, data=data)

    # Mended meanwhile, they are still left out: a batch is a function of (seed, step).
    picture(data, "train", 3)
    picture(data, "val", 1)
    assert "skip_broken: True in the run" in stopped(capsys, *asked[:-1], "--steps", 4).err
    run(*asked, "--steps", 4)
    assert json.loads((home / "skipped.json").read_text()) == skipped
    verb.audit(home, out=tmp_path)
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
    predict(home, (data / "images/val/0.tif",))
    with Image.open(home / "predictions/0.png") as label:
        assert label.size == SIZE
    outside = tmp_path / "outside.tif"
    tifffile.imwrite(outside, pixels + 4000, **options)
    with pytest.raises(SegjaxError, match=r"outside.tif: channel . holds values from"):
        predict(home, (outside,))


def coloured(root, colours):
    """Three masks of bands in these colours."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(3):
        rows = np.repeat(np.array(colours, np.uint8), 4, 0)[:, None]
        Image.fromarray(np.repeat(rows, 8, 1)).save(root / f"masks/{i}.png")
        Image.new("RGB", (8, len(rows)), (i, i, i)).save(root / f"images/{i}.png")
    return root


def test_the_table_of_colour_masks_is_proposed_and_taken(tmp_path, capsys, monkeypatch):
    folder = coloured(tmp_path / "data", [(255, 0, 0), (0, 0, 0), (255, 0, 0), (0, 9, 255)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        audit(folder)
    assert stopped.value.code == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "3 colour masks hold 3 colours, by share of pixels: (0, 0, 0) 25.00%" in told
    assert "--colours 0 0 0 0 255 0 0 1 0 9 255 2." in told
    assert "hold 3 colours" in (tmp_path / "audit/audit.html").read_text()

    audit(folder, "--colours", *map(str, (0, 0, 0, 0, 255, 0, 0, 1, 0, 9, 255, 255)))
    told = capsys.readouterr().out
    assert "50.00%" in told and "error" not in told


def test_an_unknown_colour_is_told_by_file(tmp_path, capsys, monkeypatch):
    folder = coloured(tmp_path / "data", [(255, 0, 0), (0, 0, 0)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        audit(folder, "--colours", "0", "0", "0", "0")
    told = " ".join(capsys.readouterr().out.split())
    assert "colours of no class (3)" in told and "(255, 0, 0) (32 pixels) are in no class" in told
    assert "with --colours, where class 255 ignores it" in told


def test_what_values_mean_is_proposed(tmp_path, capsys, monkeypatch):
    folder = coloured(tmp_path / "data", [(255, 0, 0), (0, 0, 0)])
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path))[..., 0] // 2).save(path)
    monkeypatch.chdir(tmp_path)
    audit(folder)
    told = " ".join(capsys.readouterr().out.split())
    assert "0 is the background, 127 the foreground: --classes 2 --values 127 1" in told
