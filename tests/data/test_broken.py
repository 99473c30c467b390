"""Every kind of broken input is told by a message of its own, and skipped only when asked."""

import dataclasses
import re
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from segjax.commands.audit import in_options
from segjax.data.folder import Folder
from segjax.data.labels import voc_palette
from segjax.errors import SegjaxError

CLASSES = ("background", "cat", "dog")
GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
RGB = np.stack([GREY, 255 - GREY, GREY // 2], -1)
RGBA = np.concatenate([RGB, GREY[..., None]], -1)
LABEL = np.array([[0, 1, 2, 255, 0], [2, 2, 1, 0, 255]], np.uint8)
FLOAT = np.linspace(0, 1, 10, dtype=np.float32).reshape(2, 5)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def add_pair(root, stem, subfolder="."):
    save(root / "images" / subfolder / f"{stem}.png", np.zeros((2, 5, 3), np.uint8))
    save(root / "masks" / subfolder / f"{stem}.png", LABEL)


def folder(root, /, **changes):
    return Folder(**{"root": root, "classes": CLASSES, "palette": voc_palette(3)} | changes)


# What is done to a good folder of a.png and b.png, what is asked, what the error tells


def write_list(text):
    return lambda root: (root / "train.txt").write_text(text)


def remove(*names):
    return lambda root: [(root / name).unlink() for name in names]


def store(name, pixels, **options):
    return lambda root: save(root / name, pixels, **options)


def truncate(root):
    path = save(
        root / "images" / "c.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    )
    path.write_bytes(path.read_bytes()[:2000])


def both_splits(root):
    add_pair(root, "c", "train")
    write_list("a")(root)


def only_pictures_in_split(root):
    save(root / "images" / "train" / "c.png", RGB)


def add_pictures(count):
    return lambda root: [save(root / "images" / f"x{i}.png", RGB) for i in range(count)]


def replace(name, pixels):
    """A TIFF instead of the PNG."""

    def spoil(root):
        (root / f"{name}.png").unlink()
        options = {"planarconfig": "contig"} if pixels.ndim == 3 else {}
        tifffile.imwrite(root / f"{name}.tif", pixels, photometric="minisblack", **options)

    return spoil


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def write(name, content):
    return lambda root: (root / name).write_bytes(content)


def png(width, height, bits):
    """A PNG of black RGB pixels, of a size or of bits that Pillow does not write."""
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([bits, 2, 0, 0, 0])
    rows = bytes((1 + 3 * bits // 8 * width) * height) if width < 9 else b""
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)
        for name, data in chunks.items()
    )


def nothing(root):
    pass


MISTAKES = {
    "no root": (nothing, {"root": "nowhere"}, r"nowhere: no such folder.*correct `root`"),
    "no masks": (nothing, {"masks": "gt"}, r"gt: no such folder.*in gt/.*`masks`"),
    "no pictures": (
        remove("images/a.png", "images/b.png"),
        {},
        r"images: no pictures in this folder\. There are no splits",
    ),
    "no pictures but splits": (
        lambda root: (both_splits(root), remove("images/a.png", "images/b.png")(root)),
        {},
        r"no pictures.*Choose `split` .*images \(train\).* \(train\)",
    ),
    "pictures alone": (
        add_pictures(7),
        {},
        r"(?s)x0.png: a picture without a mask; .*x4.png: .*and 2 more\nAdd",
    ),
    "masks alone": (
        remove("images/b.png"),
        {},
        r"b.png: a mask without a picture; none of the stem 'b' lies in .*images\.\nAdd",
    ),
    "one stem twice": (
        store("images/a.jpg", RGB),
        {},
        r"images.a.jpg and .*images.a.png have one stem, 'a'.*Rename",
    ),
    "sizes": (
        store("images/a.png", RGB),
        {},
        r"a.png is 6 × 4 .*its mask .*a.png is 5 × 2.*nearest",
    ),
    "truncated": (
        lambda root: (truncate(root), store("masks/c.png", LABEL)(root)),
        {},
        r"c.jpg: cannot be read as a picture: .*truncated.*Get the file again",
    ),
    "unknown format": (
        write("images/a.png", bytes(range(256))),
        {},
        r"a.png: not a picture that Pillow can open\. Convert it",
    ),
    "text": (write("images/a.png", b'{"shapes": []}\n'), {}, r"a.png: a text file\. Move it"),
    "empty file": (write("masks/b.png", b""), {}, r"masks.b.png: an empty file\. Get it again"),
    "web page": (
        write("images/a.png", b"\n<!DOCTYPE html>\n<html>" + b"404 " * 99),
        {},
        r"a.png: a web page",
    ),
    "Git LFS pointer": (
        write(
            "images/a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64
        ),
        {},
        r"a.png: a Git LFS pointer.*`git lfs pull`",
    ),
    "NumPy array": (
        write("masks/a.png", b"\x93NUMPY" + bytes(99)),
        {},
        r"masks.a.png: a NumPy array\. Save it as PNG",
    ),
    "HEIC": (
        write("images/a.png", bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(99)),
        {},
        r"a.png: a HEIC photograph\. Convert",
    ),
    "DICOM": (write("images/a.png", bytes(128) + b"DICM" + bytes(9)), {}, r"a.png: a DICOM file"),
    "huge": (write("images/a.png", png(20000, 10000, 8)), {}, r"a.png: more pixels than .*Cut it"),
    "16-bit picture": (
        store("images/a.png", LABEL.astype(np.uint16) * 16),
        {},
        r"a.png: a 16-bit picture \(values 0 to 4080\), .*ranges=\(\(0, 65535\),\) for .* or save",
    ),
    "16-bit RGB": (
        write("images/a.png", png(5, 2, 16)),
        {},
        r"a.png: of a 16-bit picture \(mode RGB\) .*with 8 bits, or save it as TIFF",
    ),
    "float picture": (
        replace("images/a", LABEL.astype(np.float32)),
        {},
        r"a.tif: a float picture \(values 0.0 to 255.0\).*`ranges`",
    ),
    "32-bit picture": (
        replace("images/a", LABEL.astype(np.int32) * 1000),
        {},
        r"a.tif: a 32-bit picture \(values 0 to 255000\), .*`ranges`",
    ),
    "many channels without ranges": (
        replace("images/a", np.zeros((2, 5, 7), np.uint16)),
        {},
        r"a.tif: a TIFF of uint16 of shape \(2, 5, 7\), which .*`channels`, and with `ranges`",
    ),
    "other channels than stated": (
        replace("images/a", np.zeros((2, 5, 7), np.uint16)),
        {"channels": 4, "ranges": ((0, 1),)},
        r"a.tif: holds uint16 of shape .*expected numbers of \(H, W, 4\) or \(4, H, W\)",
    ),
    "outside the ranges": (
        replace("images/a", np.stack([FLOAT, 2 * FLOAT], -1)),
        {"channels": 2, "ranges": ((0, 1),)},
        r"a.tif: channel 1 holds values from 0.0 to 2.0, outside .* 0 to 1.*nothing is clipped",
    ),
    "below the ranges": (
        replace("images/a", np.stack([FLOAT - 1, FLOAT], -1)),
        {"channels": 2, "ranges": ((0, 1),)},
        r"a.tif: channel 0 holds values from -1.0 to 0.0, outside",
    ),
    "NaN": (
        replace("images/a", np.where(FLOAT > 0.5, np.nan, FLOAT)),
        {"channels": 1, "ranges": ((0, 1),)},
        r"a.tif: 5 of its values are NaN.*label 255",
    ),
    "infinite": (
        replace("images/a", np.where(FLOAT > 0.5, np.inf, FLOAT)),
        {"channels": 1, "ranges": ((0, 1),)},
        r"a.tif: channel 0 holds values from 0.0 to inf",
    ),
    "truncated TIFF": (
        lambda root: (replace("images/a", FLOAT)(root), cut(root / "images" / "a.tif")),
        {"channels": 1, "ranges": ((0, 1),)},
        r"a.tif: cannot be read as a picture",
    ),
    "TIFF cut in its header": (
        lambda root: (
            replace("images/a", FLOAT)(root),
            write("images/a.tif", (root / "images/a.tif").read_bytes()[:100])(root),
        ),
        {},
        r"a.tif: cannot be read as a picture: ",
    ),
    "palette by ranges": (
        store("images/a.png", Image.fromarray(LABEL).convert("P")),
        {"channels": 1, "ranges": ((0, 1),)},
        r"a.png: of a bilevel or palette picture \(mode P\) .*Read it without `ranges`, or",
    ),
    "16-bit RGB by ranges": (
        write("images/a.png", png(5, 2, 16)),
        {"ranges": ((0, 65535),)},
        r"a.png: of a 16-bit picture \(mode RGB\) .*save it as TIFF",
    ),
    "colour instances": (
        store("masks/a.png", RGB[:2, :5]),
        {"classes": ("no", "yes"), "palette": voc_palette(2), "instances": True},
        r"masks.a.png: a colour picture",
    ),
    "stack and split": (
        store("volume.tif", GREY),
        {"images": "volume.tif", "split": "train"},
        r"split='train': .*volume.tif is one file",
    ),
    "stack without labels": (
        store("volume.tif", GREY),
        {"images": "volume.tif", "masks": "labels.tif"},
        r"labels.tif: cannot be read: No such file or directory\. Correct the path",
    ),
    "stack of labels is a folder": (
        lambda root: store("volume.tif", GREY)(root),
        {"images": "volume.tif"},
        r"masks: a folder, expected the file of a picture",
    ),
    "stack of fewer labels": (
        lambda root: (
            tifffile.imwrite(root / "volume.tif", np.stack([GREY] * 3), photometric="minisblack"),
            store("labels.tif", GREY)(root),
        ),
        {"images": "volume.tif", "masks": "labels.tif"},
        r"volume.tif has 3 pages, but its masks .*labels.tif have 1",
    ),
    "ranges without pairs": (nothing, {"ranges": (0, 1)}, r"expected \(low, high\) .*comma"),
    "ranges of other channels": (
        nothing,
        {"channels": 4, "ranges": ((0, 1), (0, 1))},
        r"one for all channels or one for each of the 4",
    ),
    "range turned round": (nothing, {"ranges": ((1, 0),)}, r"with low < high"),
    "instances of three classes": (nothing, {"instances": True}, r"two classes, .*got 3 classes"),
    "RGB mask": (
        store("masks/a.png", RGB[:2, :5]),
        {},
        r"^[^:]*a.png: a colour picture \(mode RGB\) where class .*with `colours` which "
        r"colour is which class; .*Or save the mask as palette",
    ),
    "RGBA mask": (
        store("masks/a.png", RGBA[:2, :5]),
        {},
        r"a.png: a colour picture \(mode RGBA\) .*with `colours` which",
    ),
    "LA mask": (
        store("masks/a.png", Image.fromarray(RGBA[:2, :5, [0, 3]])),
        {},
        r"a.png: a colour picture \(mode LA\) .*Remove its alpha. Or save",
    ),
    "JPEG mask": (
        lambda root: (remove("masks/a.png")(root), store("masks/a.jpg", LABEL)(root)),
        {},
        r"masks.a.jpg: a JPEG, which changes class indices",
    ),
    "32-bit mask": (
        replace("masks/a", LABEL.astype(np.int32) * 1000),
        {},
        r"a.tif: integers from 0 to 255000, expected 0\.\.65535",
    ),
    "float mask": (
        replace("masks/a", LABEL.astype(np.float32)),
        {},
        r"a.tif: a float picture \(mode F\)",
    ),
    "values outside": (
        nothing,
        {"classes": ("one",), "palette": voc_palette(1)},
        r"a.png: mask values 1 \(2 pixels\), 2 \(3 pixels\) .*0\.\.0, .*: values=\(\(1, 255\),\)",
    ),
    "values outside 8 bits": (
        store("masks/a.png", LABEL.astype(np.uint16) * 257),
        {},
        r"a.png: mask values 257 .*65535 .*Expected 0\.\.2",
    ),
    "many values outside": (
        store("masks/a.png", 100 + np.arange(10, dtype=np.uint8).reshape(2, 5)),
        {},
        r"100 \(1 pixels\), .*104 \(1 pixels\) and 5 more are no class",
    ),
    "0 and 255 of two classes": (
        store("masks/a.png", (LABEL > 1).astype(np.uint8) * 255),
        {"classes": ("no", "yes"), "palette": voc_palette(2)},
        r"a.png: .*only 0 and 255 \(5 pixels\).*values=\(\(255, 1\),\)",
    ),
    "part": (
        nothing,
        {"part": (2, None)},
        r"part=\(2, None\) leaves none of the 2 pairs.*0\.\.2",
    ),
    "channels": (nothing, {"channels": 2}, r"channels=2: expected 1 .*3 .*4.*`ranges`"),
    "no classes": (nothing, {"classes": (), "palette": ()}, r"got 0 classes, expected 1 to 255"),
    "256 classes": (
        nothing,
        {"classes": tuple(map(str, range(256))), "palette": voc_palette(256)},
        r"got 256 classes",
    ),
    "palette": (nothing, {"palette": voc_palette(2)}, r"got 2 colours .* for 3 classes"),
    "values without pairs": (nothing, {"values": (255, 1)}, r"expected pairs .*\(\(255, 1\),\)"),
    "values to no class": (nothing, {"values": ((9, 3),)}, r"map 9 to 3.*class 0\.\.2 or 255"),
    "values twice": (nothing, {"values": ((9, 1), (9, 2))}, r"map 9 to 1.*once"),
    "unknown split": (
        lambda root: both_splits(root),
        {"split": "test"},
        r"'test' not found: .*images.test nor a list .*test.txt\. Choose .*\(train\).*\(train\)",
    ),
    "no splits": (nothing, {"split": "x"}, r"'x' not found.*There are no splits here"),
    "two splits": (both_splits, {"split": "train"}, r"both a folder, .*images.train, .*train.txt"),
    "split without masks": (
        only_pictures_in_split,
        {"split": "train"},
        r"masks.train: no such folder.*split='train'",
    ),
    "list with a stranger": (
        write_list("a\n\nc.png\n"),
        {"split": "train"},
        r"train.txt, line 3: 'c.png' is the stem of no picture in .*images\..*without .*suffix",
    ),
    "list with a twin": (
        write_list("a\nb\na"),
        {"split": "train"},
        r"train.txt, line 3: 'a' stands in line 1",
    ),
    "list of nothing": (write_list("\n"), {"split": "train"}, r"train.txt: names no picture"),
    "list without a mask": (
        lambda root: (write_list("a\nb")(root), remove("masks/b.png")(root)),
        {"split": "train"},
        r"b.png: a picture without a mask",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_told(tmp_path, name):
    spoil, changes, told = MISTAKES[name]
    add_pair(tmp_path, "a")
    add_pair(tmp_path, "b")
    spoil(tmp_path)
    with pytest.raises(SegjaxError, match=told):
        list(folder(tmp_path, **changes))


# What the command has no option for, or reads so that it cannot come to pass.
NO_OPTIONS = {"pictures alone", "masks alone", "list without a mask", "palette"}
FIELDS = "|".join(field.name for field in dataclasses.fields(Folder))


@pytest.mark.parametrize("name", sorted(MISTAKES.keys() - NO_OPTIONS))
def test_the_command_tells_it_in_options(tmp_path, name):
    spoil, changes, _ = MISTAKES[name]
    add_pair(tmp_path, "a")
    add_pair(tmp_path, "b")
    spoil(tmp_path)
    with pytest.raises(SegjaxError) as told:
        list(folder(tmp_path, **changes))
    said = in_options(str(told.value).replace(str(tmp_path), "FOLDER"))
    assert not re.findall(rf"\b(?:{FIELDS})=|`(?:{FIELDS})`", said), said


@pytest.mark.parametrize(
    "name", ["channels", "no classes", "palette", "values to no class", "range turned round"]
)
def test_mistaken_argument_is_told_at_once(tmp_path, name):
    _, changes, told = MISTAKES[name]
    with pytest.raises(SegjaxError, match=told):
        folder(tmp_path, **changes)


def test_thirty_kinds_have_messages_of_their_own(tmp_path):
    """Told apart by their words alone: without paths, names, numbers and the length of lists."""
    told_apart = set()
    for i, (spoil, changes, _) in enumerate(MISTAKES.values()):
        root = tmp_path / str(i)
        add_pair(root, "a")
        add_pair(root, "b")
        spoil(root)
        with pytest.raises(SegjaxError) as caught:
            list(folder(root, **changes))
        names_a_file = re.search(rf"{root}/\w", str(caught.value))
        assert names_a_file or spoil is nothing
        if names_a_file:
            text = re.sub(rf"{root}\S*|'.*?'|\w+(\.png|/)|and \d+ more|inf", "", str(caught.value))
            told_apart.add(frozenset(re.findall(r"[^\W\d]+", text)))
    assert len(told_apart) >= 30, len(told_apart)
