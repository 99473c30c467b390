"""The verb that makes a page of evaluated runs."""

import math
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray

from segjax.commands.checks import make_folder
from segjax.commands.run import HeldOut, Run, read_json, write_whole
from segjax.commands.trained import Which, held_out, load_step
from segjax.data.audit import evenly
from segjax.errors import SegjaxError, SegjaxWarning
from segjax.evaluation import metrics, page, results, visualise
from segjax.evaluation import report as reporting
from segjax.evaluation.comparison import Layer, Picture
from segjax.evaluation.results import Result


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def report(
    runs: tuple[Path, ...],
    *,
    split: HeldOut | None = None,
    data: Path | None = None,
    checkpoint: Which = "best",
    pictures: int = 6,
    out: Path | None = None,
) -> None:
    """Make a page of one or several evaluated runs; beside it Markdown and JSON.

    Args:
        runs: Run folders; several are set side by side.
        split: Of which held-out data: val, which has chosen the best checkpoint, or test; by
            default test, if all of the runs were evaluated on one.
        data: Where the held-out pictures lie now, if they have moved.
        checkpoint: By which the pictures are labelled; best is the one that `evaluate` scores.
        pictures: How many to show: of three, two are the worst and one is the best.
        out: Where to write; by default to the scores of a run, or for several runs to `report`.

    Raises:
        SegjaxError: a run was not evaluated yet, or the runs are of different classes.
    """
    if pictures < 0:
        raise SegjaxError(f"--pictures is {pictures}; expected 0 or more.")
    stored = [Run(folder) for folder in runs]
    if split is None:
        tested = all((_where(folder, "test") / "scores.json").exists() for folder in runs)
        split = "test" if tested else "val"
    notes: list[str] = []  # what a reader has to know too, on the page and in the terminal
    named = zip(stored, _names(runs), strict=True)
    found = [_result(run, split, name, notes) for run, name in named]
    for run, result in zip(stored, found, strict=True):
        if list(result.classes) != list(found[0].classes):
            raise SegjaxError(
                f"{run.folder} has the classes {', '.join(result.classes)}, {stored[0].folder} "
                f"{', '.join(found[0].classes)}. Report on runs of one data set."
            )
    out = out or (_where(runs[0], split) if len(runs) == 1 else Path("report"))
    make_folder(out)  # before it computes
    shown: list[Picture] = []
    legend: list[tuple[str, tuple[int, ...]]] = []
    if pictures:
        sources = [held_out(run, data, split) for run in stored]
        shown, legend = _pictures(stored, sources, found, checkpoint, pictures, notes)
    title = found[0].name if len(found) == 1 else f"{len(found)} runs"
    when = f"{datetime.now():%Y-%m-%d %H:%M}"
    text = page.page(found, shown, legend, title=title, when=when, notes=notes)
    write_whole(out / "report.html", text)
    write_whole(out / "report.md", results.markdown(found, title=title))
    write_whole(out / "report.json", results.as_json(found, title=title))
    for note in notes:
        warnings.warn(note, SegjaxWarning, stacklevel=2)
    print(f"Look at {out / 'report.html'}; report.md and report.json beside it tell the same.")


def _names(runs: Sequence[Path]) -> list[str]:
    """What to call runs: their folders' names, or where these are equal their paths."""
    names = [path.resolve().name for path in runs]
    if len({path.resolve() for path in runs}) < len(runs):
        raise SegjaxError("A run is named twice. Name each once.")
    return names if len(set(names)) == len(names) else [str(path) for path in runs]


def _where(folder: Path, split: HeldOut) -> Path:
    """Where `evaluate` has written the scores of a run."""
    return folder / "report" if split == "val" else folder / "report" / split


def _result(run: Run, split: HeldOut, name: str, notes: list[str]) -> Result:
    """What the files of a run tell of it; adds to the notes what they lack."""
    path = _where(run.folder, split) / "scores.json"
    evaluate = f"segjax evaluate {run.folder}{'' if split == 'val' else f' --split {split}'}"
    try:
        scores = read_json(path)
    except FileNotFoundError:
        raise SegjaxError(
            f"{run.folder}: not evaluated yet ({path} is missing). First run: {evaluate}"
        ) from None
    results.check(scores, str(path))
    if scores["classes"] != list(run.rebuild("classes")):
        raise SegjaxError(f"{path}: of other classes than the run's. Write it anew: {evaluate}")
    if missing := [part for part in ("per_class", "pictures") if part not in scores]:
        notes.append(
            f"{path}: written by an earlier version, without {' and '.join(missing)}. With them "
            f"the report tells more: {evaluate}"
        )
    scores.setdefault("palette", run.rebuild("palette"))
    if "per_class" not in scores and "confusion" in scores:
        each = metrics.per_class(np.array(scores["confusion"]))
        scores["per_class"] = {
            score: [None if math.isnan(x) else x for x in np.asarray(values).tolist()]
            for score, values in each.items()
        }
    recipe = read_json(run.folder / "recipe.json")
    if not _are_figures(recipe.get("published", [])):
        raise SegjaxError(
            f"{run.folder / 'recipe.json'}: its 'published' is no list of figures. Restore the "
            "file."
        )
    path = run.folder / "environment.json"
    starts = read_json(path) if path.exists() else []
    if not _are_starts(starts):
        raise SegjaxError(f"{path}: no list of starts. Restore the file, or move it away.")
    records = run.folder / "metrics.jsonl"
    return Result(
        name=name,
        recipe=recipe,
        starts=starts,
        records=reporting.read_metrics(records) if records.exists() else [],
        scores=scores,
    )


