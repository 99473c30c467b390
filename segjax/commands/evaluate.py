"""The verb that scores a run on its held-out data."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich
import tyro
from jax.sharding import Mesh

from segjax.commands.checks import check_outputs, demand_counts, files_of, make_folder
from segjax.commands.run import HeldOut, Run, write_whole
from segjax.commands.trained import Which, held_out, load_step
from segjax.data import pipeline
from segjax.data.audit import evenly
from segjax.data.weight_map import components
from segjax.errors import SegjaxError
from segjax.evaluation import evaluator, metrics, report, visualise
from segjax.evaluation.evaluator import Evaluation, Measure
from segjax.inference import tiles
from segjax.inference.predict import make_predict, make_tiled_predict
from segjax.inference.views import compose, parse
from segjax.training import sharding
from segjax.training.processes import from_all_processes
from segjax.training.train import Batch

Labels = Callable[[np.ndarray], np.ndarray]  # picture (H, W, C) -> label (H, W)
SHEET_ROWS = 6  # pictures on a preview sheet
_FILES = (
    "scores.md",
    "scores.json",
    "pictures.csv",
    "reliability.png",
    "curves.png",
    "preview.png",
)
WORST = 5  # pictures that scores.md names


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def evaluate(
    run: Path,
    *,
    split: HeldOut = "val",
    data: Path | None = None,
    batch_size: int | None = None,
    checkpoint: Which = "best",
    tile: int | None = None,
    gaussian: bool = False,
    views: str = "",
    out: Path | None = None,
) -> dict[str, float]:
    """Score a run on its held-out data; write scores, curves and pictures to its report folder.

    Args:
        run: The run folder.
        split: Which held-out data: val, by which the best checkpoint was chosen, or test, where the
            recipe has one.
        data: Where the data lies now, if it has moved.
        batch_size: Pictures (with --tile, tiles) at a time; the scores do not depend on it.
        checkpoint: Which checkpoint.
        tile: Compute by tiles of at most so many pixels a side, for pictures that are too large.
        gaussian: Where windows are averaged (SETR), let their weights fall towards the border.
        views: Ways to see a picture, whose probabilities are averaged, as `predict` has them.
        out: Where to write; by default `report` in the run folder, of test `report/test`.

    Returns:
        The overall scores by name.

    Raises:
        SegjaxError: there is no such run, or its data cannot be read.
    """
    demand_counts(tile=tile, batch_size=batch_size)
    stored = Run(run)
    source = held_out(stored, data, split)
    where = out or run / ("report" if split == "val" else f"report/{split}")
    inputs = files_of(source)
    overlays = {f"overlays/{path.stem}.png" for path in inputs}
    names = (*_FILES, *overlays)
    check_outputs(((where / name, f"the {split} data") for name in names), inputs)
    if jax.process_index() == 0:
        make_folder(where)  # before it computes
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
    measure = stored.rebuild("measure") if stored.has("measure") else None
    inspection = Inspection(source, evenly(len(source), SHEET_ROWS), measure)
    processes = jax.process_count()
    if tile:
        for canvas in canvases:
            print(tiles.plan(trained.model, canvas, tile))
        # Each process computes its share by itself, a picture at a time.
        batches: Iterator[Any] = pipeline.evaluation_batches(
            source,
            batch_size=processes,
            canvases=canvases,
            process=jax.process_index(),
            processes=processes,
            note=inspection.note,
        )
    else:
        batches = batches_on_mesh(
            source,
            mesh,
            batch_size=batch_size,
            canvases=canvases,
            workers=stored.fields["workers"],
            note=inspection.note,
        )
    share = evaluator.evaluate(
        compose(parse(views), on_mesh),
        batches,
        num_classes=len(source.classes),
        inspect=inspection,
        threads=stored.fields["workers"],
        probabilities=measure is not None,
    )
    found = evaluator.joined(from_all_processes(share))
    found = dataclasses.replace(found, measure=measure)
    if not found.confusion.any():
        raise SegjaxError(
            f"Every pixel of the {len(source)} pictures of {split} is 255 = ignore: there is "
            "nothing to score. Correct the masks, or say with `values` what 255 means."
        )
    seen = _joined(from_all_processes(inspection.seen))
    if jax.process_index() == 0:
        rate = processes * inspection.rate(1 if tile else batch_size // processes)
        devices = mesh.size * processes if tile else mesh.size
        throughput = {
            "pictures_per_second": rate,
            "device": f"{devices} × {mesh.devices.flat[0].device_kind}",
        }
        _write_report(stored, where, split, source, step, found, seen, throughput)
    return found.scores()


def batches_on_mesh(
    source: pipeline.Source,
    mesh: Mesh,
    *,
    batch_size: int,
    canvases: Sequence[tuple[int, int]],
    workers: int,
    note: Callable[[int, dict[str, Any]], None] | None = None,
) -> Iterator[Batch]:
    """All of a source once, for `evaluator.evaluate`, each process reading its share."""
    share, shares = sharding.share(mesh)
    batches = pipeline.evaluation_batches(
        source,
        batch_size=batch_size,
        canvases=canvases,
        threads=workers,
        process=share,
        processes=shares,
        note=note,
    )
    return sharding.prefetch(batches, mesh)


@dataclass
class _Seen:
    """What the report needs of the pictures beside their counts, by their number in the source."""

    ids: dict[int, str] = field(default_factory=dict)
    labels: dict[int, np.ndarray] = field(default_factory=dict)  # as predicted, of a few


class Inspection:
    """What the pass counts of each picture on the host, given what was noted when it was read."""

    def __init__(
        self, source: pipeline.Source, kept: Iterable[int], measure: Measure | None = None
    ) -> None:
        self.seen, self._measure = _Seen(), measure
        self._num_classes, self._kept = len(source.classes), frozenset(kept)
        self._noted: dict[int, dict[str, Any]] = {}
        self._done: list[float] = []

    def note(self, record: int, example: dict[str, Any]) -> None:
        """Keep what no batch holds, until the picture's turn."""
        names = {"id", "label", "instances"} & example.keys()
        self._noted[record] = {name: example[name] for name in names}

    def __call__(
        self, record: int, predicted: np.ndarray, probabilities: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        example = self._noted.pop(record)
        truth = example["label"]
        height, width = truth.shape
        predicted = predicted[:height, :width]
        self.seen.ids[record] = example["id"]
        if record in self._kept:
            self.seen.labels[record] = predicted
        self._done.append(time.perf_counter())
        found = _inspected(example, predicted, self._num_classes)
        if self._measure and probabilities is not None:
            found |= self._measure.count(truth, probabilities[:height, :width])
        return found

    def rate(self, first: int) -> float:
        """Pictures per second after the first few, whose batch was compiled; NaN without more."""
        later = self._done[first - 1 :]
        return (len(later) - 1) / (later[-1] - later[0]) if len(later) > 1 else math.nan


def _joined(parts: Iterable[_Seen]) -> _Seen:
    """What all processes have seen."""
    together = _Seen()
    for part in parts:
        together.ids |= part.ids
        together.labels |= part.labels
    return together


def _inspected(
    example: Mapping[str, Any], predicted: np.ndarray, num_classes: int
) -> dict[str, np.ndarray]:
    """Contours and, where the source numbers them, objects: the prediction's connected parts."""
    numbered = (example["instances"], components(predicted)) if "instances" in example else None
    return evaluator.contours_and_objects(
        example["label"], predicted, num_classes=num_classes, numbered=numbered
    )


def _write_report(
    run: Run,
    where: Path,
    split: HeldOut,
    source: pipeline.Source,
    step: int,
    found: Evaluation,
    seen: _Seen,
    throughput: Mapping[str, Any],
) -> None:
    """Print the scores; write them, the curves, a preview sheet and overlays to `where`."""
    classes, palette = source.classes, source.palette
    (where / "overlays").mkdir(parents=True, exist_ok=True)
    baselines = _baselines(run)
    evaluations = {name: _evaluation(source, method) for name, method in baselines.items()}
    others = {name: evaluation.scores() for name, evaluation in evaluations.items()}
    overall, intervals, per_class = found.scores(), found.intervals(), found.per_class()
    console = rich.get_console()
    tables = report.score_tables(
        classes, per_class, overall, others, intervals, width=console.width
    )
    for table in tables:
        console.print(table)
    pictures = [{"id": seen.ids[i]} | of for i, of in enumerate(found.pictures())]
    told = report.scores_markdown(classes, per_class, overall, others, intervals)
    worst = report.worst_first(pictures)
    told += "\n" + report.pictures_markdown(worst[:WORST])
    write_whole(where / "scores.md", told.rstrip("\n"))
    write_whole(where / "pictures.csv", report.pictures_csv(worst).rstrip("\n"))
    scores = {
        "step": step,
        "split": split,
        **overall,
        "classes": classes,
        "palette": palette,
        "confusion": found.confusion,
        "per_class": per_class,
        "intervals": intervals,
        "pictures": pictures,
        "calibration": found.reliability(),
        "throughput": throughput,
    }
    if (of_objects := found.objects()) is not None:
        scores["objects"] = of_objects
    if others:
        scores["others"] = others
    write_whole(where / "scores.json", json.dumps(_plain(scores), ensure_ascii=False))
    name = run.folder.resolve().name
    title = name if name == run.recipe else f"{name} ({run.recipe})"
    report.plot_reliability(found.reliability(), where / "reliability.png", title=title)
    if lines := report.read_metrics(run.folder / "metrics.jsonl"):
        report.plot_curves(lines, where / "curves.png", title=title)

    rows = []
    for i, label in sorted(seen.labels.items()):
        example = source[i]
        caption = _caption(i, example["id"], found, evaluations)
        rows.append(visualise.Row(example["image"], example["label"], label, caption))
        overlay = visualise.overlay(example["image"], label, palette)
        with_legend = visualise.with_legend(overlay, label, classes, palette)
        with_legend.save(where / f"overlays/{example['id']}.png")
    visualise.preview_sheet(rows, classes, palette).save(where / "preview.png")
    number = "1 picture" if len(source) == 1 else f"{len(source)} pictures"
    print(
        f"Checkpoint of step {step}, {number} of {split}. Look at {where / 'preview.png'}, and "
        "beside it curves.png, reliability.png, overlays/, scores.md, scores.json, and "
        "pictures.csv, the worst first."
    )


def _baselines(run: Run) -> dict[str, Labels]:
    """The recipe's baseline by its name, if it has one."""
    if not run.has("baseline"):
        return {}
    baseline = run.rebuild("baseline")
    return {type(baseline).__name__: baseline}


def _evaluation(source: pipeline.Source, label_of: Labels) -> Evaluation:
    """The evaluation of a method that labels one picture at a time."""
    num_classes = len(source.classes)

    def labelled() -> Iterator[tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]]:
        for i in range(len(source)):
            example = source[i]
            label = label_of(example["image"])
            yield example["label"], label, _inspected(example, label, num_classes)

    return evaluator.of_labels(labelled(), num_classes=num_classes)


def _caption(i: int, name: str, found: Evaluation, others: Mapping[str, Evaluation]) -> str:
    """A picture's name, its IoU and, where the source numbers objects, how many were found."""

    def beside(what: Callable[[Evaluation], str]) -> str:
        told = ", ".join(f"{method} {what(other)}" for method, other in others.items())
        return f" ({told})" if told else ""

    def iou(evaluation: Evaluation) -> str:
        value = float(metrics.picture_scores(evaluation.rows["counts"][i])["mean_iou"])
        return "–" if math.isnan(value) else f"{value:.3f}"

    def count(evaluation: Evaluation) -> str:
        return str(evaluation.rows["objects"][i, -1])

    parts = [name, f"IoU {iou(found)}{beside(iou)}"]
    if "objects" in found.rows:
        true = found.rows["objects"][i, -2]
        parts.append(f"objects: {true} true, {count(found)} predicted{beside(count)}")
    return "    ".join(parts)


def _plain(value: Any) -> Any:
    """What JSON can hold: lists for arrays, and null for NaN, which it has not."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
