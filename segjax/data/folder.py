"""Pairs of pictures and masks in a folder, as a sequence of examples.

`Folder` finds the pairs by their stems; `read_picture` and `read_mask` read one file each, exactly
or not at all. Nothing here resizes, crops, augments or batches, and no data set is known by name.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from segjax.errors import SegjaxError

IGNORE = 255
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
_SHOWN = 5  # names or values listed in an error before "and N more"


class Pair(NamedTuple):
    """A picture and its mask: the stem that they share and the two files."""

    id: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Folder:
    """The pairs of pictures and masks in a folder, sorted by stem.

    Pictures lie in `root/images`, masks in `root/masks`, paired by stem: `images/a.jpg` and
    `masks/a.png`. Hidden files are passed over. A split is either a subfolder of both
    (`images/train`, `masks/train`) or a list `root/train.txt` of one stem per line.

    The files are looked up once, at first use; each example is read from disk when it is asked for.

    Args:
        root: the folder.
        classes: N names, 1 <= N <= 255.
        palette: N colours (red, green, blue), 0..255.
        split: subfolder or list; None takes the folder itself.
        part: `(start, stop)` of the sorted pairs, as in a slice.
        values: `(stored mask value, class)`; a value that is not named keeps itself. Masks of 0
            and 255 need `((255, 1),)`.
        channels: of the pictures: 1 grey, 3 RGB, 4 RGBA.
        images: the pictures' folder, under root.
        masks: the masks' folder, under root.

    Raises:
        SegjaxError: at once for arguments that do not fit each other; at first use for folders and
            files that do not; at `[i]` for a file that cannot be read as asked.
    """

    root: Path
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    split: str | None = None
    part: tuple[int | None, int | None] = (None, None)
    values: tuple[tuple[int, int], ...] = ()
    channels: int = 3
    images: str = "images"
    masks: str = "masks"

    def __post_init__(self) -> None:
        _mode(self.channels)
        _label_table(len(self.classes), self.values)
        if len(self.palette) != len(self.classes):
            raise SegjaxError(
                f"Folder({self.root}): got {len(self.palette)} colours in `palette` for "
                f"{len(self.classes)} classes. Give one (red, green, blue) per class."
            )
        # JSON gives a string and lists back; equality and hash need the types declared above
        for name, value in {
            "root": Path(self.root),
            "classes": tuple(self.classes),
            "palette": tuple(map(tuple, self.palette)),
            "part": tuple(self.part),
            "values": tuple(map(tuple, self.values)),
        }.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Example i, read from disk.

        Returns:
            `{"image": uint8 (H, W, C), "label": uint8 (H, W) of 0..N-1 and 255, "id": the stem}`.

        Raises:
            SegjaxError: a file is broken, a mask holds other values, or the two sizes differ.
            IndexError: there is no example i.
        """
        pair = self.pairs[i]
        image = read_picture(pair.image, self.channels)
        label = read_mask(pair.mask, len(self.classes), self.values)
        if image.shape[:2] != label.shape:
            (height, width), (mask_height, mask_width) = image.shape[:2], label.shape
            raise SegjaxError(
                f"{pair.image} is {width} × {height} pixels (width × height), but its mask "
                f"{pair.mask} is {mask_width} × {mask_height}. The two must match pixel for pixel, "
                "as stored (EXIF rotation is not applied): get the right file, or resize the mask "
                "by nearest neighbour."
            )
        return {"image": image, "label": label, "id": pair.id}

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs of this split and part, sorted by stem.

        Raises:
            SegjaxError: a folder is missing or empty, the split is unknown or ambiguous, a picture
                or mask lacks its partner, two files share a stem, or `part` leaves nothing.
        """
        image_folder, mask_folder, list_file = self._layout()
        images, masks = _by_stem(image_folder), _by_stem(mask_folder)
        if not images:
            raise SegjaxError(f"{image_folder}: no pictures in this folder. {self._splits()}")
        if list_file:
            images = _listed(list_file, images, image_folder)
        else:
            # with a list, a mask that it does not name belongs to another split
            _demand_partners("masks have no picture", masks, images, image_folder)
        _demand_partners("pictures have no mask", images, masks, mask_folder)
        every = [Pair(stem, images[stem], masks[stem]) for stem in sorted(images)]
        pairs = tuple(every[slice(*self.part)])
        if not pairs:
            raise SegjaxError(
                f"{image_folder}: part={self.part} leaves none of the {len(every)} pairs. "
                f"Choose start < stop within 0..{len(every)}, or (None, None) for all."
            )
        return pairs

    def _layout(self) -> tuple[Path, Path, Path | None]:
        """The folder of pictures, the folder of masks, and the list where the split is one."""
        images, masks = self.root / self.images, self.root / self.masks
        for folder in (self.root, images, masks):
            self._demand_folder(folder)
        if self.split is None:
            return images, masks, None
        subfolder, list_file = images / self.split, self.root / f"{self.split}.txt"
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
        if not folder.is_dir():
            raise SegjaxError(
                f"{folder.absolute()}: no such folder. Expected root={self.root} with pictures in "
                f"{self.images}/ and masks in {self.masks}/ (split={self.split!r}): correct "
                "`root`, `images`, `masks` or `split`."
            )

    def _splits(self) -> str:
        """A sentence on the splits that there are."""
        image_folder = self.root / self.images
        folders = sorted(p.name for p in image_folder.iterdir() if p.is_dir())
        lists = sorted(p.stem for p in self.root.glob("*.txt"))
        if not folders and not lists:
            return f"There are no splits here; split=None takes {image_folder} itself."
        return (
            f"Choose split= from the folders in {image_folder} ({', '.join(folders) or 'none'}) "
            f"or the lists in {self.root} ({', '.join(lists) or 'none'})."
        )


def read_picture(path: str | Path, channels: int = 3) -> np.ndarray:
    """A picture of any mode as 8-bit grey, RGB or RGBA, its pixels in the order stored.

    EXIF orientation is not applied: a mask is stored in its picture's pixel order and carries no
    EXIF. (A TIFF's own Orientation tag is another matter: Pillow always applies it.) 16-bit grey
    is scaled from its full range, 65535 -> 255. Alpha is dropped unless `channels` is 4, and 255
    where the file has none. Of several pages or frames, the first is read.

    Args:
        path: a file that Pillow opens.
        channels: 1 grey, 3 RGB, 4 RGBA.

    Returns:
        uint8 (H, W, channels), 0..255, writable.

    Raises:
        SegjaxError: channels is not 1, 3 or 4; the file is no picture, is broken, or holds floats
            or integers beyond 16 bits.
    """
    mode = _mode(channels)
    with _opened(path) as image:
        if image.mode == "F":
            low, high = image.getextrema()
            raise SegjaxError(
                f"{path}: a float picture (values {low} to {high}), expected integers of 8 or 16 "
                "bits. Scale it to 0..255 as you see fit and save it as 8-bit PNG."
            )
        picture: Image.Image = image
        if image.mode.startswith("I"):
            # Pillow's own convert("L") would clip at 255
            picture = Image.fromarray(((_integers(image, path) + 128) // 257).astype(np.uint8))
        elif image.mode == "P":
            # straight to grey or RGB, a transparent palette draws a warning
            picture = image.convert("RGBA")
        pixels = np.array(picture.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def read_mask(
    path: str | Path, num_classes: int, values: tuple[tuple[int, int], ...] = ()
) -> np.ndarray:
    """A mask as class indices: palette indices, 8- or 16-bit grey, or bilevel (0 and 1).

    255 = ignore, unless `values` says otherwise. With two classes, a mask of nothing but 0 and 255
    is refused until `values` names 255, for it nearly always means foreground, not ignore.

    Args:
        path: a file that Pillow opens.
        num_classes: N, 1..255.
        values: `(stored value, class)`; a value that is not named keeps itself.

    Returns:
        uint8 (H, W) of 0..N-1 and 255, writable.

    Raises:
        SegjaxError: the file is no picture or broken, is in colour or float, or holds values that
            are no class.
    """
    table = _label_table(num_classes, values)
    with _opened(path) as image:
        if image.mode not in {"1", "L", "P", "I"} and not image.mode.startswith("I;16"):
            kind = "float" if image.mode == "F" else "colour"
            raise SegjaxError(
                f"{path}: a {kind} picture (mode {image.mode}) where class indices are expected. "
                "Save the mask as palette or 8-bit grey PNG with the class index as pixel value."
            )
        # 2- and 4-bit grey: Pillow stretches to 0..255 as it loads, and tells so only before
        packing = str(image.tile[0][3]) if image.tile else ""
        stored = _integers(image, path) // {"L;2": 85, "L;4": 17}.get(packing, 1)
    labels = table[stored]
    if labels.min() < 0:
        found, counts = np.unique(stored[labels < 0], return_counts=True)
        shown = _shown(f"{v} ({n} pixels)" for v, n in zip(found, counts, strict=True))
        raise SegjaxError(
            f"{path}: mask values {shown} are no class. Expected 0..{num_classes - 1}, or 255 = "
            f"ignore. Correct the mask or the number of classes, or say what each value means with "
            f"`values`: (({found[0]}, 255),) ignores {found[0]}."
        )
    if num_classes == 2 and IGNORE not in dict(values) and set(np.unique(stored)) == {0, IGNORE}:
        raise SegjaxError(
            f"{path}: this mask of two classes holds only 0 and 255 ({np.sum(stored == IGNORE)} "
            "pixels), and 255 = ignore. If 255 is class 1, pass values=((255, 1),); if it does "
            "mean ignore, say so with values=((255, 255),)."
        )
    return labels.astype(np.uint8)


def _mode(channels: int) -> str:
    if channels not in _MODES:
        raise SegjaxError(f"channels={channels!r}: expected 1 (grey), 3 (RGB) or 4 (RGBA).")
    return _MODES[channels]


def _label_table(num_classes: int, values: tuple[tuple[int, int], ...]) -> np.ndarray:
    """int16 (65536,): the class of each stored value, -1 where there is none."""
    if not 1 <= num_classes <= 255:
        raise SegjaxError(
            f"got {num_classes} classes, expected 1 to 255. Name every class in `classes`, the "
            "background too."
        )
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in values):
        raise SegjaxError(
            f"values={values}: expected pairs (stored value, class), such as ((255, 1),), the last "
            "comma included."
        )
    table = np.full(65536, -1, np.int16)
    table[:num_classes] = np.arange(num_classes)
    table[IGNORE] = IGNORE
    for stored, label in values:
        known = 0 <= label < num_classes or label == IGNORE
        if not known or not 0 <= stored < 65536 or dict(values)[stored] != label:
            raise SegjaxError(
                f"values={values}: cannot map {stored} to {label}. Expected each stored value "
                f"(0..65535) once, with a class 0..{num_classes - 1} or 255 = ignore."
            )
        table[stored] = label
    return table


@contextmanager
def _opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    """An open picture; what Pillow raises for a bad file becomes a SegjaxError."""
    try:
        with Image.open(path) as image:
            yield image
    except SegjaxError:
        raise
    except UnidentifiedImageError as error:
        raise SegjaxError(
            f"{path}: not a picture that Pillow can open. Convert it to PNG, or remove it."
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, …
        raise SegjaxError(
            f"{path}: cannot be read as a picture: {error}. Get the file again, convert it to PNG, "
            "or remove it together with its partner."
        ) from error


def _integers(image: Image.Image, path: str | Path) -> np.ndarray:
    """The samples of a picture of one integer channel: int32 (H, W), 0..65535."""
    samples = np.asarray(image).astype(np.int32)
    low, high = samples.min(), samples.max()
    if low < 0 or high > 65535:
        raise SegjaxError(
            f"{path}: integers from {low} to {high}, expected at most 16 bits (0..65535). "
            "Save it as 8- or 16-bit PNG."
        )
    return samples


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        twin = files.setdefault(path.stem, path)
        if twin != path:
            raise SegjaxError(
                f"{folder}: {twin.name} and {path.name} have one stem, {path.stem!r}, and pairs "
                "are found by stem. Rename or remove one of them."
            )
    return files


def _listed(list_file: Path, images: Mapping[str, Path], image_folder: Path) -> dict[str, Path]:
    """The pictures that a list names."""
    lines: dict[str, int] = {}
    text = list_file.read_text("utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        stem = line.strip()
        if not stem:
            continue
        if stem not in images:
            raise SegjaxError(
                f"{list_file}, line {number}: {stem!r} is the stem of no picture in {image_folder}."
                " Expected one stem per line, without folder and suffix: correct or delete it."
            )
        if stem in lines:
            raise SegjaxError(
                f"{list_file}, line {number}: {stem!r} stands in line {lines[stem]} already. "
                "Delete one of the two."
            )
        lines[stem] = number
    if not lines:
        raise SegjaxError(f"{list_file}: names no picture. Write one stem per line.")
    return {stem: images[stem] for stem in lines}


def _demand_partners(
    complaint: str, files: Mapping[str, Path], partners: Mapping[str, Path], folder: Path
) -> None:
    lone = sorted(path for stem, path in files.items() if stem not in partners)
    if lone:
        raise SegjaxError(
            f"{lone[0].parent}: {len(lone)} of {len(files)} {complaint} of the same stem in "
            f"{folder}: {_shown(path.name for path in lone)}. Add what is missing, move these out, "
            "or name the complete pairs in a list, one stem per line, and pass it as `split`."
        )


def _shown(items: Iterable[str]) -> str:
    every = list(items)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more
