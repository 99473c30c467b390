"""The verb that trains a recipe in a run folder."""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from rich.progress import track

import segjax
from segjax.commands import disk
from segjax.commands.checks import check_batch
from segjax.commands.command import CompilationCount, interruption
from segjax.commands.description import describe
from segjax.commands.evaluate import batches_on_mesh, evaluate
from segjax.commands.observing import Observing
from segjax.commands.run import Run, as_json, never_saved, read_json, start_run, write_whole
from segjax.commands.step import Parts, in_steps
from segjax.commands.trained import check_folder, load_step
from segjax.data import audit, cache, pipeline
from segjax.data.wrapper import bare, without
from segjax.errors import SegjaxError
from segjax.evaluation import evaluator, report
from segjax.inference.predict import make_predict
from segjax.training import losses, sharding
from segjax.training.checkpoint import Checkpoints
from segjax.training.observers import Observer, services
from segjax.training.progress import RunLog
from segjax.training.train import Every, NotFinite, State, fit

if TYPE_CHECKING:
    from segjax.recipe import Recipe


def train(recipe: "Recipe", folder: Path, *, name: str, restart: bool = False) -> None:
    """Train a recipe in a run folder, or go on where the run in it has stopped; then evaluate.

    Args:
        recipe: what to train.
        folder: the run folder.
        name: of the recipe, written down there.
        restart: remove what the run there has written, and train anew.

    Raises:
        SegjaxError: what is wrong with the data, the folder or the numbers.
        SystemExit: interrupted, with status 128 + the signal's number.
    """
    if restart and recipe.start_from and recipe.start_from.absolute() == folder.absolute():
        raise SegjaxError(f"{folder}: a run cannot be removed and be started from. Use another.")
    check_batch(recipe)
    anew = restart or never_saved(folder)
    if anew and recipe.start_from is not None:
        load_step(Run(recipe.start_from), "best")  # raises, before the folder is made
    compiled = CompilationCount()
    observing = Observing(_observers(recipe) if jax.process_index() == 0 else ())
    mesh = sharding.make_mesh()
    sources: dict[str, pipeline.Source] = {s: recipe.source(s) for s in recipe.splits}
    if hasattr(recipe, "data"):
        for source in sources.values():
            check_folder(source)
    given, recipe = recipe, in_steps(recipe, sources["train"])
    parts = Parts(recipe, mesh)
    baseline = recipe.baseline()
    # raises, before the data is read
    describe([parts.model, recipe.normalise, baseline, *_held_out(sources).values()])
    for source in sources.values():
        _check_classes(source, num_classes=parts.model.num_classes)
    if recipe.skip_broken:
        skipped = _broken(sources, None if anew else folder / "skipped.json")
        for split, broken in skipped.items():
            sources[split] = without(sources[split], tuple(map(int, broken)))
        if given.epochs:  # of fewer pictures
            recipe = in_steps(given, sources["train"])
            parts = Parts(recipe, mesh)
    held_out_canvases = recipe.buckets or [recipe.canvas]
    canvases = dict.fromkeys(sources, held_out_canvases) | {"train": [recipe.canvas]}
    audit.check(sources, canvases=canvases)
    data, held_out = (_kept(sources[split], recipe.cache) for split in ("train", "val"))
    start_run(
        folder,
        name=name,
        fields=_fields(recipe) | {"epochs": given.epochs},
        parts={
            "model": parts.model,
            "normalise": recipe.normalise,
            "classes": held_out.classes,
            "palette": held_out.palette,
        }
        | _held_out(sources)
        | ({"baseline": baseline} if baseline else {})
        | ({"published": [*map(dataclasses.asdict, of)]} if (of := recipe.published) else {}),
        defaults=_defaults(recipe),
        restart=restart,
    )
    sharding.wait_for_all("start")  # for the first may be removing checkpoints still
    if recipe.skip_broken and jax.process_index() == 0:
        write_whole(folder / "skipped.json", as_json(skipped))
        for split, broken in skipped.items():
            told = "1 example is" if len(broken) == 1 else f"{len(broken)} examples are"
            print(*broken.values(), f"{split}: {told} skipped.", sep="\n")
    if given.epochs and jax.process_index() == 0:
        length = f"{given.epochs:g} epochs of {len(data)} pictures"
        print(f"{length} are {recipe.steps} steps of {recipe.batch_size}.")
    with observing.to_the_end(), disk.telling_what_is_kept(folder):
        _take_steps(recipe, parts, data, held_out, folder, mesh, observing, compiled)
        for split in Run(folder).splits:
            observing.scores = evaluate(folder, split=split)


