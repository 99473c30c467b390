"""What is wrong with a data set, found before anything is trained.

`check` takes a second or two and raises; `audit` reads every example once and tells all that it
finds, with the counts of which class weights are made. How that is shown, it does not know.
"""

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segjax.data.coding import Tally, told_colours
from segjax.data.pictures import IGNORE, TURNS, Codes, shown
from segjax.data.pipeline import SCALED_TO_ONE, brightest, read_example
from segjax.data.wrapper import Source, bare
from segjax.errors import SegjaxError

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
_SAMPLES = 16  # examples that `check` reads whole
_TOLD = 5  # errors that `check` tells
_FEW = 5  # masks, below which no value is rare
_COLOUR_MASK = "colour mask"  # the kind of `Unusable`
_ALIKE = 0.1  # pictures look alike whose fingerprints differ in less than this share of set bits


class Picture(NamedTuple):
    """What is kept of a picture that was read.

    id: its example's.  size: (height, width).  histogram: int (C, 256), pixels by value.  content:
    equal for equal pictures.  fingerprint: uint64 (4,), of few differing bits for pictures that
    look alike.
    """

    id: str
    size: tuple[int, int]
    histogram: np.ndarray
    content: bytes
    fingerprint: np.ndarray


class Reading(NamedTuple):
    """What is kept of an example: its picture and int (256,) pixels by label, or what is wrong.

    Of a picture whose mask cannot be used both `picture` and `error` are there, and of a mask in
    colour its colours. turned: how EXIF turns the picture and not the mask.
    """

    picture: Picture | None
    counts: np.ndarray | None
    error: SegjaxError | None
    colours: Codes | None = None
    turned: int = 1


class Case(NamedTuple):
    """Examples, as (split, index), that are wrong together; most often one."""

    examples: tuple[tuple[str, int], ...]
    text: str


class Kind(NamedTuple):
    """What can be wrong, in a few words, and what to do where the cases' own texts do not say it.

    error: it must be mended; else it may be meant so.
    """

    error: bool
    what: str
    advice: str = ""


_NO_VALID = Kind(
    False,
    "no valid pixel",
    "Every pixel is ignored, so it teaches nothing: label it, or remove it.",
)
_ZERO_OR_IGNORED = Kind(
    False,
    "mask of nothing but 0 and 255",
    "255 = ignore. If it means foreground, say values=((255, 1),); values=((255, 255),) says that "
    "it does mean ignore.",
)
_MOSTLY_IGNORED = Kind(
    False,
    "most pixels are ignored",
    "255 = ignore. If it means foreground, say values=((255, 1),). Else ask whether the rest is "
    "enough to learn from.",
)
RARE_VALUE = Kind(
    False,
    "value that few masks hold",
    "If it is no class, correct these masks, or ignore it as said. Of masks that number objects, "
    "say `instances`.",
)
_CHANNELS = Kind(
    True, "other number of channels", "A network takes one number: read all pictures alike."
)
_ONLY_ZERO = Kind(
    True,
    "nothing but class 0",
    "There is nothing to learn. If the ignored 255 means foreground, say values=((255, 1),).",
)
_ABSENT = Kind(
    False,
    "class of another split is absent",
    "It is not learnt, or not measured: divide the examples anew.",
)
_TURNED = Kind(
    False,
    "picture turned by EXIF, its mask not",
    "Viewers and tools for drawing turn it, segjax does not: if its mask was drawn on the turned "
    "picture, the two part. Turn the pixels themselves and drop the tag (jpegtran, exiftran, or "
    "PIL.ImageOps.exif_transpose).",
)
_SAME = Kind(False, "same picture several times", "Remove all but one, else it counts for more.")
_SAME_ACROSS = Kind(
    True,
    "same picture in several splits",
    "Take it out of all but one, or the scores tell of pictures that were trained on.",
)
_ALIKE_WITHIN = Kind(False, "pictures that look alike", "Look at them: is one a copy?")
_ALIKE_ACROSS = Kind(
    False,
    "pictures of several splits that look alike",
    "Look at them: copies, crops and neighbouring frames belong into one split.",
)


