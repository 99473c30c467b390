"""Schedules at points computed by hand, optimisers against their formulae and PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.errors import SegjaxError
from segjax.models import UNet
from segjax.training import losses, optimizers
from segjax.training.train import make_state, make_train_step

SCHEDULES = {
    "constant": (optimizers.constant(0.3), {0: 0.3, 1000: 0.3}),
    "polynomial": (
        optimizers.polynomial(0.1, steps=100),
        {0: 0.1, 50: 0.1 * 0.5**0.9, 99: 0.1 * 0.01**0.9, 100: 0.0, 200: 0.0},
    ),
    "polynomial to an end": (
        optimizers.polynomial(1.0, steps=4, power=2, end=0.2),
        {0: 1.0, 1: 0.8 * 0.5625 + 0.2, 2: 0.4, 4: 0.2, 9: 0.2},
    ),
    "cosine": (optimizers.cosine(2.0, steps=8), {0: 2.0, 2: 1 + 0.5**0.5, 4: 1.0, 8: 0, 9: 0}),
    "cosine with warm-up": (
        optimizers.cosine(2.0, steps=10, warmup=2),
        {0: 0.0, 1: 1.0, 2: 2.0, 4: 1 + 0.5**0.5, 6: 1.0, 10: 0.0, 11: 0.0},
    ),
}
SCHEDULES |= {
    # SETR's, ADE20K: poly with power 0.9 and a floor of 1e-4, 160 thousand steps.
    "SETR": (
        optimizers.polynomial(1e-3, steps=160_000, power=0.9, end=1e-4),
        {0: 1e-3, 80_000: 9e-4 * 0.5**0.9 + 1e-4, 160_000: 1e-4, 170_000: 1e-4},
    ),
    "FCN, U-Net, U-Net++": (optimizers.constant(3e-4), {0: 3e-4, 100_000: 3e-4}),
    "staircase": (
        optimizers.staircase(0.4, at=(3, 5), factor=0.5),
        {0: 0.4, 2: 0.4, 3: 0.2, 4: 0.2, 5: 0.1, 99: 0.1},
    ),
    "warmed": (
        optimizers.warmed(optimizers.polynomial(1.0, steps=8, power=1), 4),
        {0: 0.0, 1: 0.25 * 0.875, 2: 0.5 * 0.75, 4: 0.5, 6: 0.25, 8: 0.0},
    ),
}
OPTIMISERS = {"sgd": optimizers.sgd, "adamw": optimizers.adamw}
each_optimiser = pytest.mark.parametrize("name", OPTIMISERS)


@pytest.mark.parametrize(
    "schedule, step, rate",
    [
        pytest.param(schedule, step, rate, id=f"{name}-{step}")
        for name, (schedule, rates) in SCHEDULES.items()
        for step, rate in rates.items()
    ],
)
def test_schedule_by_hand(schedule, step, rate):
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jax.jit(schedule)(step), rate, rtol=1e-5, atol=1e-7)


def test_the_numbers_of_a_schedule_are_no_constants_of_the_program():
    compiled = jax.jit(lambda schedule, step: schedule(step))
    for rate, at in ((0.1, (3, 5)), (0.2, (4, 9))):
        schedule = optimizers.warmed(optimizers.staircase(rate, at=at), 2)
        assert compiled(schedule, 8) == pytest.approx(schedule(8))
    assert compiled._cache_size() == 1


def parameters():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 2, 3, 4), "bias": (4,), "scale": (4,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gradients(step):
    """Made up, another at each step; the scale's are so small that Adam's epsilon counts."""
    rng = np.random.default_rng(100 + step)
    size = {"kernel": 1, "bias": 1, "scale": 1e-8}
    return {
        name: (size[name] * rng.normal(size=p.shape)).astype(np.float32)
        for name, p in parameters().items()
    }


TENTH = optimizers.constant(0.1)


def run(optimiser, steps, schedule=TENTH):
    params = parameters()
    state = optimiser.init(params)
    update = jax.jit(optimiser.update)
    for step in range(steps):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, optax.tree.scale(schedule(step), updates))
    return params


def test_sgd_is_its_formula_and_decays_kernels_only():
    rate, momentum, decay = 0.1, 0.8, 0.05
    got = run(optimizers.sgd(momentum=momentum, weight_decay=decay), 3)
    for name, w in parameters().items():
        v = 0
        for step in range(3):
            v = momentum * v + gradients(step)[name] + (decay if name == "kernel" else 0) * w
            w = w - rate * v
        np.testing.assert_allclose(got[name], w, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_schedule_is_read_at_the_step():
    got = run(optimizers.sgd(momentum=0.0), 3, optimizers.polynomial(1.0, steps=2, power=1))
    for name, w in parameters().items():
        want = w - gradients(0)[name] - 0.5 * gradients(1)[name]
        np.testing.assert_allclose(got[name], want, rtol=1e-5, atol=1e-6)


def run_torch(torch, make):
    """Five steps of the PyTorch optimiser that `make(kernels, others)` returns."""
    tensors = {name: torch.tensor(p) for name, p in parameters().items()}
    optimiser = make([tensors["kernel"]], [tensors["bias"], tensors["scale"]])
    for step in range(5):
        for name, gradient in gradients(step).items():
            tensors[name].grad = torch.tensor(gradient)
        optimiser.step()
    return tensors


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_is_pytorchs(decay):
    torch = pytest.importorskip("torch")

    def make(kernels, others):
        groups = [{"params": kernels, "weight_decay": decay}, {"params": others}]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    got, want = run(optimizers.sgd(weight_decay=decay), 5), run_torch(torch, make)
    for name in got:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("decay", [None, 0.0, 0.1])
def test_adamw_is_pytorchs_with_only_kernels_decayed(decay):
    torch = pytest.importorskip("torch")
    options = {} if decay is None else {"weight_decay": decay}

    def make(kernels, others):
        groups = [
            {"params": kernels, "weight_decay": 1e-4 if decay is None else decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.1)

    got, want = run(optimizers.adamw(**options), 5), run_torch(torch, make)
    for name in got:  # of a way of 0.5; optax rounds 1 - 0.999^t to float32
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5, err_msg=name)


@each_optimiser
def test_without_a_gradient_only_kernels_shrink(name):
    optimiser = OPTIMISERS[name](weight_decay=0.1)
    params = parameters()
    nothing = jax.tree.map(np.zeros_like, params)
    updates, _ = optimiser.update(nothing, optimiser.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * params["kernel"], rtol=1e-5)
    assert not np.any(updates["bias"])
    assert not np.any(updates["scale"])


@each_optimiser
def test_a_parabola_comes_to_its_minimum(name):
    target = jnp.array([3.0, -2.0])
    optimiser, schedule = OPTIMISERS[name](), optimizers.cosine(0.1, steps=200, warmup=10)

    def step(carry, number):
        x, state = carry
        updates, state = optimiser.update(2 * (x - target), state, x)
        return (optax.apply_updates(x, schedule(number) * updates), state), None

    x = jnp.zeros(2)
    scan = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(200)))
    (x, _), _ = scan((x, optimiser.init(x)))
    np.testing.assert_allclose(x, target, atol=1e-2)


# Groups

NET = {
    "vit": {
        "patch": {"kernel": np.ones((2, 2, 3, 4), np.float32), "bias": np.ones(4, np.float32)},
        "blocks": {
            "out": {"kernel": np.ones((3, 4, 4), np.float32), "bias": np.ones((3, 4), np.float32)},
        },
    },
    "head": {"kernel": np.ones((4, 2), np.float32), "bias": np.ones(2, np.float32)},
}


def step_of(optimizer, gradient=0.5):
    """The update at gradients of one value, by path, and what the optimiser keeps."""
    state = optimizer.init(NET)
    update = jax.jit(optimizer.update)
    updates, state = update(jax.tree.map(lambda x: np.full_like(x, gradient), NET), state, NET)
    return dict(optimizers._paths(updates)), state


def test_factors_of_all_groups_that_match_are_multiplied():
    updates, _ = step_of(optimizers.scaled(optimizers.sgd(), {"head": 10, "bias$": 2}))
    factors = {path: float(x.reshape(-1)[0]) / -0.5 for path, x in updates.items()}
    assert factors == {
        "vit/patch/kernel": 1, "vit/patch/bias": 2, "vit/blocks/out/kernel": 1,
        "vit/blocks/out/bias": 2, "head/kernel": 10, "head/bias": 20,
    }  # fmt: skip


def test_a_factor_holds_for_the_decay_as_in_caffe():
    optimizer = optimizers.scaled(optimizers.sgd(weight_decay=0.1), {"head": 10})
    updates, _ = step_of(optimizer, gradient=0.0)
    np.testing.assert_allclose(updates["head/kernel"], -1.0, rtol=1e-6)
    np.testing.assert_allclose(updates["vit/patch/kernel"], -0.1, rtol=1e-6)
    assert not np.any(updates["head/bias"])


@each_optimiser
def test_biases_and_scales_of_stacked_blocks_do_not_decay(name):
    updates, _ = step_of(OPTIMISERS[name](weight_decay=0.1), gradient=0.0)
    assert not np.any(updates["vit/blocks/out/bias"])
    np.testing.assert_allclose(updates["vit/blocks/out/kernel"], -0.1, rtol=1e-5)


@each_optimiser
def test_weight_decay_by_group(name):
    decay = {"kernel$": 0.1, "head": 0.3, "head/bias": 0.0}
    updates, _ = step_of(OPTIMISERS[name](weight_decay=decay), gradient=0.0)
    decays = {path: -float(x.reshape(-1)[0]) for path, x in updates.items()}
    assert decays == pytest.approx({
        "vit/patch/kernel": 0.1, "vit/patch/bias": 0, "vit/blocks/out/kernel": 0.1,
        "vit/blocks/out/bias": 0, "head/kernel": 0.3, "head/bias": 0,
    })  # fmt: skip


def test_rates_fall_from_layer_to_layer_of_a_stack_too():
    layers = ("vit/patch", "vit/blocks")
    updates, _ = step_of(optimizers.layerwise(optimizers.sgd(), 0.5, layers=layers), gradient=1.0)
    np.testing.assert_array_equal(updates["head/kernel"], -1)
    for part in ("kernel", "bias"):
        stacked = updates[f"vit/blocks/out/{part}"]
        for block, factor in enumerate((0.125, 0.25, 0.5)):
            np.testing.assert_array_equal(stacked[block], -factor)
        np.testing.assert_array_equal(updates[f"vit/patch/{part}"], -0.0625)


def test_frozen_parameters_stay_and_take_no_memory():
    free = optimizers.adamw(weight_decay=0.1)
    updates, state = step_of(optimizers.frozen(free, "^vit/"))
    assert {path for path, x in updates.items() if np.any(x)} == {"head/kernel", "head/bias"}
    alone, _ = free.update(
        {"head": jax.tree.map(lambda x: x / 2, NET["head"])},
        free.init({"head": NET["head"]}),
        {"head": NET["head"]},
    )
    np.testing.assert_allclose(updates["head/kernel"], alone["head"]["kernel"], rtol=1e-6)
    kept = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
    assert kept == 2 * sum(x.size for x in jax.tree.leaves(NET["head"]))


@pytest.mark.parametrize(
    "make",
    [
        lambda of: optimizers.scaled(of, {"haed": 10}),
        lambda of: optimizers.frozen(of, "haed"),
        lambda of: optimizers.layerwise(of, 0.9, layers=("vit", "haed")),
        lambda of: optimizers.adamw(weight_decay={"haed": 1.0}),
    ],
)
def test_a_group_without_parameters_is_told(make):
    told = r"No parameter has 'haed' in its path\. Near are head"
    with pytest.raises(SegjaxError, match=told):
        make(optimizers.sgd()).init(NET)
    with pytest.raises(SegjaxError, match=r"no way.*There are head/bias, head/kernel, vit"):
        optimizers.frozen(optimizers.sgd(), "no way").init(NET)


def test_groups_in_a_training_step():
    """As a recipe has them: the state is made and trained under jit, and frozen to the bit."""
    model = UNet(2, widths=(3, 4))
    optimizer = optimizers.frozen(
        optimizers.scaled(optimizers.sgd(), {"logits": 10, "bias$": 2}), "^down_0/"
    )
    state = make_state(model, optimizer, key=jax.random.key(0), image_shape=(1, 8, 8, 3))
    before = jax.device_get(state)
    step = make_train_step(
        model,
        optimizer,
        lambda output, labels: losses.cross_entropy(output.logits, labels),
        schedule=optimizers.constant(0.1),
        prepare=lambda key, batch: (batch["image"], batch["label"]),
        key=jax.random.key(0),
    )
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    after, _ = step(state, {"image": image, "label": (image[..., 0] > 0).astype(np.uint8)})
    changed = {
        path: not np.array_equal(x, y)
        for (path, x), (_, y) in zip(
            optimizers._paths(before.params), optimizers._paths(after.params), strict=True
        )
    }
    assert not any(new for path, new in changed.items() if path.startswith("down_0/"))
    assert changed["down_1/conv_0/kernel"] and changed["logits/kernel"]
    # Batch norm's averages are no parameters.
    stats = (x.batch_stats["down_0"]["norm_0"]["mean"] for x in (before, after))
    assert not np.array_equal(*stats)
