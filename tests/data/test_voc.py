"""The builder's whole way, from a server on this machine: archives in VOC's and SBD's layout."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from segjax.commands.command import command
from segjax.commands.prepare import prepare
from segjax.data import voc
from segjax.data.labels import VOC_CLASSES, voc_palette
from segjax.data.tfds_source import TFDS
from segjax.errors import SegjaxError

TRAIN, VAL, TEST = ["2007_01", "2007_02"], ["2008_01", "2008_02", "2008_03"], ["2009_01"]
# SBD's own lists overlap with both of VOC's
SBD_TRAIN, SBD_VAL = ["2007_01", "2008_01", "2010_01"], ["2008_02", "2010_02"]
SEG11VALID = ["2008_02", "2008_03"]
COUNTS = {"train": 2, "val": 3, "test": 1}
SBD_COUNTS = {"trainaug": 4, "sbd_train": 3, "val": 3, "seg11valid": 2}


def picture(name):
    """A picture and its mask, of a size and content of their own."""
    random = np.random.default_rng(list(name.encode()))
    height, width = random.integers(8, 30, 2)
    image = random.integers(0, 256, (height, width, 3), np.uint8)
    label = random.choice(np.uint8([0, 1, 15, 20, 255]), (height, width))
    return image, label


def sbd_label(name):
    """SBD's mask of a picture: without void."""
    label = picture(name)[1]
    return np.where(label == 255, 7, label).astype(np.uint8)


def encoded(pixels, kind, palette=False):
    image, file = Image.fromarray(pixels), io.BytesIO()
    if palette:
        image.putpalette(np.ravel(voc_palette(256)).tolist())
    image.save(file, kind)
    return file.getvalue()


def matlab(label):
    file = io.BytesIO()
    savemat(file, {"GTcls": {"Boundaries": np.zeros((2, 2)), "Segmentation": label}})
    return file.getvalue()


def lines(names):
    return "".join(f"{name}\n" for name in names).encode()


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def trainval_files():
    root = "VOCdevkit/VOC2012"
    files = {f"{root}/Annotations/{name}.xml": b"<annotation>" for name in TRAIN + VAL}
    for split, names in {"train": TRAIN, "val": VAL, "trainval": TRAIN + VAL}.items():
        files[f"{root}/ImageSets/Segmentation/{split}.txt"] = lines(names)
        files[f"{root}/ImageSets/Main/{split}.txt"] = lines([*names, "2011_99"])
    for name in [*TRAIN, "2011_99", *VAL]:  # one more picture, for detection only
        files[f"{root}/JPEGImages/{name}.jpg"] = encoded(picture(name)[0], "jpeg")
    for name in TRAIN + VAL:
        label = picture(name)[1]
        files[f"{root}/SegmentationClass/{name}.png"] = encoded(label, "png", palette=True)
        files[f"{root}/SegmentationObject/{name}.png"] = encoded(label * 0, "png", palette=True)
    return files


def test_files():
    root = "VOCdevkit/VOC2012"
    pictures = {f"{root}/JPEGImages/{name}.jpg": picture(name)[0] for name in [*TEST, "2011_98"]}
    return {name: encoded(pixels, "jpeg") for name, pixels in pictures.items()} | {
        f"{root}/ImageSets/Segmentation/test.txt": lines(TEST)
    }


def sbd_files():
    root = "benchmark_RELEASE/dataset"
    files = {f"{root}/train.txt": lines(SBD_TRAIN), f"{root}/val.txt": lines(SBD_VAL)}
    for name in SBD_TRAIN + SBD_VAL:
        files[f"{root}/cls/{name}.mat"] = matlab(sbd_label(name))
        files[f"{root}/img/{name}.jpg"] = encoded(picture(name)[0], "jpeg")
        files[f"{root}/inst/{name}.mat"] = b"not read"
    return {"benchmark_RELEASE/README": b"text"} | files


test_files.__test__ = False


