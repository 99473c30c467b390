"""The verb that labels pictures by a run."""

import errno
import glob
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from PIL import Image

from segjax.commands.checks import check_outputs, demand_counts, make_folder, save_png
from segjax.commands.strips import fingerprint, in_bytes, label_by_strips, told
from segjax.commands.trained import Which, load
from segjax.data.pictures import shown
from segjax.data.rows import open_rows, pages_of, size_of
from segjax.data.tiff_writer import cloud_optimised, georeference, write_tiff
from segjax.errors import SegjaxError
from segjax.evaluation import visualise
from segjax.inference.views import With, parse
from segjax.segmenter import Segmenter

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # what is true of the next file too


class _Picture(NamedTuple):
    """One to label: a file, its page where it has several, and the name of what is written."""

    path: Path
    page: int | None
    name: str


class _Job(NamedTuple):
    """A picture, and what its header tells of it before it is read.

    tags: its georeference.  whole: whether the memory holds it with its results.
    """

    picture: _Picture
    size: tuple[int, int]
    tags: Sequence[Any]
    whole: bool

    def files(self, out: Path, *, probabilities: bool) -> list[Path]:
        """What is written of it, the label first."""
        label = ".png" if self.whole and not self.tags else ".tif"
        ends = [label, "_overlay.png", *(["_probabilities.tif"] if probabilities else [])]
        return [out / f"{self.picture.name}{end}" for end in ends]


class _Ways(NamedTuple):
    """How pictures are computed, and what is written of them."""

    tile: int | None
    gaussian: bool
    views: Sequence[Any]
    probabilities: bool
    cog: bool
    identity: dict[str, Any]  # of network and views, for going on after an interruption


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def predict(
    run: Path,
    images: tyro.conf.Positional[tuple[Path, ...]],
    *,
    out: Path | None = None,
    checkpoint: Which = "best",
    tile: int | None = None,
    gaussian: bool = False,
    views: str = "",
    with_: Annotated[tuple[Path, ...], tyro.conf.arg(name="with")] = (),
    probabilities: bool = False,
    cog: bool = False,
) -> None:
    """Write labels and overlays of pictures of any size, larger than memory too.

    A label is a palette PNG; of a picture with a georeference, or of more than 67 million pixels, a
    tiled TIFF. Interrupted, the same command goes on with such a large picture where it was.

    Args:
        run: The run folder.
        images: Picture files, folders of them, or patterns such as 'photos/*.jpg'. Of a file of
            several pages, each is labelled.
        out: Where to write; by default `predictions` in the run folder.
        checkpoint: Which checkpoint.
        tile: Compute by tiles of at most so many pixels a side; by default only pictures that are
            too large for the memory.
        gaussian: Where windows are averaged (SETR), let their weights fall towards the border.
        views: Ways to see a picture, whose probabilities are averaged: flip, rotations,
            scales=0.5:1.75 (in steps of 0.25), slide=480 (windows); such as flip,scales=0.5:1.75.
        with_: Further runs of the same classes: an ensemble, whose probabilities are averaged.
        probabilities: Write them too, a TIFF of a band per class, 0–255 for 0–1.
        cog: Make the TIFFs Cloud-Optimised GeoTIFFs; needs rasterio, segjax[geo].

    Raises:
        SegjaxError: pictures that cannot be read, after all others are done.
    """
    if runs := [path for path in images if (path / "recipe.json").exists()]:
        raise SegjaxError(
            f"{runs[0]}: a run folder, where pictures are expected. The run comes first, then the "
            f"pictures: {runs[0]} {run}"
        )
    demand_counts(tile=tile)
    seen = parse(views)
    trained = load(run, checkpoint)
    others = [load(other, checkpoint) for other in with_]
    identity = {"networks": [fingerprint(one) for one in (trained, *others)], "views": views}
    ways = _Ways(
        tile=tile,
        gaussian=gaussian,
        views=(*_beside(trained, others, with_, tile, gaussian), *seen),
        probabilities=probabilities,
        cog=cog,
        identity={**identity, "gaussian": gaussian},
    )
    where = out or run / "predictions"
    with _any_size():
        pictures, unread = _pictures(_files(images), trained)
        jobs, unopened = _planned(pictures, trained, ways)
    unread += unopened
    check_outputs(
        (
            (file, job.picture.path)
            for job in jobs
            for file in job.files(where, probabilities=probabilities)
        ),
        [picture.path for picture in pictures],
        replace=out is None,
    )
    make_folder(where)
    total, done = len(jobs) + len(unread), 0
    for job in jobs:
        try:
            with _any_size():
                written = _label(trained, job, where, ways)
        except SegjaxError as error:
            unread.append(str(error))
        except OSError as error:  # a name that is too long there, a full disk
            file = where / job.picture.name
            unread.append(f"{file}: cannot be written: {error.strerror or error}.")
            if error.errno in _FULL:  # and so would all others be in vain
                unread.append("Make room, or name another folder with --out; stopped here.")
                break
        else:
            done += 1
            print(written[0], *(file.name for file in written[1:]), sep="  ")
    if unread:
        if total > 1:
            unread.append(
                f"The other {done} of {total} {'is' if done == 1 else 'are'} done."
                if done
                else f"None of the {total} is done."
            )
        raise SegjaxError("\n".join(unread))


