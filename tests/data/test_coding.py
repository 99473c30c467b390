"""What masks mean, from what they store: binary ones of any coding, classes, colours, objects."""

import numpy as np
import pytest
from PIL import Image

from segjax.data.coding import Tally, colours_of, propose, told_colours
from segjax.data.folder import Folder
from segjax.data.pictures import Codes, read_codes
from segjax.data.survey import tally_masks
from segjax.errors import SegjaxError

FOREGROUND = np.zeros((12, 12), bool)
FOREGROUND[3:7, 2:9] = True
RED, BLUE = (255, 0, 0), (0, 0, 255)


def tally(*masks):
    found = Tally()
    for mask in masks:
        found.add(Codes(np.asarray(mask, np.int32)))
    return found


def coloured(*masks):
    """Of masks (H, W, 3)."""
    found = Tally()
    for mask in masks:
        found.add(Codes(np.asarray(mask, np.int32) @ (1, 256, 65536), True))
    return found


def palette_picture():
    picture = Image.fromarray(FOREGROUND.astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 200, 10, 10])
    return picture


def grey(low, high, dtype=np.uint8):
    return Image.fromarray(np.where(FOREGROUND, high, low).astype(dtype))


BINARY = {
    "0 and 1": grey(0, 1),
    "0 and 255": grey(0, 255),
    "0 and 128": grey(0, 128),
    "1 and 2": grey(1, 2),
    "16 bits": grey(0, 65535, np.uint16),
    "bilevel": Image.fromarray(FOREGROUND),
    "palette": palette_picture(),
    "black and white": grey(0, 255).convert("RGB"),
    "black and red": Image.fromarray(np.where(FOREGROUND[..., None], RED, (0, 0, 0)).astype("u1")),
    "white and blue": Image.fromarray(
        np.where(FOREGROUND[..., None], BLUE, (255, 255, 255)).astype("u1")
    ),
    "opaque alpha": grey(0, 255).convert("RGBA"),
}


@pytest.mark.parametrize("mask", BINARY.values(), ids=list(BINARY))
def test_binary_masks_of_any_coding_are_read_as_proposed(mask, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    Image.new("L", (12, 12)).save(tmp_path / "images/a.png")
    mask.save(tmp_path / "masks/a.png")
    folder = Folder(tmp_path, ("background", "foreground"), ((0, 0, 0), (9, 9, 9)), channels=1)

    found = propose(tally_masks([folder]))

    assert found.classes == 2 and not found.instances
    read = Folder(
        folder.root, folder.classes, folder.palette, values=found.values, colours=found.colours
    )
    np.testing.assert_array_equal(read[0]["label"], FOREGROUND)


@pytest.mark.parametrize(
    "held, values, classes",
    [
        ([0, 1, 2], (), 3),
        ([0, 1, 2, 255], (), 3),
        ([0, 1, 255], (), 2),
        ([0, 1, 2, 4, 255], ((4, 3),), 4),  # 3 is missing, so the codes are taken in their order
        ([0, 85, 170, 255], ((85, 1), (170, 2), (255, 3)), 4),  # levels of grey
        ([0, 127, 255], ((127, 1), (255, 2)), 3),
        ([7, 11, 12], ((7, 0), (11, 1), (12, 2)), 3),
    ],
)
def test_values_become_classes(held, values, classes):
    found = propose(tally([held * 2], [held]))

    assert (found.values, found.classes) == (values, classes)


def test_names_that_reach_the_values_make_them_indices():
    found = propose(tally([[0, 1, 2, 4]]), names=5)

    assert (found.values, found.classes) == ((), 5)


def test_one_value_too_many_is_told_with_how_to_ignore_it():
    with pytest.raises(SegjaxError, match=r"hold 4 values .* 3 classes .*values=\(\(3, 255\),\)"):
        propose(tally([[0, 1, 2, 3]]), names=3)


def test_masks_of_one_value_teach_nothing():
    with pytest.raises(SegjaxError, match="2 masks hold nothing but the value 0"):
        propose(tally([[0, 0]], [[0]]))


def numbered(count):
    mask = np.zeros((20, 20), np.int32)
    for i in range(count):
        mask[2 * i, 1:5] = i + 1
    return mask


def test_numbers_of_objects_are_told_from_classes():
    assert propose(tally(numbered(4), numbered(9))).instances
    # The same values in several parts are classes.
    classes = [np.concatenate([numbered(n), numbered(n)], 1) for n in (4, 9)]
    assert not propose(tally(*classes)).instances
    assert not propose(tally(numbered(4), numbered(9)), names=10).instances


def test_organs_are_classes_though_each_is_one_part():
    slices = [numbered(9) * np.isin(numbered(9), some) for some in ((1, 2), (3, 4, 7), (2, 9))]
    assert propose(tally(*slices)).classes == 7 and not propose(tally(*slices)).instances
    few = [numbered(n) for n in (1, 3, 2)]
    assert propose(tally(*few)).classes == 4 and not propose(tally(*few)).instances


def test_colours_are_classes_black_first_then_by_share():
    mask = np.zeros((10, 10, 3), np.uint8)
    mask[:6] = RED
    mask[9:] = BLUE

    table, blends = colours_of(coloured(mask))

    assert table == (((0, 0, 0), 0), (RED, 1), (BLUE, 2)) and not blends
    assert propose(coloured(mask)).colours == table
    assert r"colours=(((0, 0, 0), 0), ((255, 0, 0), 1)" in told_colours(coloured(mask))


def test_names_of_more_than_two_colours_need_a_table():
    mask = np.array([[(0, 0, 0), RED, BLUE]])
    with pytest.raises(SegjaxError, match="names for 3"):
        propose(coloured(mask), names=3)


def smooth():
    """Red and blue on black, with the soft edges of a resize."""
    mask = np.zeros((256, 256, 3), np.uint8)
    mask[60:120, 40:200] = RED
    mask[150:230, 40:200] = BLUE
    return np.asarray(Image.fromarray(mask).resize((100, 100), Image.Resampling.BICUBIC))


def test_blends_of_smooth_edges_are_told_and_are_no_classes():
    table, blends = colours_of(coloured(smooth()))

    assert [colour for colour, _ in table] == [(0, 0, 0), BLUE, RED] and len(blends) > 10
    with pytest.raises(SegjaxError, match=r"3 colours.*blends of these, as anti-aliased edges"):
        propose(coloured(smooth()))


def test_rare_classes_are_no_blends_though_their_colours_lie_between_others():
    mask = np.zeros((100, 100, 3), np.uint8)
    mask[:40] = RED
    for i, red in enumerate((64, 128, 192)):
        mask[90:, 15 * i : 15 * i + 13] = (red, 0, 0)

    table, blends = colours_of(coloured(mask))

    assert len(table) == 5 and not blends


def test_a_photograph_is_no_mask():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    with pytest.raises(SegjaxError, match="more than there may be classes"):
        propose(coloured(noise))


def test_masks_in_colour_beside_others_are_told():
    found = tally([[0, 1]])
    with pytest.raises(SegjaxError, match="Some masks are in colour, others are not"):
        found.add(Codes(np.array([[255]]), True))


def test_palettes_that_differ_from_file_to_file_say_that_values_mean_nothing(tmp_path):
    found = Tally()
    for i, colours in enumerate([(RED, BLUE), (BLUE, RED)]):
        picture = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
        picture.putpalette([part for colour in colours for part in colour])
        picture.save(tmp_path / f"{i}.png")
        found.add(read_codes(tmp_path / f"{i}.png"))

    assert found.contradicts_itself and not tally([[0, 1]]).contradicts_itself
