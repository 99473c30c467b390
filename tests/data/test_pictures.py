"""Picture and mask files of every mode are read exactly, by stated ranges too, or not at all."""

from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
from PIL import Image

from segjax.data import pictures
from segjax.data.labels import voc_palette
from segjax.data.pictures import (
    mask_size,
    picture_size,
    read_instances,
    read_mask,
    read_picture,
)
from segjax.errors import SegjaxError

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
RGB = np.stack([GREY, 255 - GREY, GREY // 2], -1)
RGBA = np.concatenate([RGB, GREY[..., None]], -1)
LABEL = np.array([[0, 1, 2, 255, 0], [2, 2, 1, 0, 255]], np.uint8)


def save(path, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def palette_image(indices):
    image = Image.fromarray(indices)
    image.putpalette([value for colour in voc_palette(256) for value in colour])
    return image


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
}


JPEGS = [
    {"quality": quality, "subsampling": subsampling, **more}
    for quality in (5, 85, 100)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0")
    for more in ({}, {"progressive": True}, {"restart_marker_rows": 1})
] + [{"keep_rgb": True, "subsampling": "4:4:4"}]


def test_a_jpeg_is_the_same_whatever_decodes_it(tmp_path, monkeypatch):
    simplejpeg = pytest.importorskip("simplejpeg")
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (17, 40), (37, 53)):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        stored = [save(tmp_path / f"{i}.jpg", pixels, **how) for i, how in enumerate(JPEGS)]
        stored.append(save(tmp_path / "grey.jpg", pixels[..., 0]))
        for chroma in ("440", "411"):
            stored.append(tmp_path / f"{chroma}.jpg")
            stored[-1].write_bytes(simplejpeg.encode_jpeg(pixels, colorsubsampling=chroma))
        for path in stored:
            channels = 1 if path.stem == "grey" else 3
            with monkeypatch.context() as patch, Image.open(path) as image:
                assert pictures._decoded(image) is not None
                got = read_picture(path, channels)
                patch.setattr(pictures, "simplejpeg", None)
                np.testing.assert_array_equal(got, read_picture(path, channels))
            assert got.flags.writeable


def test_a_jpeg_with_a_flaw_is_what_pillow_makes_of_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    path = save(tmp_path / "a.jpg", pixels)
    data = path.read_bytes()
    path.write_bytes(data[:1500] + bytes(range(5)) + data[1500:])  # libjpeg warns, and goes on
    with Image.open(path) as image:
        assert pictures._decoded(image) is None
        np.testing.assert_array_equal(read_picture(path), np.asarray(image))


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
    ],
)
def test_read_picture_alpha(tmp_path, name, alpha):
    image, options, _ = PICTURES[name]
    picture = read_picture(save(tmp_path / "a.png", image, **options), 4)
    np.testing.assert_array_equal(picture[..., 3], alpha)


def test_read_picture_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (6, 4), (255, 0, 0, 0)), quality=100)
    np.testing.assert_allclose(read_picture(path, 3)[0, 0], (0, 255, 255), atol=3)


TWELVE = np.arange(24).reshape(4, 6) * 178  # 0..4094
DEEP = {
    "grey PNG": ("a.png", TWELVE, lambda p, x: save(p, x.astype(np.uint16))),
    "grey PGM": ("a.pgm", TWELVE, lambda p, x: save(p, x.astype(np.uint16))),
    "grey TIFF": ("a.tif", TWELVE, lambda p, x: tiff(p, x.astype(np.uint16))),
    "signed TIFF": ("a.tif", TWELVE, lambda p, x: tiff(p, x.astype(np.int16))),
    "32-bit TIFF": ("a.tif", TWELVE, lambda p, x: tiff(p, x.astype(np.uint32))),
    "float TIFF": ("a.tif", TWELVE, lambda p, x: tiff(p, x.astype(np.float32))),
    "RGB TIFF": (
        "a.tif",
        np.stack([TWELVE] * 3, -1),
        lambda p, x: tiff(p, x.astype(np.uint16), photometric="rgb", compression="zlib"),
    ),
    "RGB TIFF of planes": (
        "a.tif",
        np.stack([TWELVE] * 3),
        lambda p, x: tiff(p, x.astype(np.uint16), photometric="rgb", planarconfig="separate"),
    ),
    "RGBA TIFF": (
        "a.tif",
        np.stack([TWELVE] * 4, -1),
        lambda p, x: tiff(p, x.astype(np.uint16), photometric="rgb", extrasamples=["unassalpha"]),
    ),
}


