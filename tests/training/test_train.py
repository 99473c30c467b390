"""The training step: the same on any number of devices and after a restart. The loop: what is
called when, and with what.
"""

import functools
import inspect
import itertools
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from segjax.commands.step import make_prepare
from segjax.data.augment import Normalise, compose, random_flip, random_scale_crop
from segjax.errors import SegjaxError, SegjaxWarning
from segjax.models import Output, UNet
from segjax.training import losses, optimizers, sharding
from segjax.training.cost import step_cost
from segjax.training.train import Every, NotFinite, State, fit, make_state, make_train_step

BATCH, SIDE, CROP, CLASSES = 8, 20, 16, 3
MODEL = UNet(CLASSES, widths=(3, 4), dropout=0.3)
OPTIMIZER = optimizers.sgd()
# Under one key in a dozen (5 is one) an activation lies within rounding of ReLU's kink in these ten
# steps: then n devices and one take different sides of it and part by 1e-3, not by 1e-6.
make_step = functools.partial(
    make_train_step,
    optimizer=OPTIMIZER,
    schedule=optimizers.constant(0.05),
    key=jax.random.key(6),
)


class Linear(nn.Module):
    """The least that keeps to the networks' contract: no dropout, no batch statistics."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return Output(nn.Dense(CLASSES)(images))


AUGMENT = compose(random_flip, functools.partial(random_scale_crop, size=(CROP, CROP)))
PREPARE = make_prepare(SimpleNamespace(augment=AUGMENT, normalise=Normalise()))


def batch_of(number: int) -> dict[str, np.ndarray]:
    """Of the first pictures much is ignored, of the very first one all."""
    rng = np.random.default_rng(number)
    label = rng.integers(0, CLASSES, (BATCH, SIDE, SIDE), np.uint8)
    label[rng.random(label.shape) > np.linspace(0, 1, BATCH).reshape(-1, 1, 1)] = 255
    assert (label[0] == 255).all()
    image = rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)
    image[..., 0] = 80 * label  # something to learn
    return {
        "image": image,
        "label": label,
        "epoch": np.full(BATCH, number // 2, np.int32),
        "record": rng.permutation(BATCH).astype(np.int32),
    }


def mean_of_means(output, example):
    """What each of eight devices would find for itself, averaged: not the loss."""
    shares = (x.reshape(8, 1, *x.shape[1:]) for x in (output.logits, example.label))
    return jax.vmap(losses.cross_entropy)(*shares).mean()


def cross_entropy(output, example):
    return losses.cross_entropy(output.logits, example.label)


@functools.cache
def training(model=MODEL, loss=cross_entropy):
    """One step function for all tests of a network, so that it compiles once for a mesh."""
    return make_step(model, loss=loss, prepare=PREPARE)


@functools.cache
def initial(model=MODEL) -> State:
    mesh = sharding.replicated(sharding.make_mesh())
    shape = (1, CROP, CROP, 3)
    return make_state(model, OPTIMIZER, key=jax.random.key(1), image_shape=shape, sharding=mesh)


def first_state(mesh, model=MODEL) -> State:
    """A copy, which may be donated."""
    return jax.device_put(jax.device_get(initial(model)), sharding.replicated(mesh))


def run(n: int, steps: int, *, state: State | None = None, model=MODEL, loss=cross_entropy):
    """The state after `steps`, from the first one or from `state`, on n devices."""
    mesh = sharding.make_mesh(jax.devices()[:n])
    state = first_state(mesh, model) if state is None else state
    batches = sharding.prefetch(map(batch_of, itertools.count(int(state.step))), mesh)
    return fit(state, training(model, loss), batches, until=steps)


def distance(a, b) -> float:
    """The largest difference in two states' variables, relative to the array it is in."""

    def one(a, b):
        return np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(a).max(), 0.1)

    return max(jax.tree.leaves(jax.tree.map(one, a.variables, b.variables)))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def on_one():
    return jax.device_get(run(1, 10))


@pytest.fixture
def mesh():
    return sharding.make_mesh()


@pytest.mark.parametrize("n", [2, 4, 8])
def test_ten_steps_on_n_devices_are_those_on_one(n, on_one):
    compiled = training().func._cache_size()
    state = run(n, 10)
    assert int(state.step) == 10
    assert training().func._cache_size() <= compiled + 1
    assert len(state.params["logits"]["kernel"].sharding.device_set) == n
    assert distance(state, on_one) < 1e-5


