"""The verb that scores a run on its held-out data."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich
import tyro
from jax.sharding import Mesh

from segjax.commands.run import Run, write_whole
from segjax.commands.trained import Which, held_out, load_step
from segjax.data import pipeline
from segjax.data.audit import evenly
from segjax.data.weight_map import components
from segjax.errors import SegjaxError
from segjax.evaluation import metrics, report, visualise
from segjax.inference import tiles
from segjax.inference.predict import Predict, make_predict, make_tiled_predict, predict_label
from segjax.training import sharding
from segjax.training.train import Batch

Labels = Callable[[np.ndarray], np.ndarray]  # picture (H, W, C) -> label (H, W)
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
    out: Path | None = None,
) -> dict[str, float]:
    """Score a run on its held-out data; write scores, curves and pictures to its report folder.

    Args:
        run: The run folder.
        data: Where the data lies now, if it has moved.
        batch_size: Pictures (with --tile, tiles) at a time; the scores do not depend on it.
        checkpoint: Which checkpoint.
        tile: Compute by tiles of at most so many pixels a side, for pictures that are too large.
        gaussian: Where windows are averaged (SETR), let their weights fall towards the border.
        out: Where to write; by default `report` in the run folder.

    Returns:
        The overall scores by name.

    Raises:
        SegjaxError: there is no such run, or its data cannot be read.
    """
    stored = Run(run)
    source = held_out(stored, data)
    if (given := tuple(source.classes)) != (named := stored.rebuild("classes")):
        raise SegjaxError(
            f"{run / 'recipe.json'}: its source has the classes {', '.join(given)}, the run "
            f"{', '.join(named)}. Restore the file."
        )
    batch_size = batch_size or stored.fields["batch_size"]
    canvases = [*map(tuple, stored.fields["buckets"] or [stored.fields["canvas"]])]
    mesh = sharding.make_mesh(jax.local_devices() if tile else None)
    sharding.check_batch_size(mesh, batch_size)
    step, trained = load_step(stored, checkpoint)
    predict: Callable[..., Any]
    if tile:
        predict = make_tiled_predict(
            trained.model,
            normalise=trained.normalise,
            tile=tile,
            batch_size=batch_size,
            gaussian=gaussian,
            put=partial(sharding.put, mesh=mesh),
        )
    else:
        predict = make_predict(trained.model, normalise=trained.normalise)
    on_mesh = partial(predict, jax.device_put(trained.variables, sharding.replicated(mesh)))
    if tile:
        for canvas in canvases:
            print(tiles.plan(trained.model, canvas, tile))
        confusion = confusion_by_tiles(on_mesh, source, canvases=canvases)
    else:
        batches = batches_on_mesh(
            source,
            mesh,
            batch_size=batch_size,
            canvases=canvases,
            workers=stored.fields["workers"],
        )
        confusion = metrics.evaluate(on_mesh, batches, num_classes=len(source.classes))
    if jax.process_index() == 0:
        # Alone, without the other processes of a cluster.
        alone = on_mesh if tile else partial(predict, jax.device_put(trained.variables))
        where = out or run / "report"
        _write_report(stored, where, source, partial(predict_label, alone), step, confusion)
    return metrics.summary(confusion)


def batches_on_mesh(
    source: pipeline.Source,
    mesh: Mesh,
    *,
    batch_size: int,
    canvases: Sequence[tuple[int, int]],
    workers: int,
) -> Iterator[Batch]:
    """All of a source once, for `metrics.evaluate`, each process reading its share."""
    batches = pipeline.evaluation_batches(
        source,
        batch_size=batch_size,
        canvases=canvases,
        threads=workers,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    return sharding.prefetch(batches, mesh)


def confusion_by_tiles(
    predict: Predict, source: pipeline.Source, *, canvases: Sequence[tuple[int, int]]
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
    run: Run,
    where: Path,
    source: pipeline.Source,
    label_of: Labels,
    step: int,
    confusion: np.ndarray,
) -> None:
    """Print the scores; write them, the curves, a preview sheet and overlays to `where`."""
    classes, palette = source.classes, source.palette
    (where / "overlays").mkdir(parents=True, exist_ok=True)
    overall = metrics.summary(confusion) | _object_scores(source, label_of)
    per_class = metrics.per_class(confusion)
    baselines = _baselines(run)
    others = {name: _scores(source, method) for name, method in baselines.items()}
    console = rich.get_console()
    for table in report.score_tables(classes, per_class, overall, others, width=console.width):
        console.print(table)
    write_whole(where / "scores.md", report.scores_markdown(classes, per_class, overall, others))
    scores = {"step": step, **_finite(overall), "classes": classes, "confusion": confusion.tolist()}
    if others:
        scores["others"] = {name: _finite(values) for name, values in others.items()}
    write_whole(where / "scores.json", json.dumps(scores, ensure_ascii=False))
    if told := report.read_metrics(run.folder / "metrics.jsonl"):
        name = run.folder.resolve().name
        title = name if name == run.recipe else f"{name} ({run.recipe})"
        report.plot_curves(told, where / "curves.png", title=title)

    rows = []
    for i in evenly(len(source), SHEET_ROWS):
        example = source[i]
        image, label = example["image"], label_of(example["image"])
        methods = {name: method(image) for name, method in baselines.items()}
        caption = _caption(example, label, methods, classes)
        rows.append(visualise.Row(image, example["label"], label, caption))
        overlay = visualise.overlay(image, label, palette)
        with_legend = visualise.with_legend(overlay, label, classes, palette)
        with_legend.save(where / f"overlays/{example['id']}.png")
    visualise.preview_sheet(rows, classes, palette).save(where / "preview.png", optimize=True)
    pictures = "1 picture" if len(source) == 1 else f"{len(source)} pictures"
    print(
        f"Checkpoint of step {step}, {pictures}. Look at {where / 'preview.png'}, "
        "and beside it curves.png, overlays/, scores.md and scores.json."
    )


def _baselines(run: Run) -> dict[str, Labels]:
    """The recipe's baseline by its name, if it has one."""
    if not run.has("baseline"):
        return {}
    baseline = run.rebuild("baseline")
    return {type(baseline).__name__: baseline}


