"""Schedules at points computed by hand, optimisers against their formulae and PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.training import optimizers

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