def test_a_mean_of_device_means_would_be_noticed(on_one):
    assert distance(run(1, 10, loss=mean_of_means), on_one) > 1e-2


@pytest.mark.parametrize("n", [1, 8])
def test_a_second_run_is_bit_identical(n):
    assert_equal(jax.device_get(run(n, 10)), jax.device_get(run(n, 10)))


def test_a_resumed_run_is_bit_identical():
    half = jax.device_get(run(8, 3))
    half = jax.device_put(half, sharding.replicated(sharding.make_mesh()))
    assert_equal(run(8, 6, state=half), run(8, 6))


def test_the_step_compiles_once(mesh):
    step = make_step(Linear(), loss=cross_entropy, prepare=PREPARE)
    batches = sharding.prefetch(map(batch_of, range(4)), mesh)
    fit(first_state(mesh, Linear()), step, batches, until=4)
    assert step.func._cache_size() == 1


def test_one_golden_step(mesh):
    _, scalars = training()(first_state(mesh), sharding.put(batch_of(0), mesh))
    got = {name: float(x) for name, x in scalars.items()}
    golden = {"loss": 2.0959330, "gradient_norm": 2.1116264, "learning_rate": 0.05}
    assert got.pop("parameter_norm") == pytest.approx(10.3546982, rel=1e-5)
    assert got == pytest.approx(golden, rel=1e-5), (
        "A training step no longer computes what it did. If that is meant (another initialisation, "
        "augmentation, loss or order of random keys), runs made before cannot be taken up or "
        "repeated: say so in the commit and store the new numbers here. If nothing of the kind was "
        "meant, this change has a side effect."
    )


def test_dropout_changes_with_the_step_alone(mesh):
    batch = sharding.put(batch_of(0), mesh)

    def loss_at(step):
        state = first_state(mesh)
        state = state.replace(step=jax.device_put(jnp.int32(step), sharding.replicated(mesh)))
        return float(training()(state, batch)[1]["loss"])

    assert loss_at(0) == loss_at(0) != loss_at(1)


def test_a_network_without_batch_statistics(mesh):
    before = first_state(mesh, Linear())
    assert before.batch_stats == {}
    after = run(8, 2, model=Linear())
    assert after.batch_stats == {} and int(after.step) == 2
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert distance(before, after) > 1e-3


def test_variables_are_what_apply_takes(mesh):
    state = first_state(mesh)
    expected = jax.eval_shape(MODEL.init, jax.random.key(1), jnp.zeros((1, CROP, CROP, 3)))
    assert jax.eval_shape(lambda: state.variables) == expected
    kernel = initial().params["logits"]["kernel"]
    assert kernel.sharding == sharding.replicated(mesh)


# The moving average

DECAY = 0.5  # met by the warm-up, (1 + t) / (10 + t), at the eighth step


@functools.cache
def averaging():
    return make_step(MODEL, loss=cross_entropy, prepare=PREPARE, ema=DECAY)


def run_averaged(n: int, steps: int, state=None):
    mesh = sharding.make_mesh(jax.devices()[:n])
    state = first_state(mesh).with_ema() if state is None else state
    batches = sharding.prefetch(map(batch_of, itertools.count(int(state.step))), mesh)
    return fit(state, averaging(), batches, until=steps)


def test_the_average_is_the_formula_and_changes_nothing_else():
    """Both branches of the decay, of parameters and of batch statistics."""
    mesh = sharding.make_mesh()
    state = first_state(mesh)
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), state.variables)
    for t in range(10):
        state, _ = training()(state, sharding.put(batch_of(t), mesh))
        d = min(DECAY, (1 + t) / (10 + t))
        expected = jax.tree.map(lambda a, v, d=d: d * a + (1 - d) * v, expected, state.variables)
    averaged = run_averaged(8, 10)
    assert_equal(averaged.replace(ema=None), state)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
                 averaged.averaged, expected)  # fmt: skip
    assert {x.dtype for x in jax.tree.leaves(averaged.ema)} == {np.dtype("float32")}
    assert jax.tree.structure(averaged.ema) == jax.tree.structure(averaged.variables)
    assert distance(averaged, SimpleNamespace(variables=averaged.ema)) > 1e-3
    assert state.averaged == state.variables


