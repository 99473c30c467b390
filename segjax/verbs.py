"""What can be done with a run folder alone: evaluate it, predict with it."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro
from jax.sharding import Mesh
from PIL import Image
from rich.progress import track
from rich.table import Table

from segjax import audit_page, inference, losses, metrics, report, sharding, tiles, visualise
from segjax.checkpoint import Checkpoints
from segjax.data import audit as auditing
from segjax.data import layouts, pipeline
from segjax.data.folder import Folder
from segjax.data.labels import voc_palette
from segjax.data.pictures import Ranges, Values, read_picture
from segjax.data.weight_map import components
from segjax.data.wrapper import bare
from segjax.errors import SegjaxError
from segjax.models.variants import VARIANTS
from segjax.run import Run, write_whole

Which = Literal["best", "newest"]
SHEET_ROWS = 6  # pictures on a preview sheet


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def evaluate(
    run: Path,
    *,
    data: Path | None = None,
    batch_size: int | None = None,
    checkpoint: Which = "best",
    tile: int | None = None,
    gaussian: bool = False,
) -> dict[str, float]:
    """Score a run on its held-out data; write scores, curves and pictures to its report folder.

    Args:
        run: The run folder.
        data: Where the data lies now, if it has moved.
        batch_size: Pictures (with --tile, tiles) at a time; the scores do not depend on it.
        checkpoint: Which checkpoint.
        tile: Compute by tiles of at most so many pixels a side, for pictures that are too large.
        gaussian: Where windows are averaged (SETR), let their weights fall towards the border.

    Returns:
        The overall scores by name.

    Raises:
        SegjaxError: there is no such run, or its data cannot be read.
    """
    stored = Run(run)
    source = stored.rebuild("source")
    if data is not None:
        source = _moved(source, data)
    batch_size = batch_size or stored.fields["batch_size"]
    canvases = [*map(tuple, stored.fields["buckets"] or [stored.fields["canvas"]])]
    mesh = sharding.make_mesh(jax.local_devices() if tile else None)
    sharding.check_batch_size(mesh, batch_size)
    step, predict, variables = load(
        stored, checkpoint, tile=tile, gaussian=gaussian, batch_size=batch_size
    )
    on_mesh = partial(predict, jax.device_put(variables, sharding.replicated(mesh)))
    if tile:
        for canvas in canvases:
            print(tiles.plan(stored.rebuild("model"), canvas, tile))
        confusion = confusion_by_tiles(on_mesh, source, canvases=canvases)
    else:
        confusion = confusion_of(
            on_mesh,
            source,
            mesh,
            batch_size=batch_size,
            canvases=canvases,
            workers=stored.fields["workers"],
        )
    if jax.process_index() == 0:
        # Alone, without the other processes of a cluster.
        alone = on_mesh if tile else partial(predict, jax.device_put(variables))
        _write_report(run, source, alone, step, confusion)
    return metrics.summary(confusion)


def _moved(source: Any, root: Path) -> Any:
    """The source, whose files lie in another folder now."""
    for place in ("root", "data_dir"):
        if hasattr(source, place):
            return dataclasses.replace(source, **{place: root})
    if hasattr(source, "source"):
        return dataclasses.replace(source, source=_moved(source.source, root))
    raise SegjaxError(f"{type(source).__name__} is not read from a folder; drop --data.")


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
        images: Picture files.
        out: Where to write; by default `predictions` in the run folder.
        checkpoint: Which checkpoint.
        tile: Compute by tiles of at most so many pixels a side, for pictures that are too large.
        gaussian: Where windows are averaged (SETR), let their weights fall towards the border.

    Raises:
        SegjaxError: pictures that cannot be read, after all others are done.
    """
    stored = Run(run)
    out = out or run / "predictions"
    stems = [path.stem for path in images]
    if twins := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise SegjaxError(
            f"Several pictures would be written to {out / twins[0]}.png; predict them into "
            "different folders with --out."
        )
    if not images:
        raise SegjaxError("No picture was named; give one or more files.")
    tiles_at_a_time = jax.local_device_count()
    _, logits, variables = load(
        stored, checkpoint, tile=tile, gaussian=gaussian, batch_size=tiles_at_a_time
    )
    logits = partial(logits, jax.device_put(variables))
    palette = stored.rebuild("palette")
    ranges = getattr(bare(stored.rebuild("source")), "ranges", ())
    out.mkdir(parents=True, exist_ok=True)
    unread = []
    for path in images:
        try:
            image = read_picture(path, stored.fields["channels"], ranges)
        except SegjaxError as error:
            unread.append(str(error))
            continue
        if tile:
            print(tiles.plan(stored.rebuild("model"), image.shape[:2], tile))
        label = inference.predict_label(logits, image)
        visualise.save_mask(out / f"{path.stem}.png", label, palette)
        _save(visualise.overlay(image, label, palette), out / f"{path.stem}_overlay.png")
        print(f"{out / path.stem}.png  {path.stem}_overlay.png")
    if unread:
        done = len(images) - len(unread)
        raise SegjaxError("\n".join([*unread, f"The other {done} of {len(images)} are done."]))


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
        held_out = Run(source).rebuild("source")
        sources = {"val": _moved(held_out, data) if data else held_out}
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


