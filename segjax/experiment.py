"""Recipes and their verbs: the one module that knows all shelves.

A script in `experiments/` defines a frozen `Recipe` and hands it to `main`, which makes the
commands train, evaluate, predict and cost of it.
"""

import abc
import dataclasses
import inspect
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
import tyro
from flax import linen as nn
from jax.sharding import Mesh
from PIL import Image
from rich.table import Table

import segjax
from segjax import inference, losses, metrics, optimizers, report, sharding, visualise
from segjax.checkpoint import Checkpoints
from segjax.data import augment, pipeline
from segjax.data.folder import read_picture
from segjax.errors import SegjaxError
from segjax.models.layers import crop
from segjax.progress import RunLog
from segjax.run import Run, start_run, write_whole
from segjax.train import Batch, Every, State, fit, make_state, make_train_step, step_cost

Split = Literal["train", "val"]
Which = Literal["best", "newest"]
SHEET_ROWS = 6  # pictures on a preview sheet
_COUNTS = ("steps", "batch_size", "evaluate_every", "log_every")


@dataclass(frozen=True, kw_only=True)
class Recipe(abc.ABC):
    """What a training needs. A script adds fields of its own and says how they come together."""

    steps: int
    """Training steps."""
    batch_size: int
    """Pictures a step, of all devices together."""
    canvas: tuple[int, int]
    """Height and width to which pictures are padded; it must hold the largest."""
    crop: tuple[int, int]
    """Height and width of the network's input in training."""
    channels: int = 3
    """Channels of a picture: 1 grey, 3 RGB, 4 RGBA."""
    normalise: augment.Normalise = field(default_factory=augment.Normalise)
    """Scaling of pixel values before the network."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Number type of the computation; parameters, losses and statistics are always float32."""
    seed: int = 0
    """Of parameters, order, augmentation and dropout."""
    evaluate_every: int = 500
    """Steps between evaluations, each followed by a checkpoint."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        for name, least in {"seed": 0}.items() | dict.fromkeys(_COUNTS, 1).items():
            if (value := getattr(self, name)) < least:
                raise SegjaxError(f"{name} is {value}; expected at least {least}.")

    @abc.abstractmethod
    def model(self) -> nn.Module:
        """The network."""

    @abc.abstractmethod
    def source(self, split: Split) -> pipeline.Source:
        """The data to train on, or the data held out."""

    @abc.abstractmethod
    def schedule(self) -> optimizers.Schedule:
        """The learning rate of a step."""

    @abc.abstractmethod
    def optimizer(self) -> optax.GradientTransformation:
        """What turns gradients into updates, at a learning rate of 1."""

    @abc.abstractmethod
    def augment(
        self, key: jax.Array, image: jax.Array, label: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """One example of canvas size -> one of crop size, on the device."""

    def loss(self, output: Any, labels: jax.Array) -> jax.Array:
        """The network's output and labels (B, H, W) -> scalar; by default cross-entropy."""
        return losses.cross_entropy(output.logits, labels)