def test_an_average_goes_on_to_the_bit_and_over_devices():
    half = jax.device_put(
        jax.device_get(run_averaged(8, 3)), sharding.replicated(sharding.make_mesh())
    )
    assert_equal(run_averaged(8, 6, half), run_averaged(8, 6))
    one, eight = (SimpleNamespace(variables=run_averaged(n, 6).ema) for n in (1, 8))
    assert distance(one, eight) < 1e-5


def test_an_average_starts_at_the_variables_in_arrays_of_its_own(mesh):
    shape = (1, CROP, CROP, 3)
    state = make_state(
        MODEL, OPTIMIZER, key=jax.random.key(1), image_shape=shape, ema=True,
        sharding=sharding.replicated(mesh),
    )  # fmt: skip
    assert_equal(state.ema, state.variables)
    assert_equal(state.variables, initial().variables)
    averaging()(state, sharding.put(batch_of(0), mesh))  # all of it is donated, each array once
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.ema)))


def test_another_decay_compiles_nothing(mesh):
    step = make_step(Linear(), loss=cross_entropy, prepare=PREPARE, ema=0.9)
    batch = sharding.put(batch_of(0), mesh)
    step(first_state(mesh, Linear()).with_ema(), batch)
    step.func(first_state(mesh, Linear()).with_ema(), batch, **step.keywords | {"ema": 0.99})
    assert step.func._cache_size() == 1


@pytest.mark.parametrize("decay, told", [(0.9, "has no moving average"), (None, "given none of")])
def test_an_average_that_one_side_forgot_is_told(decay, told, mesh):
    step = make_step(Linear(), loss=cross_entropy, prepare=PREPARE, ema=decay)
    state = first_state(mesh, Linear())
    with pytest.raises(SegjaxError, match=rf"{told}.* both to make_state, .*or to none"):
        step(state if decay else state.with_ema(), sharding.put(batch_of(0), mesh))


def test_step_cost_needs_no_data(mesh):
    state = first_state(mesh)
    whole, split = sharding.replicated(mesh), sharding.split(mesh)

    def shapes(tree, sharding):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    cost = step_cost(training(), shapes(state, whole), shapes(batch_of(0), split))
    assert cost.parameters == sum(x.size for x in jax.tree.leaves(state.params)) > 0
    assert cost.compile_seconds > 0
    assert cost.temporaries > 0 and cost.outputs > 0
    # An eighth of the batch, but the whole state.
    assert cost.arguments >= sum(x.nbytes for x in jax.tree.leaves(state))
    assert cost.arguments < sum(x.nbytes for x in jax.tree.leaves((state, batch_of(0))))


# What is given


@pytest.mark.parametrize("shape", [(96, 96, 3), (96, 96)])
def test_an_image_shape_without_the_batch_is_told(shape):
    with pytest.raises(SegjaxError, match=r"image_shape is \(96, 96.*expected \(B, H, W, C\)"):
        make_state(Linear(), OPTIMIZER, key=jax.random.key(0), image_shape=shape)


def test_a_schedule_that_is_a_number_is_told():
    with pytest.raises(SegjaxError, match=r"schedule is 0\.001; .*pass optimizers\.constant\(0\.0"):
        make_step(Linear(), loss=cross_entropy, prepare=PREPARE, schedule=1e-3)


def aliases():
    """The optimizers of optax that a learning rate suffices for."""
    for name, function in inspect.getmembers(optax, inspect.isfunction):
        parameters = list(inspect.signature(function).parameters.values())
        required = [p.name for p in parameters if p.default is p.empty and p.kind < p.VAR_KEYWORD]
        named = parameters[:1] and parameters[0].name == "learning_rate"
        if named and set(required) <= {"learning_rate"} and not name.startswith(("_", "scale_by_")):
            yield name, function