@pytest.mark.parametrize("name", DEEP)
def test_what_8_bits_do_not_hold_is_refused_without_ranges(tmp_path, name):
    file, pixels, write = DEEP[name]
    path = write(tmp_path / file, pixels)
    told = r"a\.\w+: a (16-bit|32-bit|float) picture \(values 0(\.0)? to 4094(\.0)?\), .*`ranges`"
    for read in (read_picture, picture_size):
        with pytest.raises(SegjaxError, match=told):
            read(path)
    channels = pixels.size // TWELVE.size
    read = read_picture(path, channels, ((0, 4094),))
    np.testing.assert_allclose(read, np.stack([TWELVE * (255 / 4094)] * channels, -1), rtol=1e-6)


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
        (2, (), [255, 255, 255], [255, 255, 255]),
    ],
)
def test_read_mask_values(tmp_path, num_classes, values, stored, expected):
    dtype = np.uint8 if max(stored) < 256 else np.uint16
    path = save(tmp_path / "a.png", np.array([stored], dtype))
    np.testing.assert_array_equal(read_mask(path, num_classes, values), [expected])


def test_instances_are_read_as_stored(tmp_path):
    numbers = np.array([[0, 1, 255], [256, 65535, 0]], np.uint16)
    for suffix in ("png", "tif"):
        read = read_instances(save(tmp_path / f"a.{suffix}", numbers))
        np.testing.assert_array_equal(read, numbers)
        assert read.dtype == np.uint16
        assert read.flags.writeable


# Pictures by stated ranges

FIVE = np.arange(5 * 4 * 6, dtype=np.uint16).reshape(4, 6, 5) * 500
FLOAT = np.linspace(-2, 3, 24, dtype=np.float32).reshape(4, 6)
SIGNED = np.arange(-12, 12, dtype=np.int16).reshape(4, 6)


def tiff(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "minisblack", "planarconfig": "contig"},
        {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"},
        {"photometric": "minisblack"},  # tifffile then takes the last axis for the width
    ],
    ids=["contiguous", "compressed", "unstated"],
)
def test_a_tiff_of_many_channels(tmp_path, options):
    path = tiff(tmp_path / "a.tif", FIVE, **options)
    read = read_picture(path, 5, ((0, 60000),))
    np.testing.assert_allclose(read, FIVE / 60000 * 255, rtol=1e-6)
    assert read.dtype == np.float32
    assert read.flags.writeable
    assert picture_size(path, 5, ((0, 60000),)) == (4, 6)


@pytest.mark.parametrize("planarconfig", ["separate", None])
def test_a_tiff_with_its_channels_first(tmp_path, planarconfig):
    options = {"planarconfig": planarconfig} if planarconfig else {}
    first = np.moveaxis(FIVE, -1, 0)
    path = tiff(tmp_path / "a.tiff", first, photometric="minisblack", **options)
    np.testing.assert_allclose(read_picture(path, 5, ((0, 60000),)), FIVE / 60000 * 255, rtol=1e-6)
    assert picture_size(path, 5, ((0, 60000),)) == (4, 6)


