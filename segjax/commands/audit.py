"""The verb that tells what is wrong with a data set."""

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import rich
import tyro
from rich.progress import track

from segjax.commands.checks import make_folder
from segjax.commands.run import Run, write_whole
from segjax.commands.trained import held_out
from segjax.data import audit as auditing
from segjax.data import audit_page, layouts, pipeline
from segjax.data.audit import Audit
from segjax.data.coding import Tally, propose
from segjax.data.folder import Folder
from segjax.data.labels import voc_palette
from segjax.data.pictures import IGNORE, Colour, Colours, Ranges, Values, read_picture
from segjax.data.wrapper import bare
from segjax.errors import SegjaxError
from segjax.evaluation import visualise
from segjax.training import losses

CLASS_FILES = ("classes", "labels")  # lists of names, which are no splits
# A value of Python as messages write it: a tuple, also of tuples, a string, a number or None.
_LITERAL = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|'[^']*'|None|\d+"


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def audit(
    source: Path,
    *,
    layout: layouts.Layout | None = None,
    classes: int | None = None,
    channels: int = 3,
    ranges: Ranges = (),
    values: Values = (),
    colours: Colours = (),
    instances: bool = False,
    images: str = "images",
    masks: str = "masks",
    endings: tuple[str, str] = ("", ""),
    split: tuple[str, ...] = (),
    part: tuple[int | None, int | None] = (None, None),
    data: Path | None = None,
    out: Path = Path("audit"),
) -> None:
    """Read a data set once and tell what is wrong with it; the exit status is 1 for errors.

    Args:
        source: A folder with images/ and masks/ (or --images and --masks), its splits folders or
            lists in it;
            a data set in the folders of its authors, see --layout;
            a run folder, whose held-out data is read;
            or the script of a recipe, followed by its own options.
        layout: Whose folders these are; splits with masks are read, of voc train and val.
        classes: How many classes the masks of a folder have; by default any values are.
        channels: Of a folder's pictures: 1 grey, 3 RGB, 4 RGBA; with --ranges any number.
        ranges: Lowest and highest of a folder's picture values, once or for each channel.
        values: Values of a folder's masks, each followed by its class: 255 1.
        colours: Colours of a folder's masks, red, green and blue, each followed by its class:
            255 0 0 1.
        instances: A folder's masks hold numbers of instances, 0 = background.
        images: The folder of pictures within the folder.
        masks: The folder of masks within it; it may be the same.
        endings: What ends the names of pictures and of masks: "" _mask for a.jpg and a_mask.png.
        split: Which splits of a folder; by default all that are found.
        part: First of a split's sorted pairs, or of the pages, and the one after the last.
        data: Where the data of a run lies now, if it has moved.
        out: Where to write audit.html and audit.json.

    Raises:
        SegjaxError: there is no such data, or options that exclude each other.
    """
    is_run = (source / "recipe.json").exists()
    of_files = (channels, ranges, values, colours, instances, images, masks, endings, split, part)
    plain = (3, (), (), (), False, "images", "masks", ("", ""), (), (None, None))
    described = classes or of_files != plain
    if is_run + bool(described) + bool(layout) > 1:
        raise SegjaxError(
            f"{source}: a run folder and a --layout know their pictures and masks. Drop --classes, "
            "--channels, --ranges, --values, --colours, --instances, --images, --masks, "
            "--endings, --split and --part; and --layout for a run folder."
        )
    if data and not is_run:
        raise SegjaxError(f"{source} is no run folder, whose data may have moved; drop --data.")
    sources: dict[str, pipeline.Source]
    if is_run:
        run = Run(source)
        sources = {split: held_out(run, data, split) for split in run.splits}
    elif layout:
        sources = dict(layouts.splits(source, layout))
    else:
        mapped = [label for _, label in colours if label != IGNORE]
        several = 2 if instances else max(mapped) + 1 if mapped else 255
        names = tuple(map(str, range(classes or several)))
        try:
            whole = Folder(
                source,
                names,
                palette_of(colours, len(names)),
                values=values,
                channels=channels,
                images=images,
                masks=masks,
                endings=endings,
                part=part,
                ranges=ranges,
                instances=instances,
                colours=colours,
                complete=False,
            )
            found = split or find_splits(source / images, source)
            sources = {name: dataclasses.replace(whole, split=name) for name in found}
            audit_sources(sources or {source.name: whole}, out, where=source, as_options=True)
        except SegjaxError as error:
            raise SegjaxError(in_options(str(error))) from error
        return
    audit_sources(sources, out, where=source)


def palette_of(colours: Colours, number: int) -> tuple[Colour, ...]:
    """Of so many classes: the masks' own colours, the first of each; VOC's where there is none."""
    own = {label: colour for colour, label in reversed(colours)}
    return tuple(own.get(label, colour) for label, colour in enumerate(voc_palette(number)))


