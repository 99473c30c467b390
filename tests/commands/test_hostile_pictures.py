"""Files of all sorts given to predict: each is labelled, or told in a line; the others are done."""

import json
import os
import re
import shutil
import socket
import struct
import zlib

import numpy as np
import pytest
import tifffile
from lies import LIES
from PIL import Image
from tiny import TinyRecipe

from segjax.inference import memory
from segjax.recipe import main

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 10, 3), np.uint8)


def saved(pixels=PIXELS, mode=None, **options):
    """Writes a picture as Pillow does."""
    image = Image.fromarray(pixels)
    image = image.convert(mode) if mode else image
    return lambda path: image.save(path, **options)


def cut(suffix):
    """A file that ends halfway."""

    def write(path):
        whole = path.with_name(f"whole{suffix}")
        Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        whole.unlink()

    return write


def claims(width, height):
    """A PNG that says so large it is, and holds nothing."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def bound(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # such names are short


def palette(path):
    image = Image.fromarray(PIXELS).convert("P")
    image.save(path, transparency=b"\x00\x80\xff")


def array(values):
    """Writes an array as NumPy does, objects pickled."""
    return lambda path: np.save(path, values, allow_pickle=True)


class Runs:
    """Where it is unpickled, a file appears."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def cut_array(path):
    np.save(path, PIXELS)
    path.write_bytes(path.read_bytes()[:-1])


def tiff(ifd, entries=b"", order=b"II*\0"):
    """Writes a TIFF of one directory at byte `ifd`, made of bytes."""
    return lambda path: path.write_bytes(order + struct.pack("<I", ifd) + entries)


def square(side):
    """A directory that says how large its picture is, and nothing more."""
    entries = struct.pack("<HHIIHHII", 256, 4, 1, side, 257, 4, 1, side)
    return struct.pack("<H", 2) + entries + struct.pack("<I", 0)


FRAMES = [Image.fromarray(np.roll(PIXELS, i, 1)) for i in range(11)]

# Name of the file -> what writes it, and what is told of it; None where it is labelled.
PICTURES = {
    "pipe.png": (os.mkfifo, "a pipe, expected the file of a picture"),
    "socket.png": (bound, "a socket, expected the file of a picture"),
    "null.png": (lambda path: path.symlink_to("/dev/null"), "a device, expected the file"),
    "zero.png": (lambda path: path.symlink_to("/dev/zero"), "a device, expected the file"),
    "link.png": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    "loop.png": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "absent.png": (lambda path: None, "No such file or directory"),
    "empty.png": (lambda path: path.write_bytes(b""), "an empty file"),
    "text.png": (lambda path: path.write_text("no picture"), "a text file"),
    "page.png": (lambda path: path.write_text("<!DOCTYPE html><p>404"), "a web page"),
    "cut.png": (cut(".png"), "cannot be read as a picture"),
    "cutjpeg.jpg": (cut(".jpg"), "cannot be read as a picture"),
    "cuttiff.tif": (cut(".tif"), "cannot be read as a picture"),
    "flat.png": (claims(0, 10), "not a picture that Pillow can open"),
    "bomb.png": (claims(30_000, 30_000), "more pixels than Pillow opens"),
    "hollow.png": (claims(20, 20), "cannot be read as a picture"),
    "bits.png": (saved(np.full((9, 9), 60_000, np.uint16)), "16-bit picture"),
    "float.tif": (saved(np.full((9, 9), 0.5, np.float32)), "float picture"),
    "nan.tif": (saved(np.full((9, 9), np.nan, np.float32)), "float picture"),
    "giga.tif": (LIES["gigapixels"][0], "no compression does that"),
    "beyond.tif": (LIES["beyond the end"][0], "cannot be read"),
    "noise.tif": (LIES["noise"][0], "cannot be read"),
    "lack.tif": (LIES["a missing tile"][0], "cannot be read"),
    "tiles.tif": (LIES["huge tiles"][0], "cannot be read"),
    "nowhere.tif": (tiff(2**31), "cannot be read"),
    "itself.tif": (tiff(8, struct.pack("<HI", 0, 8)), "which Pillow cannot open"),
    "nothing.tif": (tiff(8, square(0)), "which Pillow cannot open"),
    "claim.tif": (tiff(8, square(65_000)), "no compression does that"),
    "pickle.npy": (array(np.array([[Runs()]], object)), "an array of object"),
    "cutarray.npy": (cut_array, "says that it holds an array of shape"),
    "fractions.npy": (array(PIXELS / 255), "an array of float64"),
    "video.npy": (array(PIXELS[None]), "of shape (1, 12, 10, 3)"),
    "not.npy": (saved(format="BMP"), None),
    "picture.npy": (array(PIXELS), None),
    "dot.png": (saved(PIXELS[:1, :1]), None),
    "line.png": (saved(np.tile(PIXELS[:1], (1, 300, 1))), None),
    "cmyk.jpg": (saved(mode="CMYK"), None),
    "palette.png": (palette, None),
    "la.png": (saved(mode="LA"), None),
    "bilevel.png": (saved(mode="1"), None),
    "suffix.jpg": (saved(format="PNG"), None),
    "new\nline.png": (saved(), None),
    "mit Leerzeichen – ünïcödé 图.png": (saved(), None),
    "[0-9]*.png": (saved(), None),
    os.fsdecode(b"\xff\xfe.png"): (saved(), None),
    "l" * 250 + ".png": (saved(), "cannot be written: File name too long"),
}