def _are_figures(published: Any) -> bool:
    texts = ("metric", "split", "source")
    return isinstance(published, list) and all(
        isinstance(of, dict)
        and isinstance(of.get("value"), int | float)
        and all(isinstance(of.get(name), str) for name in texts)
        for of in published
    )


def _are_starts(starts: Any) -> bool:
    kinds = {"packages": dict, "command": list, "devices": list}
    return isinstance(starts, list) and all(
        isinstance(of, dict)
        and all(isinstance(of.get(name, kind()), kind) for name, kind in kinds.items())
        for of in starts
    )


def _pictures(
    runs: Sequence[Run],
    sources: Sequence[Any],
    found: Sequence[Result],
    checkpoint: Which,
    number: int,
    notes: list[str],
) -> tuple[list[Picture], list[tuple[str, tuple[int, ...]]]]:
    """Held-out pictures with what each run makes of them, and the legend of their colours."""
    chosen = _chosen([result.scores.get("pictures") for result in found], len(sources[0]), number)
    examples: list[list[Mapping[str, Any]]] = []
    for i, (run, source) in enumerate(zip(runs, sources, strict=True)):
        ids = [of["id"] for of in examples[0]] if examples else [each.id for each in chosen]
        examples.append(_examples(run, source, [each.places[i] for each in chosen], ids))
    labels = [
        _labels(run, checkpoint, of, result.scores.get("step"), notes)
        for run, of, result in zip(runs, examples, found, strict=True)
    ]
    palette, classes = sources[0].palette, sources[0].classes
    pictures = []
    for k, each in enumerate(chosen):
        example, truth = examples[0][k], examples[0][k]["label"]
        shown = visualise.as_shown(example["image"])
        layers = [
            Layer("picture", shown, False),
            Layer("truth", visualise.colourise(truth, palette), True),
        ]
        for result, of_run in zip(found, labels, strict=True):
            if of_run[k].shape != truth.shape:
                raise SegjaxError(
                    f"{example['id']}: {truth.shape} pixels for {found[0].name}, but "
                    f"{of_run[k].shape} for {result.name}. Drop a run, or show none: --pictures 0."
                )
            of = "" if len(found) == 1 else f"{result.name}: "
            counted = np.where(truth == visualise.VOID, truth, of_run[k])
            layers.append(Layer(f"{of}prediction", visualise.colourise(counted, palette), True))
            layers.append(Layer(f"{of}errors", visualise.errors(shown, truth, of_run[k]), False))
        scores = {r.name: value for r, value in zip(found, each.scores, strict=True)}
        pictures.append(Picture(example["id"], each.rank, scores if each.rank else {}, layers))
    occurring = [example["label"] for example in examples[0]]
    occurring += [label for of_run in labels for label in of_run]
    legend = visualise.legend_entries(occurring, classes, palette)
    return pictures, [*legend, ("wrong", visualise.WRONG_COLOUR)]


class _Chosen(NamedTuple):
    """A picture to show: its rank in words, and by run its place in the source and its score."""

    rank: str
    id: str | None
    places: list[int]
    scores: list[float | None]


def _chosen(listed: Sequence[Any], length: int, number: int) -> list[_Chosen]:
    """The worst by the mean of the runs, then the best; without scores some, evenly spread."""
    if not all(listed):
        runs = len(listed)
        return [_Chosen("", None, [i] * runs, [None] * runs) for i in evenly(length, number)]
    places = [{picture["id"]: i for i, picture in enumerate(of)} for of in listed]
    ranked = []
    for name in places[0]:
        if all(name in of for of in places):
            at = [of[name] for of in places]
            scores = [of[i].get("mean_iou") for of, i in zip(listed, at, strict=True)]
            if None not in scores:
                ranked.append((sum(scores) / len(scores), name, at, scores))
    ranked.sort(key=lambda one: one[0])
    number = min(number, len(ranked))
    best = number // 3
    shown = [(f"worst {i + 1}", one) for i, one in enumerate(ranked[: number - best])]
    shown += [(f"best {i + 1}", one) for i, one in enumerate(ranked[::-1][:best])]
    return [_Chosen(rank, name, at, scores) for rank, (_, name, at, scores) in shown]


def _examples(
    run: Run, source: Any, places: Sequence[int], ids: Sequence[str | None]
) -> list[Mapping[str, Any]]:
    """Examples of a source, which must be those that were scored, or that another run has."""
    examples = []
    for place, id in zip(places, ids, strict=True):
        if place >= len(source) or (id is not None and source[place]["id"] != id):
            raise SegjaxError(
                f"{run.folder}: its data has other pictures now than were scored: {id} is not in "
                "its place. Score it anew with segjax evaluate."
            )
        examples.append(source[place])
    return examples


def _labels(
    run: Run,
    checkpoint: Which,
    examples: Sequence[Mapping[str, Any]],
    scored: int | None,
    notes: list[str],
) -> list[NDArray[np.uint8]]:
    """What a run makes of pictures; adds a note if by another checkpoint than was scored."""
    step, segmenter = load_step(run, checkpoint)
    if scored is not None and step != scored:
        notes.append(
            f"{run.folder}: its scores are of step {scored}, its pictures of the {checkpoint} "
            f"checkpoint, of step {step}. Score that one with segjax evaluate."
        )
    return [segmenter.predict(example["image"]) for example in examples]