def test_each_channel_has_its_range(tmp_path):
    pixels = np.stack([FLOAT, 100 * FLOAT], -1)
    path = tiff(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    read = read_picture(path, 2, ((-2, 3), (-300, 700)))
    np.testing.assert_allclose(read[..., 0], (FLOAT + 2) * 51, atol=1e-4)
    np.testing.assert_allclose(read[..., 1], (100 * FLOAT + 300) * 0.255, atol=1e-4)


@pytest.mark.parametrize(
    ("suffix", "pixels", "ranges"),
    [
        ("tif", FLOAT, (-2, 3)),
        ("tif", SIGNED, (-12, 11)),
        ("tif", FLOAT.astype(np.float64), (-2, 3)),
        ("png", GREY.astype(np.uint16) * 257, (0, 65535)),
        ("png", GREY, (0, 255)),
    ],
    ids=["float", "signed", "double", "16-bit PNG", "8-bit PNG"],
)
def test_one_channel_of_any_kind(tmp_path, suffix, pixels, ranges):
    path = tmp_path / f"a.{suffix}"
    (tiff if suffix == "tif" else save)(path, pixels)
    low, high = ranges
    expected = (pixels.astype(np.float64) - low) / (high - low) * 255
    read = read_picture(path, 1, (ranges,))
    np.testing.assert_allclose(read[..., 0], expected, rtol=1e-6, atol=1e-4)
    assert 0 <= read.min() <= read.max() <= 255


@pytest.mark.skipif(bool(find_spec("imagecodecs")), reason="imagecodecs reads it")
def test_compression_that_needs_another_package_is_told(tmp_path):
    path = save(tmp_path / "a.tif", FLOAT, compression="tiff_lzw")
    with pytest.raises(SegjaxError, match=r"a.tif: cannot be decoded: .*pip install imagecodecs"):
        read_picture(path, 1, ((-2, 3),))


def test_pages_of_a_stack(tmp_path):
    volume = np.stack([GREY, GREY // 2, GREY // 3])
    path = tiff(tmp_path / "a.tif", volume, photometric="minisblack")
    for page in range(3):
        np.testing.assert_array_equal(read_picture(path, 1, (), page)[..., 0], volume[page])
        np.testing.assert_array_equal(read_mask(path, 255, (), page), volume[page])
        scaled = read_picture(path, 1, ((0, 255),), page)
        np.testing.assert_allclose(scaled[..., 0], volume[page], rtol=1e-6)
    assert picture_size(path, 1, ((0, 255),), 1) == mask_size(path, 1) == (4, 6)


def test_read_picture_channels(tmp_path):
    with pytest.raises(SegjaxError, match="channels=5: expected 1"):
        read_picture(tmp_path / "a.png", 5)


def test_missing_file_is_told(tmp_path):
    with pytest.raises(SegjaxError, match=r"a.png: cannot be read.*No such file"):
        read_mask(tmp_path / "a.png", 3)


COLOURS = (((0, 0, 0), 0), ((255, 0, 0), 1), ((9, 8, 7), 255))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_classes(mode, tmp_path):
    pixels = np.array([[(0, 0, 0), (255, 0, 0), (9, 8, 7)]], np.uint8)
    picture = Image.fromarray(pixels)
    picture = picture.quantize(3) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / "a.png")

    label = read_mask(tmp_path / "a.png", 2, colours=COLOURS)

    assert label.dtype == np.uint8 and label.tolist() == [[0, 1, 255]]


def test_colours_read_grey_and_bilevel_masks_by_what_they_look_like(tmp_path):
    table = (((0, 0, 0), 0), ((255, 255, 255), 1))
    for name, dtype in (("L", np.uint8), ("1", bool)):
        Image.fromarray(np.array([[0, 1]], dtype) * dtype(255)).save(tmp_path / f"{name}.png")
        assert read_mask(tmp_path / f"{name}.png", 2, colours=table).tolist() == [[0, 1]]


def test_unknown_colours_are_told_commonest_first(tmp_path):
    pixels = np.zeros((3, 4, 3), np.uint8)
    pixels[0, :3], pixels[1, 0] = (1, 2, 3), (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(
        SegjaxError,
        match=r"a.png: mask colours .* \(1, 2, 3\) \(3 pixels\), \(0, 255, 0\) \(1 pixels\) are in "
        r"no class, 4 of 12 pixels.*`colours`",
    ) as told:
        read_mask(tmp_path / "a.png", 2, colours=COLOURS)
    assert "smooth edges" not in str(told.value)


def test_many_unknown_colours_are_told_to_be_smooth_edges(tmp_path):
    reds = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    Image.fromarray(np.pad(reds, ((0, 0), (0, 0), (0, 2)))).save(tmp_path / "a.png")
    with pytest.raises(SegjaxError, match="254 colours in one mask are the blends of smooth edges"):
        read_mask(tmp_path / "a.png", 2, colours=COLOURS)


def test_transparent_pixels_of_colour_masks_are_refused(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    with pytest.raises(SegjaxError, match="16 of 16 pixels of this mask are transparent"):
        read_mask(tmp_path / "a.png", 2, colours=COLOURS)


def test_colours_of_a_jpeg_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(SegjaxError, match="a JPEG, which changes class indices"):
        read_mask(tmp_path / "a.jpg", 2, colours=COLOURS)


def test_colours_of_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(SegjaxError, match="16 bits where colours of 8 bits are expected"):
        read_mask(tmp_path / "a.png", 2, colours=COLOURS)


@pytest.mark.parametrize(
    "colours, told",
    [
        ((((0, 0, 0), 2),), r"cannot map \(0, 0, 0\) to 2.*class 0..1"),
        ((((0, 0, 0), 0), ((0, 0, 0), 1)), r"cannot map \(0, 0, 0\) to 1.*each colour once"),
        ((((0, 0), 0),), "expected pairs of a colour and its class"),
        ((((0, 0, 256), 0),), r"each part of a colour 0\.\.255"),
    ],
)
def test_tables_of_colours_are_checked(colours, told, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(SegjaxError, match=told):
        read_mask(tmp_path / "a.png", 2, colours=colours)
