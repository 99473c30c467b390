"""Sources around others hand on what those tell, and examples are left out of the innermost."""

from dataclasses import replace

import numpy as np
from PIL import Image

from segjax.data.folder import Folder
from segjax.data.shapes import Shapes
from segjax.data.weight_map import Weighted
from segjax.data.wrapper import Without, bare, without


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