def _take_steps(
    recipe: "Recipe",
    parts: Parts,
    data: pipeline.Source,
    held_out: pipeline.Source,
    folder: Path,
    mesh: Mesh,
    observing: Observing,
    compiled: CompilationCount,
) -> None:
    """Train from the newest checkpoint to the end, evaluating and saving on the way."""
    predict = make_predict(parts.model, normalise=recipe.normalise)
    # Of the main logits, without weights, so that runs of different training losses compare.
    summed_loss = jax.jit(partial(losses.cross_entropy, reduction="sum"))

    with interruption() as interrupted, Checkpoints(folder / "checkpoints") as checkpoints:
        state, start = parts.make_state(), checkpoints.newest or 0
        state = checkpoints.restore(state, step=start) if start else _begin(recipe, state)
        log = RunLog(
            folder,
            total=recipe.steps,
            start=start,
            batch_size=recipe.batch_size,
            log_every=recipe.log_every,
            quiet=jax.process_index() > 0,
            tell=observing.tell,
        )
        evaluations = _mean_ious(folder, start) if recipe.patience else []
        save = disk.Saver(folder, checkpoints)

        def observe(number: int, scalars: Mapping[str, float], waited: float) -> None:
            if number == start + 1:
                seconds = time.perf_counter() - segjax.STARTED
                log.say(f"first step {seconds:.1f} s after the start; {compiled}")
            log.step(number, scalars, waited=waited)

        def out_of_patience() -> bool:
            return recipe.patience is not None and _since_best(evaluations) >= recipe.patience

        def evaluate_and_save(number: int, state: State) -> None:
            with log.paused():
                batches = batches_on_mesh(
                    held_out,
                    mesh,
                    batch_size=recipe.batch_size,
                    canvases=recipe.buckets or [recipe.canvas],
                    workers=recipe.workers,
                )
                share = evaluator.evaluate(
                    partial(predict, state.averaged),
                    batches,
                    num_classes=len(held_out.classes),
                    summed_loss=summed_loss,
                )
                found = evaluator.joined(sharding.from_all_processes(share))
                scores = found.scores()
                evaluations.append(scores["mean_iou"])
                # Before it is saved, so that a run that goes on from there finds the line.
                log.scores(number, scores | {"loss": found.loss})
                save(number, state, scores)

        with log, _telling_what_is_kept(checkpoints):
            early = f"for {recipe.patience} evaluations brought no better mean IoU (--patience)"
            if start >= recipe.steps:
                log.say(f"{folder}: at step {start} already, nothing is left to train")
            elif out_of_patience():
                log.say(f"{folder}: stopped at step {start}, {early}; nothing is left to train")
            elif start:
                log.say(f"{folder}: going on from step {start} of {recipe.steps}")
            observing.start(folder, Run(folder).fields, start)
            batches = pipeline.train_batches(
                data,
                batch_size=recipe.batch_size,
                canvas=recipe.canvas,
                seed=recipe.seed,
                start=start,
                process=jax.process_index(),
                processes=jax.process_count(),
                threads=recipe.workers,
            )
            state = fit(
                state,
                parts.step,
                sharding.prefetch(batches, mesh),
                until=start if out_of_patience() else recipe.steps,
                observe=observe,
                every=[Every(recipe.evaluate_every, evaluate_and_save)],
                rescue=save,
                stop=lambda: bool(interrupted() or out_of_patience() or observing.to_stop),
            )
            observing.step = done = int(state.step)
            if out_of_patience() and start < done < recipe.steps:
                log.say(f"stopped at step {done} of {recipe.steps}, {early}")
    if observing.error and observing.to_stop and done < recipe.steps:
        raise SegjaxError(f"{observing.error} The same command goes on from step {done}.")
    if number := interrupted():
        print(
            f"Interrupted after step {done}; the same command goes on from there.",
            file=sys.stderr,
        )
        sys.exit(128 + number)


@contextmanager
def _telling_what_is_kept(checkpoints: Checkpoints) -> Iterator[None]:
    """Add to the error of a spoilt state from where the training can go on."""
    try:
        yield
    except NotFinite as error:
        newest = checkpoints.newest
        kept = f"The checkpoint of step {newest} is kept." if newest else "No checkpoint yet."
        raise SegjaxError(f"{error} {kept}") from error


