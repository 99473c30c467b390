"""What a verb makes sure of before it computes: its numbers, and where it writes."""

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

import jax
import psutil
from PIL import Image, PngImagePlugin

from segjax.errors import SegjaxError

_SIDE = 2**16  # pixels of a canvas
_SIZE = f"height and width, whole numbers of 1 to {_SIDE:,}"
_WHOLE = {  # fields of every recipe: the least and the greatest value
    "steps": (0, 2**31 - 1),  # they are counted in 32 bits
    "batch_size": (1, 2**24),
    "channels": (1, 2**12),
    "seed": (0, 2**32 - 1),
    "workers": (1, 2**10),
    "evaluate_every": (1, 2**63),
    "log_every": (1, 2**63),
}
_LARGEST = 3.4e38  # of float32; NaN is not below it either
_WORDS = {"compute": ("float32", "bfloat16"), "cache": ("no", "memory", "disk")}
_BATCHES = 4  # that the host holds at a time
_SOFTWARE = "segjax"  # what PNGs and TIFFs of results name as their maker
_TIFF_SOFTWARE = 305  # the tag


def demand_counts(**options: int | None) -> None:
    """Raise SegjaxError where an option that counts, if it is given, is less than 1."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise SegjaxError(f"--{name.replace('_', '-')} is {value}; expected at least 1.")


def check_fields(recipe: Any) -> None:
    """Raise SegjaxError where a field that every recipe has is of no use, whatever the recipe."""

    def refuse(name: str, expected: str) -> NoReturn:
        raise SegjaxError(f"{name} is {getattr(recipe, name)!r}; expected {expected}.")

    for name, (least, most) in _WHOLE.items():
        value = getattr(recipe, name)
        if not _is_whole(value):
            refuse(name, "a whole number")
        if value > most:
            refuse(name, f"at most {most:,}")
        if value < least:
            refuse(name, f"at least {least}")
    for name in ("canvas", "crop"):
        if not _is_size(getattr(recipe, name)):
            refuse(name, _SIZE)
    if not all(map(_is_size, recipe.buckets)):
        refuse("buckets", f"{_SIZE}, for each")
    rate = recipe.learning_rate
    if not (isinstance(rate, Real) and 0 <= float(rate) <= _LARGEST):
        refuse("learning_rate", "a number of at least 0 that float32 has")
    for name, words in _WORDS.items():
        if getattr(recipe, name) not in words:
            refuse(name, " or ".join(words))


def check_batch(recipe: Any) -> None:
    """Raise SegjaxError where the host has no memory for a few batches, as they are read ahead."""
    need = _BATCHES * recipe.batch_size * math.prod(recipe.canvas) * (recipe.channels + 1)
    room = psutil.virtual_memory().total * jax.process_count()
    if need > room:
        raise SegjaxError(
            f"{_BATCHES} batches of {recipe.batch_size:,} pictures of "
            f"{recipe.canvas[0]}×{recipe.canvas[1]} take {need / 2**30:,.0f} GiB as they are read "
            f"ahead, more than the machine's {room / 2**30:,.0f}. Take a smaller batch_size or "
            "canvas."
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(_is_whole(side) and 1 <= side <= _SIDE for side in value)
    )


def check_outputs(
    planned: Iterable[tuple[Path, object]], inputs: Iterable[Path], *, replace: bool = True
) -> None:
    """Raise SegjaxError where a file would be written over an input, a sibling or, told so, others.

    Files are told apart as the file system does: through links, and by `A.png` and `a.png` where
    it takes these for one.

    Args:
        planned: each file to be written, and of what it is made, in words or as a path.
        inputs: what the command reads.
        replace: whether files that no command has written may be replaced; those of segjax may.
    """
    read = {one: path for path in inputs if (one := _existing(path))}
    made: dict[object, tuple[Path, object]] = {}
    for file, of in planned:
        there = _existing(file)
        if there in read and there:
            made_of = "it" if read[there] == of else str(of)
            where = "" if read[there] == file else f" ({file})"
            raise SegjaxError(
                f"{read[there]}: would be written over by what is made of {made_of}{where}. Name "
                "another folder with --out."
            )
        place = there or (file.parent.resolve(), _folded(file))
        if place in made:
            other, its = made[place]
            raise SegjaxError(
                f"Several pictures would be written to {file}: {its} and {of}. Predict them into "
                "different folders with --out."
                if other == file
                else f"{other}, made of {its}, and {file}, made of {of}, are one file here. "
                "Predict them into different folders with --out."
            )
        made[place] = file, of
        if there and not replace and not _is_ours(file):
            raise SegjaxError(
                f"{file}: is there, and was not written by segjax. Name another folder with "
                "--out, or move it."
            )


def files_of(source: Any) -> list[Path]:
    """The files that a source reads, if it is made of any and can tell."""
    while hasattr(source, "source"):  # of a wrapper, which reads no others
        source = source.source
    return getattr(source, "files", [])


def make_folder(folder: Path) -> None:
    """Make a folder, and raise the system's OSError where nothing can be written to it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:  # which names a file that nobody has asked for
        raise OSError(error.errno, error.strerror, str(folder)) from error


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG that names segjax as its maker: whole, or what was there stays."""
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", _SOFTWARE)
    unfinished = path.with_name(path.name + ".writing")
    try:
        image.save(unfinished, "PNG", pnginfo=about)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _is_ours(file: Path) -> bool:
    """Whether a picture names segjax as its maker."""
    try:
        with Image.open(file) as image:
            tags = getattr(image, "tag_v2", {})
            return _SOFTWARE in (image.info.get("Software"), tags.get(_TIFF_SOFTWARE))
    except Exception:  # what decoders raise of files that are anything
        return False


def _existing(path: Path) -> tuple[int, int] | None:
    """What tells an existing file from all others, by whatever name."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _folded(file: Path) -> str:
    return file.name.casefold() if _folds(file.parent) else file.name


def _folds(folder: Path) -> bool:
    """Whether the file system takes `A` for `a`, as far as the folder's own name can tell."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    other = Path(folder.anchor, *folder.parts[1:-1], folder.name.swapcase())
    return other != folder and _existing(other) == _existing(folder)