@dataclass(frozen=True)
class Split:
    """What the examples of a split hold, so far as they can be read.

    Fields:
        examples: their number, those that cannot be used too.
        sizes: (height, width) -> pictures that can be read.
        counts: int64 (examples that can be used, N), pixels of each class in each, of which
            `losses.class_weights` makes weights.
        ignored: pixels.
        histogram: int64 (C, 256), pixels of each channel by value, of pictures that can be read.
        passed_over: names of files beside them that are no pictures.
    """

    examples: int
    sizes: Mapping[tuple[int, int], int]
    counts: np.ndarray
    ignored: int
    histogram: np.ndarray
    passed_over: tuple[str, ...] = ()

    @cached_property
    def pixels(self) -> np.ndarray:
        """int64 (N,), of each class."""
        return self.counts.sum(0)


@dataclass(frozen=True)
class Audit:
    """What the splits of a data set hold, and what was found to be wrong, errors first.

    Fields:
        classes: N names.
        splits: by name.
        findings: by kind, at least one case of each.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    findings: Mapping[Kind, Sequence[Case]]

    @property
    def failed(self) -> bool:
        """Whether there is an error among the findings."""
        return any(kind.error for kind in self.findings)


def check(
    sources: Mapping[str, Source], *, canvases: Mapping[str, Sequence[tuple[int, int]]]
) -> None:
    """The cheap part of an audit: pairs, sizes from the files' headers, a few examples whole.

    Args:
        sources: by name of the split. One with a method `size_of` is asked for all sizes, and one
            with `pairs` of files for those that it shares with others.
        canvases: heights and widths, by split; each picture must fit into one.

    Raises:
        SegjaxError: what is wrong, the first few of many; all examples read are floats in 0–1.
    """
    sources = {name: bare(source) for name, source in sources.items()}
    for name, source in sources.items():
        few = evenly(len(source), _SAMPLES)
        broken, large, highest, ignored = [], [], 0.0, True
        for i in range(len(source)) if hasattr(source, "size_of") else few:
            try:
                if i in few:
                    example = read_example(source, i)
                    image = example["image"]
                    ignored = ignored and _all_ignored(example)
                    highest = max(highest, brightest(image))
                size = image.shape[:2] if i in few else source.size_of(i)
            except SegjaxError as error:
                broken.append(str(error))
                continue
            if not any(size[0] <= height and size[1] <= width for height, width in canvases[name]):
                large.append(size)
        if broken:
            raise SegjaxError(
                f"{len(broken)} of {len(source)} examples of {name} cannot be used:\n"
                + "\n".join(broken[:_TOLD])
                + ("\n…" if len(broken) > _TOLD else "")
                + "\nThe verb audit lists all; train --skip-broken leaves them out."
            )
        if ignored and all(_all_ignored(read_example(source, i)) for i in range(len(source))):
            raise SegjaxError(
                f"The {len(source)} masks of {name} hold nothing but 255 = ignore: there is "
                "nothing to learn or to measure. Correct them, or say with `values` what 255 means."
            )
        if 0 < highest <= 1:
            raise SegjaxError(f"The pictures of {name} {SCALED_TO_ONE}")
        if large:
            needed = "×".join(str(max(sides)) for sides in zip(*large, strict=True))
            given = " or ".join(f"{height}×{width}" for height, width in canvases[name])
            raise SegjaxError(
                f"{len(large)} of {len(source)} pictures of {name}, up to {needed} (height × "
                f"width), are larger than the canvas of {given}: set one that holds the largest."
            )
    for (one, first), (other, second) in itertools.combinations(sources.items(), 2):
        if shared := set(getattr(first, "pairs", ())) & set(getattr(second, "pairs", ())):
            raise SegjaxError(
                f"{one} and {other} share {len(shared)} examples: "
                f"{shown(sorted(pair.id for pair in shared))}. {_SAME_ACROSS.advice}"
            )


def _all_ignored(example: Mapping[str, Any]) -> bool:
    return bool((np.asarray(example["label"]) == IGNORE).all())


def evenly(length: int, most: int) -> list[int]:
    """At most so many of the indices 0 to length - 1, evenly spaced, both ends included."""
    return np.linspace(0, length - 1, min(most, length)).astype(int).tolist()


def read_all(source: Source) -> Iterator[Reading]:
    """Read every example once, in order, by as many threads as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield from threads.map(partial(_read, source), range(len(source)))


