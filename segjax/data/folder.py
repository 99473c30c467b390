"""Pairs of pictures and masks in a folder, as a sequence of examples.

`Folder` finds the pairs by their stems and reads them by `pictures`. No data set is known by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segjax.data.pictures import (
    Codes,
    Colours,
    Ranges,
    Unusable,
    Values,
    check_channels,
    check_colours,
    check_palette,
    count_pages,
    label_table,
    mask_size,
    orientation,
    picture_size,
    read_codes,
    read_instances,
    read_mask,
    read_picture,
    shown,
)
from segjax.errors import SegjaxError

_TOLD = 5  # errors that one message tells


class Pair(NamedTuple):
    """A picture and its mask: the stem that they share, the two files, and the page of stacks."""

    id: str
    image: Path
    mask: Path
    page: int | None = None


class _Found(NamedTuple):
    """What lies in the folders: pairs, what stands in the way of one, and what is no picture."""

    pairs: tuple[Pair, ...]
    unpaired: tuple[Unusable, ...] = ()
    passed_over: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Folder:
    """The pairs of pictures and masks in a folder, sorted by stem.

    Pictures lie in `root/images`, masks in `root/masks`, paired by stem: `images/a.jpg` and
    `masks/a.png`. Hidden files are passed over, and so are those whose suffix is no picture's,
    unless the partner has no other. A split is either a subfolder of both (`images/train`,
    `masks/train`) or a list `root/train.txt` of one stem per line.

    Where `images` and `masks` name TIFF files, each page of them is an example.

    The files are looked up once, at first use; each example is read from disk when it is asked for.

    Args:
        root: the folder.
        classes: N names, 1 <= N <= 255.
        palette: N colours (red, green, blue), 0..255.
        split: subfolder or list; None takes the folder itself.
        part: `(start, stop)` of the sorted pairs, as in a slice.
        values: `(stored mask value, class)`; a value that is not named keeps itself. Masks of 0
            and 255 need `((255, 1),)`.
        channels: of the pictures: 1 grey, 3 RGB, 4 RGBA; with `ranges`, any number.
        images: the pictures' folder, under root, or several by wildcards: `leftImg8bit/train/*`.
        masks: the masks' folder, under root, in the same way.
        lists: the folder of lists, under root.
        endings: what follows the shared stem in the names of pictures and of masks, before the
            suffix: `("", "_mask")` for `a.jpg` and `a_mask.png`, which may lie in one folder. Other
            files are passed over.
        ranges: `(low, high)` of the pictures' stored values, one for all channels or one for each.
            Without it, pictures of more than 8 bits are refused.
        instances: the masks hold numbers of instances, 0 = background and 1..65535; the two
            classes are background and object.
        colours: `((red, green, blue), class)` of every colour in the masks, which are then read by
            their colours; 255 = ignore.
        complete: every picture must have its mask, and every mask its picture. False leaves out
            what has no partner, which `unpaired` then tells.

    Raises:
        SegjaxError: at once for arguments that do not fit each other; at first use for folders and
            files that do not; at `[i]` for a file that cannot be read as asked.
    """

    root: Path
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    split: str | None = None
    part: tuple[int | None, int | None] = (None, None)
    values: Values = ()
    channels: int = 3
    images: str = "images"
    masks: str = "masks"
    lists: str = "."
    endings: tuple[str, str] = ("", "")
    ranges: Ranges = ()
    instances: bool = False
    colours: Colours = ()
    complete: bool = True

    def __post_init__(self) -> None:
        check_channels(self.channels, self.ranges)
        label_table(len(self.classes), self.values)
        check_colours(len(self.classes), self.colours)
        check_palette(f"Folder({self.root})", self.classes, self.palette)
        if self.instances and (len(self.classes) != 2 or self.values or self.colours):
            raise SegjaxError(
                f"Folder({self.root}): masks of instances have two classes, background and object, "
                f"and neither `values` nor `colours`; got {len(self.classes)} classes, "
                f"values={self.values} and colours={self.colours}."
            )
        if self.values and self.colours:
            raise SegjaxError(
                f"Folder({self.root}): masks are read by their values or by their colours; got "
                f"values={self.values} and colours={self.colours}. Drop one of the two."
            )
        # JSON gives a string and lists back; equality and hash need the types declared above
        for name, value in {
            "root": Path(self.root),
            "classes": tuple(self.classes),
            "palette": tuple(map(tuple, self.palette)),
            "part": tuple(self.part),
            "values": tuple(map(tuple, self.values)),
            "endings": tuple(self.endings),
            "ranges": tuple(map(tuple, self.ranges)),
            "colours": tuple((tuple(colour), label) for colour, label in self.colours),
        }.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Example i, read from disk.

        Returns:
            `{"image": (H, W, C) of 0..255, uint8, or float32 with `ranges`; "label": uint8 (H, W)
            of 0..N-1 and 255; "id": the stem}`; of masks of instances also "instances": uint16
            (H, W), whose label is 1 where it is above 0.

        Raises:
            SegjaxError: a file is broken, a mask holds other values, or the two sizes differ.
            IndexError: there is no example i.
        """
        pair = self.pairs[i]
        example: dict[str, Any] = {
            "image": read_picture(pair.image, self.channels, self.ranges, pair.page)
        }
        if self.instances:
            example["instances"] = read_instances(pair.mask, pair.page)
            example["label"] = (example["instances"] > 0).astype(np.uint8)
        else:
            example["label"] = read_mask(
                pair.mask, len(self.classes), self.values, pair.page, self.colours
            )
        _demand_same_size(pair, example["image"].shape, example["label"].shape)
        return example | {"id": pair.id}

    def picture_of(self, i: int) -> tuple[str, np.ndarray]:
        """The stem and the picture alone of example i, which an audit reads where the mask is bad.

        Raises:
            SegjaxError: the picture is broken, or is not as asked.
        """
        pair = self.pairs[i]
        return pair.id, read_picture(pair.image, self.channels, self.ranges, pair.page)

    def codes_of(self, i: int, *, coloured: bool = False) -> Codes:
        """What the mask of example i stores, before it is taken for classes; see `read_codes`.

        Raises:
            SegjaxError: the mask is broken, or cannot be one.
        """
        pair = self.pairs[i]
        return read_codes(pair.mask, pair.page, coloured=coloured)

    def turned(self, i: int) -> int:
        """How viewers turn the picture of example i, by its EXIF, and its mask not: 1 not at all.

        A picture that is turned on its side by as much as its mask fits has a mask of its pixels.
        """
        pair = self.pairs[i]
        found = orientation(pair.image)
        if found == 1 or found == orientation(pair.mask):
            return 1
        height, width = self.size_of(i)
        return found if height == width or found < 5 else 1

    def size_of(self, i: int) -> tuple[int, int]:
        """Height and width of example i, from the files' headers alone.

        Raises:
            SegjaxError: what the headers tell to be wrong: a file is no picture, a mask is in
                colour or a JPEG, a picture needs `ranges`, or the two sizes differ.
        """
        pair = self.pairs[i]
        size = picture_size(pair.image, self.channels, self.ranges, pair.page)
        _demand_same_size(pair, size, mask_size(pair.mask, pair.page, coloured=bool(self.colours)))
        return size

    @property
    def files(self) -> list[Path]:
        """All files that the examples are made of."""
        return sorted({path for pair in self.pairs for path in (pair.image, pair.mask)})

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs of this split and part, sorted by stem.

        Raises:
            SegjaxError: a folder is missing or empty, the split is unknown or ambiguous, or `part`
                leaves nothing; if `complete`, a picture or mask lacks its partner, two files share
                a stem, or a line of the list names no picture.
        """
        found = self._found
        if self.complete and found.unpaired:
            raise _incomplete(found.unpaired)
        return found.pairs

    @property
    def unpaired(self) -> tuple[Unusable, ...]:
        """What stands in the way of a pair, file by file and line by line."""
        return self._found.unpaired

    @property
    def passed_over(self) -> tuple[Path, ...]:
        """The files beside the pictures and masks that are neither."""
        return self._found.passed_over

    @cached_property
    def _found(self) -> "_Found":
        stack = self.root / self.images
        found = self._pages() if stack.is_file() else self._files()
        pairs = found.pairs[slice(*self.part)]
        if found.pairs and not pairs:
            raise SegjaxError(
                f"{stack}: part={self.part} leaves none of the {len(found.pairs)} pairs. "
                f"Choose start < stop within 0..{len(found.pairs)}, or (None, None) for all."
            )
        return found._replace(pairs=pairs)

    def _pages(self) -> "_Found":
        """The pages of two TIFF files."""
        image, mask = self.root / self.images, self.root / self.masks
        if self.split is not None:
            raise SegjaxError(
                f"split={self.split!r}: {image} is one file. Choose its pages with `part`."
            )
        pages, mask_pages = count_pages(image), count_pages(mask)
        if pages != mask_pages:
            raise SegjaxError(
                f"{image} has {pages} pages, but its masks {mask} have {mask_pages}. Each page "
                "needs a mask: get the right file."
            )
        digits = len(str(pages - 1))
        ids = [f"{image.stem}-{page:0{digits}}" for page in range(pages)]
        return _Found(tuple(Pair(id, image, mask, page) for page, id in enumerate(ids)))

    def _files(self) -> "_Found":
        """The files of one stem."""
        image_folder, mask_folder, list_file = self._layout()
        of_image, of_mask = self.endings
        together = image_folder == mask_folder
        if together and of_image == of_mask:
            raise SegjaxError(
                f"{image_folder}: pictures and masks lie in one folder. Say with `endings` how "
                'their names differ: endings=("", "_mask") for a.jpg and a_mask.png.'
            )
        images, other_images = _by_stem(image_folder, of_image, of_mask if together else None)
        masks, other_masks = _by_stem(mask_folder, of_mask, of_image if together else None)
        # An a.heic whose mask is a.png is meant for a picture; its reading tells what it is.
        for stem in masks.keys() & other_images.keys() - images.keys():
            images[stem] = other_images.pop(stem)
        for stem in images.keys() & other_masks.keys() - masks.keys():
            masks[stem] = other_masks.pop(stem)
        passed_over = {*chain(*other_images.values(), *other_masks.values())}
        if not images:
            names = shown(sorted(path.name for path in passed_over))
            told = f" Passed over, for their suffixes: {names}." if names else ""
            raise SegjaxError(f"{image_folder}: no pictures in this folder.{told} {self._splits()}")
        unpaired: list[Unusable] = []
        if list_file:
            stems, unpaired = _listed(list_file, images, image_folder)
            # Whatever it does not name belongs to another split.
            images = {stem: images[stem] for stem in stems}
            masks = {stem: masks[stem] for stem in stems if stem in masks}
        unpaired += _twins(images) + _twins(masks)
        unpaired += _lone("picture without a mask", images, masks, mask_folder)
        unpaired += _lone("mask without a picture", masks, images, image_folder)
        pairs = [
            Pair(stem, images[stem][0], masks[stem][0])
            for stem in sorted(images.keys() & masks.keys())
            if len(images[stem]) == len(masks[stem]) == 1
        ]
        return _Found(tuple(pairs), tuple(unpaired), tuple(sorted(passed_over)))

    def _layout(self) -> tuple[Path, Path, Path | None]:
        """The folder of pictures, the folder of masks, and the list where the split is one."""
        images, masks = self.root / self.images, self.root / self.masks
        for folder in (self.root, images, masks):
            self._demand_folder(folder)
        if self.split is None:
            return images, masks, None
        subfolder, list_file = images / self.split, self.root / self.lists / f"{self.split}.txt"
        if subfolder.is_dir() and list_file.is_file():
            raise SegjaxError(
                f"split={self.split!r} is both a folder, {subfolder}, and a list, {list_file}. "
                "Expected one of them: rename or remove the other."
            )
        if list_file.is_file():
            return images, masks, list_file
        if not subfolder.is_dir():
            raise SegjaxError(
                f"split={self.split!r} not found: neither a folder {subfolder} nor a list "
                f"{list_file}. {self._splits()}"
            )
        self._demand_folder(masks / self.split)
        return subfolder, masks / self.split, None

    def _demand_folder(self, folder: Path) -> None:
        if not _folders(folder):
            raise SegjaxError(
                f"{folder.absolute()}: no such folder. Expected {self.root} with pictures in "
                f"{self.images}/ and masks in {self.masks}/ (split={self.split!r}): correct "
                "`root`, `images`, `masks` or `split`."
            )

    def _splits(self) -> str:
        """A sentence on the splits that there are."""
        images, lists_folder = self.root / self.images, self.root / self.lists
        folders = sorted(p.name for top in _folders(images) for p in top.iterdir() if p.is_dir())
        lists = sorted(p.stem for p in lists_folder.glob("*.txt"))
        if not folders and not lists:
            return f"There are no splits here; split=None takes {images} itself."
        return (
            f"Choose `split` from the folders in {images} ({', '.join(folders) or 'none'}) "
            f"or the lists in {lists_folder} ({', '.join(lists) or 'none'})."
        )


def _demand_same_size(pair: Pair, image: Sequence[int], mask: Sequence[int]) -> None:
    if image[:2] != mask:
        raise Unusable(
            "sizes differ",
            f"{pair.image} is {image[1]} × {image[0]} pixels (width × height), but its mask "
            f"{pair.mask} is {mask[1]} × {mask[0]}. The two must match pixel for pixel, "
            "as stored (EXIF rotation is not applied): get the right file, or resize the mask "
            "by nearest neighbour.",
        )


def _folders(path: Path) -> list[Path]:
    """The folder, or those that its wildcards stand for."""
    found = path.parent.glob(path.name) if "*" in path.name else [path]
    return sorted(folder for folder in found if folder.is_dir() and folder.name[:1] != ".")


def _by_stem(
    folder: Path, ending: str, of_partners: str | None
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The pictures of each stem, and the files that are none by their suffix.

    Where the partners lie in the same folder, a file is theirs if it has the longer of the endings.
    """
    pictures: dict[str, list[Path]] = {}
    others: dict[str, list[Path]] = {}
    longer = of_partners if of_partners and len(of_partners) > len(ending) else None
    for path in sorted(path for found in _folders(folder) for path in found.iterdir()):
        theirs = longer is not None and path.stem.endswith(longer)
        if path.name.startswith(".") or not path.stem.endswith(ending) or theirs or path.is_dir():
            continue
        files = pictures if path.suffix.lower() in Image.registered_extensions() else others
        files.setdefault(path.stem.removesuffix(ending), []).append(path)
    return pictures, others


