"""Recipes: where all shelves meet.

A script in `experiments/` defines a frozen `Recipe` and hands it to `main`, which makes the
commands audit, train, evaluate, predict, cost and show-augment of it.
"""

import abc
import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import jax
import numpy as np
import optax
import tyro
from flax import linen as nn

import segjax
from segjax.commands.audit import audit_sources
from segjax.commands.checks import check_fields
from segjax.commands.command import command
from segjax.commands.cost import cost
from segjax.commands.description import file_of
from segjax.commands.evaluate import evaluate
from segjax.commands.lock import locked
from segjax.commands.predict import predict
from segjax.commands.run import may_clear
from segjax.commands.show_augment import show_augment
from segjax.commands.train import train
from segjax.data import augment, pipeline
from segjax.data.augment import Example
from segjax.errors import SegjaxError
from segjax.evaluation.evaluator import Measure
from segjax.training import Observer, losses, optimizers, processes

Loss = Literal[
    "cross_entropy",
    "binary_cross_entropy",
    "focal",
    "binary_focal",
    "ohem_cross_entropy",
    "dice",
    "generalised_dice",
    "tversky",
    "lovasz",
    "bce_dice",
]
Split = Literal["train", "val", "test"]
Memory = Literal["plain", "remat", "fit"]
OfNotFinite = Literal["stop", "skip"]
_LENGTHS = {"steps": 0, "epochs": None}  # of a training, and what each is without the other
_COUNTS = ("batch_size", "accumulate", "model_axis", "workers", "evaluate_every", "log_every")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure that a paper gives for what a recipe trains; `segjax report` shows it beside ours.

    Args:
        value: a fraction in 0–1, as our scores are.
        metric: the score's name in report/scores.json: "mean_iou".
        split: of which pictures.
        source: where it stands: paper and table, or the authors' page.

    Raises:
        SegjaxError: the value is no fraction.
    """

    value: float
    metric: str
    split: str
    source: str

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise SegjaxError(
                f"The published {self.metric} is {self.value}; expected a fraction in 0–1."
            )


@dataclass(frozen=True, kw_only=True)
class Recipe(abc.ABC):
    """What a training needs. A script adds fields of its own and says how they come together."""

    splits: ClassVar[tuple[Split, ...]] = ("train", "val")
    """What `source` is asked for: train, val and, where the data has one, test. Val chooses the
    best checkpoint; that one's scores on test are the ones to report."""
    published: ClassVar[tuple[Published, ...]] = ()
    """Figures of the paper, no option: published = (Published(value=0.627, …),); or a property,
    where they depend on the fields."""

    steps: int = 0
    """Training steps; 0 where epochs say it."""
    batch_size: int
    """Pictures a step, of all devices together."""
    canvas: tuple[int, int]
    """Height and width to which pictures are padded; it must hold the largest."""
    crop: tuple[int, int]
    """Height and width of the network's input in training."""
    epochs: float | None = None
    """Passes over the training data, in place of steps."""
    learning_rate: float = 1e-3
    """At its highest, after the warm-up."""
    losses: tuple[Loss, ...] = ("cross_entropy",)
    """What is minimised, the sum of these; right for networks of one channel, too."""
    weight_decay: float = 1e-3
    """How fast kernels decay, as a factor of the learning rate."""
    clip: float | None = None
    """The longest gradient, as a norm over all parameters, to which longer ones are shortened."""
    ema: float | None = None
    """Decay of a moving average of the weights, which is what is scored and used then: 0.999."""
    accumulate: int = 1
    """Parts in which each device takes its pictures of a step, one after the other, to save
    memory: the same step, but for batch norm, whose statistics are of each part."""
    memory: Memory = "plain"
    """What is kept for the gradient: all; less, the rest being computed again; or all if it fits,
    else less. The values are the same."""
    not_finite: OfNotFinite = "stop"
    """What a loss or gradient does that is not finite: end the training, its batch kept for a look;
    or be left out, and counted."""
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
    data_axis: int | None = None
    """Parts of the batch, each on devices of its own; by default as many as there are."""
    model_axis: int = 1
    """Devices that compute each part of the batch together, for shard "model"."""
    shard: Literal["no", "data", "model"] = "no"
    """What is split of parameters, optimiser and average: nothing, each over the devices of `data`
    (FSDP) or over those of `model`. With "data", over those of `model` too, where there are any."""
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
    patience: int | None = None
    """Evaluations without a better mean IoU after which to stop."""
    log_to: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Services that are told of the training too, each an extra: pip install 'segjax[wandb]'."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._choose_length()
        for name, least in {"seed": 0}.items() | dict.fromkeys(_COUNTS, 1).items():
            if (value := getattr(self, name)) < least:
                raise SegjaxError(f"{name} is {value}; expected at least {least}.")
        if not self.losses or not set(self.losses) <= set(get_args(Loss)):
            raise SegjaxError(
                f"losses is {self.losses!r}; expected a tuple of at least one of "
                f"{', '.join(get_args(Loss))}."
            )
        for name, kind in {"memory": Memory, "not_finite": OfNotFinite}.items():
            among = get_args(kind)
            if (value := getattr(self, name)) not in among:
                raise SegjaxError(f"{name} is {value!r}; expected one of {', '.join(among)}.")
        for name, fits, expected in (
            ("epochs", lambda x: 0 < x < math.inf, "a number above 0"),
            ("weight_decay", lambda x: 0 <= x < math.inf, "a number of at least 0"),
            ("clip", lambda x: x > 0, "a length above 0"),
            ("ema", lambda x: 0 < x < 1, "a decay between 0 and 1, such as 0.999"),
            ("patience", lambda x: x >= 1, "at least 1 evaluation"),
            ("data_axis", lambda x: x >= 1, "at least 1 part of the batch"),
        ):
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise SegjaxError(f"{name} is {value}; expected {expected}.")
        if self.shard not in ("no", "data", "model"):
            raise SegjaxError(f"shard is {self.shard!r}; expected no, data or model.")
        if (self.model_axis == 1) and self.shard == "model":
            raise SegjaxError(
                "shard is model, but model_axis is 1, over which nothing is split: set model_axis "
                "to 2 or more, or shard to data or no."
            )
        if self.model_axis > 1 and self.shard == "no":
            raise SegjaxError(
                f"model_axis is {self.model_axis}, but shard is no, so its devices would all "
                "compute the same: set shard to model or data, or model_axis to 1."
            )

    def _choose_length(self) -> None:
        """Keep steps or epochs: what is given outright or, where neither is, the class's own."""
        said = [
            name
            for name, absent in _LENGTHS.items()
            if getattr(self, name) not in (absent, getattr(type(self), name))
        ]
        for cls in type(self).__mro__ if not said else ():
            if said := [n for n in _LENGTHS if vars(cls).get(n) and getattr(self, n)]:
                break
        if len(said) != 1:
            both = f"Both steps ({self.steps}) and epochs ({self.epochs}) are given"
            how = both if said else "Neither steps nor epochs are given"
            raise SegjaxError(f"{how}; expected one of them: --steps 1000, or --epochs 20.")
        for name, other in _LENGTHS.items():
            if name not in said:
                object.__setattr__(self, name, other)

    @abc.abstractmethod
    def model(self) -> nn.Module:
        """The network."""

    @abc.abstractmethod
    def source(self, split: Split) -> pipeline.Source:
        """The data of one of `splits`: to train on, or held out."""

    @abc.abstractmethod
    def augment(self, key: jax.Array, example: Example) -> Example:
        """One example of canvas size -> one of crop size, on the device."""

    def schedule(self) -> optimizers.Schedule:
        """The learning rate of a step; by default a cosine after a warm-up of a twentieth."""
        return optimizers.cosine(self.learning_rate, steps=self.steps, warmup=self.steps // 20)

    def optimizer(self) -> optax.GradientTransformation:
        """What turns gradients into updates, at a learning rate of 1; by default AdamW."""
        return optimizers.adamw(weight_decay=self.weight_decay)

    def initial(self, variables: Any) -> Any:
        """The network's variables to start with, given random ones: fill in pretrained ones."""
        return variables

    def observers(self) -> Sequence[Observer]:
        """Who is told of the training while it runs; by default nobody beside `log_to`."""
        return ()

    def baseline(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """A simpler method to show beside the network in its report, or by default none.

        A frozen dataclass, as of `segjax.evaluation.baselines`: picture (H, W, C) -> label (H, W).
        """
        return None

    def measure(self) -> Measure | None:
        """A challenge's own scores beside ours, or by default none: a frozen dataclass.

        Such as `segjax.evaluation.isbi.ISBI2012`; they come from the probabilities.
        """
        return None

    def loss(self, output: Any, example: Example) -> jax.Array:
        """The network's output and the batch (label (B, H, W)) -> scalar; by default of `losses`.

        Weighted where the source gives weights, in those that take any.
        """
        chosen = [getattr(losses, name) for name in self.losses]
        weights = [{"pixel_weights": example.weight} if _weighs(f) else {} for f in chosen]
        if example.weight is not None and not any(weights):
            able = ", ".join(name for name in get_args(Loss) if _weighs(getattr(losses, name)))
            raise SegjaxError(
                f"The data have weights of pixels, of which {', '.join(self.losses)} takes none: "
                f"add one of {able} to losses, or train without weights."
            )
        parts = [
            loss(output.logits, example.label, **weight)
            for loss, weight in zip(chosen, weights, strict=True)
        ]
        return sum(parts[1:], parts[0])


def _weighs(loss: Callable[..., jax.Array]) -> bool:
    """Whether a loss takes weights of pixels."""
    return "pixel_weights" in inspect.signature(loss).parameters


def _without_data(recipe: type[Recipe]) -> type[Recipe]:
    """The recipe, whose paths need not be given: for what reads no data."""
    paths = [
        (f.name, Path, field(default=Path()))
        for f in dataclasses.fields(recipe)
        if f.type is Path and f.default is f.default_factory is dataclasses.MISSING
    ]
    options: Any = {"frozen": True, "kw_only": True}
    return dataclasses.make_dataclass(recipe.__name__, paths, bases=(recipe,), **options)


def _check(recipe: type[Recipe]) -> None:
    """Raise SegjaxError where a class lacks methods, or has fields that are no options."""
    if missing := sorted(recipe.__abstractmethods__):
        lines = [f"{recipe.__name__} lacks what every recipe has to say. Define:"]
        for name in missing:
            method = getattr(Recipe, name)
            # Without the packages of the types, some of which are jaxlib's inner ones.
            signature = re.sub(r"(\w+\.)+", "", str(inspect.signature(method)))
            lines += [f"    def {name}{signature}:", f"        {inspect.getdoc(method)}"]
        raise SegjaxError("\n".join(lines))
    if not {"train", "val"} <= set(recipe.splits) <= set(get_args(Split)):
        raise SegjaxError(
            f"{recipe.__name__} has the splits {', '.join(recipe.splits)}; expected train and val, "
            'and test where its data has one: splits = ("train", "val", "test").'
        )
    fields = {f.name for f in dataclasses.fields(recipe)}
    for cls in recipe.__mro__[: recipe.__mro__.index(Recipe)]:
        typed = {n for n, of in inspect.get_annotations(cls).items() if "ClassVar" not in str(of)}
        if typed and issubclass(cls, Recipe) and "__dataclass_fields__" not in vars(cls):
            raise SegjaxError(
                f"{cls.__name__} is no dataclass, so what it sets ({', '.join(sorted(typed))}) is "
                "no option. Write above the class: @dataclass(frozen=True, kw_only=True)"
            )
        if untyped := sorted(vars(cls).keys() & fields - typed):
            raise SegjaxError(
                f"{cls.__name__} sets {', '.join(untyped)} without a type, which a dataclass does "
                "not see. Write the type too, as in steps: int = 700"
            )


def _check_length(argv: Sequence[str]) -> None:
    """Raise SegjaxError where steps and epochs are given, also as what the default is already."""
    if {"--steps", "--epochs"} <= {word.partition("=")[0] for word in argv}:
        raise SegjaxError("Both --steps and --epochs are given; give one of them.")


def main(recipe: type[Recipe], argv: Sequence[str] | None = None) -> None:
    """The commands of a recipe (audit, train, evaluate, predict, …), each with --help.

    Args:
        recipe: a concrete Recipe; its docstring is the help, its file's name the recipe's.
        argv: by default of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        _check(recipe)
        _check_length(argv)
    except SegjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    file = file_of(recipe)
    name = file.stem if file else recipe.__name__
    home = Path("runs") / name
    unprefixed = tyro.conf.arg(name="")  # a recipe's fields as options of that very name
    given: Any = Annotated[recipe, unprefixed]
    without_data: Any = Annotated[_without_data(recipe), unprefixed]

    def train_(
        recipe: given,
        *,
        run: Path = home,
        distributed: bool = False,
        fork: Path | None = None,
        wait: int = 120,
        restart: bool = False,
        yes: bool = False,
        profile: int = 0,
    ) -> None:
        """Train, or go on with the run in the folder; then evaluate.

        Args:
            run: The run folder.
            distributed: Join the other processes of a cluster; each runs this same command.
            fork: Another run, from whose whole state a new one begins: parameters, optimiser, step.
            wait: Seconds that --distributed waits for the other processes to start.
            restart: Remove the run in the folder, after a question, and start over.
            yes: Do not ask.
            profile: Trace so many steps, after the first few, into the folder profile of the run.
        """
        with processes.join_cluster(within=wait) if distributed else nullcontext(), locked(run):
            restart = restart and may_clear(run, yes=yes)
            train(recipe, run, name=name, restart=restart, origin=fork, profile=profile)

    def cost_(
        recipe: without_data,
        *,
        run: Path = home,
        topology: str | None = None,
        gpu: str | None = None,
        devices: int | None = None,
        reckon: bool = False,
    ) -> None:
        """Tell what a training step takes, without data: memory, FLOPs, traffic, time at least.

        Args:
            run: Not read: what counts are the fields given here.
            topology: Compile for a TPU slice that is not here: v5e:4x4, v4:2x2x4, v5p:…, v6e:….
            gpu: Reckon for a GPU that is not here, by its data sheet: h100, a100, l4, rtx4090, ….
            devices: How many such GPUs; without --gpu, CPU devices to make and compile for.
            reckon: Compile nothing: an answer in seconds.
        """
        jax.config.update("jax_enable_compilation_cache", False)  # it would hide the time
        cost(recipe, topology=topology, gpu=gpu, count=devices, reckoned=reckon)

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
        sources = {split: recipe.source(split) for split in recipe.splits}
        where = Path(getattr(recipe, "data", name))
        audit_sources(sources, out, where=where)

    commands = {
        "audit": audit_,
        "train": train_,
        "evaluate": partial(evaluate, run=home),
        "predict": partial(predict, run=home),
        "cost": cost_,
        "show-augment": show_augment_,
    }
    segjax.use_compilation_cache()
    command(commands, description=inspect.getdoc(recipe) or "", argv=argv)
