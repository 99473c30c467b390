import numpy as np
import pytest
from PIL import Image

from segjax.data.labels import CAMVID_PALETTE, voc_palette
from segjax.errors import SegjaxError
from segjax.evaluation.visualise import (
    VOID_COLOUR,
    WRONG_COLOUR,
    Row,
    augmentation_sheet,
    colourise,
    errors,
    overlay,
    preview_sheet,
    save_mask,
    with_legend,
)

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
    classes = (LABEL != 255) & (LABEL != 0)  # class 0 is black
    np.testing.assert_array_equal(opaque[classes], colourise(LABEL, PALETTE)[classes])
    np.testing.assert_array_equal(opaque[~classes], image[~classes])


def test_overlay_mixes_and_is_stronger_along_outlines():
    image, label = np.full((1, 6, 3), 100, np.uint8), np.array([[1, 1, 1, 2, 2, 0]])
    red = overlay(image, label, PALETTE, opacity=0.5)[0, :, 0]
    # 100 + o (128 - 100) with o = 1/2, at the outline 7/8; then 100 - o 100; the background
    np.testing.assert_array_equal(red, [114, 114, 124, 12, 12, 100])


def test_a_black_class_hides_nothing_and_another_class_0_is_laid():
    """VOC's background is black; CamVid's class 0 is the sky."""
    image, label = picture(5, 5), np.zeros((5, 5), np.uint8)
    label[1:4, 1:4] = 1
    laid = overlay(image, label, voc_palette(21))
    np.testing.assert_array_equal(laid[label == 0], image[label == 0])
    assert (laid[label == 1] != image[label == 1]).any(-1).all()
    laid = overlay(image, label, CAMVID_PALETTE)
    assert (laid[label == 0] != image[label == 0]).any(-1).all()


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


NAMES = ["ground", "tree", "house"]


def sheet(*rows):
    return np.asarray(preview_sheet([Row(*row) for row in rows], NAMES, PALETTE))


def count(pixels, colour):
    return int((pixels == colour).all(-1).sum())


def test_sheet_enlarges_small_pictures_by_a_whole_factor():
    label = np.array([[1, 2], [2, 2], [2, 2]])  # 3 high: 320 // 3 = 106 times
    image = np.full((3, 2, 3), (10, 20, 30), np.uint8)
    pixels = sheet((image, label, label))
    assert count(pixels, (85, 170, 255)) == 6 * 106**2  # brightened
    assert 2 * 106**2 < count(pixels, (128, 0, 0)) < 2 * 106**2 + 20**2  # and a swatch
    gap = 12
    assert pixels.shape[1] == 4 * (212 + gap) + gap


def test_sheet_brightens_dark_pictures_alone():
    label = np.full((160, 160), 1)
    for brightest, told in ((50, 153), (255, 30)):
        image = np.full((160, 160, 3), 30, np.uint8)
        image[:, :80] = brightest
        pixels = sheet((image, label, label))
        assert 0 <= count(pixels, (told,) * 3) - 160 * 320 < 20  # and some of a letter's edge
    assert sheet((np.zeros((160, 160, 3), np.uint8), label, label)).any()  # all black


def test_sheet_reduces_large_pictures():
    label = np.full((400, 640), 1)
    image = np.full((400, 640, 3), (10, 20, 30), np.uint8)
    assert count(sheet((image, label, label)), (85, 170, 255)) == 320 * 200


def test_sheet_has_rows_of_their_own_height_and_one_width_for_all_cells():
    wide, tall = np.zeros((100, 320), int), np.zeros((320, 100), int)
    one = sheet((picture(100, 320), wide, wide))
    two = sheet((picture(100, 320), wide, wide), (picture(320, 100, 1), None, tall))
    assert two.shape == (one.shape[0] + 320 + 12, one.shape[1], 3)


def test_sheet_without_truth_has_two_columns():
    label = np.zeros((160, 160), int)
    four, two = sheet((picture(160, 160), label, label)), sheet((picture(160, 160), None, label))
    assert four.shape[1] - two.shape[1] == 2 * (320 + 12)


def test_errors_are_marked_where_the_truth_is_not_void():
    truth, prediction = np.array([[0, 1, 255, 2]]), np.array([[0, 2, 1, 2]])
    image = np.array([[[0] * 3, [9] * 3, [9] * 3, [255] * 3]], np.uint8)
    marked = errors(image, truth, prediction)[0].tolist()
    assert marked == [[64] * 3, list(WRONG_COLOUR), list(VOID_COLOUR), [191] * 3]


