"""Examples that are kept are those of the source, decoded once."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from segjax.data import cache
from segjax.data.pipeline import train_batches
from segjax.errors import SegjaxError, SegjaxWarning


@dataclass(frozen=True)
class Files:
    """A picture a file, of the byte that it holds; `reads` are counted."""

    root: Path
    classes = tuple(f"class {n}" for n in range(40))
    palette = ((0, 0, 0),) * 40
    reads: list = field(default_factory=list, repr=False, compare=False)

    def __len__(self):
        return len(self.files)

    @property
    def files(self):
        return sorted(self.root.iterdir())

    def size_of(self, i):
        return 2 + i, 3

    def __getitem__(self, i):
        self.reads.append(i)
        if i >= len(self):
            raise IndexError
        image = np.full((2 + i, 3, 3), self.files[i].read_bytes()[0], np.uint8)
        weight = np.full((2 + i, 3), 0.5, np.float32)
        return {"image": image, "label": image[..., 0], "weight": weight, "id": f"é{i}"}


def on_disk(source):
    return cache.on_disk(source, lambda things, what: things)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    for i in range(3):
        (tmp_path / f"data/{i}").write_bytes(bytes([10 + i]))
    return Files(tmp_path / "data")


@pytest.mark.parametrize("keep", [cache.in_memory, on_disk])
def test_what_is_kept_is_the_source_and_is_read_once(source, keep):
    kept = keep(source)
    assert (len(kept), kept.classes, kept.palette) == (3, source.classes, source.palette)
    for _ in range(2):
        for i in (2, 0, 1, -1):
            got, want = kept[i], source[range(3)[i]]
            assert got.keys() == want.keys() and got["id"] == want["id"]
            for name in ("image", "label", "weight"):
                np.testing.assert_array_equal(got[name], want[name])
                assert got[name].dtype == want[name].dtype
                with pytest.raises(ValueError, match="read-only"):
                    got[name][:] = 0
    assert kept.size_of(2) == (4, 3)
    source.reads.clear()
    again = keep(source) if keep is on_disk else kept
    options = {"batch_size": 2, "canvas": (5, 5), "seed": 0}
    batches = train_batches(again, **options)
    got = [next(batches) for _ in range(3)]
    assert not source.reads
    for one, other in zip(got, train_batches(source, **options), strict=False):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])
    with pytest.raises(IndexError):
        kept[3]


@pytest.mark.parametrize("change", ["content", "time", "name"])
def test_a_file_that_changes_is_decoded_anew(source, change):
    assert on_disk(source)[0]["image"][0, 0, 0] == 10
    path = source.files[0]
    if change == "content":
        path.write_bytes(b"Ab")
    elif change == "time":
        stamp = path.stat().st_mtime_ns
        path.write_bytes(b"A")
        os.utime(path, ns=(stamp, stamp + 1_000_000))
    else:
        path.write_bytes(b"A")
        path.rename(path.with_name("00"))
    assert on_disk(source)[0]["image"][0, 0, 0] == 65


def test_what_breaks_off_leaves_nothing(source, tmp_path):
    def track(things, what):
        yield things[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.on_disk(source, track)
    assert not [*(tmp_path / "cache/segjax/decoded").iterdir()]
    assert len(on_disk(source)) == 3


def test_another_process_may_have_been_faster(source):
    def track(things, what):
        yield from things
        if not nested:
            nested.append(on_disk(source))

    nested = []
    assert cache.on_disk(source, track)[1]["id"] == "é1"


def test_what_does_not_fit_is_told(source, monkeypatch):
    monkeypatch.setattr(Files, "__len__", lambda self: 1 << 40)
    with pytest.raises(SegjaxError, match=r'GiB, more than half of the memory .* cache="disk" or'):
        cache.in_memory(source)
    with pytest.raises(SegjaxError, match=r'than what is free at .*decoded .* cache="memory" or'):
        on_disk(source)


def test_a_place_that_cannot_be_written_is_told(source, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(SegjaxError, match=r"cannot keep decoded pictures there: .* XDG_CACHE_HOME"):
        on_disk(source)


def test_a_source_without_files_is_kept_in_memory(source):
    kept = cache.in_memory(source)
    with pytest.raises(SegjaxError, match='is not made of files; take cache="memory"'):
        on_disk(kept)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)


def garbage(path):
    path.write_bytes(bytes(range(256)) * 3)


def another_form(path):
    path.write_text('[["a", {"image": ["|u1", [2, 3, 3], 0]}]]')  # without a checksum


@pytest.mark.parametrize("name", ["examples", "index.json"])
@pytest.mark.parametrize(
    "damage",
    [cut, garbage, another_form, lambda path: path.unlink(), lambda path: path.write_bytes(b"")],
)
def test_what_is_damaged_is_made_anew(damage, name, source, tmp_path):
    on_disk(source)
    (folder,) = (tmp_path / "cache/segjax/decoded").iterdir()
    damage(folder / name)
    source.reads.clear()
    with pytest.warns(SegjaxWarning, match="are damaged; they are made anew"):
        kept = on_disk(source)
    for i in range(3):
        np.testing.assert_array_equal(kept[i]["image"], source[i]["image"])
    assert [*(tmp_path / "cache/segjax/decoded").iterdir()] == [folder]
    source.reads.clear()
    on_disk(source)  # without a warning
    assert not source.reads


def test_a_flipped_bit_is_found_where_it_is_read(source, tmp_path):
    on_disk(source)
    (folder,) = (tmp_path / "cache/segjax/decoded").iterdir()
    flip(folder / "examples")
    kept = on_disk(source)
    with pytest.warns(SegjaxWarning, match="damaged; é0 is decoded anew, and all at the next"):
        np.testing.assert_array_equal(kept[0]["image"], source[0]["image"])
    kept[1]  # whole
    with pytest.warns(SegjaxWarning, match="are made anew"):
        kept = on_disk(source)
    np.testing.assert_array_equal(kept[0]["image"], source[0]["image"])