@contextmanager
def _any_size() -> Iterator[None]:
    """Without Pillow's warning of many pixels; of twice as many it makes an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _beside(
    trained: Segmenter,
    others: Sequence[Segmenter],
    runs: Sequence[Path],
    tile: int | None,
    gaussian: bool,
) -> list[Any]:
    """The view of an ensemble, outermost; none without others."""
    for run, other in zip(runs, others, strict=True):
        for name in ("classes", "channels", "ranges"):
            mine, its = getattr(trained, name), getattr(other, name)
            if mine != its:
                raise SegjaxError(
                    f"{run}: has the {name} {its}, expected {mine} as of the first run: only runs "
                    "of the same classes and pictures can be averaged."
                )
    if not others:
        return []
    predicts = [partial(other.logits, tile=tile, gaussian=gaussian) for other in others]
    return [With(predicts, [one.model.geometry for one in (trained, *others)])]


def _files(images: Iterable[Path]) -> list[Path]:
    """The files that are named, those that a pattern stands for, and the pictures of folders."""
    files: list[Path] = []
    for path in images:
        if path.exists() or path.is_symlink() or not set("*?[") & set(str(path)):
            found = [path]
        elif not (found := sorted(map(Path, glob.glob(str(path), recursive=True)))):
            raise SegjaxError(f"{path}: no file has a name like that. Correct the pattern.")
        for one in found:
            files += _in_folder(one) if one.is_dir() else [one]
    if not files:
        raise SegjaxError("No picture was named; give one or more files or folders of them.")
    return files


def _in_folder(folder: Path) -> list[Path]:
    """The pictures in a folder, by their suffix as of `Folder`; what else lies there is told."""
    suffixes = {*Image.registered_extensions(), ".npy"}
    held = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in held if path.suffix.lower() in suffixes and not path.is_dir()]
    if not files:
        raise SegjaxError(
            f"{folder}: no file in this folder has a picture's suffix. Name another, or the files."
        )
    if others := [path.name for path in held if path not in files]:
        pictures = "1 picture" if len(files) == 1 else f"{len(files)} pictures"
        print(f"{folder}: {pictures}; passed over: {shown(others)}")
    return files


def _pictures(files: Iterable[Path], trained: Segmenter) -> tuple[list[_Picture], list[str]]:
    """Each picture in the files, and what is wrong with files that cannot be opened."""
    pictures, unread = [], []
    for path in files:
        try:
            pages = _pages(path, trained)
        except SegjaxError as error:
            unread.append(str(error))
            continue
        if len(pages) == 1:
            pictures.append(_Picture(path, pages[0] or None, path.stem))
            continue
        print(f"{path}: {len(pages)} pages")
        digits = len(str(pages[-1]))  # as `Folder` names them
        pictures += [_Picture(path, i, f"{path.stem}-{i:0{digits}}") for i in pages]
    return pictures, unread


def _pages(path: Path, trained: Segmenter) -> list[int]:
    """The numbers of the pictures in a file."""
    pages = pages_of(path)
    if len(pages) > 1 and trained.ranges:
        with suppress(SegjaxError), open_rows(path, trained.channels, trained.ranges):
            return [0]  # with ranges, many pages may be one picture of many channels
    return pages


def _planned(
    pictures: Iterable[_Picture], trained: Segmenter, ways: _Ways
) -> tuple[list[_Job], list[str]]:
    """What is to do of each picture, and what is wrong with those whose header cannot be read."""
    jobs, unread = [], []
    for picture in pictures:
        path, page, _ = picture
        try:
            size = size_of(path, trained.channels, trained.ranges, page)
            tags = georeference(path, page)
        except SegjaxError as error:
            unread.append(str(error))
            continue
        jobs.append(_Job(picture, size, tags, trained.holds(size, views=ways.views)))
    return jobs, unread


def _label(trained: Segmenter, job: _Job, out: Path, ways: _Ways) -> list[Path]:
    """Label a picture at once, by tiles, or strip by strip, and tell how; the files written."""
    path, page, _ = job.picture
    files = job.files(out, probabilities=ways.probabilities)
    if not job.whole:
        print(f"{path}: {job.size[0]}×{job.size[1]} pixels, so strip by strip, into a TIFF.")
        _by_strips(trained, job, out, ways)
    else:
        image = trained.read(path, page)
        labels, shares = _whole(trained, path, image, ways)
        _write(trained, image, labels, shares, files, job.tags)
    if ways.cog:
        for file in files:
            if file.suffix == ".tif":
                cloud_optimised(file)
    return files


def _by_strips(trained: Segmenter, job: _Job, out: Path, ways: _Ways) -> None:
    path, page, name = job.picture
    file = path.stat()
    identity = {"picture": ascii(path.resolve()), "bytes": file.st_size, "time": file.st_mtime_ns}
    with open_rows(path, trained.channels, trained.ranges, page) as rows:
        label_by_strips(
            trained,
            rows,
            out / name,
            identity={**identity, "page": page, **ways.identity},
            tile=ways.tile,
            gaussian=ways.gaussian,
            views=ways.views,
            probabilities=ways.probabilities,
            tags=job.tags,
        )


def _whole(
    trained: Segmenter, path: Path, image: np.ndarray, ways: _Ways
) -> tuple[np.ndarray, np.ndarray | None]:
    """Label (H, W) and, where asked for, probabilities (H, W, N) of a picture that fits."""
    height, width, _ = image.shape
    if plan := trained.plan((height, width), tile=ways.tile):
        if not ways.tile:
            print(f"{path}: {height}×{width} pixels at once do not fit the memory; so by tiles.")
        print(plan)
    of = partial(in_bytes, trained, probabilities=ways.probabilities)
    if plan and trained.by_strips((height, width), tile=ways.tile, views=ways.views):
        # Of logits there is a strip at a time then: of a large picture they take gigabytes.
        strips = trained.strips(
            partial(_rows, image),
            (height, width),
            of=of,
            tile=ways.tile,
            gaussian=ways.gaussian,
            views=ways.views,
        )
        found = np.concatenate([strip for _, strip in strips])
    else:
        ways_: Any = {"tile": ways.tile, "gaussian": ways.gaussian, "views": ways.views}
        found = np.asarray(of(trained.logits(image[None], **ways_)[0]))
    return found[..., 0], found[..., 1:] if ways.probabilities else None


def _rows(image: np.ndarray, first: int, last: int) -> np.ndarray:
    return image[first:last]


def _write(
    trained: Segmenter,
    image: np.ndarray,
    labels: np.ndarray,
    shares: np.ndarray | None,
    files: Sequence[Path],
    tags: Sequence[Any],
) -> None:
    """Label, overlay and probabilities of a picture that fits; a TIFF where it has a place."""
    classes, palette = trained.classes, trained.palette
    described: Any = {"description": told(classes), "tags": tags}
    if tags:
        write_tiff(files[0], lambda a, z: labels[a:z], labels.shape, palette=palette, **described)
    else:
        save_png(visualise.mask(labels, palette), files[0])
    overlay = visualise.overlay(image, labels, palette)
    save_png(visualise.with_legend(overlay, labels, classes, palette), files[1])
    if shares is not None:
        bands = len(classes)
        write_tiff(files[2], lambda a, z: shares[a:z], labels.shape, bands=bands, **described)