def audit(sources: Mapping[str, Source], track: Track = lambda items, name, total: items) -> Audit:
    """Read every example of some splits once and tell what they hold and what is wrong.

    Args:
        sources: by name of the split, all of the same classes; 255 classes stand for "not known".
            A `Folder` that is not `complete` has what lacks a partner told among the rest.
        track: shows progress: (items, split, their number) -> the same items.

    Raises:
        SegjaxError: the splits have different classes.
    """
    named = {source.classes for source in sources.values()}
    if len(named) > 1:
        raise SegjaxError(f"The splits have different classes: {named}. Name the same for all.")
    (classes,) = named
    cases: dict[Kind, list[Case]] = defaultdict(list)
    seen: list[_Seen] = []
    colours, splits = Tally(), {}
    for name, source in sources.items():
        readings = track(read_all(source), name, len(source))
        splits[name] = _audit_split(name, source, readings, cases, seen, colours)
    if colours.masks:
        kind = Kind(True, _COLOUR_MASK)
        cases[kind._replace(advice=f"The {told_colours(colours)}.")] = cases.pop(kind)
    for name, split in splits.items():
        if split.pixels[0] and len(classes) > 1 and not split.pixels[1:].any():
            cases[_ONLY_ZERO].append(Case((), name))
        if 2 * split.ignored > split.ignored + split.pixels.sum():
            share = split.ignored / (split.ignored + split.pixels.sum())
            cases[_MOSTLY_IGNORED].append(Case((), f"{name}: {share:.2%}"))
        for c, pixels in enumerate(split.pixels):
            if len(split.counts) and not pixels and any(s.pixels[c] for s in splits.values()):
                cases[_ABSENT].append(Case((), f"{name}: {classes[c]}"))
    for kind, together in _duplicates(seen):
        equals = " = " if kind in (_SAME, _SAME_ACROSS) else " ≈ "
        text = equals.join(f"{one.place[0]}: {one.id}" for one in together)
        cases[kind].append(Case(tuple(one.place for one in together), text))
    return Audit(classes, splits, dict(sorted(cases.items(), key=lambda item: not item[0].error)))


def _audit_split(
    name: str,
    source: Source,
    readings: Iterable[Reading],
    cases: dict[Kind, list[Case]],
    seen: "list[_Seen]",
    colours: Tally,
) -> Split:
    """What a split holds; what is wrong within it is added to `cases`, each picture to `seen`.

    What masks in colour hold is added to `colours`.
    """
    num_classes, files = len(source.classes), bare(source)
    for problem in getattr(files, "unpaired", ()):
        cases[Kind(True, problem.kind)].append(Case((), str(problem)))
    ask = num_classes > 1 and not _speaks_of_ignore(source)
    sizes: Counter[tuple[int, int]] = Counter()
    histogram: np.ndarray = np.zeros((0, 256), np.int64)
    labels: list[np.ndarray] = []
    masks: list[Case] = []  # that are readable
    for i, (picture, counts, error, coloured, turned) in enumerate(readings):
        if coloured is not None:
            colours.add(coloured)
        if error:
            kind = Kind(True, getattr(error, "kind", "unusable example"))
            cases[kind].append(Case(((name, i),), str(error)))
        if picture is None:
            continue
        here = Case(((name, i),), f"{name}: {picture.id}")
        if sizes and len(picture.histogram) != len(histogram):
            cases[_CHANNELS].append(here)
            continue
        seen.append(_Seen((name, i), picture.id, picture.content, picture.fingerprint))
        histogram = picture.histogram + (histogram if sizes else 0)
        sizes[picture.size] += 1
        if counts is None:
            continue
        labels.append(counts)
        masks.append(here)
        if turned in TURNS:
            cases[_TURNED].append(here._replace(text=f"{here.text}: {TURNS[turned]}"))
        held = np.flatnonzero(counts).tolist()
        if held == [IGNORE]:
            cases[_NO_VALID].append(here)
        elif held == [0, IGNORE] and ask:
            cases[_ZERO_OR_IGNORED].append(here)
    by_value = np.array(labels, np.int64).reshape(-1, 256)
    if num_classes == IGNORE:  # any value may be a class, or a slip
        for case in _rare_values(by_value, masks):
            cases[RARE_VALUE].append(case)
    return Split(
        len(source),
        dict(sizes),
        by_value[:, :num_classes],
        int(by_value[:, IGNORE].sum()),
        histogram,
        tuple(path.name for path in getattr(files, "passed_over", ())),
    )


