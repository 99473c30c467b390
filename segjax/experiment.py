"""Recipes and their training: where all shelves meet.

A script in `experiments/` defines a frozen `Recipe` and hands it to `main`, which makes the
commands audit, train, evaluate, predict, cost and show-augment of it.
"""

import abc
import dataclasses
import inspect
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
import tyro
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from rich.progress import track
from rich.table import Table

import segjax
from segjax import inference, losses, metrics, optimizers, sharding, verbs, visualise
from segjax.checkpoint import Checkpoints
from segjax.command import CompilationCount, command, interruption
from segjax.data import audit, augment, cache, pipeline
from segjax.data.augment import Example
from segjax.data.wrapper import bare, without
from segjax.errors import SegjaxError
from segjax.models.layers import crop
from segjax.progress import RunLog
from segjax.run import Run, read_json, start_run, write_whole
from segjax.train import (
    Batch,
    Every,
    State,
    fit,
    make_state,
    make_train_step,
    step_cost,
    step_flops,
)

Split = Literal["train", "val"]
_SHEET = (4, 4)  # training pictures and augmentations of each on a sheet
_COUNTS = ("steps", "batch_size", "workers", "evaluate_every", "log_every")


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
    learning_rate: float = 1e-3
    """At its highest, after the warm-up."""
    channels: int = 3
    """Channels of a picture: 1 grey, 3 RGB, 4 RGBA."""
    normalise: augment.Normalise = field(default_factory=augment.Normalise)
    """Scaling of pixel values before the network."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Number type of the computation; parameters, losses and statistics are always float32."""
    start_from: Path | None = None
    """A run whose weights to start from, where names and shapes agree: FCN-16s from a 32s run."""
    seed: int = 0
    """Of parameters, order, augmentation and dropout."""
    buckets: tuple[tuple[int, int], ...] = ()
    """Heights and widths to which held-out pictures are padded, each to the smallest that holds
    it, so that sizes may differ with few compilations; by default the canvas."""
    workers: int = 2
    """Threads that read and decode ahead; what is trained does not depend on it."""
    cache: Literal["no", "memory", "disk"] = "no"
    """Where decoded pictures are kept, so that they are decoded once."""
    skip_broken: bool = False
    """Leave out examples that cannot be read; they are counted, and listed in skipped.json."""
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
    def augment(self, key: jax.Array, example: Example) -> Example:
        """One example of canvas size -> one of crop size, on the device."""

    def schedule(self) -> optimizers.Schedule:
        """The learning rate of a step; by default a cosine after a warm-up of a twentieth."""
        return optimizers.cosine(self.learning_rate, steps=self.steps, warmup=self.steps // 20)

    def optimizer(self) -> optax.GradientTransformation:
        """What turns gradients into updates, at a learning rate of 1; by default AdamW."""
        return optimizers.adamw(weight_decay=1e-3)

    def initial(self, variables: Any) -> Any:
        """The network's variables to start with, given random ones: fill in pretrained ones."""
        return variables

    def loss(self, output: Any, example: Example) -> jax.Array:
        """The network's output and the batch (label (B, H, W)) -> scalar; by default cross-entropy.

        Weighted where the source gives weights, divided by the valid pixels in any case.
        """
        return losses.cross_entropy(output.logits, example.label, pixel_weights=example.weight)


def make_prepare(
    recipe: Recipe, *, margin: int = 0
) -> Callable[[jax.Array, Batch], tuple[jax.Array, Example]]:
    """(key, batch) -> network input (B, H, W, C) and its truth, on the device: augmented, scaled.

    The truth is the augmented batch, whose pictures are not scaled. A network that loses a margin
    sees pictures mirrored by it beyond their edges, and a truth without it.
    """

    def augmented(key: jax.Array, example: Example) -> Example:
        return recipe.augment(key, augment.mirror_pad(example, margin))

    def prepare(key: jax.Array, batch: Batch) -> tuple[jax.Array, Example]:
        keys = jax.vmap(partial(augment.record_key, key))(batch["epoch"], batch["record"])
        example = Example(batch["image"], batch["label"], batch.get("weight"))
        example = jax.vmap(augmented)(keys, example)
        _, height, width = example.label.shape
        inner = partial(crop, height=height - 2 * margin, width=width - 2 * margin)
        return recipe.normalise(example.image), jax.tree.map(inner, example)

    return prepare


class _Parts:
    """What a recipe's training consists of on a mesh, for `train` and for `cost`."""

    def __init__(self, recipe: Recipe, mesh: Mesh, *, unrolled: bool = False) -> None:
        sharding.check_batch_size(mesh, recipe.batch_size)
        self.model: Any = recipe.model()
        if unrolled and hasattr(self.model, "scan"):
            self.model = self.model.clone(scan=False)
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


def _begin(recipe: Recipe, state: State) -> State:
    """The first state, with the weights that the recipe starts from."""
    variables = recipe.initial(state.variables)
    if recipe.start_from is not None:
        step, _, theirs = verbs.load(Run(recipe.start_from), "best")
        variables, told = _take_over(variables, theirs)
        if jax.process_index() == 0:
            print(f"Starting from {recipe.start_from}, step {step}: {told}.")
    placed = jax.tree.map(
        lambda old, new: jax.device_put(np.asarray(new, old.dtype), old.sharding),
        state.variables,
        state.variables | dict(variables),  # a network without statistics has no part for them
    )
    return state.replace(**placed)


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


def train(recipe: Recipe, folder: Path, *, name: str) -> None:
    """Train a recipe in a run folder, or go on where the run in it has stopped; then evaluate.

    Args:
        recipe: what to train.
        folder: the run folder.
        name: of the recipe, written down there.

    Raises:
        SegjaxError: what is wrong with the data, the folder or the numbers.
    """
    compiled = CompilationCount()
    mesh = sharding.make_mesh()
    parts = _Parts(recipe, mesh)
    sources = {"train": recipe.source("train"), "val": recipe.source("val")}
    for source in sources.values():
        _check_classes(source, num_classes=parts.model.num_classes)
    if recipe.skip_broken:
        skipped = _broken(sources, folder / "skipped.json")
        for split, broken in skipped.items():
            sources[split] = without(sources[split], tuple(map(int, broken)))
    canvases = {"train": [recipe.canvas], "val": recipe.buckets or [recipe.canvas]}
    audit.check(sources, canvases=canvases)
    data, held_out = (_kept(source, recipe.cache) for source in sources.values())
    start_run(
        folder,
        name=name,
        fields=_fields(recipe),
        parts={
            "model": parts.model,
            "normalise": recipe.normalise,
            "source": sources["val"],
            "classes": held_out.classes,
            "palette": held_out.palette,
        },
    )
    if recipe.skip_broken and jax.process_index() == 0:
        write_whole(folder / "skipped.json", json.dumps(skipped, indent=1))
        for split, broken in skipped.items():
            print(*broken.values(), f"{split}: {len(broken)} examples are skipped.", sep="\n")
    predict = inference.make_predict(parts.model, normalise=recipe.normalise)

    with Checkpoints(folder / "checkpoints") as checkpoints, interruption() as interrupted:
        state, start = parts.make_state(), checkpoints.newest or 0
        state = checkpoints.restore(state, step=start) if start else _begin(recipe, state)
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
                    verbs.confusion_of(
                        partial(predict, state.variables),
                        held_out,
                        mesh,
                        batch_size=recipe.batch_size,
                        canvases=canvases["val"],
                        workers=recipe.workers,
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
                threads=recipe.workers,
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
    verbs.evaluate(folder)


def cost(recipe: Recipe) -> None:
    """Compile the training step for the recipe's shapes, without data, and print what it takes."""
    mesh = sharding.make_mesh()
    found = step_cost(*_step_in_shapes(recipe, mesh))
    # Of a network without loops, for a loop's body is counted once.
    flops = step_flops(*_step_in_shapes(recipe, mesh, unrolled=True)) / mesh.size
    table = Table(
        title=f"one training step of {recipe.batch_size} × {recipe.crop[0]}×{recipe.crop[1]} "
        f"on {mesh.size} × {jax.devices()[0].device_kind}"
    )
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("FLOPs per device", f"{flops / 1e9:,.3f} G")
    for what in ("arguments", "temporaries", "outputs"):
        table.add_row(f"memory per device: {what}", f"{getattr(found, what) / 2**20:,.1f} MiB")
    table.add_row("compile time", f"{found.compile_seconds:.1f} s")
    rich.print(table)


def _step_in_shapes(
    recipe: Recipe, mesh: Mesh, *, unrolled: bool = False
) -> tuple[Callable[..., Any], State, dict[str, jax.ShapeDtypeStruct]]:
    """A recipe's training step, and the shapes of the state and of the batch that it takes."""
    parts = _Parts(recipe, mesh, unrolled=unrolled)
    whole, split = sharding.replicated(mesh), sharding.split(mesh)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        jax.eval_shape(parts.make_state),
    )

    def rows(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((recipe.batch_size, *shape), dtype, sharding=split)

    batch = {
        "image": rows(*recipe.canvas, recipe.channels, dtype=jnp.uint8),
        "label": rows(*recipe.canvas, dtype=jnp.uint8),
        "epoch": rows(dtype=jnp.int32),
        "record": rows(dtype=jnp.int32),
    }
    return parts.step, state, batch


def show_augment(recipe: Recipe, out: Path) -> None:
    """Draw a few training pictures with their labels, each beside what augmentation makes of it.

    Args:
        recipe: whose training data and `augment` are shown, as its network is given them.
        out: the PNG to write.

    Raises:
        SegjaxError: what is wrong with the data.
    """
    source = recipe.source("train")
    prepare = make_prepare(recipe, margin=cast(Any, recipe.model()).geometry.margin)
    draw, key = jax.jit(lambda key, batch: prepare(key, batch)[1]), jax.random.key(recipe.seed)
    rows = []
    for record in audit.evenly(len(source), _SHEET[0]):
        example = source[record]
        epochs = np.arange(_SHEET[1])
        batch = pipeline.pad_to_canvas([example] * len(epochs), recipe.canvas)
        drawn = draw(key, batch | {"epoch": epochs, "record": np.full(len(epochs), record)})
        pairs = [(example["image"], example["label"]), *zip(drawn.image, drawn.label, strict=True)]
        rows.append(
            [
                visualise.overlay(np.clip(image, 0, 255), label, source.palette)
                for image, label in pairs
            ]
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    visualise.mosaic(rows).save(out, "PNG")
    print(f"{out}: pictures on the left, beside each {_SHEET[1]} augmentations of it.")


def _fields(recipe: Recipe) -> dict[str, Any]:
    return {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}


def _kept(source: pipeline.Source, where: Literal["no", "memory", "disk"]) -> pipeline.Source:
    """The source, whose examples are decoded once."""
    if where == "memory":
        return cache.in_memory(source)
    return cache.on_disk(source, track) if where == "disk" else source


def _check_classes(source: pipeline.Source, *, num_classes: int) -> None:
    if len(source.classes) != num_classes:
        raise SegjaxError(
            f"The data has {len(source.classes)} classes ({', '.join(source.classes)}), the "
            f"network {num_classes}: set its num_classes to {len(source.classes)}."
        )


def _broken(sources: Mapping[str, pipeline.Source], path: Path) -> dict[str, dict[str, str]]:
    """The examples of each split that cannot be read: index -> what is wrong with it.

    As listed at the run's first start, so that a batch stays a function of (seed, step).
    """
    if path.exists():
        return read_json(path)
    return {
        split: {
            str(i): str(read)
            for i, read in enumerate(audit.read_all(bare(source)))
            if isinstance(read, SegjaxError)
        }
        for split, source in sources.items()
    }


def main(recipe: type[Recipe], argv: Sequence[str] | None = None) -> None:
    """The commands of a recipe (audit, train, evaluate, predict, …), each with --help.

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

    def show_augment_(recipe: given, *, out: Path = Path(f"{name}_augment.png")) -> None:
        """Draw a few training pictures, each beside some augmentations of it, labels laid over.

        Args:
            out: The PNG to write.
        """
        show_augment(recipe, out)

    def audit_(recipe: given, *, out: Path = Path("audit")) -> None:
        """Read all data once and tell what is wrong with it; the exit status is 1 for errors.

        Args:
            out: Where to write audit.html and audit.json.
        """
        verbs.audit_sources({split: recipe.source(split) for split in ("train", "val")}, out)

    commands = {
        "audit": audit_,
        "train": train_,
        "evaluate": partial(verbs.evaluate, run=home),
        "predict": partial(verbs.predict, run=home),
        "cost": cost_,
        "show-augment": show_augment_,
    }
    command(commands, description=inspect.getdoc(recipe) or "", argv=argv)
