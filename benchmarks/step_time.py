"""How fast are our networks, beside the same ones in PyTorch, and what memory do they take?

    python benchmarks/step_time.py
    python benchmarks/step_time.py --networks SETR-PUP --batch 16 --size 512 --dtype bfloat16
    python benchmarks/step_time.py --shrink 8 --size 32 --runs 2    # does it work?

Prints a Markdown table. On the GPU where there is one; that JAX and PyTorch both see it is checked.

A training step is forward, backward and update by SGD with momentum, of the cross-entropy of the
logits and 0.4 times that of auxiliary heads. PyTorch is channels-last, as it comes and under
`torch.compile`, with autocast for bfloat16 (parameters are float32 in both) and TF32 on a GPU, as
XLA has it. Before the clock runs, our network is filled with the PyTorch one's parameters; on a
picture of 64×64, without dropout, logits have to agree to 1e-5 of their range, loss and gradient
norm to 1e-5 too. Both compute in float64 then: in float32 an activation within rounding of ReLU's
kink, of which a wide network has many, can move a gradient by a thousandth.

Each of the three lives in a process of its own, which works while the others wait, in turn. Times
are the median (and the least) of `--runs` calls after the first, "first" is what that took longer:
compilation, without any cache, or PyTorch's warm-up. Memory is the peak of training, first call
included: on a CPU the growth of the process's resident set since before the network was made, on a
GPU that of the framework's own allocator. In brackets what XLA plans for the step alone; on a CPU
the rest is mostly its compiler's, about half a GiB, while that of `torch.compile` runs in processes
that are not counted.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_networks
from flax import linen as nn
from torch.nn import functional as F

from segjax.models import FCN, SETRPUP, UNet, UNetPlusPlus
from segjax.models.layers import Output
from segjax.training.losses import cross_entropy
from segjax.training.optimizers import constant, sgd
from segjax.training.train import make_state, make_train_step
from segjax.weights import Table, fill, pytorch_fcn, setr, unet, unetplusplus
from segjax.weights.table import Tensors, torch_conv

CONTENDERS = ("segjax", "PyTorch", "torch.compile")
CLASSES, AUXILIARY, RATE, MOMENTUM = 21, 0.4, 0.01, 0.9


class Settings(NamedTuple):
    """What is measured."""

    batch: int
    size: int
    dtype: str
    shrink: int
    dropout: float = 0.5  # where a network has one

    def widths(self, *widths: int) -> tuple[Any, ...]:
        """Divided by `shrink`."""
        return tuple(width // self.shrink for width in widths)


Batch = dict[str, np.ndarray]


class Pair(NamedTuple):
    """A network of ours, the same in PyTorch, and which parameter is which."""

    ours: nn.Module
    theirs: Callable[[], torch.nn.Module]
    table: Callable[[Tensors], Table]


def unet_pair(settings: Settings) -> Pair:
    widths = settings.widths(64, 128, 256, 512, 1024)
    model = UNet(CLASSES, widths, dtype=settings.dtype)
    theirs = partial(torch_networks.UNet, CLASSES, widths)
    return Pair(model, theirs, lambda tensors: unet.milesial(model))


def nested_pair(settings: Settings) -> Pair:
    widths = settings.widths(32, 64, 128, 256, 512)
    model = UNetPlusPlus(
        CLASSES, widths, up="bilinear_corners", deep_supervision=False, dtype=settings.dtype
    )
    theirs = partial(torch_networks.NestedUNet, CLASSES, widths)
    return Pair(model, theirs, lambda tensors: unetplusplus.nested_unet(model))


def fcn_pair(settings: Settings) -> Pair:
    *widths, classifier = settings.widths(64, 128, 256, 512, 512, 4096)
    fields = {"classifier_width": classifier, "dropout": settings.dropout}
    model = FCN(CLASSES, widths=tuple(widths), **fields, dtype=settings.dtype)

    def table(tensors: Tensors) -> Table:
        table = pytorch_fcn.fcn(model, tensors)
        # Theirs takes BGR pictures elsewhere; here both take the same.
        return table._replace(entries={**table.entries, **torch_conv("vgg16/conv1_1", "conv1_1")})

    return Pair(model, partial(torch_networks.FCN8s, CLASSES, widths, **fields), table)


def setr_pair(settings: Settings) -> Pair:
    width, channels = settings.widths(768, 256)
    grid = (settings.size // 16,) * 2
    fields = {"depth": 12, "width": width, "heads": 12, "grid": grid, "channels": channels}
    taps = (4, 7, 9, 11)
    model = SETRPUP(CLASSES, **fields, auxiliary_taps=taps, dtype=settings.dtype)
    theirs = partial(torch_networks.SETRPUP, CLASSES, **fields, taps=taps)
    return Pair(model, theirs, lambda tensors: setr.authors(model))


PAIRS = {
    "U-Net": unet_pair,
    "U-Net++": nested_pair,
    "FCN-8s": fcn_pair,
    "SETR-PUP": setr_pair,
}


def make_batch(settings: Settings) -> Batch:
    """Noise, a tenth of its labels ignored."""
    random = np.random.default_rng(0)
    shape = (settings.batch, settings.size, settings.size)
    labels = random.integers(CLASSES, size=shape, dtype=np.int32)
    labels[random.random(shape) < 0.1] = 255
    return {"image": random.normal(size=(*shape, 3)).astype(np.float32), "label": labels}


class Segjax:
    """Our training step and prediction, done when they return."""

    def __init__(self, model: nn.Module, batch: Batch, variables: Any = None):
        def loss(output: Output, labels: jax.Array) -> jax.Array:
            auxiliary = sum(cross_entropy(logits, labels) for logits in output.auxiliary)
            return cross_entropy(output.logits, labels) + AUXILIARY * auxiliary

        self.batch = jax.device_put(batch)
        optimizer, key = sgd(momentum=MOMENTUM), jax.random.key(0)
        self.state = make_state(model, optimizer, key=key, image_shape=batch["image"].shape)
        if variables is not None:
            self.state = self.state.replace(**jax.tree.map(jnp.array, variables))
        self.uncompiled = make_train_step(
            model,
            optimizer,
            loss,
            schedule=constant(RATE),
            prepare=lambda key, batch: (batch["image"], batch["label"]),
            key=key,
        )
        self.logits = jax.jit(lambda variables, images: model.apply(variables, images).logits)

    @cached_property
    def step(self) -> jax.stages.Compiled:
        """Compiled when the first step asks for it."""
        return jax.jit(self.uncompiled, donate_argnums=0).lower(self.state, self.batch).compile()

    def train(self) -> tuple[float, float]:
        """One step -> its loss and gradient norm."""
        self.state, scalars = jax.block_until_ready(self.step(self.state, self.batch))
        return float(scalars["loss"]), float(scalars["gradient_norm"])

    def predict(self) -> np.ndarray:
        """(B, H, W, N) logits."""
        return jax.block_until_ready(self.logits(self.state.variables, self.batch["image"]))

    def peak(self) -> int:
        """Bytes on the GPU."""
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]

    def planned(self) -> int:
        """Bytes of a training step's arguments, which its results overwrite, and temporaries."""
        memory = self.step.memory_analysis()
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes


class PyTorch:
    """The same in PyTorch."""

    def __init__(self, net: torch.nn.Module, batch: Batch, dtype: str, *, compiled: bool = False):
        device = "cuda" if torch.cuda.is_available() else "cpu"

        def predict(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                return tuple(logits.float() for logits in self.net(images))

        def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            losses = [F.cross_entropy(x, labels, ignore_index=255) for x in predict(images)]
            return losses[0] + AUXILIARY * sum(losses[1:])

        self.net = net.to(device, memory_format=torch.channels_last)
        self.images = torch.tensor(batch["image"], device=device).permute(0, 3, 1, 2)
        self.labels = torch.tensor(batch["label"], device=device, dtype=torch.int64)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
        self.logits = torch.compile(predict) if compiled else predict
        self.loss = torch.compile(loss) if compiled else loss
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def train(self) -> float:
        """One step -> its loss; the gradients stay."""
        self.net.train()
        self.optimizer.zero_grad()
        loss = self.loss(self.images, self.labels)
        loss.backward()
        self.optimizer.step()
        self.wait()
        return float(loss.detach())

    @torch.inference_mode()
    def predict(self) -> torch.Tensor:
        """(B, N, H, W) logits."""
        self.net.eval()
        (logits,) = self.logits(self.images)
        self.wait()
        return logits

    def peak(self) -> int:
        """Bytes on the GPU."""
        return torch.cuda.max_memory_allocated()


def check(name: str, settings: Settings) -> None:
    """Raise where the two networks of a pair are not the same."""
    jax.config.update("jax_enable_x64", True)
    settings = settings._replace(size=64, dtype="float64", dropout=0.0)
    pair, batch = PAIRS[name](settings), make_batch(settings)
    batch["image"] = batch["image"].astype(np.float64)
    theirs = PyTorch(pair.theirs().double(), batch, "float64")
    tensors = {name: tensor.cpu().numpy() for name, tensor in theirs.net.state_dict().items()}
    table = pair.table(tensors)
    # The layouts take biases before a batch norm off its mean; these networks have none.
    names = {name for entry in table.entries.values() for name in entry.names}
    tensors |= {name: np.float32(0) for name in names - set(tensors) if name.endswith(".bias")}
    shapes = jax.eval_shape(pair.ours.init, jax.random.key(0), batch["image"])
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    ours = Segjax(pair.ours, batch, fill(variables, tensors, table))

    logits, expected = ours.predict(), theirs.predict().permute(0, 2, 3, 1).cpu().numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.ptp(expected))
    scalars, loss = ours.train(), theirs.train()
    gradients = [
        p.grad.norm(dtype=torch.float64) for p in theirs.net.parameters() if p.grad is not None
    ]
    norm = float(torch.stack(gradients).norm())
    np.testing.assert_allclose(scalars, (loss, norm), rtol=1e-5)