def predict(capsys, *arguments, fails=False):
    """What is printed and told by predict."""
    command = ["predict", *map(str, arguments)]
    if fails:
        with pytest.raises(SystemExit) as stopped:
            main(TinyRecipe, command)
        assert stopped.value.code == 2
    else:
        main(TinyRecipe, command)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed


@pytest.mark.parametrize("name", PICTURES, ids=ascii)
def test_each_is_labelled_or_told(name, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    write, told = PICTURES[name]
    write(path)
    options = ["--run", trained / "run", "--out", tmp_path / "out"]
    printed = predict(capsys, path, *options, fails=told)
    if told:
        assert told.lower() in printed.err.lower(), printed.err
        assert ascii(name[:30])[1:-1] in ascii(printed.err) and "is done" not in printed.err
        assert not list(tmp_path.glob("out/*")) or name[0] == "l"
    else:
        with Image.open(tmp_path / f"out/{path.stem}.png") as label:
            if path.name != "picture.npy":
                with Image.open(path) as picture:
                    assert label.size == picture.size
    assert not (tmp_path / "unpickled").exists()


def test_the_others_are_done(trained, tmp_path, capsys, monkeypatch):
    """All in one folder: what is passed over, what is told, and how many are done."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name, (write, _) in PICTURES.items():
        write(tmp_path / "in" / name)
    (tmp_path / "in/b.png").mkdir()
    (tmp_path / "in/notes.txt").write_text("x")
    printed = predict(capsys, "in", "--run", trained / "run", "--out", "out", fails=True)
    there = len(PICTURES) - 1  # one is absent
    assert f"in: {there} pictures; passed over: b.png, notes.txt" in printed.out
    done = sum(told is None for _, told in PICTURES.values())
    assert f"The other {done} of {there} are done." in printed.err
    assert len(list(tmp_path.glob("out/*_overlay.png"))) == done


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp"])
def test_every_page_is_labelled(suffix, trained, tmp_path, capsys):
    path = tmp_path / f"a.{suffix}"
    FRAMES[0].save(path, save_all=True, append_images=FRAMES[1:])
    printed = predict(capsys, path, "--run", trained / "run", "--out", tmp_path / "out")
    assert f"{path}: 11 pages" in printed.out
    names = [f"a-{page:02}" for page in range(11)]  # as `Folder` names them
    assert sorted(p.stem for p in tmp_path.glob("out/*[0-9].png")) == names
    labels = [np.asarray(Image.open(tmp_path / f"out/{name}.png")) for name in (names[0], names[9])]
    assert labels[0].shape == (12, 10) and (labels[0] != labels[1]).any()


def test_a_photograph_with_further_views_is_one_picture(trained, tmp_path, capsys):
    """As telephones write them: a JPEG with a preview or a depth map behind it."""
    path = tmp_path / "a.jpg"
    FRAMES[0].save(path, format="MPO", save_all=True, append_images=FRAMES[1:2])
    predict(capsys, path, "--run", trained / "run", "--out", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.glob("out/*")) == ["a.png", "a_overlay.png"]


def test_patterns_in_quotes(trained, tmp_path, capsys):
    for name in ("a1", "a2", "b1", "a[1]"):
        saved()(tmp_path / f"{name}.png")
    options = ["--run", trained / "run", "--out", tmp_path / "out"]
    predict(capsys, tmp_path / "a?.png", tmp_path / "a[1].png", *options)
    found = sorted(p.stem for p in tmp_path.glob("out/*") if "overlay" not in p.name)
    assert found == ["a1", "a2", "a[1]"]
    told = predict(capsys, tmp_path / "c*.png", *options, fails=True).err
    assert "c*.png: no file has a name like that" in told
    (tmp_path / "empty").mkdir()
    told = predict(capsys, tmp_path / "empty", *options, fails=True).err
    assert "empty: no file in this folder has a picture's suffix" in told


@pytest.mark.parametrize("names", [("a.png", "b/a.jpg"), ("a.png", "b/a_overlay.png")])
def test_two_pictures_of_one_name(names, trained, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    for name in names:
        saved()(tmp_path / name)
    paths = [tmp_path / name for name in names]
    told = predict(capsys, *paths, "--run", trained / "run", "--out", tmp_path / "out", fails=True)
    assert "Several pictures would be written to" in told.err
    assert all(str(path) in told.err for path in paths)
    assert not (tmp_path / "out").exists()


def test_a_tile_that_is_too_small_leaves_no_folder(trained, tmp_path, capsys):
    saved()(tmp_path / "a.png")
    options = ["--run", trained / "run", "--out", tmp_path / "x", "--tile", -1]
    told = predict(capsys, tmp_path / "a.png", *options, fails=True).err
    assert "--tile is -1; expected at least 1" in told
    assert not (tmp_path / "x").exists()


def test_what_does_not_fit_the_memory_goes_by_tiles(trained, tmp_path, capsys, monkeypatch):
    path = tmp_path / "a.png"
    saved(RNG.integers(0, 256, (30, 1100, 3), np.uint8))(path)
    options = ["--run", trained / "run", "--out"]
    predict(capsys, path, *options, tmp_path / "whole")
    monkeypatch.setattr(memory, "left", lambda: 100_000)
    printed = predict(capsys, path, *options, tmp_path / "tiles")
    assert f"{path}: 30×1100 pixels at once do not fit the memory; so by tiles." in printed.out
    assert re.search(r"^2 tiles of \d+×\d+ pixels, moved by", printed.out, re.MULTILINE)
    assert (tmp_path / "tiles/a.png").read_bytes() == (tmp_path / "whole/a.png").read_bytes()


def test_what_the_compiler_counts_and_the_machine_has():
    assert 2**20 < 0.9 * memory.left_on_host() <= memory.left()


def test_limits_of_control_groups_around_a_process(tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job/memory.max").write_text("max\n")
    (tmp_path / "memory.max").write_text("1024\n")
    assert 1024 in memory._limits(tmp_path)


def test_pages_that_are_channels_are_one_picture(tmp_path, capsys, trained):
    """With `ranges`, a TIFF of 3 pages is a picture of 3 channels."""
    shutil.copytree(trained / "run", tmp_path / "run")
    stored = json.loads((tmp_path / "run/recipe.json").read_text())
    stored["source"]["fields"]["source"]["fields"]["ranges"] = [[0, 1000]]
    (tmp_path / "run/recipe.json").write_text(json.dumps(stored))
    path = tmp_path / "a.tif"
    pages = RNG.integers(0, 1000, (3, 16, 16)).astype(np.uint16)
    tifffile.imwrite(path, pages, photometric="minisblack")
    predict(capsys, path, "--run", tmp_path / "run", "--out", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.glob("out/*")) == ["a.png", "a_overlay.png"]
