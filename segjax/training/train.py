"""The training step and the loop around it. Neither knows a model, a data set or a loss."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from segjax.errors import SegjaxError, SegjaxWarning, held
from segjax.training.accumulation import in_parts

_SMALL_RATE = 0.05  # of a learning rate, where 1 is expected
_MOST_SKIPPED = 20  # steps in a row: a state that is bad itself is not mended by skipping
Batch = Mapping[str, jax.Array]
Scalars = Mapping[str, jax.Array]


class State(flax.struct.PyTreeNode):
    """All that training changes, and data only.

    step: () int32, steps done.  params, batch_stats: as of `model.init`.  opt_state: optax's.
    ema: a moving average of `variables` in float32, or None where none is kept.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def averaged(self) -> dict[str, Any]:
        """What to evaluate: the moving average of the variables or, without one, themselves."""
        return self.variables if self.ema is None else self.ema

    def with_ema(self) -> "State":
        """The state whose moving average starts at its variables."""
        # A copy: the step is given both, and an array can be donated once.
        return self.replace(ema=jax.tree.map(lambda x: jnp.array(x, jnp.float32), self.variables))


def make_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    image_shape: Sequence[int],
    ema: bool = False,
    sharding: Any = None,
) -> State:
    """The state before the first step, made by `initial_state`, compiled.

    Args:
        model, optimizer, image_shape, ema: as of `initial_state`.
        key: for the parameters.
        sharding: where it lies: `sharding.replicated(mesh)`, or a tree of shardings as of
            `sharding.state_shardings`, which it is created with; by default on one device.
    """
    init = initial_state(model, optimizer, image_shape=image_shape, ema=ema)
    return jax.jit(init, out_shardings=sharding)(key)