# In the process of a contender: the contender, and what its memory's peak was before.
contender: Segjax | PyTorch
before: int


def resident_peak() -> int:
    """Bytes, since the process began."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def device_name() -> str:
    """Of the device that JAX uses; raise where PyTorch uses another."""
    ours = jax.devices()[0].device_kind
    theirs = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if ours != theirs:
        raise SystemExit(f"JAX would run on {ours} and PyTorch on {theirs}.")
    cores = f"{os.cpu_count()} cores, {platform.machine()}"
    return f"{ours} ({cores})"


def enter(title: str, name: str, settings: Settings) -> None:
    """Make a contender, by a title of CONTENDERS."""
    global contender, before
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True  # as XLA, which tries algorithms too
    before = resident_peak()
    pair, batch = PAIRS[name](settings), make_batch(settings)
    if title == "segjax":
        contender = Segjax(pair.ours, batch)
    else:
        compiled = title == "torch.compile"
        contender = PyTorch(pair.theirs(), batch, settings.dtype, compiled=compiled)


def seconds(verb: str) -> float:
    """What "train" or "predict" takes."""
    start = time.perf_counter()
    try:
        getattr(contender, verb)()
    except Exception as error:  # those of compilers do not travel between processes
        raise RuntimeError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from None
    return time.perf_counter() - start


def memory() -> str:
    """GiB, up to now."""
    peak = contender.peak() if torch.cuda.is_available() else resident_peak() - before
    planned = f" ({contender.planned() / 2**30:.2f})" if isinstance(contender, Segjax) else ""
    return f"{peak / 2**30:.2f}{planned}"


def process() -> ProcessPoolExecutor:
    """A fresh process, with JAX and PyTorch imported and nothing done."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def measure(name: str, settings: Settings, runs: int) -> None:
    """Check a pair of networks and print its rows."""
    with process() as pool:
        pool.submit(check, name, settings).result()
    with ExitStack() as stack:
        pools = {title: stack.enter_context(process()) for title in CONTENDERS}
        for title, pool in pools.items():
            pool.submit(enter, title, name, settings).result()
        cells: dict[str, list[str]] = {title: [] for title in pools}
        for verb in ("train", "predict"):
            firsts = {}
            for title, pool in [*pools.items()]:
                try:
                    firsts[title] = pool.submit(seconds, verb).result()
                except RuntimeError as error:
                    if title != "torch.compile":
                        raise
                    cells[title] = [str(error)]
                    del pools[title]
            times: dict[str, list[float]] = {title: [] for title in pools}
            for _ in range(runs):
                for title, pool in pools.items():
                    times[title].append(pool.submit(seconds, verb).result())
            for title, pool in pools.items():
                median = statistics.median(times[title])
                cells[title] += [
                    f"{median:.3f} ({min(times[title]):.3f})",
                    f"{max(firsts[title] - median, 0):.1f}",
                ]
                if verb == "train":
                    cells[title].append(pool.submit(memory).result())
    for title, row in cells.items():
        print(f"| {name} | {title} | {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=[*PAIRS], choices=PAIRS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224, help="side in pixels, a multiple of 16")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shrink", type=int, default=1, help="divides every width")
    options = parser.parse_args()
    settings = Settings(options.batch, options.size, options.dtype, options.shrink)

    # For the processes to come.
    os.environ |= {
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # of a GPU that several of them share
    }
    with process() as pool:
        device = pool.submit(device_name).result()
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch"))
    picture = f"{options.batch}×{options.size}×{options.size}×3"
    print(f"`{shlex.join(['python', *sys.argv])}`: {device}, {versions}; {picture},")
    print(f"{options.dtype}, {CLASSES} classes, median (least) of {options.runs} runs, seconds.\n")
    print("| network | | training step | first | peak, GiB | prediction | first |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name in options.networks:
        measure(name, settings, options.runs)


if __name__ == "__main__":
    main()
