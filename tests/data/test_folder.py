"""Pairs of pictures and masks in a folder are found in every layout that it states."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image

from segjax.data.folder import Folder
from segjax.data.labels import voc_palette
from segjax.errors import SegjaxError

CLASSES = ("background", "cat", "dog")
GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
RGB = np.stack([GREY, 255 - GREY, GREY // 2], -1)
LABEL = np.array([[0, 1, 2, 255, 0], [2, 2, 1, 0, 255]], np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def add_pair(root, stem, subfolder=".", fill=0):
    image = np.full((2, 5, 3), fill, np.uint8)
    save(root / "images" / subfolder / f"{stem}.png", image)
    save(root / "masks" / subfolder / f"{stem}.png", LABEL)


def folder(root, /, **changes):
    return Folder(**{"root": root, "classes": CLASSES, "palette": voc_palette(3)} | changes)


def test_folder_example(tmp_path):
    save(tmp_path / "images" / "a.png", RGB[:2, :5])
    save(tmp_path / "masks" / "a.png", LABEL)
    (example,) = folder(str(tmp_path))
    assert example.keys() == {"image", "label", "id"}
    assert example["id"] == "a"
    np.testing.assert_array_equal(example["image"], RGB[:2, :5])
    np.testing.assert_array_equal(example["label"], LABEL)


def test_folder_pairs_by_stem_whatever_the_suffix(tmp_path):
    for stem, suffix, mask_suffix in [
        ("d", "jpg", "png"),
        ("b", "bmp", "tif"),
        ("c.1", "tif", "bmp"),
        ("a", "PNG", "png"),
    ]:
        save(tmp_path / "images" / f"{stem}.{suffix}", RGB[:2, :5])
        save(tmp_path / "masks" / f"{stem}.{mask_suffix}", LABEL)
    (tmp_path / "images" / ".DS_Store").write_text("")
    (tmp_path / "masks" / "unused").mkdir()
    source = folder(tmp_path)
    assert [example["id"] for example in source] == ["a", "b", "c.1", "d"]
    for example in source:
        np.testing.assert_array_equal(example["label"], LABEL)


def test_folder_names_can_be_chosen(tmp_path):
    save(tmp_path / "JPEGImages" / "a.jpg", GREY[:2, :5])
    save(tmp_path / "SegmentationClass" / "a.png", LABEL)
    source = folder(tmp_path, images="JPEGImages", masks="SegmentationClass", channels=1)
    assert source[-1]["image"].shape == (2, 5, 1)


def test_subfolder_and_list_give_the_same_split(tmp_path):
    for i, stem in enumerate("abcd"):
        add_pair(tmp_path / "lists", stem, fill=i)
        add_pair(tmp_path / "folders", stem, "train" if stem in "ac" else "val", fill=i)
    (tmp_path / "lists" / "images" / "e.png").write_text("without a mask, in no list")
    (tmp_path / "lists" / "train.txt").write_bytes(b"\xef\xbb\xbfc\r\n\r\n  a\r\n")
    listed = list(folder(tmp_path / "lists", split="train"))
    foldered = list(folder(tmp_path / "folders", split="train"))
    assert [example["id"] for example in listed] == ["a", "c"]
    for one, other in zip(listed, foldered, strict=True):
        assert one["id"] == other["id"]
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


@pytest.mark.parametrize(
    ("part", "stems"),
    [((None, None), "abcd"), ((None, 3), "abc"), ((3, None), "d"), ((1, -1), "bc")],
)
def test_folder_part(tmp_path, part, stems):
    for stem in "dbca":
        add_pair(tmp_path, stem)
    source = folder(tmp_path, part=part)
    assert len(source) == len(stems)
    assert "".join(pair.id for pair in source.pairs) == stems


def test_folder_is_a_value(tmp_path):
    add_pair(tmp_path, "a")
    source = folder(tmp_path, values=((7, 255),), part=(None, 1))
    len(source)  # what is found on the way is no part of the value
    assert dataclasses.replace(source) == source
    assert hash(dataclasses.replace(source)) == hash(source)
    assert dataclasses.replace(source, channels=1) != source
    fields = json.loads(json.dumps(dataclasses.asdict(source), default=str))
    assert Folder(**fields) == source


def test_folder_is_read_from_several_threads(tmp_path):
    for i, stem in enumerate("abcdefgh"):
        add_pair(tmp_path, stem, fill=i)
    source = folder(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        examples = list(threads.map(source.__getitem__, list(range(8)) * 4))
    assert [example["image"].max() for example in examples] == list(range(8)) * 4


def test_endings_are_not_part_of_the_stem(tmp_path):
    for name in ("a_photo.jpg", "b_photo.jpg", "c.jpg"):
        save(tmp_path / "images" / name, RGB[:2, :5])
    for name in ("a_mask.png", "b_mask.png", "a_colours.png"):
        save(tmp_path / "masks" / name, LABEL)
    source = folder(tmp_path, endings=("_photo", "_mask"))
    assert [example["id"] for example in source] == ["a", "b"]


def test_pictures_and_masks_lie_in_one_folder(tmp_path):
    """Also under stems that end as masks do, and beside the list of a split."""
    for name in ("a.jpg", "b.png", "b_mask_1.jpg"):
        save(tmp_path / name, RGB[:2, :5])
    for name in ("a_mask.png", "b_mask.png", "b_mask_1_mask.png"):
        save(tmp_path / name, LABEL)
    (tmp_path / "val.txt").write_text("b")
    source = folder(tmp_path, images=".", masks=".", endings=("", "_mask"))
    assert [example["id"] for example in source] == ["a", "b", "b_mask_1"]
    for example in source:
        np.testing.assert_array_equal(example["label"], LABEL)
    split = dataclasses.replace(source, split="val")
    assert [example["id"] for example in split] == ["b"]
    other = folder(tmp_path, images=".", masks=".", endings=("_mask", ""))
    assert [pair.id for pair in other.pairs] == ["a", "b", "b_mask_1"]  # the two sides exchanged
    with pytest.raises(SegjaxError, match=r'in one folder. Say with `endings`.*\("", "_mask"\)'):
        len(folder(tmp_path, images=".", masks="."))


def test_files_that_are_no_pictures_are_passed_over(tmp_path):
    add_pair(tmp_path, "a")
    for name in ("images/notes.txt", "images/Thumbs.db", "images/a.json", "masks/a.xml"):
        (tmp_path / name).write_text("no picture")
    source = folder(tmp_path)
    assert [example["id"] for example in source] == ["a"]
    names = ["Thumbs.db", "a.json", "notes.txt", "a.xml"]
    assert [path.name for path in source.passed_over] == names
    # But what has a partner is meant for a picture.
    save(tmp_path / "masks" / "b.png", LABEL)
    np.save(tmp_path / "images" / "b.npy", GREY)
    with pytest.raises(SegjaxError, match=r"b.npy: a NumPy array. Save it as PNG or TIFF"):
        list(folder(tmp_path))
    for path in tmp_path.glob("images/*.png"):
        path.unlink()
    (tmp_path / "images" / "b.npy").unlink()
    with pytest.raises(SegjaxError, match=r"no pictures in .*Passed over.*: Thumbs.db, a.json, n"):
        len(folder(tmp_path, masks="images", endings=("", "_mask")))


def test_what_has_no_partner_can_be_left_out(tmp_path):
    for stem in "abc":
        add_pair(tmp_path, stem)
    (tmp_path / "masks" / "a.png").unlink()
    (tmp_path / "images" / "b.png").unlink()
    save(tmp_path / "images" / "d.png", RGB)
    save(tmp_path / "images" / "d.jpg", RGB)
    save(tmp_path / "masks" / "d.png", LABEL)
    with pytest.raises(SegjaxError) as told:
        len(folder(tmp_path))
    first, *lone, advice = str(told.value).splitlines()
    assert "d.jpg and" in first and "d.png have one stem, 'd'" in first
    assert [line.split(": ")[1][:22] for line in lone] == [
        "a picture without a ma",
        "a mask without a pictu",
    ]
    assert advice.startswith("Add what is missing") and "complete=False" in advice
    source = folder(tmp_path, complete=False)
    assert [example["id"] for example in source] == ["c"]
    assert [problem.kind for problem in source.unpaired] == [
        "several files of one stem",
        "picture without a mask",
        "mask without a picture",
    ]
    (tmp_path / "val.txt").write_text("c\nx\nc\n")
    kinds = [problem.kind for problem in folder(tmp_path, split="val").unpaired]
    assert kinds == ["line of no picture", "line that stands twice"]


def test_wildcards_stand_for_several_folders(tmp_path):
    for city, stem in (("bonn", "b"), ("aachen", "a"), (".hidden", "c")):
        add_pair(tmp_path, stem, f"train/{city}")
    source = folder(tmp_path, images="images/train/*", masks="masks/train/*")
    assert [pair.id for pair in source.pairs] == ["a", "b"]
    add_pair(tmp_path, "a", "train/bonn")
    with pytest.raises(SegjaxError, match=r"aachen.a.png and .*bonn.a.png have one stem"):
        len(dataclasses.replace(source))


def test_lists_lie_in_a_folder_of_their_own(tmp_path):
    add_pair(tmp_path, "a")
    add_pair(tmp_path, "b")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "val.txt").write_text("b")
    assert [e["id"] for e in folder(tmp_path, split="val", lists="sets")] == ["b"]
    with pytest.raises(SegjaxError, match=r"lists in .*sets \(val\)"):
        len(folder(tmp_path, split="test", lists="sets"))


def test_the_pages_of_two_files_are_examples(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (12, 4, 6), np.uint8)
    labels = np.resize(np.uint8([0, 255]), volume.shape)
    tifffile.imwrite(tmp_path / "volume.tif", volume, photometric="minisblack")
    tifffile.imwrite(tmp_path / "labels.tif", labels, photometric="minisblack")
    source = folder(
        tmp_path,
        images="volume.tif",
        masks="labels.tif",
        channels=1,
        values=((255, 1),),
        part=(2, None),
    )
    assert [example["id"] for example in source] == [f"volume-{page:02}" for page in range(2, 12)]
    for page, example in enumerate(source, start=2):
        np.testing.assert_array_equal(example["image"][..., 0], volume[page])
        np.testing.assert_array_equal(example["label"], labels[page] > 0)
    assert source.size_of(3) == (4, 6)
    tifffile.imwrite(tmp_path / "labels.tif", labels[:5], photometric="minisblack")
    with pytest.raises(SegjaxError, match=r"volume.tif has 12 pages, .*labels.tif have 5"):
        len(dataclasses.replace(source))


def test_masks_of_instances(tmp_path):
    numbers = np.array([[0, 1, 255, 65535, 0], [2, 2, 1, 0, 300]], np.uint16)
    save(tmp_path / "images" / "a.png", RGB[:2, :5])
    save(tmp_path / "masks" / "a.png", numbers)
    (example,) = folder(tmp_path, classes=("no", "yes"), palette=voc_palette(2), instances=True)
    np.testing.assert_array_equal(example["instances"], numbers)
    assert example["instances"].dtype == np.uint16
    np.testing.assert_array_equal(example["label"], numbers > 0)
    assert example["label"].dtype == np.uint8


def test_pictures_by_ranges(tmp_path):
    save(tmp_path / "images" / "a.png", GREY[:2, :5].astype(np.uint16) * 100)
    save(tmp_path / "masks" / "a.png", LABEL)
    (example,) = folder(tmp_path, channels=1, ranges=((0, 25500),))
    np.testing.assert_allclose(example["image"][..., 0], GREY[:2, :5], rtol=1e-6)
    assert example["image"].dtype == np.float32


def test_size_of_decodes_nothing(tmp_path):
    add_pair(tmp_path, "a")
    path = tmp_path / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:45])  # little more than the header
    source = folder(tmp_path)
    assert source.size_of(0) == (2, 5)
    with pytest.raises(SegjaxError, match="cannot be read"):
        source[0]
