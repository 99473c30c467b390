"""Learning-rate schedules and optimisers, as thin names over optax with the field's defaults."""

import jax
import optax


def constant(rate: float) -> optax.Schedule:
    """The same learning rate at every step."""
    return optax.constant_schedule(rate)


def polynomial(rate: float, *, steps: int, power: float = 0.9, end: float = 0.0) -> optax.Schedule:
    """rate(t) = (rate - end) · (1 - t/steps)^power + end, DeepLab's and SETR's "poly"."""
    return optax.polynomial_schedule(rate, end, power, steps)


def cosine(rate: float, *, steps: int, warmup: int = 0) -> optax.Schedule:
    """Linear from 0 over `warmup` steps, then half a cosine down to 0 at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else rate, rate, warmup, steps)


def _kernels(params: optax.Params) -> optax.Params:
    """What decays: kernels, not biases nor the norms' scales (as in the FCN authors' code)."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def sgd(
    rate: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """v ← momentum · v + g + weight_decay · w; w ← w - rate · v; only kernels decay."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_kernels),
        optax.sgd(rate, momentum=momentum),
    )


def adamw(
    rate: optax.ScalarOrSchedule, *, weight_decay: float = 1e-4
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay of the kernels (Loshchilov and Hutter 2019)."""
    return optax.adamw(rate, weight_decay=weight_decay, mask=_kernels)