def _rare_values(counts: np.ndarray, masks: Sequence[Case]) -> Iterator[Case]:
    """The values that one in twenty masks holds or fewer, given (masks, 256) pixels by value."""
    if len(masks) < _FEW:
        return
    for value in range(IGNORE):
        among = np.flatnonzero(counts[:, value]).tolist()
        if 0 < len(among) <= max(1, len(masks) // 20):
            yield Case(
                tuple(masks[i].examples[0] for i in among),
                f"{value} in {len(among)} of {len(masks)} masks, {counts[:, value].sum()} pixels: "
                f"{shown(masks[i].text for i in among)}; values=(({value}, 255),) would ignore it",
            )


def _speaks_of_ignore(source: Source) -> bool:
    """Whether the source of files has `values` that name 255, on either side: it is meant so."""
    return any(IGNORE in pair for pair in getattr(bare(source), "values", ()))


class _Seen(NamedTuple):
    """What is kept of every example until all are read."""

    place: tuple[str, int]
    id: str
    content: bytes
    fingerprint: np.ndarray


def _read(source: Source, i: int) -> Reading:
    try:
        example = read_example(source, i)
    except SegjaxError as error:
        # Without the traceback, which holds the decoded pictures.
        told = error.with_traceback(None)
        return Reading(_read_picture_alone(source, i), None, told, _read_colours(source, i, told))
    label = Image.fromarray(example["label"])
    counts = np.array(label.histogram(), np.int64)  # faster than np.bincount
    turned = getattr(source, "turned", lambda i: 1)(i)
    return Reading(_picture(example["id"], example["image"]), counts, None, turned=turned)


def _read_picture_alone(source: Source, i: int) -> Picture | None:
    """The picture whose mask cannot be used, if the source can give it and it is not what fails."""
    read = getattr(source, "picture_of", None)
    try:
        return read and _picture(*read(i))
    except SegjaxError:
        return None


def _read_colours(source: Source, i: int, error: SegjaxError) -> Codes | None:
    """The colours of a mask that is refused for being in colour, if the source can give them."""
    read = getattr(source, "codes_of", None)
    if read is None or getattr(error, "kind", "") != _COLOUR_MASK:
        return None
    try:
        return read(i)
    except SegjaxError:
        return None


def _picture(id: str, image: np.ndarray) -> Picture:
    channels = [Image.fromarray(image[..., c].astype(np.uint8)) for c in range(image.shape[-1])]
    return Picture(
        id,
        image.shape[:2],
        np.array([channel.histogram() for channel in channels]),
        hashlib.sha1(repr(image.shape).encode() + np.ascontiguousarray(image).data).digest(),
        _fingerprint(channels),
    )


def _fingerprint(channels: Sequence[Image.Image]) -> np.ndarray:
    """Where a picture reduced to 16×17 pixels grows brighter to the right: 256 bits.

    The difference hash of N. Krawetz, "Kind of Like That" (2013), at 16 instead of 8 rows.
    """
    small = [channel.resize((17, 16), Image.Resampling.BOX) for channel in channels]
    grey = np.stack([np.asarray(channel, np.int32) for channel in small]).sum(0)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).view(np.uint64)


def _duplicates(seen: Sequence[_Seen]) -> Iterator[tuple[Kind, Sequence[_Seen]]]:
    """Examples with one picture, and pairs of pictures that look alike."""
    same: dict[bytes, list[_Seen]] = defaultdict(list)
    for one in seen:
        same[one.content].append(one)
    for group in same.values():
        if len(group) > 1:
            yield (_SAME_ACROSS if len({one.place[0] for one in group}) > 1 else _SAME), group
    firsts = [group[0] for group in same.values()]
    for i, j in _alike(np.array([one.fingerprint for one in firsts])):
        across = firsts[i].place[0] != firsts[j].place[0]
        yield (_ALIKE_ACROSS if across else _ALIKE_WITHIN), (firsts[i], firsts[j])


def _alike(fingerprints: np.ndarray, rows: int = 64) -> Iterator[tuple[int, int]]:
    """Pairs i < j of fingerprints (n, 4) of few differing bits, compared by so many rows."""
    for start in range(0, len(fingerprints), rows):
        some, others = fingerprints[start : start + rows, None], fingerprints[None, start:]
        either: np.ndarray = np.bitwise_count(some | others)
        differing: np.ndarray = np.bitwise_count(some ^ others)
        for i, j in np.argwhere(differing.sum(-1) < _ALIKE * either.sum(-1)):
            if i < j:
                yield start + int(i), start + int(j)
