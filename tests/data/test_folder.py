"""Pairs of pictures and masks: every mode and layout is read exactly, every mistake is told."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from segjax.data.folder import Folder, read_mask, read_picture
from segjax.data.labels import CAMVID_CLASSES, CAMVID_PALETTE, voc_palette
from segjax.errors import SegjaxError

CLASSES = ("background", "cat", "dog")
GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
RGB = np.stack([GREY, 255 - GREY, GREY // 2], -1)
RGBA = np.concatenate([RGB, GREY[..., None]], -1)
LABEL = np.array([[0, 1, 2, 255, 0], [2, 2, 1, 0, 255]], np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def add_pair(root, stem, subfolder=".", fill=0):
    image = np.full((2, 5, 3), fill, np.uint8)
    save(root / "images" / subfolder / f"{stem}.png", image)
    save(root / "masks" / subfolder / f"{stem}.png", LABEL)


def folder(root, /, **changes):
    return Folder(**{"root": root, "classes": CLASSES, "palette": voc_palette(3)} | changes)


def palette_image(indices):
    image = Image.fromarray(indices)
    image.putpalette([value for colour in voc_palette(256) for value in colour])
    return image


# Palettes


def test_palettes():
    voc = voc_palette(256)
    assert voc[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert voc[15] == (192, 128, 128)  # person
    assert voc[255] == (224, 224, 192)  # void
    assert len(set(voc)) == 256
    assert len(CAMVID_PALETTE) == len(CAMVID_CLASSES) == len(set(CAMVID_PALETTE)) == 11


# Pictures


def palette_colours(indices):
    return np.array(voc_palette(256), np.uint8)[indices]


# what is stored -> what is read as RGB
PICTURES = {
    "grey": (Image.fromarray(GREY), {}, np.stack([GREY] * 3, -1)),
    "grey+alpha": (Image.fromarray(RGBA[..., [0, 3]]), {}, np.stack([GREY] * 3, -1)),
    "RGB": (Image.fromarray(RGB), {}, RGB),
    "RGB, one colour transparent": (Image.fromarray(RGB), {"transparency": (0, 255, 0)}, RGB),
    "RGBA": (Image.fromarray(RGBA), {}, RGB),
    "palette": (palette_image(GREY), {}, palette_colours(GREY)),
    "palette+alpha": (
        palette_image(GREY),
        {"transparency": bytes(range(256))},
        palette_colours(GREY),
    ),
    "bilevel": (Image.fromarray(GREY > 99), {}, np.stack([(GREY > 99) * 255] * 3, -1)),
    "16 bits": (Image.fromarray(GREY.astype(np.uint16) * 257), {}, np.stack([GREY] * 3, -1)),
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", PICTURES)
def test_read_picture_of_every_mode(tmp_path, name, channels):
    image, options, expected = PICTURES[name]
    picture = read_picture(save(tmp_path / "a.png", image, **options), channels)
    assert picture.shape == (4, 6, channels)
    assert picture.dtype == np.uint8
    assert picture.flags.writeable
    if channels == 1:
        grey = expected @ [0.299, 0.587, 0.114]  # ITU-R 601, as Pillow's convert("L")
        np.testing.assert_allclose(picture[..., 0], grey, atol=1)
    else:
        np.testing.assert_array_equal(picture[..., :3], expected)


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("RGB", np.full_like(GREY, 255)),
        ("RGB, one colour transparent", (GREY > 0) * 255),
        ("RGBA", GREY),
        ("grey+alpha", GREY),
        ("palette+alpha", GREY),
        ("16 bits", np.full_like(GREY, 255)),
    ],
)
def test_read_picture_alpha(tmp_path, name, alpha):
    image, options, _ = PICTURES[name]
    picture = read_picture(save(tmp_path / "a.png", image, **options), 4)
    np.testing.assert_array_equal(picture[..., 3], alpha)


def test_read_picture_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (6, 4), (255, 0, 0, 0)), quality=100)
    np.testing.assert_allclose(read_picture(path, 3)[0, 0], (0, 255, 255), atol=3)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])  # modes I;16, I;16 and I
def test_read_picture_scales_16_bits_to_the_full_range(tmp_path, suffix):
    stored = np.array([[0, 128, 129, 300], [32767, 32768, 65406, 65535]], np.uint16)
    path = save(tmp_path / f"a.{suffix}", stored)
    expected = [[0, 0, 1, 1], [127, 128, 254, 255]]
    np.testing.assert_array_equal(read_picture(path, 1)[..., 0], expected)


def test_read_picture_leaves_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90°
    assert read_picture(save(tmp_path / "a.jpg", RGB, exif=exif), 3).shape == (4, 6, 3)


# Masks

FEW = np.array([[0, 1, 2], [3, 2, 0]], np.uint8)
MASKS = {
    "grey": (Image.fromarray(LABEL), "png", {}, LABEL),
    "palette": (palette_image(LABEL), "png", {}, LABEL),
    "transparent palette": (palette_image(LABEL), "png", {"transparency": 0}, LABEL),
    "palette of 4 bits": (palette_image(FEW), "png", {"bits": 4}, FEW),
    "grey of 2 bits": (Image.fromarray(FEW), "png", {"bits": 2}, FEW),
    "grey of 4 bits": (Image.fromarray(FEW), "png", {"bits": 4}, FEW),
    "16 bits": (Image.fromarray(LABEL.astype(np.uint16)), "png", {}, LABEL),
    "16 bits, tif": (Image.fromarray(LABEL.astype(np.uint16)), "tif", {}, LABEL),
    "32 bits": (Image.fromarray(LABEL.astype(np.int32)), "tif", {}, LABEL),
    "bilevel": (Image.fromarray(FEW > 1), "png", {}, FEW > 1),
    "bmp": (Image.fromarray(LABEL), "bmp", {}, LABEL),
}


@pytest.mark.parametrize("name", MASKS)
def test_read_mask_is_exact(tmp_path, name):
    image, suffix, options, expected = MASKS[name]
    mask = read_mask(save(tmp_path / f"a.{suffix}", image, **options), 4)
    np.testing.assert_array_equal(mask, expected)
    assert mask.dtype == np.uint8
    assert mask.flags.writeable


@pytest.mark.parametrize(
    ("num_classes", "values", "stored", "expected"),
    [
        (2, ((255, 1),), [0, 255, 1], [0, 1, 1]),
        (2, ((255, 255),), [0, 255, 0], [0, 255, 0]),
        (11, ((11, 255),), [10, 11, 255], [10, 255, 255]),
        (3, ((0, 255), (1, 0), (2, 1)), [0, 1, 2], [255, 0, 1]),  # at once, not in turn
        (3, ((1000, 2), (40000, 255)), [0, 1000, 40000], [0, 2, 255]),
        (255, (), [0, 254, 255], [0, 254, 255]),
        (3, (), [0, 255, 0], [0, 255, 0]),
    ],
)
def test_read_mask_values(tmp_path, num_classes, values, stored, expected):
    dtype = np.uint8 if max(stored) < 256 else np.uint16
    path = save(tmp_path / "a.png", np.array([stored], dtype))
    np.testing.assert_array_equal(read_mask(path, num_classes, values), [expected])


# Folders


def test_folder_example(tmp_path):
    save(tmp_path / "images" / "a.png", RGB[:2, :5])
    save(tmp_path / "masks" / "a.png", palette_image(LABEL))
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


# Mistakes: what is done to a good folder of a.png and b.png, what is asked, what the error tells


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
        r"no pictures.*Choose split= .*images \(train\).* \(train\)",
    ),
    "pictures alone": (
        add_pictures(7),
        {},
        r"images: 7 of 9 pictures have no mask .*masks: x0.png, .*x4.png and 2 more\. Add",
    ),
    "masks alone": (
        remove("images/b.png"),
        {},
        r"masks: 1 of 2 masks have no picture .*images: b.png\. Add",
    ),
    "one stem twice": (
        store("images/a.jpg", RGB),
        {},
        r"images: a.jpg and a.png have one stem, 'a'.*Rename",
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
    "no picture": (
        lambda root: (root / "images" / "a.png").write_text("text"),
        {},
        r"a.png: not a picture that Pillow can open\. Convert it",
    ),
    "float picture": (
        lambda root: (
            remove("images/a.png")(root),
            store("images/a.tif", LABEL.astype(np.float32))(root),
        ),
        {},
        r"a.tif: a float picture \(values 0.0 to 255.0\).*Scale it",
    ),
    "32-bit picture": (
        lambda root: (
            remove("images/a.png")(root),
            store("images/a.tif", LABEL.astype(np.int32) * 1000)(root),
        ),
        {},
        r"a.tif: integers from 0 to 255000, .*Save it as 8- or 16-bit PNG",
    ),
    "RGB mask": (
        store("masks/a.png", RGB[:2, :5]),
        {},
        r"^[^:]*a.png: a colour picture \(mode RGB\) where class .*Save the mask as palette",
    ),
    "RGBA mask": (store("masks/a.png", RGBA[:2, :5]), {}, r"a.png: a colour picture \(mode RGBA"),
    "LA mask": (
        store("masks/a.png", Image.fromarray(RGBA[:2, :5, [0, 3]])),
        {},
        r"a.png: a colour picture \(mode LA\)",
    ),
    "float mask": (
        lambda root: (
            remove("masks/a.png")(root),
            store("masks/a.tif", LABEL.astype(np.float32))(root),
        ),
        {},
        r"a.tif: a float picture \(mode F\)",
    ),
    "values outside": (
        nothing,
        {"classes": ("one",), "palette": voc_palette(1)},
        r"a.png: mask values 1 \(2 pixels\), 2 \(3 pixels\) .*0\.\.0, .*`values`: \(\(1, 255\),\)",
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
    "channels": (nothing, {"channels": 2}, r"channels=2: expected 1 .*3 .*4"),
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
        r"1 of 2 pictures have no mask .*: b.png",
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


@pytest.mark.parametrize("name", ["channels", "no classes", "palette", "values to no class"])
def test_mistaken_argument_is_told_at_once(tmp_path, name):
    _, changes, told = MISTAKES[name]
    with pytest.raises(SegjaxError, match=told):
        folder(tmp_path, **changes)


def test_read_picture_channels(tmp_path):
    with pytest.raises(SegjaxError, match="channels=5: expected 1"):
        read_picture(tmp_path / "a.png", 5)


def test_missing_file_is_told(tmp_path):
    with pytest.raises(SegjaxError, match=r"a.png: cannot be read.*No such file"):
        read_mask(tmp_path / "a.png", 3)