def _begin(recipe: "Recipe", state: State) -> State:
    """The first state, with the weights that the recipe starts from."""
    variables = recipe.initial(state.variables)
    if recipe.start_from is not None:
        step, theirs = load_step(Run(recipe.start_from), "best")
        variables, told = _take_over(variables, theirs.variables)
        if jax.process_index() == 0:
            print(f"Starting from {recipe.start_from}, step {step}: {told}.")
    placed = jax.tree.map(
        lambda old, new: jax.device_put(np.asarray(new, old.dtype), old.sharding),
        state.variables,
        state.variables | dict(variables),  # a network without statistics has no part for them
    )
    state = state.replace(**placed)
    return state if state.ema is None else jax.jit(State.with_ema)(state)


def _take_over(ours: Any, theirs: Any) -> tuple[Any, str]:
    """Our variables with theirs of the same names and shapes, and what was not taken in words."""
    mine, given = (flatten_dict(dict(tree), sep="/") for tree in (ours, theirs))
    taken = {
        path: given[path]
        for path, leaf in mine.items()
        if path in given and given[path].shape == leaf.shape
    }
    if not taken:
        raise SegjaxError("The run to start from has no array of this network's names and shapes.")
    told = f"{len(taken)} of {len(mine)} arrays"
    for what, paths in (
        ("at first values", set(mine) - set(taken)),
        ("unused", set(given) - set(taken)),
    ):
        if paths:
            told += f"; {what}: {', '.join(sorted(paths))}"
    return unflatten_dict(mine | taken, sep="/"), told


def _mean_ious(folder: Path, step: int) -> list[float]:
    """Of the evaluations of a run up to a step: what it has told, for no process remembers."""
    path = folder / "metrics.jsonl"
    told = report.read_metrics(path) if path.exists() else []
    scores = [line["mean_iou"] for line in told if "mean_iou" in line and line["step"] <= step]
    return [math.nan if score is None else score for score in scores]


def _since_best(scores: Sequence[float]) -> int:
    """How many came after the best, the first of equal ones; NaN is worse than any."""
    best, since = -math.inf, 0
    for score in scores:
        best, since = (score, 0) if score > best else (best, since + 1)
    return since


def _observers(recipe: "Recipe") -> list[Observer]:
    return [*services(recipe.log_to), *recipe.observers()]


def _defaults(recipe: "Recipe") -> dict[str, Any]:
    fields = dataclasses.fields(recipe)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def _fields(recipe: "Recipe") -> dict[str, Any]:
    return {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}


def _held_out(sources: Mapping[str, pipeline.Source]) -> dict[str, pipeline.Source]:
    """The held-out sources by the names of their parts in recipe.json."""
    tested = {"test": sources["test"]} if "test" in sources else {}
    return {"source": sources["val"], **tested}


def _kept(source: pipeline.Source, where: Literal["no", "memory", "disk"]) -> pipeline.Source:
    """The source, whose examples are decoded once."""
    if where == "memory":
        return cache.in_memory(source)
    return cache.on_disk(source, track) if where == "disk" else source


def _check_classes(source: pipeline.Source, *, num_classes: int) -> None:
    # One channel is a sigmoid's, which tells two classes apart.
    if len(source.classes) != max(num_classes, 2):
        raise SegjaxError(
            f"The data has {len(source.classes)} classes ({', '.join(source.classes)}), the "
            f"network {num_classes}: set its num_classes to {len(source.classes)}."
        )


def _broken(sources: Mapping[str, pipeline.Source], path: Path | None) -> dict[str, dict[str, str]]:
    """The examples of each split that cannot be read: index -> what is wrong with it.

    As listed in the file at the run's first start: a batch stays a function of (seed, step).
    """
    if path and path.exists():
        listed = read_json(path)
        if _is_listing(listed, sources):
            return listed
        raise SegjaxError(
            f"{path}: no list of the examples that are skipped in each split. Restore the file."
        )
    return {
        split: {
            str(i): str(read.error)
            for i, read in enumerate(audit.read_all(bare(source)))
            if read.error
        }
        for split, source in sources.items()
    }


def _is_listing(listed: Any, sources: Mapping[str, pipeline.Source]) -> bool:
    """Whether a skipped.json holds what `_broken` returns: indices of these sources, and texts."""
    return isinstance(listed, dict) and all(
        split in sources
        and isinstance(broken, dict)
        and all(i.isdecimal() and int(i) < len(sources[split]) for i in broken)
        for split, broken in listed.items()
    )
