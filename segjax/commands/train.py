"""The verb that trains a recipe in a run folder."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
from jax.sharding import Mesh
from rich.progress import track

import segjax
from segjax.commands import disk, speed
from segjax.commands.checks import check_batch
from segjax.commands.command import (
    CompilationCount,
    Interruption,
    interruption,
    keep_on_without_readers,
)
from segjax.commands.description import describe
from segjax.commands.evaluate import batches_on_mesh, evaluate
from segjax.commands.failed import keep_failed
from segjax.commands.fitting import fitted
from segjax.commands.fork import Fork, fork
from segjax.commands.observing import Observing
from segjax.commands.run import Run, as_json, never_saved, start_run, write_whole
from segjax.commands.skipping import unreadable
from segjax.commands.start_from import first_state
from segjax.commands.step import Parts, in_steps
from segjax.commands.trained import check_folder, load_step
from segjax.data import audit, cache, pipeline
from segjax.data.wrapper import listing, without
from segjax.errors import SegjaxError
from segjax.evaluation import evaluator, report
from segjax.inference.predict import make_predict
from segjax.training import losses, processes, sharding
from segjax.training.checkpoint import Checkpoints
from segjax.training.observers import Observer, services
from segjax.training.progress import RunLog
from segjax.training.train import Batch, Every, NotFinite, State, fit

if TYPE_CHECKING:
    from segjax.recipe import Recipe


def train(
    recipe: "Recipe",
    folder: Path,
    *,
    name: str,
    restart: bool = False,
    origin: Path | None = None,
    profile: int = 0,
) -> None:
    """Train a recipe in a run folder, or go on where the run in it has stopped; then evaluate.

    Args:
        recipe: what to train.
        folder: the run folder.
        name: of the recipe, written down there.
        restart: remove what the run there has written, and train anew.
        origin: another run, from whose whole state a new one begins.
        profile: steps to trace, into the folder profile/ of the run.

    Raises:
        SegjaxError: what is wrong with the data, the folder or the numbers.
        Stopped, KeyboardInterrupt: by a signal, while it trains and otherwise.
    """
    if profile < 0:
        raise SegjaxError(f"profile is {profile}; expected a number of steps, or 0 for none.")
    keep_on_without_readers()
    with interruption() as interrupted:
        _train(
            recipe,
            folder,
            interrupted,
            name=name,
            restart=restart,
            origin=origin,
            profile=profile,
        )


def _train(
    recipe: "Recipe",
    folder: Path,
    interrupted: Interruption,
    *,
    name: str,
    restart: bool,
    origin: Path | None,
    profile: int,
) -> None:
    if restart and recipe.start_from and recipe.start_from.absolute() == folder.absolute():
        raise SegjaxError(f"{folder}: a run cannot be removed and be started from. Use another.")
    check_batch(recipe)
    anew = restart or never_saved(folder)
    if anew and recipe.start_from is not None:
        load_step(Run(recipe.start_from), "best")  # raises, before the folder is made
    compiled = CompilationCount()
    observing = Observing(_observers(recipe) if jax.process_index() == 0 else ())
    mesh = sharding.make_mesh(data=recipe.data_axis, model=recipe.model_axis)
    sources: dict[str, pipeline.Source] = {s: recipe.source(s) for s in recipe.splits}
    if hasattr(recipe, "data"):
        for source in sources.values():
            check_folder(source)
    given, recipe = recipe, in_steps(recipe, sources["train"])
    if recipe.memory == "fit":
        recipe, told = fitted(recipe, mesh)
        if jax.process_index() == 0:
            print(told)
    parts = Parts(recipe, mesh)
    others = {"baseline": recipe.baseline(), "measure": recipe.measure()}
    # raises, before the data is read
    describe([parts.model, recipe.normalise, *others.values(), *_held_out(sources).values()])
    for source in sources.values():
        _check_classes(source, num_classes=parts.model.num_classes)
    if recipe.skip_broken:
        skipped = unreadable(sources, None if anew else folder / "skipped.json")
        for split, broken in skipped.items():
            sources[split] = without(sources[split], tuple(map(int, broken)))
        if given.epochs:  # of fewer pictures
            recipe = in_steps(dataclasses.replace(given, memory=recipe.memory), sources["train"])
            parts = Parts(recipe, mesh)
    held_out_canvases = recipe.buckets or [recipe.canvas]
    canvases = dict.fromkeys(sources, held_out_canvases) | {"train": [recipe.canvas]}
    audit.check(sources, canvases=canvases)
    processes.check_alike(_not_to_differ(given, sources, folder=folder, restart=restart))
    data, held_out = (_kept(sources[split], recipe.cache) for split in ("train", "val"))
    forked = fork(folder, origin, like=parts.shapes, until=recipe.steps, restart=restart)
    start_run(
        folder,
        name=name,
        fields=_fields(recipe) | {"epochs": given.epochs, "memory": given.memory},
        parts={
            "model": parts.model,
            "normalise": recipe.normalise,
            "classes": held_out.classes,
            "palette": held_out.palette,
        }
        | _held_out(sources)
        | {name: other for name, other in others.items() if other}
        | ({"published": [*map(dataclasses.asdict, of)]} if (of := recipe.published) else {}),
        defaults=_defaults(recipe),
        data={split: listing(sources[split]) for split in ("train", "val")},
        note=forked.note if forked else {},
        restart=restart,
    )
    processes.wait_for_all("start")  # for the first may be removing checkpoints still
    if recipe.skip_broken and jax.process_index() == 0:
        write_whole(folder / "skipped.json", as_json(skipped))
        for split, broken in skipped.items():
            told = "1 example is" if len(broken) == 1 else f"{len(broken)} examples are"
            print(*broken.values(), f"{split}: {told} skipped.", sep="\n")
    if given.epochs and jax.process_index() == 0:
        length = f"{given.epochs:g} epochs of {len(data)} pictures"
        print(f"{length} are {recipe.steps} steps of {recipe.batch_size}.")
    with observing.to_the_end(), disk.telling_what_is_kept(folder):
        with interrupted.politely():
            _take_steps(
                recipe,
                parts,
                data,
                held_out,
                folder,
                mesh,
                observing,
                compiled,
                interrupted,
                forked,
                profile,
            )
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
    interrupted: Interruption,
    forked: Fork | None,
    profile: int,
) -> None:
    """Train from the newest checkpoint to the end, evaluating and saving on the way."""
    predict = make_predict(parts.model, normalise=recipe.normalise)
    # Of the main logits, without weights, so that runs of different training losses compare.
    summed_loss = jax.jit(partial(losses.cross_entropy, reduction="sum"))

    with Checkpoints(folder / "checkpoints") as checkpoints:
        interrupted.finish = checkpoints.wait
        start, state = checkpoints.resume(parts.shapes)
        if forked and not start:
            start, state = forked.step, forked.state
            checkpoints.save(start, state)  # so that the other run is needed no more
        elif not start:
            state = first_state(recipe, parts.make_state())
        shape = (recipe.batch_size, *recipe.crop, recipe.channels)
        share, shares = sharding.share(mesh)
        log = RunLog(
            folder,
            total=recipe.steps,
            start=start,
            batch_size=recipe.batch_size,
            log_every=recipe.log_every,
            flops=speed.later(partial(speed.model_flops, parts.model, shape)),
            peak=speed.peak(mesh, recipe.compute),
            quiet=jax.process_index() > 0,
            tell=observing.tell,
        )
        evaluations = _mean_ious(folder, start) if recipe.patience else []
        skipped = 0
        save = disk.Saver(folder, checkpoints)

        def observe(number: int, scalars: Mapping[str, float], waited: float) -> None:
            nonlocal skipped
            skipped += int(scalars.get("skipped", 0))
            if number == start + 1:
                seconds = time.perf_counter() - segjax.STARTED
                log.say(f"first step {seconds:.1f} s after the start; {compiled}")
            log.step(number, scalars, waited=waited)

        agreed = processes.Agreement()

        def asked_to_stop() -> int:
            """The signal that all processes know of; where there is one, each stops now."""
            number = agreed(interrupted())
            interrupted.ending = bool(number)
            return number

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
                counted = evaluator.evaluate(
                    partial(predict, parts.averaged(state)),
                    _until_asked(batches, asked_to_stop, number),
                    num_classes=len(held_out.classes),
                    summed_loss=summed_loss,
                )
                everyones = processes.from_all_processes(counted)
                # Processes that compute a share together have all counted it.
                found = evaluator.joined([everyones[one] for one, *_ in sharding.readers(mesh)])
                scores = found.scores()
                _check_held_out(number, found)
                evaluations.append(scores["mean_iou"])
                # Before it is saved, so that a run that goes on from there finds the line.
                log.scores(number, scores | {"loss": found.loss})
                save(number, state, scores)

        with log, _telling_what_is_kept(checkpoints, folder, data):
            early = f"for {recipe.patience} evaluations brought no better mean IoU (--patience)"
            if start >= recipe.steps:
                log.say(f"{folder}: at step {start} already, nothing is left to train")
            elif out_of_patience():
                log.say(f"{folder}: stopped at step {start}, {early}; nothing is left to train")
            elif forked:
                log.say(f"{folder}: {forked}; to step {recipe.steps}")
            elif start:
                log.say(f"{folder}: going on from step {start} of {recipe.steps}")
            observing.start(folder, Run(folder).fields, start)
            batches = pipeline.train_batches(
                data,
                batch_size=recipe.batch_size,
                canvas=recipe.canvas,
                seed=recipe.seed,
                start=start,
                process=share,
                processes=shares,
                threads=recipe.workers,
            )
            try:
                if start and not checkpoints.scored(start) and _due(recipe, start):
                    evaluate_and_save(start, state)  # it was broken off
                with speed.traced(parts.step, folder / "profile", profile, log.say) as step:
                    state = fit(
                        state,
                        step,
                        sharding.prefetch(batches, mesh),
                        until=start if out_of_patience() else recipe.steps,
                        observe=observe,
                        every=[Every(recipe.evaluate_every, evaluate_and_save)],
                        rescue=save,
                        stop=lambda _: bool(
                            asked_to_stop() or out_of_patience() or observing.to_stop
                        ),
                    )
                done = int(state.step)
            except _BrokenOff as broken:
                done = broken.step
            observing.step = done
            if skipped:
                log.say(f"{skipped} of {done - start} steps were skipped, for they were not finite")
            signal = max(processes.from_all_processes(interrupted()))
            if out_of_patience() and start < done < recipe.steps:
                log.say(f"stopped at step {done} of {recipe.steps}, {early}")
    if observing.error and observing.to_stop and done < recipe.steps:
        raise SegjaxError(f"{observing.error} The same command goes on from step {done}.")
    if signal:
        print(
            f"Interrupted after step {done}; the same command goes on from there.",
            file=sys.stderr,
        )
        raise processes.Stopped(128 + signal)


class _BrokenOff(Exception):
    """An evaluation was, for a signal: it is done again by the process that goes on."""

    def __init__(self, step: int) -> None:
        self.step = step


def _until_asked(
    batches: Iterator[Batch], asked_to_stop: Callable[[], int], step: int
) -> Iterator[Batch]:
    """The batches of the evaluation after a step, which a stop does not wait for."""
    for batch in batches:
        if asked_to_stop():
            raise _BrokenOff(step)
        yield batch


def _due(recipe: "Recipe", step: int) -> bool:
    """Whether a step is followed by an evaluation."""
    return step % recipe.evaluate_every == 0 or step >= recipe.steps


def _not_to_differ(
    recipe: "Recipe", sources: Mapping[str, pipeline.Source], **more: Any
) -> dict[str, Any]:
    """What all processes of a cluster must have alike; not where their data lies."""
    fields = {n: x for n, x in _fields(recipe).items() if n not in {"data", "workers", "cache"}}
    pictures = {f"pictures of {split}": len(source) for split, source in sources.items()}
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    versions |= {"segjax": segjax.__version__, "devices": str(jax.local_device_count())}
    return {n: str(x) for n, x in {**fields, **pictures, **more, **versions}.items()}


def _check_held_out(number: int, found: evaluator.Evaluation) -> None:
    """Raise NotFinite where the held-out loss is not, though any pixel is valid."""
    if found.confusion.sum() and not math.isfinite(found.loss):
        raise NotFinite(
            f"Training stopped at step {number}: the loss on the held-out pictures is {found.loss}"
            ", so this state is not saved. Try a lower learning rate, a longer warm-up or float32."
        )


@contextmanager
def _telling_what_is_kept(
    checkpoints: Checkpoints, folder: Path, data: pipeline.Source
) -> Iterator[None]:
    """Keep the batch that spoilt a state, and tell from where the training can go on."""
    try:
        yield
    except NotFinite as error:
        newest = checkpoints.newest
        kept = f"The checkpoint of step {newest} is kept." if newest else "No checkpoint yet."
        raise SegjaxError(f"{error}{keep_failed(error, folder, data)} {kept}") from error


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
