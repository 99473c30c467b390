"""What is in a folder of pictures and masks, and how it is to be read: what a plan is made from.

Its splits, masks and classes are looked for where people keep them; the options of `train` say
what is not found.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from segjax.commands.audit import CLASS_FILES, find_splits, in_options, palette_of
from segjax.commands.plan import Found, Where
from segjax.data import coding
from segjax.data.coding import Coding
from segjax.data.folder import Folder
from segjax.data.labels import voc_palette
from segjax.data.pictures import IGNORE, label_table
from segjax.data.survey import are_grey, survey, tally_masks
from segjax.errors import SegjaxError

_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation")
_HELD_OUT = 5  # one in so many, where no split is named


def look(
    make: Callable[..., Folder],
    *,
    places: tuple[str, str],
    names: Sequence[str],
    channels: int | None,
    told: Coding,
) -> Found:
    """What is in the folder, and how it is to be read.

    Args:
        make: the folder, given classes and palette.
        places: of pictures and of masks within it.
        names: of the classes, if any are told.
        channels: of the pictures, if told.
        told: how masks are read, if that is told.

    Raises:
        SegjaxError: what is wrong with it, in options of the command line.
    """
    try:
        # The classes are not known yet: any value may be one.
        any_value = tuple(map(str, range(IGNORE)))
        folder = make(classes=any_value, palette=voc_palette(IGNORE), channels=channels or 3)
        train, val, why = _split(folder, *places)
        names = tuple(names) or _names_beside(folder.root)
        both = [replace(folder, **where._asdict()) for where in (train, val)]
        found = _coding(both, len(names) or None, told)
        names = names or _default_names(found)
        if len(names) < 2:
            raise SegjaxError(f"One class only, {names[0]}: there is nothing to tell apart.")
        grey = channels is None and not folder.ranges and are_grey(both[0])
        folder = make(
            classes=names,
            palette=palette_of(found.colours, len(names)),
            channels=1 if grey else folder.channels,
            values=found.values,
            colours=found.colours,
            instances=found.instances,
        )
        looked = survey(
            {
                name: replace(folder, **where._asdict())
                for name, where in (("train", train), ("val", val))
            }
        )
        return Found(folder, train, val, why, found.why, grey, looked)
    except SegjaxError as error:
        raise SegjaxError(in_options(str(error))) from error


def _split(folder: Folder, images: str, masks: str) -> tuple[Where, Where, str]:
    """Which examples are trained on and which are held out, and how that was decided."""
    root = folder.root
    if not _exists(root, images):  # train/images instead of images/train
        inner = {
            name: Where(images=f"{name}/{images}", masks=_masks(root, f"{name}/", images, masks))
            for name in (*_TRAIN, *_VAL)
            if _exists(root, f"{name}/{images}")
        }
        of_train = [inner[name] for name in _TRAIN if name in inner]
        of_val = [inner[name] for name in _VAL if name in inner]
        if of_train and of_val:
            why = f"the folders {of_train[0].images} and {of_val[0].images}"
            return of_train[0], of_val[0], why
        if of_train:
            return _hold_out(replace(folder, **of_train[0]._asdict()), of_train[0])
    masks = _masks(root, "", images, masks)
    splits = find_splits(root / images, root)
    trained = next((name for name in _TRAIN if name in splits), None)
    held_out = next((name for name in _VAL if name in splits), None)
    if trained and held_out:
        train, val = (Where(name, images=images, masks=masks) for name in (trained, held_out))
        return train, val, f"the splits {trained} and {held_out} of the folder"
    if held_out:
        raise SegjaxError(
            f"{root}: there is a split {held_out}, but none to train on. Name that one train: "
            "a subfolder of both, or a list train.txt."
        )
    where = Where(trained, images=images, masks=masks)
    if not trained and _holds_folders_only(root / images):  # one for each city, patient, …
        where = Where(images=f"{images}/*", masks=f"{masks}/*")
    return _hold_out(replace(folder, **where._asdict()), where)


def _hold_out(folder: Folder, where: Where) -> tuple[Where, Where, str]:
    """The last fifth is held out: neighbours, as frames of a film, stay on one side."""
    pairs = len(folder.pairs)
    if pairs < 2:
        raise SegjaxError(
            f"{folder.root}: one picture only. Expected at least two with masks, one to train on "
            "and one to hold out; cut a large one into parts."
        )
    held_out = max(1, pairs // _HELD_OUT)
    train, val = (where._replace(part=part) for part in ((None, -held_out), (-held_out, None)))
    of = f" of {where.split}" if where.split else ""
    return train, val, f"no split val is there: the last fifth{of} by name is held out"


def _exists(root: Path, place: str) -> bool:
    return "*" in place or (root / place).exists()


def _holds_folders_only(folder: Path) -> bool:
    held = [path for path in folder.glob("*") if not path.name.startswith(".")]
    return bool(held) and all(path.is_dir() for path in held)


def _masks(root: Path, before: str, images: str, masks: str) -> str:
    """The folder of masks: where there is none of the name, the only one of the pictures' stems."""
    top = root / before
    if _exists(top, masks) or not (top / images).is_dir():
        return before + masks
    stems = _stems(top / images)
    others = [path for path in sorted(top.iterdir()) if path.is_dir() and path.name != images]
    found = [path.name for path in others if stems & _stems(path)]
    if len(found) > 1:
        raise SegjaxError(
            f"{top}: several folders may hold the masks: {', '.join(found)}. Say which: --masks "
            f"{found[0]}."
        )
    return before + (found[0] if found else masks)


def _stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.rglob("*") if not path.name.startswith(".")}


def _coding(sources: Sequence[Folder], names: int | None, told: Coding) -> Coding:
    """How the masks are read: as told, or as is found from what they store."""
    if told.instances:
        return told._replace(classes=2, why="the masks number objects, as told")
    if told.colours:
        labels = [label for _, label in told.colours if label != IGNORE]
        return told._replace(classes=names or max(labels, default=0) + 1, why="colours as told")
    tally = tally_masks(sources)
    if not tally.coloured and tally.contradicts_itself:
        tally = tally_masks(sources, coloured=True)
    if not told.values:
        return coding.propose(tally, names=names)
    held = label_table(IGNORE, told.values)[sorted(tally.pixels)]
    classes = int(held[held != IGNORE].max(initial=0)) + 1
    return told._replace(classes=names or classes, why="values as told")


def _names_beside(root: Path) -> tuple[str, ...]:
    """The class names in a file of the folder, one a line."""
    for name in CLASS_FILES:
        if (path := root / f"{name}.txt").is_file():
            lines = path.read_text("utf-8-sig", errors="replace").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return ()


def _default_names(found: Coding) -> tuple[str, ...]:
    if found.classes == 2:
        return ("background", "object" if found.instances else "foreground")
    return tuple(f"class_{label}" for label in range(found.classes))