@pytest.fixture(scope="session")
def tars(tmp_path_factory):
    """The three archives; SBD's compressed, as its name says."""
    folder = tmp_path_factory.mktemp("tars")
    write_tar(folder / "VOCtrainval_11-May-2012.tar", trainval_files())
    write_tar(folder / "VOC2012test.tar", test_files())
    write_tar(folder / "benchmark.tgz", sbd_files(), "w:gz")
    return folder


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, ranges too; breaks off where the server is told to."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") : -1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = start + self.server.breaks_after.pop(0) if self.server.breaks_after else None
        self.wfile.write(content[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A server of the folder `web`, empty yet."""
    (tmp_path / "web").mkdir()
    handler = partial(Handler, directory=tmp_path / "web")
    with ThreadingHTTPServer(("localhost", 0), handler) as server:
        server.asked, server.breaks_after = [], []
        server.url = f"http://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def archive(path, *urls):
    """What the library would state of a file that is downloaded from there."""
    content = path.read_bytes()
    digest = {"md5": hashlib.md5(content).hexdigest()}
    if path.suffix == ".tar":
        digest = {"sha256": hashlib.sha256(content).hexdigest()}
    return voc.Archive(tuple(f"{url}/{path.name}" for url in urls), len(content), **digest)


def config_2012(tars, *urls, **changes):
    fields = {
        "trainval": archive(tars / "VOCtrainval_11-May-2012.tar", *urls),
        "test": archive(tars / "VOC2012test.tar", *urls),
        "counts": COUNTS,
    }
    return voc.Config(name="small", **(fields | changes))


def config_sbd(tars, *urls, **changes):
    fields = {
        "trainval": archive(tars / "VOCtrainval_11-May-2012.tar", *urls),
        "sbd": archive(tars / "benchmark.tgz", *urls),
        "counts": SBD_COUNTS,
    }
    return voc.Config(name="small_sbd", **(fields | changes))


def nowhere(tars):
    """The config of archives that no server has."""
    return config_2012(tars, "http://localhost:1")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("segjax.download.time.sleep", lambda seconds: None)


def read(data_dir, name, split):
    source = TFDS(
        f"voc_segmentation/{name}", split, data_dir, VOC_CLASSES, voc_palette(21), id="id"
    )
    return {example["id"]: example for example in (source[i] for i in range(len(source)))}


def assert_equal(example, image_file, label):
    with Image.open(io.BytesIO(image_file)) as image:
        np.testing.assert_array_equal(example["image"], np.array(image))
    np.testing.assert_array_equal(example["label"], label)


def test_2012(tars, server, tmp_path, capsys):
    shutil.copytree(tars, tmp_path / "web", dirs_exist_ok=True)
    builder = voc.build(config_2012(tars, server.url), tmp_path)
    told = capsys.readouterr().out
    assert "VOCtrainval_11-May-2012.tar ━" in told and "VOC2012test.tar ━" in told
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == COUNTS
    assert len(server.asked) == 2
    files = trainval_files() | test_files()
    for split, names in {"train": TRAIN, "val": VAL, "test": TEST}.items():
        examples = read(tmp_path, "small", split)
        assert set(examples) == set(names)
        for name, example in examples.items():
            label = picture(name)[1]
            assert_equal(
                example,
                files[f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"],
                np.full_like(label, 255) if split == "test" else label,
            )
    # again: nothing is downloaded nor built
    voc.build(config_2012(tars, server.url), tmp_path)
    assert len(server.asked) == 2


def test_encoded_bytes_are_passed_through_and_masks_are_grey(tars, tmp_path):
    """OpenCV and TensorFlow would make colours of a palette."""
    import tensorflow_datasets as tfds

    builder = voc.build(nowhere(tars), tmp_path, manual=tars)
    skip = dict.fromkeys(("image", "mask"), tfds.decode.SkipDecoding())
    record = builder.as_data_source("train", decoders=skip)[0]
    name = record["id"].decode()
    assert record["image"] == trainval_files()[f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"]
    with Image.open(io.BytesIO(record["mask"])) as mask:
        assert mask.mode == "L"


@pytest.mark.parametrize("packing", ["w", "w:gz"])  # notes differ on which one SBD's is
def test_2012_sbd(tars, server, tmp_path, packing):
    web, manual = tmp_path / "web", tmp_path / "manual"
    shutil.copytree(tars, web, dirs_exist_ok=True)
    write_tar(web / "benchmark.tgz", sbd_files(), packing)
    manual.mkdir()
    (manual / "seg11valid.txt").write_bytes(lines(SEG11VALID))
    builder = voc.build(config_sbd(web, server.url), tmp_path, manual)
    assert [path for path, _ in server.asked] == ["/VOCtrainval_11-May-2012.tar", "/benchmark.tgz"]
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == SBD_COUNTS
    splits = {split: read(tmp_path, "small_sbd", split) for split in SBD_COUNTS}
    assert {split: set(examples) for split, examples in splits.items()} == {
        "trainaug": {*TRAIN, "2010_01", "2010_02"},
        "sbd_train": set(SBD_TRAIN),
        "val": set(VAL),
        "seg11valid": set(SEG11VALID),
    }
    for split, examples in splits.items():
        for name, example in examples.items():
            of_sbd = split == "sbd_train" or name.startswith("2010")
            label = sbd_label(name) if of_sbd else picture(name)[1]
            assert_equal(example, encoded(picture(name)[0], "jpeg"), label)


def test_without_its_list_seg11valid_is_left_out(tars, tmp_path):
    builder = voc.build(config_sbd(tars, "http://localhost:1"), tmp_path, manual=tars)
    assert set(builder.info.splits) == {"trainaug", "sbd_train", "val"}


def test_published_counts():
    counts = {config.name: config.counts for config in voc.VocSegmentation.BUILDER_CONFIGS}
    assert counts == {
        "2012": {"train": 1464, "val": 1449, "test": 1456},
        "2012_sbd": {"trainaug": 10582, "sbd_train": 8498, "val": 1449, "seg11valid": 736},
    }


@pytest.mark.parametrize(
    "config, name, digest",
    [(config_2012, "VOC2012test.tar", "sha256"), (config_sbd, "benchmark.tgz", "md5")],
)
def test_truncated_and_other_files_are_not_taken_from_a_mirror(
    config, name, digest, tars, server, tmp_path
):
    for mirror in ("cut", "other", "whole"):
        shutil.copytree(tars, tmp_path / "web" / mirror)
    path = tmp_path / "web/cut" / name
    path.write_bytes(path.read_bytes()[:1000])
    write_tar(tmp_path / "web/other" / name, {"a": b"another"})
    mirrors = [f"{server.url}/{mirror}" for mirror in ("cut", "other", "whole")]
    voc.build(config(tars, *mirrors), tmp_path)
    assert [path.split("/")[1] for path, _ in server.asked] == ["cut", "cut", "other", "whole"]
    with pytest.raises(
        SegjaxError, match=rf"cut/.*another file \({digest} .* of 1,000 bytes, expected"
    ):
        voc.build(config(tars, mirrors[0]), tmp_path / "new")


def test_dead_first_mirror(tars, server, tmp_path):
    shutil.copytree(tars, tmp_path / "web", dirs_exist_ok=True)
    config = config_2012(tars, "http://localhost:1", f"{server.url}/gone", server.url)
    assert voc.build(config, tmp_path).is_prepared()
    with pytest.raises(SegjaxError, match=r"localhost:1/.*; .*/gone/.* 404.*--manual"):
        config = config_2012(tars, "http://localhost:1", f"{server.url}/gone")
        voc.build(config, tmp_path / "new")


def test_broken_off_download_goes_on(tars, server, tmp_path):
    shutil.copytree(tars, tmp_path / "web", dirs_exist_ok=True)
    server.breaks_after = [4000, 3000]
    assert voc.build(config_2012(tars, server.url), tmp_path).is_prepared()
    assert [wanted for _, wanted in server.asked[:3]] == [None, "bytes=4000-", "bytes=7000-"]


@pytest.mark.parametrize("name", ["../outside", "VOCdevkit/../../outside"])
def test_path_traversal(tars, server, tmp_path, name):
    web = tmp_path / "web"
    shutil.copytree(tars, web, dirs_exist_ok=True)
    write_tar(web / "VOCtrainval_11-May-2012.tar", {name: b"evil"} | trainval_files())
    with pytest.raises(SegjaxError, match=r"trainval.*would write outside of its folder.*outside"):
        voc.build(config_2012(web, server.url), tmp_path / "data")
    assert not list(tmp_path.parent.rglob("outside"))


def test_no_tar(tars, tmp_path):
    path = tmp_path / "VOCtrainval_11-May-2012.tar"
    path.write_bytes(b"no tar" * 1000)
    config = config_2012(tars, "http://localhost:1", trainval=archive(path, "http://localhost:1"))
    shutil.copy(tars / "VOC2012test.tar", tmp_path)
    with pytest.raises(SegjaxError, match=r"trainval.*cannot be read as a tar file"):
        voc.build(config, tmp_path / "data", manual=tmp_path)


def test_manual_archive_is_verified(tars, tmp_path):
    shutil.copytree(tars, tmp_path / "manual")
    write_tar(tmp_path / "manual/VOC2012test.tar", {"a": b"another"})
    with pytest.raises(SegjaxError, match=r"manual/VOC2012test\.tar is not the file .*expected"):
        voc.build(nowhere(tars), tmp_path, tmp_path / "manual")
    with pytest.raises(SegjaxError, match=r"nothing: no such folder"):
        voc.build(nowhere(tars), tmp_path, tmp_path / "nothing")


# what is done to an archive's files, and what is told of it
WRONG = {
    "count": ({"ImageSets/Segmentation/train.txt": lines(TRAIN[:1])}, "train has 1 .*expected 2"),
    "shared": ({"ImageSets/Segmentation/val.txt": lines([*VAL[:2], TRAIN[0]])}, "train and val sh"),
    "list": ({"ImageSets/Segmentation/val.txt": None}, r"has no .*/val\.txt"),
    "mask": ({f"SegmentationClass/{VAL[0]}.png": None}, rf"has no .*{VAL[0]}\.png"),
    "picture": ({f"JPEGImages/{VAL[0]}.jpg": None}, f"lacks 1 pictures .*{VAL[0]}"),
    "colour": (
        {f"SegmentationClass/{VAL[0]}.png": encoded(picture(VAL[0])[0], "png")},
        rf"{VAL[0]}\.png: a colour picture",
    ),
    "value": (
        {f"SegmentationClass/{VAL[0]}.png": encoded(np.uint8([[21]]), "png", palette=True)},
        rf"{VAL[0]}\.png: mask values 21 ",
    ),
}


@pytest.mark.parametrize("changes, told", WRONG.values(), ids=WRONG)
def test_what_is_not_as_published_is_told(tars, tmp_path, changes, told):
    files = trainval_files() | {f"VOCdevkit/VOC2012/{name}": new for name, new in changes.items()}
    path = tmp_path / "VOCtrainval_11-May-2012.tar"
    write_tar(path, {name: content for name, content in files.items() if content is not None})
    shutil.copy(tars / "VOC2012test.tar", tmp_path)
    config = config_2012(tars, "http://localhost:1", trainval=archive(path, "http://localhost:1"))
    with pytest.raises(SegjaxError, match=told):
        voc.build(config, tmp_path / "data", manual=tmp_path)
    assert not (tmp_path / "data/voc_segmentation/small/1.0.0").exists()


def test_sbd_not_as_published(tars, tmp_path):
    shutil.copy(tars / "VOCtrainval_11-May-2012.tar", tmp_path)
    path = tmp_path / "benchmark.tgz"
    seg11valid = tmp_path / "seg11valid.txt"

    def refused(told):
        config = config_sbd(tmp_path, "http://localhost:1")
        with pytest.raises(SegjaxError, match=told):
            voc.build(config, tmp_path / "data", manual=tmp_path)

    write_tar(path, sbd_files() | {"benchmark_RELEASE/dataset/cls/2010_01.mat": b"no matrix"})
    refused(r"cls/2010_01\.mat has no mask GTcls\.Segmentation")
    write_tar(path, sbd_files())
    seg11valid.write_bytes(lines(["2008_03", "2007_01"]))
    refused(r"seg11valid\.txt names .* not in VOC's val: 2007_01")
    seg11valid.write_bytes(lines(["2008_01", "2008_03"]))  # 2008_01 is in SBD's train
    refused(r"sbd_train and seg11valid share 1 pictures \(2008_01\)")


@pytest.mark.parametrize(
    "one, other",
    [
        ("train", "val"),
        ("train", "test"),
        ("val", "test"),
        ("trainaug", "val"),
        ("trainaug", "seg11valid"),
        ("sbd_train", "seg11valid"),
    ],
)
def test_splits_that_share_a_picture_are_refused(one, other):
    def part(*names):
        return [voc.Part(Path("a.tar"), Path("img"), dict.fromkeys(names))]

    splits = {other: part("b", "c"), one: part("a", "b")}
    with pytest.raises(SegjaxError, match=rf"^{one} and {other} share 1 pictures \(b\).*a\.tar"):
        voc._check(splits, {one: 2, other: 2})


def test_disk_space_is_looked_at_first(tars, server, tmp_path, monkeypatch):
    """Room for what is to be downloaded, and for an eighth of a megabyte a picture."""
    shutil.copytree(tars, tmp_path / "web", dirs_exist_ok=True)
    (tmp_path / "manual").mkdir()
    shutil.copy(tars / "VOC2012test.tar", tmp_path / "manual")
    config = config_2012(tars, server.url, counts={"train": 5000, "val": 2000, "test": 1000})
    config.trainval = replace(config.trainval, size=3_000_000_000)
    config.test = replace(config.test, size=1_500_000_000)

    def refused(free, told, manual=None):
        usage = shutil._ntuple_diskusage(0, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(SegjaxError, match=told):
            voc.build(config, tmp_path, manual)

    refused(5_499_999_999, r"5\.5 GB are free, but 5\.5 GB are needed: 4\.5 to dow.*--data-dir")
    refused(3_999_999_999, r"4\.0 GB are needed: 3\.0 to download", tmp_path / "manual")
    assert not server.asked
    refused(5_500_000_000, "train has 2 pictures")  # it was enough


START = """
import os, signal, sys
from pathlib import Path

import test_voc as here
from segjax.data import voc
folder, tars = map(Path, sys.argv[1:3])
config = here.config_2012(tars, sys.argv[3])
"""


def in_a_process(code, *arguments):
    """Run code in which this module is `here`."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", START + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_no_tensorflow(tars, server, tmp_path):
    """Nor where a split is so large that tfds would not sort it in memory."""
    shutil.copytree(tars, tmp_path / "web", dirs_exist_ok=True)
    ran = in_a_process(
        """
        voc.shuffle.MAX_MEM_BUFFER_SIZE = 1000
        voc.build(config, folder)
        print(*sorted(here.read(folder, "small", "val")), "tensorflow" in sys.modules)
        """,
        tmp_path,
        tars,
        server.url,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].split() == [*VAL, "False"]


def test_full_disk_in_the_middle(tars, server, tmp_path, monkeypatch):
    shutil.copytree(tars, tmp_path / "web", dirs_exist_ok=True)
    config, builds = config_2012(tars, server.url), tmp_path / "voc_segmentation/small"

    def pictures(part, real=voc._pictures):
        (building,) = builds.glob("incomplete.*")
        shard = building / "voc_segmentation-train.array_record-00000-of-00001"
        shard.symlink_to("/dev/full")  # a device on which nothing has room
        monkeypatch.setattr(voc, "_pictures", real)
        return real(part)

    monkeypatch.setattr(voc, "_pictures", pictures)
    with pytest.raises(SegjaxError, match=rf"{tmp_path}: cannot be written: .*No space left"):
        voc.build(config, tmp_path)
    voc.build(config, tmp_path)
    assert len(server.asked) == 2  # once for each archive
    assert set(read(tmp_path, "small", "train")) == set(TRAIN)
    assert [path.name for path in builds.iterdir()] == ["1.0.0"]


def test_no_folder_can_be_made(tars, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SegjaxError, match=r"file: cannot be written: .*Not a directory"):
        voc.build(nowhere(tars), tmp_path / "file", manual=tars)


def test_killed_build_starts_again(tars, server, tmp_path):
    shutil.copytree(tars, tmp_path / "web", dirs_exist_ok=True)
    ran = in_a_process(
        """
        def pictures(part, real=voc._pictures):
            yield next(real(part))
            os.kill(os.getpid(), signal.SIGKILL)

        voc._pictures = pictures
        voc.build(config, folder)
        """,
        tmp_path,
        tars,
        server.url,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    (left,) = (tmp_path / "voc_segmentation/small").iterdir()
    assert left.name.startswith("incomplete.")
    voc.build(config_2012(tars, server.url), tmp_path)
    assert len(server.asked) == 2  # once for each archive
    assert set(read(tmp_path, "small", "train")) == set(TRAIN)
    assert [path.name for path in (tmp_path / "voc_segmentation/small").iterdir()] == ["1.0.0"]


def test_command(tars, tmp_path, monkeypatch, capsys):
    small = {"2012": nowhere(tars), "2012_sbd": config_sbd(tars, "http://localhost:1")}
    build = voc.build
    monkeypatch.setattr(voc, "build", lambda name, *rest: build(small[name], *rest))

    def ran(name):
        folders = ["--data-dir", str(tmp_path), "--manual", str(tars)]
        arguments = ["prepare", f"voc_segmentation/{name}", *folders]
        command({"prepare": prepare, "other": print}, description="", argv=arguments)
        return capsys.readouterr().out

    told = ran("2012")
    assert "train: 2 pictures" in told and "test: 1 pictures" in told
    assert f"in {tmp_path}/voc_segmentation/small/1.0.0" in told and "seg11valid" not in told
    assert "masks of train ━" in told and "\ntest ━" in told
    told = ran("2012_sbd")
    assert "trainaug: 4 pictures" in told and "without seg11valid" in told


def test_prepare_from_the_shell(tars, tmp_path):
    """These archives are not the published ones: the command tells so without a traceback."""
    command = ["prepare", "voc_segmentation/2012", "--data-dir"]
    ran = subprocess.run(
        [sys.executable, "-m", "segjax", *command, str(tmp_path), "--manual", str(tars)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2 and ran.stderr.startswith("error: "), ran.stderr
    assert f"{tars}/VOCtrainval_11-May-2012.tar is not the file" in " ".join(ran.stderr.split())


# Of the real thing, where there is a folder with some: voc2012/ as in the devkit with pairs.tsv of
# id and split, and lists/.

REAL = Path(os.environ.get("SEGJAX_DATA", "absent"))
real = pytest.mark.skipif(not REAL.is_dir(), reason="SEGJAX_DATA names no folder")


@real
def test_real_pictures(tmp_path):
    rows = [line.split("\t") for line in (REAL / "voc2012/pairs.tsv").read_text().splitlines()[1:]]
    ids = {
        split: [row[0] for row in rows if row[1].startswith(split)]
        for split in ("train", "val", "sbd")
    }
    devkit, sbd = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"

    def file(kind, name):
        (path,) = (REAL / "voc2012" / kind).glob(f"{name}.*")
        return path.read_bytes()

    def label(name):
        with Image.open(io.BytesIO(file("SegmentationClass", name))) as image:
            assert image.mode == "P"
            return np.array(image)

    files = {f"{sbd}/train.txt": lines(ids["sbd"]), f"{sbd}/val.txt": lines(ids["val"][:3])}
    for name in ids["sbd"] + ids["val"][:3]:
        files[f"{sbd}/cls/{name}.mat"] = matlab(label(name))
        files[f"{sbd}/img/{name}.jpg"] = file("JPEGImages", name)
    write_tar(tmp_path / "benchmark.tgz", files, "w:gz")
    files = {}
    for split in ("train", "val"):
        files[f"{devkit}/ImageSets/Segmentation/{split}.txt"] = lines(ids[split])
        for name in ids[split]:
            files[f"{devkit}/JPEGImages/{name}.jpg"] = file("JPEGImages", name)
            files[f"{devkit}/SegmentationClass/{name}.png"] = file("SegmentationClass", name)
    write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", files)
    in_sbd, in_train, in_val = map(len, (ids["sbd"], ids["train"], ids["val"]))
    counts = {"trainaug": in_sbd + in_train, "sbd_train": in_sbd, "val": in_val}
    voc.build(config_sbd(tmp_path, "http://localhost:1", counts=counts), tmp_path, tmp_path)

    examples = read(tmp_path, "small_sbd", "trainaug") | read(tmp_path, "small_sbd", "val")
    assert len(examples) == len(rows) == 29
    for name, example in examples.items():
        assert_equal(example, file("JPEGImages", name), label(name))
    void = {name for name, example in examples.items() if 255 in example["label"]}
    assert void == {*ids["train"], *ids["val"]}


@real
def test_real_lists(tmp_path):
    """The published counts, with SBD's lists made up so that VOC's and trainaug are as they are."""
    files = ("voc12_train", "voc12_val", "voc12_test", "voc12_trainaug", "seg11valid")
    train, val, test, trainaug, valid = (
        (REAL / f"lists/{name}.txt").read_text().split() for name in files
    )
    devkit, sbd = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
    png, mat = encoded(np.uint8([[0, 255]]), "png", palette=True), matlab(np.uint8([[0, 1]]))
    lists = f"{devkit}/ImageSets/Segmentation"
    trainval = {f"{lists}/train.txt": lines(train), f"{lists}/val.txt": lines(val)}
    trainval |= {f"{devkit}/SegmentationClass/{name}.png": png for name in train + val}
    write_tar(tmp_path / "trainval.tar", trainval)
    write_tar(tmp_path / "test.tar", {f"{lists}/test.txt": lines(test)})
    own = sorted(set(trainaug) - set(train))
    of_val = sorted(set(val) - set(valid))
    every = [*of_val, *own, *train, *valid][: 8498 + 2857]
    files = {f"{sbd}/train.txt": lines(every[:8498]), f"{sbd}/val.txt": lines(every[8498:])}
    files |= {f"{sbd}/cls/{name}.mat": mat for name in every}
    write_tar(tmp_path / "benchmark.tgz", files)
    plain, with_sbd = (config.counts for config in voc.VocSegmentation.BUILDER_CONFIGS)
    voc._check(voc._voc(tmp_path / "trainval.tar", tmp_path / "test.tar"), plain)
    splits = voc._voc_and_sbd(
        tmp_path / "trainval.tar", tmp_path / "benchmark.tgz", REAL / "lists/seg11valid.txt"
    )
    voc._check(splits, with_sbd)
    assert {name for part in splits["trainaug"] for name in part.masks} == set(trainaug)
