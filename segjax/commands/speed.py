"""How fast a training is: the FLOPs of its steps, counted once, and a trace of some of them."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from segjax.training import devices

_SETTLING = 4  # steps before a trace: the first ones compile, and wait for the first batches


def model_flops(model: Any, shape: Sequence[int]) -> float:
    """FLOPs of a network, forward and backward, for a batch (B, H, W, C); two for a multiply-add.

    As it is written, before compilation: what is computed again for want of memory does not count.
    """
    if hasattr(model, "scan"):
        model = model.clone(scan=False)  # a loop's body would count once
    if hasattr(model, "remat"):
        model = model.clone(remat=False)

    def total(params: Any, others: Any, images: jax.Array) -> jax.Array:
        output, _ = model.apply(
            {"params": params, **others},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return sum(leaf.sum() for leaf in jax.tree.leaves(output))

    images = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    others = dict(jax.eval_shape(model.init, jax.random.key(0), images))
    params = others.pop("params")
    found: Any = jax.jit(jax.value_and_grad(total)).lower(params, others, images).cost_analysis()
    return float(found["flops"])


def later(count: Callable[[], float], *, after: float = 10.0) -> Callable[[], float]:
    """What `count` gives, from when it is known on; NaN until then.

    It is counted in a thread, once some seconds have gone by since the first call: a start waits
    for nothing, and a training that is over by then never needed it.
    """
    began: float | None = None
    counting: Future[float] | None = None
    pool = ThreadPoolExecutor(1)

    def known() -> float:
        nonlocal began, counting
        began = time.monotonic() if began is None else began
        if counting is None and time.monotonic() - began >= after:
            counting = pool.submit(count)
        if counting is None or not counting.done() or counting.exception():
            return math.nan  # anyone's network may be one that cannot be counted
        return counting.result()

    return known


def peak(mesh: Mesh, compute: str) -> float:
    """FLOP/s that the devices are built for in all; NaN where their data sheet is not known."""
    device = devices.find(mesh.devices.flat[0].device_kind)
    if device is None:
        return math.nan
    return mesh.size * (device.flops if compute == "bfloat16" else device.flops_float32)


@contextmanager
def traced(
    train_step: Callable[[Any, Any], Any], folder: Path, steps: int, say: Callable[[str], None]
) -> Iterator[Callable[[Any, Any], Any]]:
    """The step, some calls of which are traced by JAX's profiler into a folder; 0 for none.

    Those after the first few, or fewer where the training ends before.
    """
    done, tracing = 0, False

    def end() -> None:
        nonlocal tracing
        tracing = False
        jax.profiler.stop_trace()
        (*_, trace) = sorted(folder.rglob("perfetto_trace.json.gz"))
        say(
            f"{done - _SETTLING} steps are traced in {folder}. Open them with: tensorboard "
            f"--logdir {folder} (pip install tensorboard xprof); or {trace} on ui.perfetto.dev"
        )

    def step(state: Any, batch: Any) -> Any:
        nonlocal done, tracing
        if done == _SETTLING:
            jax.block_until_ready(state)
            jax.profiler.start_trace(folder, create_perfetto_trace=True)
            tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=done):
            result = train_step(state, batch)
        done += 1
        if tracing and done == _SETTLING + steps:
            jax.block_until_ready(result)
            end()
        return result

    try:
        yield step if steps else train_step
    finally:
        if tracing:
            end()
        elif steps and done <= _SETTLING:
            say(f"nothing is traced: that begins after {_SETTLING} steps, and {done} were taken")