def test_sheet_has_a_column_of_errors_and_void_in_the_prediction():
    image, truth = np.full((160, 160, 3), 10, np.uint8), np.zeros((160, 160), int)
    truth[:80], prediction = 255, truth.copy()
    prediction[:80] = 1  # nobody knows whether that is wrong
    right = sheet((image, truth, prediction))
    half = 160 * 320
    assert count(right, (128, 0, 0)) == 0
    assert 3 * half < count(right, VOID) < 3 * half + 20**2  # truth, prediction, errors
    assert count(right, WRONG_COLOUR) < 20**2  # the legend's alone
    prediction[80:] = 1
    assert count(sheet((image, truth, prediction)), WRONG_COLOUR) > half


def test_sheet_has_a_caption_over_each_row():
    label = np.zeros((160, 160), int)
    rows = [Row(picture(160, 160), label, label, caption) for caption in ("", "2007_32  IoU 0.7")]
    plain, told = (
        np.asarray(preview_sheet(chosen, NAMES, PALETTE)) for chosen in (rows[:1], rows[1:])
    )
    assert told.shape[0] == plain.shape[0] + 24
    assert (told[36:60] < 128).any() and (plain[:, :, 0] < 128).any()
    wide = preview_sheet([rows[0]._replace(caption="name " * 80)], NAMES, PALETTE)
    assert wide.width > told.shape[1]  # a long one is not cut


def test_augmentation_sheet_sets_pictures_of_any_sizes_tightly():
    """All at a height of 240, however large the picture and small its crops."""
    large = (picture(480, 720), np.ones((480, 720), int))
    crops = [(picture(120, 120), np.full((120, 120), i)) for i in (1, 2)]
    told = augmentation_sheet([("a.png", [large, *crops])] * 2, NAMES, PALETTE)
    gap, line = 12, 24
    assert told.width == gap + (360 + gap) + 2 * (240 + gap)
    assert told.height == gap + line + 2 * (line + 240 + gap) + line + gap
    pixels = np.asarray(told)
    whole = Image.fromarray(overlay(*large, PALETTE)).resize((360, 240))
    top = gap + 2 * line
    np.testing.assert_array_equal(pixels[top : top + 240, gap : gap + 360], whole)
    assert (pixels == 255).all(-1).mean() < 0.3
    swatches = pixels[-line - gap :]
    assert count(swatches, (128, 0, 0)) and count(swatches, (0, 128, 0))


def test_legend_lies_beneath_the_picture_and_names_what_is_laid():
    laid = picture(40, 300)
    label = np.zeros((40, 300), int)
    assert with_legend(laid, label, NAMES, PALETTE).size == (300, 40)  # background alone
    label[:, :10], label[:, 10:20] = 2, 255
    pixels = np.asarray(with_legend(laid, label, NAMES, PALETTE))
    np.testing.assert_array_equal(pixels[:40], laid)
    assert pixels.shape == (40 + 8 + 24, 300, 3)
    beneath = pixels[48:]
    assert count(beneath, (0, 128, 0)) > 10**2 and not count(beneath, (128, 0, 0))
    assert not count(beneath, VOID) and not count(beneath, (0, 0, 0))
    narrow = np.asarray(with_legend(laid[:, :20], label[:, :20], NAMES, PALETTE))
    np.testing.assert_array_equal(narrow[:40, :20], laid[:, :20])
    assert narrow.shape[1] > 20


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
    long = preview_sheet([Row(picture(10, 20), None, many)], names, palette)
    assert long.height > 200 // 3 * 24


def test_malformed_sheets_are_told():
    label = np.zeros((2, 3), int)
    with pytest.raises(SegjaxError, match="at least one row"):
        preview_sheet([], ["ground"], PALETTE[:1])
    with pytest.raises(SegjaxError, match="1 names and 3 colours"):
        preview_sheet([Row(picture(2, 3), None, label)], ["ground"], PALETTE)
    with pytest.raises(SegjaxError, match="same height and width"):
        sheet((picture(2, 4), None, label))


def test_names_may_have_other_letters_than_latin_ones():
    """Each drawn as itself, and none as the box that stands for a missing one."""
    drawn = {
        name: with_legend(picture(9, 99), np.ones((9, 99), int), ["", name], PALETTE[:2]).tobytes()
        for name in ("×", "ß", "ж", "ω", "\uffff")
    }
    assert len(set(drawn.values())) == len(drawn)