def _caption(
    example: Mapping[str, Any],
    label: np.ndarray,
    others: Mapping[str, np.ndarray],
    classes: Sequence[str],
) -> str:
    """A picture's name, its IoU and, where the source numbers objects, how many were found."""

    def beside(what: Callable[[np.ndarray], str]) -> str:
        told = ", ".join(f"{name} {what(other)}" for name, other in others.items())
        return f" ({told})" if told else ""

    def iou(label: np.ndarray) -> str:
        value = metrics.mean_iou_of_present(_confusion(example["label"], label, len(classes)))
        return "–" if math.isnan(value) else f"{value:.3f}"

    def count(label: np.ndarray) -> str:
        return str(components(label).max())

    parts = [example["id"], f"IoU {iou(label)}{beside(iou)}"]
    if "instances" in example:
        true = np.count_nonzero(np.unique(example["instances"]))
        parts.append(f"objects: {true} true, {count(label)} predicted{beside(count)}")
    return "    ".join(parts)


def _scores(source: pipeline.Source, label_of: Labels) -> dict[str, float]:
    """The overall scores of a method that labels one picture at a time, in one pass."""
    confusion, objects = np.zeros((len(source.classes),) * 2, np.int64), np.zeros(3, np.int64)
    for i in range(len(source)):
        example = source[i]
        label = label_of(example["image"])
        confusion += _confusion(example["label"], label, len(source.classes))
        if numbered := "instances" in example:
            objects += _count_objects(example, label)
    return metrics.summary(confusion) | (metrics.object_scores(objects) if numbered else {})


def _confusion(truth: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    counts = metrics.confusion_matrix(truth[None], label[None], num_classes=num_classes)
    return np.asarray(counts, np.int64)


def _object_scores(source: pipeline.Source, label_of: Labels) -> dict[str, float]:
    """Scores of objects where the source numbers them; the prediction's are its connected parts."""
    if "instances" not in source[0]:
        return {}
    counts = np.zeros(3, np.int64)
    for i in range(len(source)):
        example = source[i]
        counts += _count_objects(example, label_of(example["image"]))
    return metrics.object_scores(counts)


def _count_objects(example: Mapping[str, Any], label: np.ndarray) -> np.ndarray:
    return metrics.count_objects(example["instances"], components(label))


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}