def find_splits(images: Path, root: Path) -> list[str]:
    """The folders of pictures, and the lists: not every *.txt is one, a README is not."""
    stems = {path.stem for path in images.glob("*")}
    splits = {path.name for path in images.glob("*/")} if images.name else set()
    for path in root.glob("*.txt"):
        first = path.read_text("utf-8-sig", errors="replace").strip().partition("\n")[0].strip()
        if {first, Path(first).stem} & stems:  # with a suffix, Folder tells how to write it
            splits.add(path.stem)
        elif path.stem not in CLASS_FILES:
            print(f"{path}: not taken for a split, for its first line names no picture.")
    return sorted(splits)


def in_options(text: str) -> str:
    """A message that names arguments of `Folder`, in the words of the command line."""

    def option(found: re.Match[str]) -> str:
        name, value = found[1], ast.literal_eval(found[2])
        given = [word or '""' for word in words(() if value is None else value)]
        return " ".join([f"--{name}", *given]) if given else f"no --{name}"

    fields = {field.name for field in dataclasses.fields(Folder)}
    names = "|".join(fields & set(inspect.signature(audit).parameters))
    text = text.replace("`root`", "the folder").replace(", the last comma included", "")
    text = re.sub(rf"\b({names})=({_LITERAL})", option, text)
    return re.sub(rf"`({names})`", r"--\1", text)


def words(value: Any) -> list[str]:
    """What an option is given for a value: of tuples all that they hold."""
    if isinstance(value, tuple):
        return [word for part in value for word in words(part)]
    return [str(value)]


def audit_sources(
    sources: Mapping[str, pipeline.Source], out: Path, *, where: Path, as_options: bool = False
) -> None:
    """Audit sources by split: print what was found, write it to audit.html and audit.json.

    Exits with status 1 if there are errors.

    Args:
        sources: by split.
        out: where to write.
        where: what the page says was audited.
        as_options: advice is told in options of the command line, not in arguments of Python.
    """
    make_folder(out)  # before all is read
    sources = {split: _lenient(bare(source)) for split, source in sources.items()}
    found = auditing.audit(sources, track)
    if as_options:
        found = _told_in_options(found)
    parts = [*audit_page.renderables(found), *([_proposal(found)] if as_options else [])]
    for part in filter(None, parts):
        rich.get_console().print(part, soft_wrap=True)  # or it would break names of files
    weights = {
        name: losses.class_weights(split.counts).tolist()
        for name, split in found.splits.items()
        if split.counts.any()
    }
    page = audit_page.page(
        found,
        lambda split, i: _drawn(split, sources[split], i),
        title=str(where.absolute()),
        when=f"{datetime.now():%Y-%m-%d %H:%M}",
        palette=next(iter(sources.values())).palette,
        class_weights=weights,
    )
    write_whole(out / "audit.json", audit_page.as_json(found, weights))
    write_whole(out / "audit.html", page)
    print(f"\nLook at {out / 'audit.html'}; audit.json beside it lists all.")
    if found.failed:
        sys.exit(1)


def _proposal(found: Audit) -> str:
    """What to say of masks whose classes nobody has told; nothing where they may be taken as is."""
    splits = [split for split in found.splits.values() if len(split.counts)]
    rare = any(kind.what == auditing.RARE_VALUE.what for kind in found.findings)  # perhaps numbers
    if len(found.classes) < IGNORE or not splits or rare:
        return ""
    counts = np.concatenate([split.counts for split in splits])
    try:
        coding = propose(Tally.of_counts(counts, sum(split.ignored for split in splits)))
    except SegjaxError:
        return ""  # the findings tell what is wrong
    values = in_options(f"values={coding.values}") if coding.values else ""
    return f"\nThe masks seem to hold {coding.why}: --classes {coding.classes} {values}".rstrip()


def _lenient(source: pipeline.Source) -> pipeline.Source:
    """A folder's pairs that are whole; what stands alone becomes a finding."""
    return dataclasses.replace(source, complete=False) if isinstance(source, Folder) else source


def _told_in_options(found: Audit) -> Audit:
    findings = {
        kind._replace(advice=in_options(kind.advice)): [
            case._replace(text=in_options(case.text)) for case in cases
        ]
        for kind, cases in found.findings.items()
    }
    return dataclasses.replace(found, findings=findings)


def _drawn(split: str, source: pipeline.Source, i: int) -> tuple[str, list[np.ndarray]]:
    """The overlay of an example or, where its mask cannot be used, its files as they are."""
    try:
        example = source[i]
        overlay = visualise.overlay(example["image"], example["label"], source.palette)
        return f"{split}: {example['id']}", [overlay]
    except SegjaxError:
        if not hasattr(source, "pairs"):
            return "", []
    pair, pictures = source.pairs[i], []
    for path in (pair.image, pair.mask):
        try:
            pictures.append(read_picture(path, page=pair.page))
        except SegjaxError:
            continue  # it is what the finding tells of
    return f"{split}: {pair.id}", pictures
