"""Each thing that can be wrong with a data set is found, counted, and told of the right example."""

import dataclasses
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from segjax.data import audit as auditing
from segjax.data.audit import audit, check
from segjax.data.folder import Folder
from segjax.data.labels import voc_palette
from segjax.data.shapes import Shapes
from segjax.data.weight_map import Weighted
from segjax.data.wrapper import Without
from segjax.errors import SegjaxError


@dataclasses.dataclass(frozen=True)
class Given:
    """Examples as given, those that are an error raised."""

    examples: tuple
    classes: tuple = ("no", "a", "b")
    palette: tuple = voc_palette(3)
    values: tuple = ()

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        if isinstance(self.examples[i], SegjaxError):
            raise self.examples[i]
        image, label = self.examples[i]
        return {"image": image, "label": label, "id": f"p{i}"}


def picture(seed, size=(20, 30), channels=3):
    """Noise of low frequency: pictures of two seeds do not look alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, channels), np.uint8)
    large = [Image.fromarray(c).resize(size[::-1]) for c in np.moveaxis(noise, -1, 0)]
    return np.stack([np.asarray(c) for c in large], -1)


def label(value, size=(20, 30)):
    return np.full(size, value, np.uint8)


def mixed(size=(20, 30)):
    return np.resize(np.uint8([0, 0, 1, 2]), size)


def found(**splits):
    """What is found in splits of such examples: {what: [texts]}."""
    cases = audit({name: Given(tuple(given)) for name, given in splits.items()}).findings
    return {kind.what: [case.text for case in of] for kind, of in cases.items()}


def test_a_good_data_set_has_no_findings():
    assert found(train=[(picture(0), mixed()), (picture(1), mixed())]) == {}


def test_counts_sizes_and_values():
    first = np.uint8([[0, 1, 255], [1, 1, 255]])
    second = np.uint8([[2, 0, 0, 0]])
    values = np.uint8([[[9, 0], [9, 1], [9, 2]], [[9, 3], [9, 4], [9, 5]]])
    source = Given(((values, first), (picture(1, (1, 4), 2), second)))
    split = audit({"train": source}).splits["train"]
    assert split.examples == 2
    assert split.sizes == {(2, 3): 1, (1, 4): 1}
    np.testing.assert_array_equal(split.pixels, [4, 3, 1])
    np.testing.assert_array_equal(split.counts, [[1, 3, 0], [3, 0, 1]])
    assert split.ignored == 2
    assert split.histogram.shape == (2, 256)
    expected = [np.bincount(e["image"].reshape(-1, 2)[:, 0], minlength=256) for e in source]
    np.testing.assert_array_equal(split.histogram[0], sum(expected))
    assert split.histogram[1].sum() == 10


def test_float_pictures_of_many_channels():
    pictures = [(picture(i, channels=5) / np.float32(2), mixed()) for i in range(2)]
    split = audit({"train": Given(tuple(pictures))}).splits["train"]
    assert split.histogram.shape == (5, 256)
    assert split.histogram[:, 128:].sum() == 0
    assert split.histogram.sum() == 2 * 20 * 30 * 5


def test_what_cannot_be_read_is_grouped_by_kind_and_is_an_error(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(7):
        Image.fromarray(picture(i)).save(tmp_path / f"images/{i}.png")
        Image.fromarray(mixed()).save(tmp_path / f"masks/{i}.png")
    for i in (2, 5):
        Image.fromarray(mixed((30, 20))).save(tmp_path / f"masks/{i}.png")
    for i in (1, 3):
        Image.fromarray(picture(i)).save(tmp_path / f"masks/{i}.png")
    (tmp_path / "images/4.png").write_text("")
    source = Folder(tmp_path, ("no", "a", "b"), voc_palette(3))
    result = audit({"train": source})
    assert result.failed
    cases = {kind.what: of for kind, of in result.findings.items()}
    assert [case.examples for case in cases["colour mask"]] == [(("train", 1),), (("train", 3),)]
    assert "3.png" in cases["colour mask"][1].text
    assert "4.png" in cases["unreadable file"][0].text
    assert [case.examples for case in cases["sizes differ"]] == [(("train", 2),), (("train", 5),)]
    assert "its mask" in cases["sizes differ"][0].text and "2.png" in cases["sizes differ"][0].text
    assert len(cases) == 3
    split = result.splits["train"]
    assert len(split.counts) == 2 and sum(split.sizes.values()) == 6  # 4.png is no picture
    assert split.histogram.shape == (3, 256)


def test_an_error_of_another_source_is_told():
    assert found(train=[SegjaxError("x.png: bad"), (picture(0), mixed())]) == {
        "unusable example": ["x.png: bad"]
    }


def test_no_valid_pixel():
    given = [(picture(0), label(255)), (picture(1), mixed())]
    assert found(train=given) == {"no valid pixel": ["train: p0"]}


BINARY = np.resize(np.uint8([0, 255]), (20, 30))
ZERO_AND_255 = "mask of nothing but 0 and 255"


def test_masks_of_0_and_255_in_a_split_of_several_classes():
    given = [(picture(0), BINARY), (picture(1), mixed()), (picture(2), BINARY)]
    assert found(train=given) == {ZERO_AND_255: ["train: p0", "train: p2"]}
    given[0] = (picture(0), np.where(BINARY, 255, 1).astype(np.uint8))
    given[2] = (picture(2), label(0))
    assert found(train=given) == {}


def test_masks_of_0_and_255_may_be_meant_so():
    given = ((picture(0), BINARY), (picture(1), mixed()))
    result = audit({"train": Given(given)})
    assert not result.failed and "values=((255, 1),)" in next(iter(result.findings)).advice
    for values in (((255, 255),), ((7, 255),)):
        source = Given(given, values=values)
        for wrapped in (source, Weighted(source), Without(source, ())):
            assert audit({"train": wrapped}).findings == {}
    assert audit({"train": Given(given[:1], ("one",), voc_palette(1))}).findings == {}


def test_a_value_that_few_masks_hold_where_the_classes_are_not_known():
    """One stray 77 among masks of 0 and 255, of which most pixels are 255."""
    mostly = np.where(np.arange(600).reshape(20, 30) % 5, 255, 0).astype(np.uint8)
    stray = mostly.copy()
    stray[2, 3:5] = 77
    given = [(picture(i), stray if i == 4 else mostly) for i in range(30)]
    unknown = {"classes": tuple(map(str, range(255))), "palette": voc_palette(255)}
    cases = audit({"train": Given(tuple(given), **unknown)}).findings
    told = {kind.what: of for kind, of in cases.items()}
    (case,) = told["value that few masks hold"]
    assert case.examples == (("train", 4),)
    assert case.text == (
        "77 in 1 of 30 masks, 2 pixels: train: p4; values=((77, 255),) would ignore it"
    )
    assert [case.text for case in told["most pixels are ignored"]] == ["train: 79.99%"]
    held_by_two = Given(tuple([*given, (picture(30), stray)]), **unknown)  # of 31: two are many
    assert "value that few masks hold" not in {
        kind.what for kind in audit({"train": held_by_two}).findings
    }
    rare = [(picture(i), label(2 if i == 4 else 1)) for i in range(30)]
    assert found(train=rare) == {}  # classes that are known may be rare


def test_nothing_but_class_0():
    given = [(picture(i), BINARY) for i in range(3)]
    names = ["train: p0", "train: p1", "train: p2"]
    assert found(train=given) == {"nothing but class 0": ["train"], ZERO_AND_255: names}
    assert found(train=[(picture(0), label(0))]) == {"nothing but class 0": ["train"]}
    assert found(train=[(picture(0), label(1))]) == {}


def test_pictures_of_other_channels():
    given = [(picture(0), mixed()), (picture(1, channels=4), mixed()), (picture(2), mixed())]
    assert found(train=given) == {"other number of channels": ["train: p1"]}


def test_splits_of_other_classes():
    one = ((picture(0), mixed()),)
    with pytest.raises(SegjaxError, match="different classes"):
        audit({"train": Given(one), "val": Given(one, classes=("x", "y", "z"))})


def test_a_class_of_another_split():
    splits = {"train": [(picture(0), mixed())], "val": [(picture(1), label(1))]}
    assert found(**splits) == {"class of another split is absent": ["val: no", "val: b"]}


def test_the_same_picture_within_and_across_splits():
    a, b, c = ((picture(i), mixed()) for i in range(3))
    assert found(train=[a, b, a], val=[c]) == {
        "same picture several times": ["train: p0 = train: p2"]
    }
    assert found(train=[a, b], val=[c, a, a]) == {
        "same picture in several splits": ["train: p0 = val: p1 = val: p2"]
    }
    source = Given((a,))
    assert audit({"train": source, "val": source}).failed
    assert not audit({"train": Given((a, a))}).failed


def test_pictures_of_the_same_bytes_and_another_shape_are_not_the_same():
    pixels = picture(0)
    other = pixels.reshape(30, 20, 3)
    assert found(train=[(pixels, mixed()), (other, mixed((30, 20)))]) == {}


def test_errors_come_first():
    a, void = (picture(0), mixed()), (picture(1), label(255))
    findings = audit({"train": Given((void, a)), "val": Given((a,))}).findings
    assert [kind.error for kind in findings] == [True, False]


def altered(pixels, how):
    image = Image.fromarray(pixels)
    if how == "half":
        return np.asarray(image.resize((image.width // 2, image.height // 2)))
    if how == "brighter":
        return (pixels * 0.8 + 40).astype(np.uint8)
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=70)
    return np.asarray(Image.open(stored))


@pytest.mark.parametrize("how", ["half", "brighter", "JPEG"])
def test_pictures_that_look_alike(how):
    pictures = [picture(i, (160, 200)) for i in range(9)]
    given = [(p, mixed((160, 200))) for p in pictures]
    twin = altered(pictures[4], how)
    other = [(twin, mixed(twin.shape[:2]))]
    assert found(train=given + other) == {"pictures that look alike": ["train: p4 ≈ train: p9"]}
    assert found(train=given, val=other) == {
        "pictures of several splits that look alike": ["train: p4 ≈ val: p0"]
    }


def test_flat_pictures_do_not_look_alike():
    assert found(train=[(np.full((20, 30, 3), v, np.uint8), mixed()) for v in (0, 90)]) == {}


def test_alike_does_not_depend_on_the_rows_compared_at_once():
    prints = np.random.default_rng(0).integers(0, 2**63, (50, 4)).astype(np.uint64)
    prints[20] = prints[3] ^ np.uint64(2**10 - 1)  # 40 bits of about 150
    prints[41], prints[7] = prints[3], prints[3] ^ np.uint64(1)
    expected = [(3, 7), (3, 41), (7, 41)]
    for rows in (1, 7, 64):
        assert sorted(auditing._alike(prints, rows)) == expected
    assert list(auditing._alike(np.array([]))) == []


def test_every_example_is_read_once_by_several_threads(monkeypatch):
    together, reads = threading.Barrier(2), []

    class Counted(Given):
        def __getitem__(self, i):
            together.wait(timeout=20)  # for another thread that reads
            reads.append(i)
            return super().__getitem__(i)

    monkeypatch.setattr(auditing.os, "cpu_count", lambda: 2)
    given = [(picture(0), mixed()), (picture(0), BINARY), (picture(2), label(255))]
    source = Counted((*given, SegjaxError("bad")))
    assert len(audit({"train": source}).findings) == 4
    assert sorted(reads) == [0, 1, 2, 3]


def test_progress_sees_every_example():
    seen = {}

    def track(items, name, total):
        seen[name] = (0, total)
        for item in items:
            seen[name] = (seen[name][0] + 1, total)
            yield item

    a, b = (picture(0), mixed()), (picture(1), mixed())
    audit({"train": Given((a, SegjaxError("x"))), "val": Given((b,))}, track)
    assert seen == {"train": (2, 2), "val": (1, 1)}


# The check before training

ANY = {"train": [(99, 99)], "val": [(99, 99)]}


def make_folder(root, count, size=(2, 3)):
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        Image.fromarray(np.zeros(size, np.uint8)).save(root / kind / "0.png")
        for i in range(1, count):
            (root / kind / f"{i}.png").write_bytes((root / kind / "0.png").read_bytes())
    return Folder(root, ("no", "a", "b"), voc_palette(3))


def test_check_of_a_good_folder_is_fast(tmp_path):
    source = make_folder(tmp_path, 1000)
    start = time.process_time()
    check({"train": source}, canvases={"train": [(2, 3)]})
    assert time.process_time() - start < 1  # 10,000 take a second or two


@pytest.mark.parametrize("wrap", [lambda source: source, Weighted])
def test_check_finds_by_the_headers_of_all(tmp_path, wrap):
    source = make_folder(tmp_path, 60)
    for i in (31, 33, 35, 37, 39, 41):  # none of the few that are read whole
        Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / f"masks/{i}.png")
    with pytest.raises(SegjaxError, match="6 of 60 examples of train cannot") as told:
        check({"val": make_folder(tmp_path / "other", 2), "train": wrap(source)}, canvases=ANY)
    assert str(told.value).count("its mask") == 5
    assert "--skip-broken" in str(told.value)


def test_check_reads_a_few_whole(tmp_path):
    source = make_folder(tmp_path, 60)
    Image.fromarray(np.full((2, 3), 9, np.uint8)).save(tmp_path / "masks/9.png")  # the last by name
    with pytest.raises(SegjaxError, match=r"9.png: mask values 9 \(6 pixels\) are no class"):
        check({"train": source}, canvases=ANY)
    with pytest.raises(SegjaxError, match="2 of 3 examples of val cannot"):
        bad = SegjaxError("bad")
        check({"val": Given((bad, (picture(0), mixed()), bad))}, canvases=ANY)


@pytest.mark.parametrize("canvas", [(2, 6), (9, 3), (2, 3)])
def test_check_of_the_canvas(tmp_path, canvas):
    make_folder(tmp_path, 40)
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "images/20.png")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "masks/20.png")
    source = Folder(tmp_path, ("no", "a", "b"), voc_palette(3))
    check({"train": source}, canvases={"train": [(3, 4)]})
    with pytest.raises(SegjaxError, match=rf"1 of 40 .*train, up to 3×4 .*canvas of {canvas[0]}×"):
        check({"train": source}, canvases={"train": [canvas]})


def test_check_of_splits_that_share_files(tmp_path):
    source = make_folder(tmp_path, 6)
    parts = {
        "train": dataclasses.replace(source, part=(0, 4)),
        "val": dataclasses.replace(source, part=(4, 6)),
    }
    check(parts, canvases=ANY)
    parts["val"] = dataclasses.replace(source, part=(2, 6))
    with pytest.raises(SegjaxError, match=r"train and val share 2 examples: 2, 3\. Take"):
        check(parts, canvases=ANY)


def test_check_of_one_canvas_out_of_several(tmp_path):
    source = make_folder(tmp_path, 3, size=(3, 4))
    check({"val": source}, canvases={"val": [(4, 3), (3, 4)]})
    with pytest.raises(SegjaxError, match=r"3 of 3 .*canvas of 4×3 or 2×9: set"):
        check({"val": source}, canvases={"val": [(4, 3), (2, 9)]})


def test_check_of_drawn_pictures():
    check({"train": Shapes(40, (32, 48))}, canvases={"train": [(32, 48)]})  # its size is a field


def test_check_of_pictures_scaled_to_one():
    def floats(seed, highest):
        return picture(seed).astype(np.float32) / 255 * highest, mixed()

    black = np.zeros((20, 30, 3), np.float32), mixed()
    with pytest.raises(SegjaxError, match="pictures of train are floats in 0–1, which train as bl"):
        check({"train": Given((floats(0, 1), black, floats(1, 1)))}, canvases=ANY)
    check({"train": Given((floats(0, 1), floats(1, 255)))}, canvases=ANY)  # one dark picture
    check({"train": Given((black, black))}, canvases=ANY)
    check({"train": Given(((np.ones((20, 30, 3), np.uint8), mixed()),))}, canvases=ANY)


def test_examples_that_break_the_contract_are_found():
    high, wide = (picture(0), label(77)), (picture(1), label(1)[..., None])
    with pytest.raises(SegjaxError, match=r"p0: the label holds 77 .*\np1: the label is uint8 \("):
        check({"train": Given((high, wide))}, canvases=ANY)
    (told,) = found(train=(high, (picture(2), mixed())))["unusable example"]
    assert told.startswith("p0: the label holds 77 (600 pixels); expected a class, 0 to 2")


@pytest.mark.parametrize(
    "size, orientation, told",
    [
        ((30, 30), 6, "turned by 90° clockwise"),
        ((30, 30), 5, "mirrored and turned by 90°"),
        ((20, 30), 2, "mirrored left to right"),
        ((20, 30), 3, "turned by 180°"),
        ((20, 30), 6, None),  # its mask fits the pixels as they are stored
        ((30, 30), 1, None),
        ((30, 30), 99, None),
    ],
)
def test_a_picture_that_exif_turns_and_its_mask_not(size, orientation, told, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    exif = Image.Exif()
    exif[274] = orientation
    for i in range(2):
        given = {"exif": exif} if i else {}
        Image.fromarray(picture(i, size)).save(tmp_path / f"images/{i}.jpg", **given)
        Image.fromarray(mixed(size)).save(tmp_path / f"masks/{i}.png")
    source = Folder(tmp_path, ("no", "a", "b"), voc_palette(3))
    result = audit({"train": source})
    cases = {kind.what: (kind, of) for kind, of in result.findings.items()}
    assert not result.failed and len(cases) == (told is not None)
    if told:
        kind, (case,) = cases["picture turned by EXIF, its mask not"]
        assert (case.examples, case.text) == ((("train", 1),), f"train: 1: {told}")
        assert "exif_transpose" in kind.advice
        # A mask that says the same of itself is turned by the same tools.
        Image.fromarray(mixed(size)).save(tmp_path / "masks/1.png", exif=exif)
        assert not audit({"train": source}).findings