OPTIMIZERS = dict(aliases()) | {
    "adam of clipped gradients": lambda r: optax.chain(
        optax.clip_by_global_norm(0.01), optax.adam(r)
    ),
    "sgd of adaptively clipped gradients": lambda r: optax.chain(
        optax.adaptive_grad_clip(0.01), optax.sgd(r, momentum=0.9)
    ),
    "sgd with weight decay": lambda r: optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(r, momentum=0.9)
    ),
    "adam whose rate can be changed": lambda r: optax.inject_hyperparams(optax.adam)(
        learning_rate=r
    ),
}
# Whose first update is 0, or which want more than parameters and gradients.
UNTOLD = {
    "rprop": optax.rprop,
    "lbfgs": optax.lbfgs,
    "accumulated": lambda r: optax.MultiSteps(optax.adam(r), 4),
    "warmed up": lambda r: optax.adam(optax.linear_schedule(0, r, 100)),
    "by names": lambda r: optax.multi_transform(
        {"a": optax.adam(r), "b": optax.sgd(r)}, {"encoder": "a", "decoder": "b"}
    ),
}


def step_of(optimizer, schedule):
    return make_step(
        Linear(), optimizer=optimizer, loss=cross_entropy, prepare=PREPARE, schedule=schedule
    )


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in UNTOLD])
def test_an_optimizer_with_a_learning_rate_of_its_own_is_warned_of(name):
    make, schedule = OPTIMIZERS[name], optimizers.cosine(1e-3, steps=1000, warmup=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optax, that some are deprecated
        good, bad = make(1.0), make(1e-3)
    step_of(good, schedule)
    with pytest.warns(
        SegjaxWarning, match=r"rate of its own, .*Give it a rate of 1, as optax"
    ) as told:
        step_of(bad, schedule)
    assert told[0].filename == functools.__file__ or told[0].filename == __file__
    step_of(bad, optimizers.constant(1.0))  # it is meant


@pytest.mark.parametrize("name", UNTOLD)
@pytest.mark.parametrize("rate", [1.0, 1e-3])
def test_an_optimizer_that_tells_nothing_at_first_is_let_be(name, rate):
    step_of(UNTOLD[name](rate), optimizers.constant(1e-3))


class Calls(list):
    """What `fit` calls, in order. The state's parameter is the sum of the batches so far."""

    def fit(self, batches, *, start=0, **arguments):
        def source():
            for batch in batches:
                if isinstance(batch, Exception):
                    raise batch
                yield jnp.float32(batch)

        @functools.partial(jax.jit, donate_argnums=0)
        def add(state, batch):
            state = state.replace(step=state.step + 1, params=state.params + batch)
            return state, {"loss": batch, "gradient_norm": jnp.abs(batch)}

        def step(state, batch):
            self.append(f"batch {batch:g}")
            return add(state, batch)

        zero = jnp.zeros(())
        self.waits = []
        return fit(
            State(jnp.int32(start), zero, {}, {}),
            step,
            source(),
            observe=self.observe,
            rescue=functools.partial(self.action, "rescue"),
            **arguments,
        )

    def observe(self, number, scalars, wait):
        assert set(scalars) == {"loss", "gradient_norm"}
        assert all(type(x) is float for x in scalars.values())
        self.waits.append(wait)
        self.append(f"observe {number}: {scalars['loss']:g}")

    def action(self, name, number, state):
        assert int(state.step) == number
        self.append(f"{name} {number}: {float(state.params):g}")

    def every(self, steps, name):
        return Every(steps, functools.partial(self.action, name))


@pytest.fixture
def calls():
    return Calls()


def test_a_step_is_observed_once_while_the_next_one_runs(calls):
    state = calls.fit([10, 20, 30], until=3)
    assert calls == [
        *["batch 10", "batch 20", "observe 1: 10", "batch 30", "observe 2: 20", "observe 3: 30"]
    ]
    assert int(state.step) == 3 and float(state.params) == 60
    assert all(wait >= 0 for wait in calls.waits)


def test_actions_come_at_their_multiples_and_at_the_end(calls):
    calls.fit([1, 2, 3, 4, 5], until=5, every=[calls.every(2, "a"), calls.every(4, "b")])
    actions = [call for call in calls if call[0] in "ab" and call[:5] != "batch"]
    assert actions == ["a 2: 3", "a 4: 10", "b 4: 10", "a 5: 15", "b 5: 15"]
    # The step's own scalars are seen before what follows from it.
    assert calls.index("observe 2: 2") == calls.index("a 2: 3") - 1
    assert calls.index("observe 5: 5") == calls.index("a 5: 15") - 1


def test_it_counts_on_from_the_state(calls):
    state = calls.fit([1, 1], start=7, until=9, every=[calls.every(4, "a")])
    assert int(state.step) == 9
    assert [c for c in calls if "batch" not in c] == [
        *["observe 8: 1", "a 8: 1", "observe 9: 1", "a 9: 2"]
    ]


@pytest.mark.parametrize("until", [0, 6, 7])
def test_nothing_is_done_where_all_is_done(calls, until):
    state = calls.fit([1, 2], start=7, until=until, every=[calls.every(1, "a")])
    assert calls == [] and int(state.step) == 7


def test_a_stop_rescues_the_state_of_the_last_step(calls):
    state = calls.fit([1, 2, 3], until=3, every=[calls.every(5, "a")], stop=lambda n: n == 2)
    assert calls[-2:] == ["observe 2: 2", "rescue 2: 3"]
    assert "batch 3" not in calls and int(state.step) == 2


def test_what_is_done_at_a_step_may_say_stop(calls):
    asked = []
    state = calls.fit(
        [1, 2, 3], until=3, every=[Every(2, lambda *_: asked.append(1))], stop=lambda n: bool(asked)
    )
    assert calls[-2:] == ["observe 2: 2", "rescue 2: 3"] and int(state.step) == 2


def test_a_stop_after_the_last_step_is_no_early_end(calls):
    calls.fit([1], until=1, every=[calls.every(5, "a")], stop=lambda number: True)
    assert calls == ["batch 1", "observe 1: 1", "a 1: 1"]


@pytest.mark.parametrize("good", [0, 1, 2])
def test_what_the_data_raises_passes_through_after_the_rescue(calls, good):
    batches = [*range(1, good + 1), OSError("disk gone")]
    with pytest.raises(OSError, match="disk gone"):
        calls.fit(batches, until=4)
    assert calls[-1] == f"rescue {good}: {sum(range(1, good + 1))}"
    assert sum("observe" in call for call in calls) == good


def test_what_an_action_raises_passes_through_after_the_rescue(calls):
    def broken(number, state):
        raise OSError("held-out picture gone")

    with pytest.raises(OSError, match="held-out picture gone"):
        calls.fit([1, 2, 3], until=3, every=[Every(2, broken)])
    assert calls[-2:] == ["observe 2: 2", "rescue 2: 3"]


def test_batches_that_end_are_told_after_the_rescue(calls):
    with pytest.raises(SegjaxError, match="ended after step 2 of 4"):
        calls.fit([1, 2], until=4)
    assert calls[-2:] == ["observe 2: 2", "rescue 2: 3"]


def not_finite(step):
    return pytest.raises(SegjaxError, match=rf"at step {step}: .*loss is nan\..*lower learning")


@pytest.mark.parametrize("stop", [False, True], ids=["go on", "stop"])
@pytest.mark.parametrize("bad", [1, 2, 3, 4, 5])
def test_a_loss_that_is_not_finite_ends_it_before_any_action(calls, bad, stop):
    """Between the actions, at the step of one, at the last step, and where a stop is asked for."""
    numbers = range(1, 6)
    with not_finite(bad):
        calls.fit(
            [float("nan") if number == bad else 1 for number in numbers],
            until=5,
            every=[calls.every(2, "action")],
            stop=lambda number: number == bad and stop,
        )
    seen = [call for call in calls if not call.startswith("batch")]
    expected = []
    for number in range(1, bad):
        expected.append(f"observe {number}: 1")
        if number % 2 == 0:
            expected.append(f"action {number}: {number}")
    assert seen == expected


def test_a_bad_loss_is_told_rather_than_the_data_error_after_it(calls):
    with not_finite(1):
        calls.fit([float("nan"), OSError("disk gone")], until=4)
    assert calls == ["batch nan"]


def test_a_gradient_that_is_not_finite_ends_it_too():
    def step(state, batch):
        return state.replace(step=state.step + 1), {"loss": 1.0, "gradient_norm": jnp.inf}

    with pytest.raises(SegjaxError, match="at step 1: gradient_norm is inf\\. "):
        fit(State(jnp.int32(0), {}, {}, {}), step, iter([0]), until=1)


def test_parameters_that_are_absurd_after_a_finite_loss_end_it(mesh):
    """1e30 is a float32, but the sum of its squares is none."""
    step = make_step(
        Linear(), loss=cross_entropy, prepare=PREPARE, schedule=optimizers.constant(1e30)
    )
    batches = sharding.prefetch(map(batch_of, itertools.count()), mesh)
    with pytest.raises(SegjaxError, match="at step 1: parameter_norm is inf\\. ") as error:
        fit(first_state(mesh, Linear()), step, batches, until=3)
    np.testing.assert_array_equal(error.value.batch["record"], batch_of(0)["record"])
    assert error.value.step == 1


def test_a_step_that_is_not_finite_is_skipped(mesh):
    """Its update is left out, optimiser, statistics and average too; the number goes on."""

    def loss(output, example):
        return cross_entropy(output, example) / (example.image[0, 0, 0, 1] < 1e6)

    step = make_step(MODEL, loss=loss, prepare=PREPARE, ema=DECAY, skip=True)
    bad = dict(batch_of(1), image=batch_of(1)["image"].astype(np.float32) + 1e7)
    state = first_state(mesh).with_ema()
    good = dict(batch_of(0), image=batch_of(0)["image"].astype(np.float32))
    state, scalars = step(state, sharding.put(good, mesh))
    before = jax.device_get(state)
    state, bad_scalars = step(state, sharding.put(bad, mesh))
    assert (float(scalars["skipped"]), float(bad_scalars["skipped"])) == (0, 1)
    assert not np.isfinite(float(bad_scalars["loss"]))
    assert int(state.step) == 2
    assert_equal(jax.device_get(state).replace(step=before.step), before)


@pytest.mark.parametrize("bad, stops", [([1, 3, 4], None), (range(2, 60), 22)])
def test_skipped_steps_go_on_unless_there_is_no_end_of_them(bad, stops):
    def step(state, batch):
        loss = jnp.nan if batch in bad else 1.0
        return state.replace(step=state.step + 1), {"loss": loss, "skipped": float(batch in bad)}

    seen = []

    def go():
        fit(
            State(jnp.int32(0), {}, {}, {}),
            step,
            itertools.count(1),
            until=50,
            observe=lambda number, scalars, wait: seen.append(scalars["skipped"]),
        )

    if stops is None:
        go()
        assert sum(seen) == 3 and len(seen) == 50
        return
    with pytest.raises(SegjaxError, match=f"at step {stops}: .*the 20 steps before, which were sk"):
        go()
    assert len(seen) == stops - 1


def test_a_spoilt_state_that_an_action_finds_is_not_rescued(calls):
    def evaluate(number, state):
        raise NotFinite("the loss is nan")

    with pytest.raises(NotFinite):
        calls.fit([1, 2, 3], until=3, every=[Every(2, evaluate)])
    assert not any("rescue" in call for call in calls)


def test_a_batch_that_is_all_ignored_is_no_failure(mesh):
    batch = dict(batch_of(0), label=np.full_like(batch_of(0)["label"], 255))
    before = first_state(mesh, Linear())
    kept = jax.device_get(before.params)
    state, scalars = training(Linear())(before, sharding.put(batch, mesh))
    assert float(scalars["loss"]) == float(scalars["gradient_norm"]) == 0
    assert_equal(jax.device_get(state.params), kept)


@pytest.mark.parametrize("place", [np.asarray, lambda x: sharding.put(x, sharding.make_mesh())])
def test_a_loss_that_is_not_finite_tells_what_the_labels_held(place):
    """Of the batch of that step, though the next one is on its way."""
    labels = np.zeros((3, BATCH, 2, 2), np.uint8)
    labels[0, 0, 0, 0] = 9
    labels[1, 3] = [[1, 2], [77, 255]]

    def step(state, batch):
        loss = jnp.where(batch["label"].max() > 9, jnp.nan, 1.0)
        return state.replace(step=state.step + 1), {"loss": loss}

    told = r"loss is nan\. The labels of its batch held 0–2, 77 and 255; with one that is neither"
    with pytest.raises(SegjaxError, match=f"at step 2: {told}") as error:
        batches = ({"label": place(label)} for label in labels)
        fit(State(jnp.int32(0), {}, {}, {}), step, batches, until=3)
    assert "checkpoint" not in str(error.value)