def initial_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: Sequence[int],
    ema: bool = False,
) -> Callable[[jax.Array], State]:
    """Key -> the state before the first step: one function, for `jax.eval_shape` and `jax.jit`.

    Args:
        model: a network of `segjax.models`, or any that keeps to their contract.
        optimizer: of optax.
        image_shape: (B, H, W, C) of a training input.
        ema: whether it holds a moving average of the variables.

    Raises:
        SegjaxError: the shape has other axes.
    """
    if len(image_shape) != 4:
        raise SegjaxError(
            f"image_shape is {tuple(image_shape)}; expected (B, H, W, C), as (1, 96, 96, 3)."
        )

    def init(key: jax.Array) -> State:
        variables = model.init(key, jnp.zeros(image_shape))
        params = variables["params"]
        stats = variables.get("batch_stats", {})
        state = State(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))
        return state.with_ema() if ema else state

    return init


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Callable[[Any, Any], jax.Array],
    *,
    schedule: Callable[[jax.Array], jax.Array],
    prepare: Callable[[jax.Array, Batch], tuple[jax.Array, Any]],
    key: jax.Array,
    ema: float | None = None,
    accumulate: int = 1,
    skip: bool = False,
    state_sharding: Any = None,
    at_use: Callable[[Any], Any] = lambda params: params,
) -> Callable[[State, Batch], tuple[State, Scalars]]:
    """The jitted training step; its first argument is donated.

    Key, schedule and the average's decay are arguments of the compiled program, not constants in
    it, so that other seeds, rates and numbers of steps find it in the compilation cache.

    Args:
        model: whose `apply` returns an `Output`.
        optimizer: of optax, at a learning rate of 1.
        loss: (output, truth) -> scalar over the global batch.
        schedule: steps done -> learning rate. The numbers of those of `optimizers`, which are
            pytrees, are such arguments; those of a plain function are constants.
        prepare: (key, batch) -> (network input (B, H, W, C), truth): augmentation, scaling. The
            truth is any tree, such as labels (B, H, W). The key is the same at every step.
        key: of augmentation and dropout; for dropout it is folded with the step, so that a resumed
            run draws the same.
        ema: decay d of the moving average, where the state has one: a ← d_t · a + (1 - d_t) · v
            after step t = 0, 1, …, for all variables v. d_t = min(d, (1 + t) / (10 + t)), as
            TensorFlow's ExponentialMovingAverage has it, so that the first weights, which mean
            nothing, are soon forgotten. Batch statistics are averaged with the parameters, as in
            EfficientNet's code and timm's: those at hand belong to other weights than the average.
        accumulate: parts in which a batch is taken, one after the other, for want of memory. The
            step is that of the batch at once, but for batch norm, whose statistics are of each
            part; see `accumulation.in_parts`.
        skip: leave the state as it was, but for the number of the step, where one of the scalars
            is not finite.
        state_sharding: of the state that is returned, a tree of shardings; by default as the
            compiler leaves it.
        at_use: of the parameters, as of `sharding.at_use`: what `apply` is given.

    Returns:
        (state, batch) -> (state, {"loss", "gradient_norm", "parameter_norm", "learning_rate"}), the
        last norm that of the new parameters; and "skipped", 1 or 0, where such steps are. The step
        is a pure function: on n devices it computes what it computes on one, up to rounding.

    Raises:
        SegjaxError: the schedule is no function; at the first step, the state has no moving average
            though there is a decay, or has one without; the batch does not divide into the parts.

    Warns:
        SegjaxWarning: the optimizer has a small learning rate of its own beside the schedule's.
    """
    if not callable(schedule):
        raise SegjaxError(
            f"schedule is {schedule!r}; expected a function, steps done -> learning rate: pass "
            f"optimizers.constant({schedule!r})."
        )
    _warn_of_two_rates(optimizer, schedule)

    def step(
        state: State,
        batch: Batch,
        key: jax.Array,
        schedule: Callable[[jax.Array], jax.Array],
        ema: jax.Array | None,
    ) -> tuple[State, Scalars]:
        _check_ema(state, ema)
        augmentation, dropout = jax.random.split(key)
        dropout = jax.random.fold_in(dropout, state.step)

        def forward(params: Any, stats: Any, batch: Batch) -> tuple[tuple[Any, Any], Any]:
            images, truth = prepare(augmentation, batch)
            output, changed = model.apply(
                {"params": at_use(params), "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
            return (output, truth), changed.get("batch_stats", {})

        def objective(params: Any) -> tuple[jax.Array, Any]:
            pair, stats = in_parts(forward, accumulate)(params, state.batch_stats, batch)
            return loss(*pair), stats

        (value, stats), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        rate = schedule(state.step)
        params = optax.apply_updates(state.params, optax.tree.scale(rate, updates))
        scalars = {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            "learning_rate": rate,
        }
        new = State(state.step + 1, params, stats, opt_state)
        new = new if ema is None else new.replace(ema=_averaged(state, new, ema))
        return _skipping(state, new, scalars) if skip else (new, scalars)

    if jax.tree_util.all_leaves([schedule]):  # a plain function, such as optax's schedules
        schedule = jax.tree_util.Partial(schedule)
    out = None if state_sharding is None else (state_sharding, None)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=out)
    return partial(jitted, key=key, schedule=schedule, ema=ema)


def _check_ema(state: State, decay: jax.Array | None) -> None:
    if (state.ema is None) != (decay is None):
        has, given = ("no", "one") if state.ema is None else ("a", "none")
        raise SegjaxError(
            f"The state has {has} moving average, but the step was given {given} of its decays: "
            "pass `ema` both to make_state, as True, and to make_train_step, as 0.999; or to none."
        )


def _skipping(before: State, after: State, scalars: Scalars) -> tuple[State, Scalars]:
    """The state after a step or, where a scalar is not finite, that before; and if that is so."""
    good = jnp.isfinite(jnp.stack([*scalars.values()])).all()
    kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
    return kept.replace(step=after.step), {**scalars, "skipped": jnp.float32(~good)}


def _averaged(before: State, after: State, decay: jax.Array) -> Any:
    """The moving average after a step."""
    share = 1 - jnp.minimum(decay, (1 + before.step) / (10 + before.step))
    return jax.tree.map(lambda a, v: a + share * (v - a), before.ema, after.variables)


def _warn_of_two_rates(
    optimizer: optax.GradientTransformation, schedule: Callable[[Any], Any]
) -> None:
    """Warn where both the optimizer and the schedule have a small rate: they are multiplied."""
    rate = _own_rate(optimizer)
    # A schedule around 1 is there to scale the optimizer's own rate.
    if 0 < rate < _SMALL_RATE and max(float(schedule(10**n)) for n in range(6)) < _SMALL_RATE:
        warnings.warn(
            f"The optimizer has a learning rate of its own, about {rate:.1g}, which multiplies "
            "that of the schedule. Give it a rate of 1, as optax.adam(1.0); or schedule "
            "optimizers.constant(1.0), to keep its own.",
            SegjaxWarning,
            stacklevel=3,
        )


def _own_rate(optimizer: optax.GradientTransformation) -> float:
    """About the learning rate within an optimizer, told by its first update of one parameter.

    Adam's update is the rate, whatever the gradient. SGD's is the rate times the gradient, clipped
    perhaps where that is large, and Adadelta's only where it is small. So the larger one counts of
    the update by a gradient of 1, and of its growth with a small one. LARS scales by the size of a
    parameter that is not 0, Adafactor down by that of one that is: both 0 and 1 are tried.

    0 where nothing can be told: the first update is 0, as where gradients are accumulated or a rate
    warms up; or the optimizer wants the network's own parameters.
    """

    def first_update(parameter: jax.Array, gradient: jax.Array) -> jax.Array:
        params = {"kernel": parameter[None]}
        updates, _ = optimizer.update({"kernel": gradient[None]}, optimizer.init(params), params)
        return jnp.abs(updates["kernel"][0])

    @jax.jit
    def rate(parameter: jax.Array, gradients: jax.Array) -> jax.Array:
        one, small, smaller = jax.vmap(partial(first_update, parameter))(gradients)
        growth = (small - smaller) / (gradients[1] - gradients[2])
        return jnp.maximum(one, growth)

    gradients = np.array([1, 1e-2, 1e-3], np.float32)
    try:
        return max(float(rate(np.float32(parameter), gradients)) for parameter in (0, 1))
    except Exception:  # anyone's optimizer, which may raise anything
        return 0.0


class NotFinite(SegjaxError):
    """A number is not finite, so the state is spoilt; `step` and `batch`, if it was a step's."""

    def __init__(self, told: str, *, step: int | None = None, batch: Any = None) -> None:
        super().__init__(told)
        self.step, self.batch = step, batch


def _check_finite(number: int, scalars: Mapping[str, float], batch: Batch) -> None:
    """Raise NotFinite where a step's scalars are not."""
    bad = [f"{name} is {x}" for name, x in scalars.items() if not math.isfinite(x)]
    if not bad:
        return
    told = f"Training stopped at step {number}: {' and '.join(bad)}. "
    if scalars.get("skipped"):
        told += f"So it was in the {_MOST_SKIPPED} steps before, which were skipped. "
    if isinstance(batch, Mapping) and "label" in batch:
        told += (
            f"The labels of its batch held {held(batch['label'])}; with one that is neither a "
            "class nor ignored, a loss is NaN. If all are right: "
        )
    told += "Try a lower learning rate, a longer warm-up or float32."
    raise NotFinite(told, step=number, batch=batch)


class Every(NamedTuple):
    """Something to do after every `steps` steps and after the last one."""

    steps: int
    action: Callable[[int, State], None]


def fit(
    state: State,
    train_step: Callable[[State, Batch], tuple[State, Scalars]],
    batches: Iterator[Batch],
    *,
    until: int,
    observe: Callable[[int, Mapping[str, float], float], None] = lambda number, scalars, wait: None,
    every: Sequence[Every] = (),
    rescue: Callable[[int, State], None] = lambda number, state: None,
    stop: Callable[[int], bool] = lambda number: False,
) -> State:
    """Take training steps from `state.step` until `until`.

    The scalars of a step are fetched after the next one has been sent off, so that the device
    never waits for the host.

    Args:
        state: to go on from; it is donated, use the one returned.
        train_step: of `make_train_step`.
        batches: whose next one belongs to the next step.
        until: the number of the last step.
        observe: called with (step, scalars, seconds waited for its batch) once for every step.
        every: what to do now and then; the step's scalars are known to be finite by then.
        rescue: called with the last good (step, state) where the loop ends early: `stop` said so,
            or the data or an action raised. Not after NotFinite, for the state is spoilt.
        stop: asked with the number of every step, after it and what was to do then. Processes that
            train as one must all be given the same answer.

    Returns:
        The state after the last step taken.

    Raises:
        NotFinite: loss, gradient or the new parameters, naming the step and what the labels of its
            batch held; of steps that are skipped, many in a row.
        SegjaxError: the batches ended, naming the step.
        Exception: what `batches` and actions raise, after the rescue.
    """
    start = int(state.step)
    pending: tuple[int, Scalars, float, Batch] | None = None
    skipped = 0  # in a row

    def settle() -> None:
        nonlocal pending, skipped
        if pending is None:
            return
        number, scalars, wait, batch = pending
        pending = None
        values = {name: float(x) for name, x in scalars.items()}
        skipped = skipped + 1 if values.get("skipped") else 0
        if skipped > _MOST_SKIPPED or not skipped:
            _check_finite(number, values, batch)
        observe(number, values, wait)

    @contextmanager
    def rescued(number: int) -> Iterator[None]:
        try:
            yield
        except NotFinite:  # of an action, such as an evaluation
            raise
        except Exception:
            settle()
            rescue(number, state)
            raise

    for number in range(start + 1, until + 1):
        asked = time.perf_counter()
        with rescued(number - 1):
            batch = next(batches, None)
            if batch is None:
                raise SegjaxError(
                    f"The batches ended after step {number - 1} of {until}. Give more, or batches "
                    "without end, as of `pipeline.train_batches`."
                )
        wait = time.perf_counter() - asked
        state, scalars = train_step(state, batch)
        settle()
        pending = number, scalars, wait, batch
        due = [e.action for e in every if number % e.steps == 0 or number == until]
        if due:
            settle()
        with rescued(number):
            for action in due:
                action(number, state)
        if number < until and stop(number):
            settle()
            rescue(number, state)
            break
    settle()
    return state
