"""The verb that labels pictures by a run."""

import glob
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from PIL import Image

from segjax.commands.trained import Which, load
from segjax.data.pictures import Ranges, count_pages, shown
from segjax.errors import SegjaxError
from segjax.evaluation import visualise
from segjax.inference import memory
from segjax.segmenter import Segmenter


class _Picture(NamedTuple):
    """One to label: a file, its page where it has several, and the name of what is written."""

    path: Path
    page: int | None
    name: str


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def predict(
    run: Path,
    images: tyro.conf.Positional[tuple[Path, ...]],
    *,
    out: Path | None = None,
    checkpoint: Which = "best",
    tile: int | None = None,
    gaussian: bool = False,
) -> None:
    """Write label PNGs and overlays of pictures of any size.

    Args:
        run: The run folder.
        images: Picture files, folders of them, or patterns such as 'photos/*.jpg'. Of a file of
            several pages, each is labelled.
        out: Where to write; by default `predictions` in the run folder.
        checkpoint: Which checkpoint.
        tile: Compute by tiles of at most so many pixels a side; by default only pictures that are
            too large for the memory.
        gaussian: Where windows are averaged (SETR), let their weights fall towards the border.

    Raises:
        SegjaxError: pictures that cannot be read, after all others are done.
    """
    if runs := [path for path in images if (path / "recipe.json").exists()]:
        raise SegjaxError(
            f"{runs[0]}: a run folder, where pictures are expected. The run comes first, then the "
            f"pictures: {runs[0]} {run}"
        )
    trained = load(run, checkpoint)
    classes, palette = trained.classes, trained.palette
    out = out or run / "predictions"
    pictures, unread = _pictures(_files(images), trained.read, trained.ranges)
    _check_names(pictures, out)
    total = len(pictures) + len(unread)
    for path, page, name in pictures:
        try:
            image = trained.read(path, page)
            labels = _label(trained, path, image, tile=tile, gaussian=gaussian)
            overlay = visualise.overlay(image, labels, palette)
            out.mkdir(parents=True, exist_ok=True)
            visualise.save_mask(out / f"{name}.png", labels, palette)
            laid = visualise.with_legend(overlay, labels, classes, palette)
            laid.save(out / f"{name}_overlay.png")
        except SegjaxError as error:
            unread.append(str(error))
        except OSError as error:  # a name that is too long there, a full disk
            unread.append(f"{out / name}.png: cannot be written: {error.strerror or error}.")
        else:
            print(f"{out / name}.png  {name}_overlay.png")
    if unread:
        done = total - len(unread)
        if total > 1:
            unread.append(
                f"The other {done} of {total} {'is' if done == 1 else 'are'} done."
                if done
                else f"None of the {total} is done."
            )
        raise SegjaxError("\n".join(unread))


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
    suffixes = Image.registered_extensions()
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


def _pictures(
    files: Iterable[Path], read: Callable[..., np.ndarray], ranges: Ranges
) -> tuple[list[_Picture], list[str]]:
    """Each picture in the files, and what is wrong with files that cannot be opened."""
    pictures, unread = [], []
    for path in files:
        try:
            pages = _pages(path, read, ranges)
        except SegjaxError as error:
            unread.append(str(error))
            continue
        if pages == 1:
            pictures.append(_Picture(path, None, path.stem))
            continue
        print(f"{path}: {pages} pages")
        digits = len(str(pages - 1))  # as `Folder` names them
        pictures += [_Picture(path, i, f"{path.stem}-{i:0{digits}}") for i in range(pages)]
    return pictures, unread


def _pages(path: Path, read: Callable[..., np.ndarray], ranges: Ranges) -> int:
    """How many pictures a file holds."""
    if not ranges:
        return count_pages(path)
    try:  # with them a file of many pages may be one picture of many channels
        read(path)
    except SegjaxError as error:
        with suppress(SegjaxError):
            return count_pages(path)
        raise error
    return 1


def _check_names(pictures: Iterable[_Picture], out: Path) -> None:
    """Raise SegjaxError where two pictures would be written to one file."""
    written: dict[str, Path] = {}
    for path, _, name in pictures:
        for file in (f"{name}.png", f"{name}_overlay.png"):
            if file in written:
                raise SegjaxError(
                    f"Several pictures would be written to {out / file}: {written[file]} and "
                    f"{path}. Predict them into different folders with --out."
                )
            written[file] = path


def _label(
    trained: Segmenter, path: Path, image: np.ndarray, *, tile: int | None, gaussian: bool
) -> np.ndarray:
    """The label (H, W) of the picture (H, W, C) of a file; tells where it goes by tiles."""
    height, width, _ = image.shape
    if plan := trained.plan((height, width), tile=tile):
        if not tile:
            print(f"{path}: {height}×{width} pixels at once do not fit the memory; so by tiles.")
        print(plan)
        # The stitched logits, float32, and their argmax, int64, are held on the host.
        if height * width * (4 * trained.model.num_classes + 8) > memory.left_on_host():
            raise SegjaxError(
                f"{path}: the logits of {height}×{width} pixels and {trained.model.num_classes} "
                "classes do not fit this machine's memory. Cut the picture into parts."
            )
    return trained.predict(image, tile=tile, gaussian=gaussian)