def make_prepare(
    recipe: Recipe, *, margin: int = 0
) -> Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]:
    """(key, batch) -> network input (B, H, W, C) and labels, on the device: augmented, scaled.

    A network that loses a margin sees pictures mirrored by it beyond their edges, and labels
    without it.
    """

    def prepare(key: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        images, labels = batch["image"], batch["label"]
        if margin:
            around = ((0, 0), (margin, margin), (margin, margin))
            images = jnp.pad(images, (*around, (0, 0)), mode="reflect")
            labels = jnp.pad(labels, around, constant_values=pipeline.IGNORE)
        keys = jax.vmap(partial(augment.record_key, key))(batch["epoch"], batch["record"])
        images, labels = jax.vmap(recipe.augment)(keys, images, labels)
        _, height, width = labels.shape
        return recipe.normalise(images), crop(labels, height - 2 * margin, width - 2 * margin)

    return prepare


class _Parts:
    """What a recipe's training consists of on a mesh, for `train` and for `cost`."""

    def __init__(self, recipe: Recipe, mesh: Mesh) -> None:
        sharding.check_batch_size(mesh, recipe.batch_size)
        self.model: Any = recipe.model()
        self.model.geometry.check(*recipe.crop)
        optimizer = recipe.optimizer()
        parameters, steps = jax.random.split(jax.random.key(recipe.seed))
        self.step = make_train_step(
            self.model,
            optimizer,
            recipe.loss,
            schedule=recipe.schedule(),
            prepare=make_prepare(recipe, margin=self.model.geometry.margin),
            key=steps,
        )
        self.make_state = partial(
            make_state,
            self.model,
            optimizer,
            key=parameters,
            image_shape=(1, *recipe.crop, recipe.channels),
            sharding=sharding.replicated(mesh),
        )


def train(recipe: Recipe, folder: Path, *, name: str) -> None:
    """Train a recipe in a run folder, or go on where the run in it has stopped; then evaluate.

    Args:
        recipe: what to train.
        folder: the run folder.
        name: of the recipe, written down there.

    Raises:
        SegjaxError: what is wrong with the data, the folder or the numbers.
    """
    compiled = _CompilationCount()
    mesh = sharding.make_mesh()
    parts = _Parts(recipe, mesh)
    data, held_out = recipe.source("train"), recipe.source("val")
    for source in (data, held_out):
        _check_source(source, num_classes=parts.model.num_classes, canvas=recipe.canvas)
    start_run(
        folder,
        name=name,
        fields=_fields(recipe),
        parts={
            "model": parts.model,
            "normalise": recipe.normalise,
            "source": held_out,
            "classes": held_out.classes,
            "palette": held_out.palette,
        },
    )
    predict = inference.make_predict(parts.model, normalise=recipe.normalise)

    with Checkpoints(folder / "checkpoints") as checkpoints, _interruption() as interrupted:
        state, start = parts.make_state(), checkpoints.newest or 0
        if start:
            state = checkpoints.restore(state, step=start)
        log = RunLog(
            folder,
            total=recipe.steps,
            start=start,
            batch_size=recipe.batch_size,
            log_every=recipe.log_every,
            quiet=jax.process_index() > 0,
        )

        def observe(number: int, scalars: Mapping[str, float], waited: float) -> None:
            if number == start + 1:
                seconds = time.perf_counter() - segjax.STARTED
                log.say(f"first step {seconds:.1f} s after the start; {compiled}")
            log.step(number, scalars, waited=waited)

        def evaluate_and_save(number: int, state: State) -> None:
            with log.paused():
                scores = metrics.summary(
                    _confusion(
                        partial(predict, state.variables),
                        held_out,
                        mesh,
                        batch_size=recipe.batch_size,
                        canvas=recipe.canvas,
                    )
                )
                checkpoints.save(number, state, scores)
                log.scores(number, scores)

        with log:
            if start:
                log.say(f"{folder}: going on from step {start} of {recipe.steps}")
            batches = pipeline.train_batches(
                data,
                batch_size=recipe.batch_size,
                canvas=recipe.canvas,
                seed=recipe.seed,
                start=start,
                process=jax.process_index(),
                processes=jax.process_count(),
            )
            state = fit(
                state,
                parts.step,
                sharding.prefetch(batches, mesh),
                until=recipe.steps,
                observe=observe,
                every=[Every(recipe.evaluate_every, evaluate_and_save)],
                rescue=checkpoints.save,
                stop=interrupted,
            )
    if interrupted() and int(state.step) < recipe.steps:
        sys.exit(f"Interrupted after step {int(state.step)}; the same command goes on from there.")
    evaluate(folder)


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def evaluate(
    run: Path,
    *,
    data: Path | None = None,
    batch_size: int | None = None,
    checkpoint: Which = "best",
) -> dict[str, float]:
    """Score a run on its held-out data; write scores, curves and pictures to its report folder.

    Args:
        run: The run folder.
        data: Where the data lies now, if it has moved.
        batch_size: Pictures at a time; the scores do not depend on it.
        checkpoint: Which checkpoint.

    Returns:
        The overall scores by name.

    Raises:
        SegjaxError: there is no such run, or its data cannot be read.
    """
    stored = Run(run)
    source = stored.rebuild("source")
    if data is not None:
        if not hasattr(source, "root"):
            raise SegjaxError(f"{run}: its data is not read from a folder; drop --data.")
        source = dataclasses.replace(source, root=data)
    step, predict, variables = _load(stored, checkpoint)
    mesh = sharding.make_mesh()
    batch_size = batch_size or stored.fields["batch_size"]
    sharding.check_batch_size(mesh, batch_size)
    on_mesh = partial(predict, jax.device_put(variables, sharding.replicated(mesh)))
    canvas = stored.fields["canvas"]
    confusion = _confusion(on_mesh, source, mesh, batch_size=batch_size, canvas=canvas)
    if jax.process_index() == 0:
        # Alone, without the other processes of a cluster.
        _write_report(run, source, partial(predict, jax.device_put(variables)), step, confusion)
    return metrics.summary(confusion)


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def predict(
    run: Path,
    images: tyro.conf.Positional[tuple[Path, ...]],
    *,
    out: Path | None = None,
    checkpoint: Which = "best",
) -> None:
    """Write label PNGs and overlays of pictures of any size.

    Args:
        run: The run folder.
        images: Picture files.
        out: Where to write; by default `predictions` in the run folder.
        checkpoint: Which checkpoint.

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
    _, logits, variables = _load(stored, checkpoint)
    logits = partial(logits, jax.device_put(variables))
    palette = stored.rebuild("palette")
    out.mkdir(parents=True, exist_ok=True)
    unread = []
    for path in images:
        try:
            image = read_picture(path, stored.fields["channels"])
        except SegjaxError as error:
            unread.append(str(error))
            continue
        label = inference.predict_label(logits, image)
        visualise.save_mask(out / f"{path.stem}.png", label, palette)
        _save(visualise.overlay(image, label, palette), out / f"{path.stem}_overlay.png")
        print(f"{out / path.stem}.png  {path.stem}_overlay.png")
    if unread:
        done = len(images) - len(unread)
        raise SegjaxError("\n".join([*unread, f"The other {done} of {len(images)} are done."]))


def cost(recipe: Recipe) -> None:
    """Compile the training step for the recipe's shapes, without data, and print what it takes."""
    mesh = sharding.make_mesh()
    parts = _Parts(recipe, mesh)
    state = jax.eval_shape(parts.make_state)
    whole, split = sharding.replicated(mesh), sharding.split(mesh)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)

    def rows(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((recipe.batch_size, *shape), dtype, sharding=split)

    batch = {
        "image": rows(*recipe.canvas, recipe.channels, dtype=jnp.uint8),
        "label": rows(*recipe.canvas, dtype=jnp.uint8),
        "epoch": rows(dtype=jnp.int32),
        "record": rows(dtype=jnp.int32),
    }
    found = step_cost(parts.step, state, batch)
    table = Table(
        title=f"one training step of {recipe.batch_size} × {recipe.crop[0]}×{recipe.crop[1]} "
        f"on {mesh.size} × {jax.devices()[0].device_kind}"
    )
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("FLOPs per device", f"{found.flops / 1e9:,.1f} G")
    for what in ("arguments", "temporaries", "outputs"):
        table.add_row(f"memory per device: {what}", f"{getattr(found, what) / 2**20:,.1f} MiB")
    table.add_row("compile time", f"{found.compile_seconds:.1f} s")
    rich.print(table)


def _fields(recipe: Recipe) -> dict[str, Any]:
    return {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}


def _check_source(source: pipeline.Source, *, num_classes: int, canvas: tuple[int, int]) -> None:
    """Raise SegjaxError where data and network do not fit, before anything is compiled."""
    if len(source.classes) != num_classes:
        raise SegjaxError(
            f"The data has {len(source.classes)} classes ({', '.join(source.classes)}), the "
            f"network {num_classes}: set its num_classes to {len(source.classes)}."
        )
    pipeline.pad_to_canvas(source[0], canvas)


def _load(run: Run, checkpoint: Which) -> tuple[int, Callable[..., jax.Array], Any]:
    """The step of a checkpoint, the run's `make_predict`, and the variables (NumPy) it takes."""
    model: Any = run.rebuild("model")
    images = jnp.zeros((1, *run.fields["crop"], run.fields["channels"]))
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    with Checkpoints(run.folder / "checkpoints") as checkpoints:
        step = checkpoints.best if checkpoint == "best" else checkpoints.newest
        if step is None:
            raise SegjaxError(f"{run.folder}: no checkpoint yet. Train it first.")
        variables = checkpoints.restore(dict(like), step=step)
    return step, inference.make_predict(model, normalise=run.rebuild("normalise")), variables


def _confusion(
    predict: inference.Predict,
    source: pipeline.Source,
    mesh: Mesh,
    *,
    batch_size: int,
    canvas: tuple[int, int],
) -> np.ndarray:
    """The confusion matrix of a source, each process reading its share."""
    batches = pipeline.evaluation_batches(
        source,
        batch_size=batch_size,
        canvas=canvas,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    on_devices = sharding.prefetch(batches, mesh)
    return metrics.evaluate(predict, on_devices, num_classes=len(source.classes))


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
    overall, per_class = metrics.summary(confusion), metrics.per_class(confusion)
    rich.print(report.score_table(classes, per_class, overall))
    write_whole(where / "scores.md", report.scores_markdown(classes, per_class, overall))
    finite = {name: None if math.isnan(value) else value for name, value in overall.items()}
    scores = {"step": step, **finite, "classes": classes, "confusion": confusion.tolist()}
    write_whole(where / "scores.json", json.dumps(scores))
    if told := report.read_metrics(folder / "metrics.jsonl"):
        report.plot_curves(told, where / "curves.png")

    rows = []
    for i in np.linspace(0, len(source) - 1, min(SHEET_ROWS, len(source))).astype(int).tolist():
        example = source[i]
        image, label = example["image"], inference.predict_label(predict, example["image"])
        rows.append((image, example["label"], label))
        _save(visualise.overlay(image, label, palette), where / f"overlays/{example['id']}.png")
    visualise.preview_sheet(rows, classes, palette).save(where / "preview.png")
    print(
        f"Checkpoint of step {step}, {len(source)} pictures. Look at {where / 'preview.png'}, "
        "and beside it curves.png, overlays/, scores.md and scores.json."
    )


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path)


class _CompilationCount:
    """Counts what is compiled from now on, and what the cache on disk held ready."""

    def __init__(self) -> None:
        self.misses = self.hits = 0
        jax.monitoring.register_event_listener(self._listen)

    def _listen(self, event: str, **_: Any) -> None:
        self.misses += event == "/jax/compilation_cache/cache_misses"
        self.hits += event == "/jax/compilation_cache/cache_hits"

    def __str__(self) -> str:
        return f"{self.misses} programs compiled, {self.hits} taken from the cache"


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM asks to stop after the step; a second one stops at once.

    Only for a lone process: those of a cluster would have to stop after the same step.
    """
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that they are compiled once only.

    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(Path(caches) / "segjax" / "xla"))
    # By default JAX keeps only what took it over a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def command(
    verbs: Mapping[str, Any],
    *,
    description: str,
    prog: str | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Run a verb as a command: a SegjaxError is told by its text alone, with exit status 2."""
    use_compilation_cache()
    try:
        tyro.extras.subcommand_cli_from_dict(
            dict(verbs), prog=prog, description=description, args=argv
        )
    except SegjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def main(recipe: type[Recipe], argv: Sequence[str] | None = None) -> None:
    """The commands of a recipe: train, evaluate, predict, cost, each with --help.

    Args:
        recipe: a concrete Recipe; its docstring is the help, its file's name the recipe's.
        argv: by default of the process.
    """
    name = Path(inspect.getfile(recipe)).stem
    home = Path("runs") / name
    given: Any = Annotated[
        recipe, tyro.conf.arg(name="")
    ]  # its fields as options, without a prefix

    def train_(recipe: given, *, run: Path = home, distributed: bool = False) -> None:
        """Train, or go on with the run in the folder; then evaluate.

        Args:
            run: The run folder.
            distributed: Join the other processes of a cluster; each runs this same command.
        """
        if distributed:
            sharding.join_cluster()
        train(recipe, run, name=name)

    def cost_(recipe: given, *, run: Path = home) -> None:
        """Compile the training step without data; print parameters, FLOPs, memory, compile time.

        Args:
            run: Not read: what counts are the fields given here.
        """
        jax.config.update("jax_enable_compilation_cache", False)  # it would hide the time
        cost(recipe)

    verbs = {
        "train": train_,
        "evaluate": partial(evaluate, run=home),
        "predict": partial(predict, run=home),
        "cost": cost_,
    }
    command(verbs, description=inspect.getdoc(recipe) or "", argv=argv)