def load(
    run: Run,
    checkpoint: Which,
    *,
    tile: int | None = None,
    gaussian: bool = False,
    batch_size: int = 1,
) -> tuple[int, Callable[..., Any], Any]:
    """The step of a checkpoint, the run's `make_predict`, and the variables (NumPy) it takes.

    With `tile` it computes so many tiles at a time on this process's devices.
    """
    model: Any = run.rebuild("model")
    images = jnp.zeros((1, *run.fields["crop"], run.fields["channels"]))
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    with Checkpoints(run.folder / "checkpoints") as checkpoints:
        step = checkpoints.best if checkpoint == "best" else checkpoints.newest
        if step is None:
            raise SegjaxError(f"{run.folder}: no checkpoint yet. Train it first.")
        variables = checkpoints.restore(dict(like), step=step)
    normalise = run.rebuild("normalise")
    if not tile:
        return step, inference.make_predict(model, normalise=normalise), variables
    put = partial(sharding.put, mesh=sharding.make_mesh(jax.local_devices()))
    predict = inference.make_tiled_predict(
        model,
        normalise=normalise,
        tile=tile,
        batch_size=batch_size,
        gaussian=gaussian,
        put=put,
    )
    return step, predict, variables


def confusion_of(
    predict: inference.Predict,
    source: pipeline.Source,
    mesh: Mesh,
    *,
    batch_size: int,
    canvases: Sequence[tuple[int, int]],
    workers: int,
) -> np.ndarray:
    """The confusion matrix of a source, each process reading its share."""
    batches = pipeline.evaluation_batches(
        source,
        batch_size=batch_size,
        canvases=canvases,
        threads=workers,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    on_devices = sharding.prefetch(batches, mesh)
    return metrics.evaluate(predict, on_devices, num_classes=len(source.classes))


def confusion_by_tiles(
    predict: inference.Predict, source: pipeline.Source, *, canvases: Sequence[tuple[int, int]]
) -> np.ndarray:
    """The confusion matrix of a source, each process computing its share by itself."""
    batches = pipeline.evaluation_batches(
        source,
        batch_size=jax.process_count(),
        canvases=canvases,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    share = metrics.evaluate(predict, batches, num_classes=len(source.classes))
    return sharding.sum_processes(share)


def _write_report(
    folder: Path,
    source: pipeline.Source,
    predict: inference.Predict,
    step: int,
    confusion: np.ndarray,
) -> None:
    """Print the scores; write them, the curves, a preview sheet and overlays to `report`."""
    classes, palette, where = source.classes, source.palette, folder / "report"
    (where / "overlays").mkdir(parents=True, exist_ok=True)
    overall = metrics.summary(confusion) | _object_scores(source, predict)
    per_class = metrics.per_class(confusion)
    rich.print(report.score_table(classes, per_class, overall))
    write_whole(where / "scores.md", report.scores_markdown(classes, per_class, overall))
    finite = {name: None if math.isnan(value) else value for name, value in overall.items()}
    scores = {"step": step, **finite, "classes": classes, "confusion": confusion.tolist()}
    write_whole(where / "scores.json", json.dumps(scores))
    if told := report.read_metrics(folder / "metrics.jsonl"):
        report.plot_curves(told, where / "curves.png")

    rows = []
    for i in auditing.evenly(len(source), SHEET_ROWS):
        example = source[i]
        image, label = example["image"], inference.predict_label(predict, example["image"])
        rows.append((image, example["label"], label))
        _save(visualise.overlay(image, label, palette), where / f"overlays/{example['id']}.png")
    visualise.preview_sheet(rows, classes, palette).save(where / "preview.png")
    print(
        f"Checkpoint of step {step}, {len(source)} pictures. Look at {where / 'preview.png'}, "
        "and beside it curves.png, overlays/, scores.md and scores.json."
    )


def _object_scores(source: pipeline.Source, predict: inference.Predict) -> dict[str, float]:
    """Scores of objects where the source numbers them; the prediction's are its connected parts."""
    if "instances" not in source[0]:
        return {}
    counts = np.zeros(3, np.int64)
    for i in range(len(source)):
        example = source[i]
        parts = components(inference.predict_label(predict, example["image"]))
        counts += metrics.count_objects(example["instances"], parts)
    return metrics.object_scores(counts)


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path)


def models() -> None:
    """Print the networks by the names of their papers: parameters, FLOPs, stride and halo.

    FLOPs are of one prediction at the stated size, two for each multiplication and addition;
    auxiliary heads are no part of it, but their parameters are counted.
    """
    table = Table(
        caption="GFLOPs: of one prediction, two for each multiplication and addition, without "
        "auxiliary heads.\nParameters: fixed upsampling has none. SETR's paper counts 0.1 to 0.4 % "
        "more (305.67 M and so on): classifiers that are never used, and what has no effect."
    )
    table.add_column("network")
    for name in ("classes", "input", "parameters", "GFLOPs", "stride", "halo"):
        table.add_column(name, justify="right")
    for name, (network, side, channels) in VARIANTS.items():
        images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
        variables = jax.eval_shape(network.init, jax.random.key(0), images)
        table.add_row(
            name,
            str(network.num_classes),
            f"{side}×{side}×{channels}",
            f"{sum(leaf.size for leaf in jax.tree.leaves(variables['params'])):,}",
            f"{_flops(network, variables, images) / 1e9:,.1f}",
            str(network.geometry.stride),
            str(network.geometry.halo or "all"),
        )
    rich.print(table)


def _flops(network: Any, variables: Any, images: jax.ShapeDtypeStruct) -> float:
    """Of a prediction, as it stands before compilation."""
    if hasattr(network, "scan"):
        network = network.clone(scan=False)  # XLA counts the body of a loop once
    logits = jax.jit(lambda variables, images: network.apply(variables, images).logits)
    found: Any = logits.lower(variables, images).cost_analysis()
    return float(found["flops"])