def _listed(
    list_file: Path, images: Mapping[str, Sequence[Path]], image_folder: Path
) -> tuple[list[str], list[Unusable]]:
    """The stems that a list names, and what is wrong with its lines."""
    lines: dict[str, int] = {}
    wrong = []
    text = list_file.read_text("utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        stem = line.strip()
        where = f"{list_file}, line {number}: {stem!r}"
        if not stem:
            continue
        if stem not in images:
            told = (
                f"{where} is the stem of no picture in {image_folder}. Expected one stem per line, "
                "without folder and suffix: correct or delete it."
            )
            wrong.append(Unusable("line of no picture", told))
        elif stem in lines:
            told = f"{where} stands in line {lines[stem]} already. Delete one of the two."
            wrong.append(Unusable("line that stands twice", told))
        else:
            lines[stem] = number
    if not lines and not wrong:
        raise SegjaxError(f"{list_file}: names no picture. Write one stem per line.")
    return list(lines), wrong


def _twins(files: Mapping[str, Sequence[Path]]) -> list[Unusable]:
    return [
        Unusable(
            "several files of one stem",
            f"{paths[0]} and {paths[1]} have one stem, {stem!r}, and pairs are found by stem. "
            "Rename or remove one of them.",
        )
        for stem, paths in files.items()
        if len(paths) > 1
    ]


def _lone(
    kind: str, files: Mapping[str, Sequence[Path]], partners: Mapping[str, Any], folder: Path
) -> list[Unusable]:
    return [
        Unusable(kind, f"{paths[0]}: a {kind}; none of the stem {stem!r} lies in {folder}.")
        for stem, paths in files.items()
        if stem not in partners
    ]


def _incomplete(unpaired: Sequence[Unusable]) -> SegjaxError:
    """The first of what has no partner, and what to do."""
    more = f"… and {len(unpaired) - _TOLD} more" if len(unpaired) > _TOLD else ""
    lone = any("without" in one.kind for one in unpaired)
    advice = (
        "Add what is missing, move out what is not meant, or name the complete pairs in a list, "
        "one stem per line, and pass it as `split`; complete=False leaves out what is alone."
    )
    lines = [*map(str, unpaired[:_TOLD]), more, advice if lone else ""]
    return SegjaxError("\n".join(filter(None, lines)))
