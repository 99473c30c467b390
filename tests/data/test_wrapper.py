"""Sources around others hand on what those tell, and examples are left out of the innermost."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from segjax.data.folder import Folder
from segjax.data.shapes import Shapes
from segjax.data.weight_map import Weighted
from segjax.data.wrapper import Pieces, Without, bare, cuts, listing, without
from segjax.errors import SegjaxError


def make_folder(root, n):
    for name, shape in {"images": (2, 3, 3), "masks": (2, 3)}.items():
        (root / name).mkdir()
        for i in range(n):
            Image.fromarray(np.zeros(shape, np.uint8)).save(root / name / f"{i}.png")
    return Folder(root, ("a",), ((0, 0, 0),))


def test_without():
    source = Shapes(5, (32, 40))
    rest = without(source, (3, 0))
    assert rest == Without(source, (3, 0))
    assert [example["id"] for example in rest] == [source[i]["id"] for i in (1, 2, 4)]
    assert rest[-1]["id"] == source[4]["id"]
    assert (rest.classes, rest.palette) == (source.classes, source.palette)


def test_a_listing_tells_whether_the_pictures_are_the_same(tmp_path):
    source = make_folder(tmp_path, 3)
    told = listing(source)
    assert told["pictures"] == 3 and len(told["names"]) == 16
    assert listing(Weighted(source)) == told == listing(replace(source))
    other = listing(without(source, (0,)))
    assert other["pictures"] == 2 and other["names"] != told["names"]
    for kind in ("images", "masks"):
        (tmp_path / kind / "2.png").rename(tmp_path / kind / "3.png")
    renamed = listing(Folder(tmp_path, ("a",), ((0, 0, 0),)))
    assert renamed["pictures"] == 3 and renamed["names"] != told["names"]
    assert listing(Shapes(5, (32, 40))) == {"pictures": 5, "names": None}


def test_files_and_sizes_are_told_as_far_as_the_source_does(tmp_path):
    source = make_folder(tmp_path, 3)
    for path in (tmp_path / "images/2.png", tmp_path / "masks/2.png"):
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)
    rest = without(source, (0,))
    assert [rest.size_of(i) for i in range(2)] == [(2, 3), (4, 5)]
    assert rest.files == Weighted(source).files == source.files
    assert rest.pairs == [*source.pairs[1:]]
    wide = without(replace(source, ranges=((0, 9),)), ())
    assert (rest.ranges, wide.ranges) == ((), ((0, 9),))
    other = without(Shapes(1, (32, 40)), ())
    assert not any(hasattr(other, name) for name in ("size_of", "files", "pairs", "ranges"))


def test_without_reaches_the_innermost():
    source = Shapes(5, (32, 40))
    assert bare(Weighted(Weighted(source))) is source
    rest = without(Weighted(Weighted(source), w0=3), (1,))
    assert rest == Weighted(Weighted(Without(source, (1,))), w0=3)
    assert bare(rest) == Without(source, (1,))  # its examples are not those of `source`


def test_cuts_are_few_equal_and_leave_nothing_out():
    assert cuts(10, 4) == [slice(0, 3), slice(3, 7), slice(7, 10)]
    assert cuts(4, 4) == [slice(0, 4)]


def test_pieces_are_the_pictures_cut(tmp_path):
    source = make_folder(tmp_path, 2)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images/1.png")
    Image.fromarray(np.eye(7, 9, dtype=np.uint8) * 255).save(tmp_path / "masks/1.png")
    pieces = Pieces(source, (4, 5))

    assert len(pieces) == 1 + 2 * 2
    assert [piece["id"] for piece in pieces] == ["0", "1@0,0", "1@0,4", "1@4,0", "1@4,4"]
    assert [pieces.size_of(i) for i in range(5)] == [piece["label"].shape for piece in pieces]
    for name in ("image", "label"):
        top, low = (np.concatenate([pieces[i][name] for i in two], 1) for two in ((1, 2), (3, 4)))
        np.testing.assert_array_equal(np.concatenate([top, low]), source[1][name])
    assert bare(Weighted(pieces)) is pieces and pieces.pairs[1:] == [source.pairs[1]] * 4
    assert (pieces.files, pieces.classes, pieces.values) == (source.files, ("a",), ())


def test_a_picture_that_cannot_be_read_is_one_piece_that_tells_why(tmp_path):
    source = make_folder(tmp_path, 2)
    (tmp_path / "images/0.png").write_bytes(b"")
    pieces = Pieces(source, (1, 9))

    assert len(pieces) == 3
    with pytest.raises(SegjaxError, match="an empty file"):
        pieces[0]
    assert len(without(pieces, (0,))) == 2
