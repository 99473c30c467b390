import numpy as np
import pytest
from PIL import Image

from segjax.errors import SegjaxError
from segjax.evaluation.visualise import colourise, mosaic, overlay, preview_sheet, save_mask

PALETTE = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
VOID = [224, 224, 192]
LABEL = np.array([[0, 1, 2], [255, 1, 2]], np.uint8)


def picture(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_colourise_gives_each_class_its_colour_and_void_that_of_voc():
    expected = [[[0, 0, 0], [128, 0, 0], [0, 128, 0]], [VOID, [128, 0, 0], [0, 128, 0]]]
    colours = colourise(LABEL.astype(np.int32), PALETTE)
    assert colours.dtype == np.uint8
    np.testing.assert_array_equal(colours, expected)


@pytest.mark.parametrize(
    ("label", "palette", "text"),
    [
        (LABEL[0], PALETTE, r"expected integers \(H, W\), got uint8 \(3,\)"),
        (LABEL / 1.0, PALETTE, "expected integers .* got float64"),
        (np.array([[0, 3]]), PALETTE, "classes 0 to 2, or 255 for void, got 3"),
        (np.array([[0, -1]]), PALETTE, "got -1"),
        (np.array([[0, 256]]), PALETTE, "got 256"),
        (LABEL, PALETTE[:, :2], r"expected \(N, 3\) with N of 1 to 255, got \(3, 2\)"),
        (LABEL, np.zeros((256, 3), np.uint8), r"got \(256, 3\)"),
        (LABEL, PALETTE / 255, "expected integers from 0 to 255, got float64"),
    ],
)
def test_malformed_labels_and_palettes_are_told(label, palette, text):
    with pytest.raises(SegjaxError, match=text):
        colourise(label, palette)


def test_overlay_of_opacity_0_is_the_picture_and_of_1_the_colours():
    image = picture(2, 3)
    np.testing.assert_array_equal(overlay(image, LABEL, PALETTE, opacity=0), image)
    opaque = overlay(image, LABEL, PALETTE, opacity=1)
    classes = LABEL != 255
    np.testing.assert_array_equal(opaque[classes], colourise(LABEL, PALETTE)[classes])
    np.testing.assert_array_equal(opaque[~classes], image[~classes])


def test_overlay_mixes_and_is_stronger_at_a_border():
    image, label = np.full((1, 4, 3), 100, np.uint8), np.array([[1, 1, 2, 2]])
    red = overlay(image, label, PALETTE, opacity=0.5)[0, :, 0]
    # 100 + o (128 - 100) with o = 1/2, at the border 3/4; then 100 - o 100
    np.testing.assert_array_equal(red, [114, 121, 50, 50])


def test_overlay_takes_grey_and_rgba():
    grey, rgba = picture(2, 3, 1), picture(2, 3, 4)
    for image, rgb in [(grey, np.concatenate([grey] * 3, -1)), (rgba, rgba[..., :3])]:
        np.testing.assert_array_equal(overlay(image, LABEL, PALETTE), overlay(rgb, LABEL, PALETTE))


def test_overlay_takes_floats_and_any_number_of_channels():
    five = picture(2, 3, 5)
    for image, rgb in [
        (five, five[..., :3]),
        (five[..., :2], np.repeat(five[..., :1], 3, -1)),
        (five[..., :3].astype(np.float32) + np.float32(0.3), five[..., :3]),
    ]:
        np.testing.assert_array_equal(overlay(image, LABEL, PALETTE), overlay(rgb, LABEL, PALETTE))


@pytest.mark.parametrize(
    ("image", "opacity", "text"),
    [
        (picture(3, 3), 0.5, r"same height and width, got \(3, 3\) and \(2, 3\)"),
        (picture(2, 4), 0.5, r"got \(2, 4\) and \(2, 3\)"),
        (picture(2, 3).astype(np.int16), 0.5, r"float32 \(H, W, C\), got int16 \(2, 3, 3\)"),
        (picture(2, 3)[..., 0], 0.5, r"got uint8 \(2, 3\)"),
        (picture(2, 3) / 255, 0.5, "expected uint8 .* got float64"),
        (picture(2, 3), 1.5, r"a number in \[0, 1\], got 1.5"),
    ],
)
def test_malformed_overlays_are_told(image, opacity, text):
    with pytest.raises(SegjaxError, match=text):
        overlay(image, LABEL, PALETTE, opacity=opacity)


def test_mask_keeps_indices_and_colours(tmp_path):
    save_mask(tmp_path / "mask.png", LABEL, PALETTE)
    with Image.open(tmp_path / "mask.png") as mask:
        assert (mask.format, mask.mode) == ("PNG", "P")
        np.testing.assert_array_equal(np.asarray(mask), LABEL)
        np.testing.assert_array_equal(mask.convert("RGB"), colourise(LABEL, PALETTE))


def sheet(*rows):
    return np.asarray(preview_sheet(rows, ["ground", "tree", "house"], PALETTE))


def count(pixels, colour):
    return int((pixels == colour).all(-1).sum())


def test_sheet_enlarges_small_pictures_by_a_whole_factor():
    label = np.array([[1, 2], [2, 2], [2, 2]])  # 3 high: 320 // 3 = 106 times
    image = np.full((3, 2, 3), (10, 20, 30), np.uint8)
    pixels = sheet((image, label, label))
    assert count(pixels, (10, 20, 30)) == 6 * 106**2
    assert 2 * 106**2 < count(pixels, (128, 0, 0)) < 2 * 106**2 + 20**2  # and a swatch
    gap = 12
    assert pixels.shape[1] == 3 * (212 + gap) + gap


def test_sheet_reduces_large_pictures():
    label = np.full((400, 640), 1)
    image = np.full((400, 640, 3), (10, 20, 30), np.uint8)
    assert count(sheet((image, label, label)), (10, 20, 30)) == 320 * 200


def test_sheet_has_rows_of_their_own_height_and_one_width_for_all_cells():
    wide, tall = np.zeros((100, 320), int), np.zeros((320, 100), int)
    one = sheet((picture(100, 320), wide, wide))
    two = sheet((picture(100, 320), wide, wide), (picture(320, 100, 1), None, tall))
    assert two.shape == (one.shape[0] + 320 + 12, one.shape[1], 3)


def test_sheet_without_truth_has_two_columns():
    label = np.zeros((160, 160), int)
    three, two = sheet((picture(160, 160), label, label)), sheet((picture(160, 160), None, label))
    assert three.shape[1] - two.shape[1] == 320 + 12


def test_mosaic_sets_pictures_of_any_sizes_in_rows_and_columns():
    pictures = [np.full((h, w, 3), 10 * h, np.uint8) for h, w in ((4, 6), (5, 2), (3, 3), (2, 4))]
    sheet = np.asarray(mosaic([pictures[:2], pictures[2:]]))
    assert sheet.shape == (8 + 2 * (5 + 8), 8 + (6 + 8) + (4 + 8), 3)
    places = [(8, 8), (8, 22), (21, 8), (21, 22)]
    for (top, left), picture in zip(places, pictures, strict=True):
        h, w, _ = picture.shape
        np.testing.assert_array_equal(sheet[top : top + h, left : left + w], picture)
        sheet = sheet.copy()
        sheet[top : top + h, left : left + w] = 255
    assert (sheet == 255).all()


def test_legend_names_what_occurs_and_grows_with_it():
    image = np.full((1, 1, 3), 255, np.uint8)
    label = np.array([[0]])
    plain = sheet((image, label, label))
    with_void = sheet((image, np.array([[255]]), label))
    assert count(plain, VOID) == 0
    assert count(with_void, VOID) > 320**2
    names = [f"a rather long name of class {i}" for i in range(200)]
    palette = np.tile(np.arange(200, dtype=np.uint8)[:, None], 3)
    many = np.arange(200).reshape(10, 20)
    long = preview_sheet([(picture(10, 20), None, many)], names, palette)
    assert long.height > 200 // 3 * 24


def test_malformed_sheets_are_told():
    label = np.zeros((2, 3), int)
    with pytest.raises(SegjaxError, match="at least one row"):
        preview_sheet([], ["ground"], PALETTE[:1])
    with pytest.raises(SegjaxError, match="1 names and 3 colours"):
        preview_sheet([(picture(2, 3), None, label)], ["ground"], PALETTE)
    with pytest.raises(SegjaxError, match="same height and width"):
        sheet((picture(2, 4), None, label))
