"""What the values or colours of a folder's masks mean, found from what they store.

A `Tally` counts what masks store; `propose` says how to read it: the `values` or `colours` of a
`Folder`, or that the masks number objects. It is a proposal, which a person may overrule: nothing
here reads a file.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from segjax.data.pictures import IGNORE, Codes, Colours, Values, colour_of, shown
from segjax.errors import SegjaxError

_THIN = 0.01  # of a mask: where a colour holds more of those that have it, it is no edge
_TIMES = 10  # as many pixels have the two colours that a blend lies between
_NEAR = 6.0  # from the line between two colours, of 255: what is nearer may be a blend of them
_FEW_BLENDS = 3  # so many rare colours between others are smooth edges
_MANY = 4096  # colours, beyond which none is looked at
_ENDS = 32  # colours between which blends are looked for, the commonest
_BLACK = 0
_MANY_OBJECTS = 8  # in one mask at least, where masks number objects


@dataclass
class Tally:
    """What some masks store, counted; `add` each.

    Fields:
        masks: their number.
        coloured: whether they store colours.
        pixels: of each code of `Codes`.
        among: masks that hold each code.
        objects: of each mask of values, how many it has but for 0, and how many of them are one
            connected part; none are where they are not 1, 2, 3, …
        palettes: of palette pictures, the colours that a value stands for in one file or another.
    """

    masks: int = 0
    coloured: bool = False
    pixels: Counter[int] = field(default_factory=Counter)
    among: Counter[int] = field(default_factory=Counter)
    objects: list[tuple[int, int]] = field(default_factory=list)
    palettes: dict[int, set[int]] = field(default_factory=dict)

    def add(self, stored: Codes) -> None:
        """Count one mask.

        Raises:
            SegjaxError: it stores colours and others values.
        """
        if self.masks and stored.coloured != self.coloured:
            raise SegjaxError(
                "Some masks are in colour, others are not. Convert them to one kind, or say with "
                "`colours` which colour is which class, which reads all by colour."
            )
        self.masks, self.coloured = self.masks + 1, stored.coloured
        codes, counts = _counted(stored.codes)
        self.pixels.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        self.among.update(codes.tolist())
        if stored.palette is not None:
            for value in codes.tolist():
                self.palettes.setdefault(value, set()).add(int(stored.palette[value]))
        if not stored.coloured:
            self.objects.append(_count_objects(stored.codes, codes))

    @classmethod
    def of_counts(cls, counts: np.ndarray, ignored: int) -> "Tally":
        """Of int (masks, N) pixels by value, and pixels of 255: what an audit keeps of masks."""
        held = np.flatnonzero(counts.any(0)).tolist()
        tally = cls(
            masks=len(counts),
            pixels=Counter({value: int(counts[:, value].sum()) for value in held}),
            among=Counter({value: int(np.count_nonzero(counts[:, value])) for value in held}),
        )
        if ignored:
            tally.pixels[IGNORE], tally.among[IGNORE] = ignored, len(counts)
        return tally

    @property
    def contradicts_itself(self) -> bool:
        """Whether palettes give one colour to several values, so that only colours mean anything.

        As programs do that choose the colours of each file anew.
        """
        colours = [colour for several in self.palettes.values() for colour in several]
        return len(set(colours)) >= len(self.palettes) and len(set(colours)) < len(colours)


class Coding(NamedTuple):
    """How masks are to be read: the arguments of `Folder` of these names, and that in words.

    classes: their number.
    why: in words.
    """

    classes: int
    why: str
    values: Values = ()
    colours: Colours = ()
    instances: bool = False


def propose(tally: Tally, *, names: int | None = None) -> Coding:
    """How to read masks that nobody has explained.

    Two values or colours are background and foreground. Values from 0 on are classes, 255 is
    ignored. Values with gaps are classes in their order, unless `names` makes them indices. Masks
    number objects where they hold 1, 2, 3, … up to many, nearly each one connected part. Colours
    are classes in the order of their shares, but black comes first.

    Args:
        tally: of all masks, or of many.
        names: how many classes were named, if any were.

    Raises:
        SegjaxError: the masks hold one value only, blends of colours, or more or fewer values than
            there are names, so that a person has to say what is meant.
    """
    if len(tally.pixels) < 2:
        held = "".join(_told(tally, code) for code in tally.pixels)
        raise SegjaxError(
            f"The {tally.masks} masks hold nothing but {held}: there is nothing to learn. Expected "
            "at least two values or colours. Are these the masks?"
        )
    if tally.coloured:
        return _propose_colours(tally, names)
    if _are_numbers(tally, names):
        return Coding(2, "each value is one connected object: masks number objects", instances=True)
    return _propose_values(tally, names)


def colours_of(tally: Tally) -> tuple[Colours, list[int]]:
    """The table of colours to classes that the masks seem to follow, and the codes of blends.

    Black is class 0, the others follow by their shares. A thin, rare colour on the line between two
    common ones is a blend of them, as smooth edges leave.
    """
    order = sorted(tally.pixels, key=lambda code: (-tally.pixels[code], code))
    # A photograph has more colours than it is worth looking at.
    looked_at = order if len(order) <= _MANY else []
    blends = [code for code in looked_at if _is_blend(tally, code, order[:_ENDS])]
    if len(blends) < _FEW_BLENDS:
        blends = []
    kept = [code for code in order if code not in set(blends)]
    kept.sort(key=lambda code: code != _BLACK)  # stable: by share
    return tuple((colour_of(code), label) for label, code in enumerate(kept)), blends


def told_colours(tally: Tally) -> str:
    """In words: colours of masks with their shares, and the table to pass, or why there is none."""
    table, blends = colours_of(tally)
    total, what = tally.pixels.total(), f"{tally.masks} colour masks"
    if len(table) > IGNORE:
        return (
            f"{what} hold {len(table)} colours, more than there may be classes. Are these the "
            "masks, not pictures? Where each colour is an object, number the objects instead."
        )
    share = {colour_of(code): pixels / total for code, pixels in tally.pixels.items()}
    held = ", ".join(f"{colour} {share[colour]:.2%}" for colour, _ in table)
    text = f"{what} hold {len(table)} colours, by share of pixels: {held}. "
    if blends:
        text += (
            f"{len(blends)} more, {sum(tally.pixels[code] for code in blends) / total:.2%}, are "
            "blends of these, as anti-aliased edges or a smooth resize leave: make the masks anew "
            "without. "
        )
    return text + f"Say which is which class (255 = ignore): colours={table}"


def _propose_colours(tally: Tally, names: int | None) -> Coding:
    table, blends = colours_of(tally)
    number = len(table)
    if blends or number > IGNORE or number < 2 or (names or number) != number or (names or 2) > 2:
        wanted = f" There are names for {names}." if names else ""
        raise SegjaxError(f"{told_colours(tally)}.{wanted}")
    why = f"{number} colours, black first, then by share"
    if number == 2:
        why = f"two colours: {table[0][0]} is the background, {table[1][0]} the foreground"
    return Coding(number, why, colours=table)


def _propose_values(tally: Tally, names: int | None) -> Coding:
    held = sorted(tally.pixels)
    if len(held) == 2:
        low, high = held
        why = f"two values: {low} is the background, {high} the foreground"
        return _with_names(held, (low, high), names, why)
    others = [value for value in held if value != IGNORE]
    ignored = others if held[-1] != IGNORE or not _are_levels(held) else held
    why = f"values {_span(ignored)}" + (", and 255 = ignore" if len(ignored) < len(held) else "")
    return _with_names(held, tuple(ignored), names, why)


def _with_names(held: Sequence[int], classes: Sequence[int], names: int | None, why: str) -> Coding:
    """Classes out of values in their order, or as they are where the names reach that far."""
    if names and max(classes) < names:
        return Coding(names, why)
    if names and len(classes) != names:
        last = max(classes)
        hint = (
            f" If {last} means unlabelled, ignore it: values=(({last}, 255),)."
            if len(classes) == names + 1
            else ""
        )
        raise SegjaxError(
            f"The masks hold {len(classes)} values for classes ({_span(classes)}), but {names} "
            f"classes are named. Name as many, or say with `values` what each means.{hint}"
        )
    if len(classes) > IGNORE:
        raise SegjaxError(
            f"The masks hold {len(classes)} values, more than there may be classes. If they number "
            "objects, say `instances`."
        )
    values = tuple((value, label) for label, value in enumerate(classes) if value != label)
    if values and len(classes) > 2:
        why += ", each in its order a class"
    return Coding(len(classes), why, values=values)


def _are_levels(held: Sequence[int]) -> bool:
    """Whether values are levels of grey spread evenly over 0..255, whose last is no ignore."""
    step = 255 / (len(held) - 1)
    even = all(abs(value - step * i) <= 1 for i, value in enumerate(held))
    return even and held[0] == 0


def _are_numbers(tally: Tally, names: int | None) -> bool:
    """Whether masks number objects: 1, 2, 3, …, many, each one part, and masks differ in how many.

    Organs are one part each, too, but a slice shows some of them, and there are few.
    """
    if names not in (None, 2) or tally.pixels.keys() <= {0, 1, IGNORE} or not tally.objects:
        return False
    counts = [values for values, _ in tally.objects]
    whole = sum(parts for _, parts in tally.objects)
    one_each = whole >= 0.95 * sum(counts)
    return max(counts) >= _MANY_OBJECTS and len(set(counts)) > 1 and one_each and 0 in tally.pixels


def _count_objects(codes: np.ndarray, held: np.ndarray) -> tuple[int, int]:
    """How many values a mask has but for 0, and how many of these, if 1, 2, …, are one part."""
    from scipy import ndimage  # takes a moment to import

    values = held[held > 0]
    if not len(values) or values[-1] != len(values):
        return len(values), 0
    whole = 0
    # Each within its own box, so that the cost is that of the objects, not of pictures times them.
    for number, box in enumerate(ndimage.find_objects(codes.astype(np.int32)), start=1):
        whole += ndimage.label(codes[box] == number, np.ones((3, 3)))[1] == 1
    return len(values), whole


def _counted(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The codes that there are, and the pixels of each; of runs, which are fewer than pixels."""
    flat = codes.reshape(-1)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    held, run = np.unique(flat[starts], return_inverse=True)
    lengths = np.diff(np.append(starts, flat.size))
    return held, np.bincount(run.reshape(-1), lengths, len(held)).astype(np.int64)


def _is_blend(tally: Tally, code: int, others: Sequence[int]) -> bool:
    """Whether a colour is rare, thin, and on the line between two others, or next to it."""
    pixels = tally.pixels[code]
    if pixels * tally.masks > _THIN * tally.among[code] * tally.pixels.total():
        return False
    common = [other for other in others if tally.pixels[other] >= _TIMES * pixels]
    if len(common) < 2:
        return False
    ends = np.array([colour_of(other) for other in common], np.float32)
    i, j = np.triu_indices(len(ends), 1)
    start, along = ends[i], ends[j] - ends[i]  # (pairs, 3)
    away = np.array(colour_of(code), np.float32) - start
    share = (away * along).sum(-1) / (along**2).sum(-1)
    distance = np.linalg.norm(away - share[:, None] * along, axis=-1)
    return bool(((distance <= _NEAR) & (share > 0) & (share < 1)).any())


def _told(tally: Tally, code: int) -> str:
    return f"the colour {colour_of(code)}" if tally.coloured else f"the value {code}"


def _span(values: Sequence[int]) -> str:
    if len(values) > 2 and values[-1] - values[0] == len(values) - 1:
        return f"{values[0]} to {values[-1]}"
    return shown(map(str, values))
