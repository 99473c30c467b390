"""The verb that tells what is wrong with a data set."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rich
import tyro
from rich.progress import track

from segjax.commands.run import Run, write_whole
from segjax.commands.trained import held_out
from segjax.data import audit as auditing
from segjax.data import audit_page, layouts, pipeline
from segjax.data.folder import Folder
from segjax.data.labels import voc_palette
from segjax.data.pictures import Ranges, Values
from segjax.data.wrapper import bare
from segjax.errors import SegjaxError
from segjax.evaluation import visualise
from segjax.training import losses


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def audit(
    source: Path,
    *,
    layout: layouts.Layout | None = None,
    classes: int | None = None,
    channels: int = 3,
    ranges: Ranges = (),
    values: Values = (),
    instances: bool = False,
    data: Path | None = None,
    out: Path = Path("audit"),
) -> None:
    """Read a data set once and tell what is wrong with it; the exit status is 1 for errors.

    Args:
        source: A folder with images/ and masks/, its splits folders or lists in it;
            a data set in the folders of its authors, see --layout;
            a run folder, whose held-out data is read;
            or the script of a recipe, followed by its own options.
        layout: Whose folders these are; splits with masks are read, of voc train and val.
        classes: How many classes the masks of a folder have; by default any values are.
        channels: Of a folder's pictures: 1 grey, 3 RGB, 4 RGBA; with --ranges any number.
        ranges: Lowest and highest of a folder's picture values, once or for each channel.
        values: Values of a folder's masks, each followed by its class: 255 1.
        instances: A folder's masks hold numbers of instances, 0 = background.
        data: Where the data of a run lies now, if it has moved.
        out: Where to write audit.html and audit.json.

    Raises:
        SegjaxError: there is no such data, or options that exclude each other.
    """
    is_run = (source / "recipe.json").exists()
    described = any((classes, channels != 3, ranges, values, instances))
    if is_run + described + bool(layout) > 1:
        raise SegjaxError(
            f"{source}: a run folder and a --layout know their pictures and masks. Drop --classes, "
            "--channels, --ranges, --values and --instances; and --layout for a run folder."
        )
    if data and not is_run:
        raise SegjaxError(f"{source} is no run folder, whose data may have moved; drop --data.")
    sources: dict[str, pipeline.Source]
    if is_run:
        sources = {"val": held_out(Run(source), data)}
    elif layout:
        sources = dict(layouts.splits(source, layout))
    else:
        names = tuple(map(str, range(classes or (2 if instances else 255))))
        whole = Folder(
            source,
            names,
            voc_palette(len(names)),
            values=values,
            channels=channels,
            ranges=ranges,
            instances=instances,
        )
        sources = {split: dataclasses.replace(whole, split=split) for split in _splits(source)}
        sources = sources or {source.name: whole}
    audit_sources(sources, out)


def _splits(root: Path) -> list[str]:
    """The subfolders of images/, and the lists: not every *.txt is one, a README is not."""
    stems = {path.stem for path in root.glob("images/*")}
    splits = {path.name for path in root.glob("images/*/")}
    for path in root.glob("*.txt"):
        first = path.read_text("utf-8-sig", errors="replace").strip().partition("\n")[0].strip()
        if {first, Path(first).stem} & stems:  # with a suffix, Folder tells how to write it
            splits.add(path.stem)
        else:
            print(f"{path}: not taken for a split, for its first line names no picture.")
    return sorted(splits)


def audit_sources(sources: Mapping[str, pipeline.Source], out: Path) -> None:
    """Audit sources by split: print what was found, write it to audit.html and audit.json.

    Exits with status 1 if there are errors.
    """
    sources = {split: bare(source) for split, source in sources.items()}
    found = auditing.audit(sources, track)
    for part in audit_page.renderables(found):
        rich.get_console().print(part, soft_wrap=True)  # or it would break names of files

    def draw(split: str, i: int) -> np.ndarray | None:
        try:
            example = sources[split][i]
        except SegjaxError:
            return None
        return visualise.overlay(example["image"], example["label"], sources[split].palette)

    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: losses.class_weights(split.counts).tolist()
        for name, split in found.splits.items()
        if split.counts.any()
    }
    write_whole(out / "audit.json", audit_page.as_json(found, weights))
    write_whole(out / "audit.html", audit_page.page(found, draw))
    print(f"\nLook at {out / 'audit.html'}; audit.json beside it lists all.")
    if found.failed:
        sys.exit(1)
