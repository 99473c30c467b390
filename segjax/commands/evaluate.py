"""The verb that scores a run on its held-out data."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
import rich
import tyro
from jax.sharding import Mesh
from PIL import Image

from segjax.commands.run import Run, write_whole
from segjax.commands.trained import Which, held_out, load
from segjax.data import pipeline
from segjax.data.audit import evenly
from segjax.data.weight_map import components
from segjax.errors import SegjaxError
from segjax.evaluation import metrics, report, visualise
from segjax.inference.predict import Predict, predict_label, tiles
from segjax.training import sharding

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
        _write_report(run, out or run / "report", source, alone, step, confusion)
    return metrics.summary(confusion)


def confusion_of(
    predict: Predict,
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
    folder: Path,
    where: Path,
    source: pipeline.Source,
    predict: Predict,
    step: int,
    confusion: np.ndarray,
) -> None:
    """Print the scores; write them, the curves, a preview sheet and overlays to `where`."""
    classes, palette = source.classes, source.palette
    (where / "overlays").mkdir(parents=True, exist_ok=True)
    overall = metrics.summary(confusion) | _object_scores(source, predict)
    per_class = metrics.per_class(confusion)
    console = rich.get_console()
    for table in report.score_tables(classes, per_class, overall, width=console.width):
        console.print(table)
    write_whole(where / "scores.md", report.scores_markdown(classes, per_class, overall))
    finite = {name: None if math.isnan(value) else value for name, value in overall.items()}
    scores = {"step": step, **finite, "classes": classes, "confusion": confusion.tolist()}
    write_whole(where / "scores.json", json.dumps(scores, ensure_ascii=False))
    if told := report.read_metrics(folder / "metrics.jsonl"):
        report.plot_curves(told, where / "curves.png")

    rows = []
    for i in evenly(len(source), SHEET_ROWS):
        example = source[i]
        image, label = example["image"], predict_label(predict, example["image"])
        rows.append((image, example["label"], label))
        overlay = visualise.overlay(image, label, palette)
        Image.fromarray(overlay).save(where / f"overlays/{example['id']}.png")
    visualise.preview_sheet(rows, classes, palette).save(where / "preview.png")
    pictures = "1 picture" if len(source) == 1 else f"{len(source)} pictures"
    print(
        f"Checkpoint of step {step}, {pictures}. Look at {where / 'preview.png'}, "
        "and beside it curves.png, overlays/, scores.md and scores.json."
    )


def _object_scores(source: pipeline.Source, predict: Predict) -> dict[str, float]:
    """Scores of objects where the source numbers them; the prediction's are its connected parts."""
    if "instances" not in source[0]:
        return {}
    counts = np.zeros(3, np.int64)
    for i in range(len(source)):
        example = source[i]
        parts = components(predict_label(predict, example["image"]))
        counts += metrics.count_objects(example["instances"], parts)
    return metrics.object_scores(counts)
