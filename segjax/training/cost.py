"""What a training step takes, from the compiler or reckoned without it; nothing runs."""

import importlib.util
import math
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from segjax.errors import SegjaxError
from segjax.training.devices import Device

Collectives = dict[str, tuple[int, int]]


class Cost(NamedTuple):
    """What a compiled step needs; memory in bytes per device, of which `aliased` counts twice.

    parameters: numbers, of the whole network.  arguments: state and batch.  temporaries: all that
    lives within the step.  outputs: the state after it.  aliased: outputs that take the place of
    arguments, the donated state.  flops, bytes_accessed: per device, a loop's body counted once.
    collectives: of `collectives`.
    """

    parameters: int
    arguments: float
    temporaries: float
    outputs: float
    compile_seconds: float
    aliased: float
    flops: float
    bytes_accessed: float
    collectives: Collectives

    @property
    def memory(self) -> float:
        """Bytes that the step occupies at its peak, per device."""
        return self.arguments + self.temporaries + self.outputs - self.aliased


class DoesNotFit(SegjaxError):
    """A step whose temporaries alone are more than the device's memory; both in GiB."""

    def __init__(self, need: float, room: float) -> None:
        super().__init__(
            f"The step needs {need:.2f} GiB for temporaries, of {room:.2f} GiB: take a smaller "
            "batch_size, memory=remat or shard=data, or a larger device."
        )
        self.need, self.room = need, room


class NoCompiler(SegjaxError):
    """What would compile for such a device is not installed."""


# What libtpu asks the machine for, which is no TPU's: it need not look.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def slice_of(topology: str) -> tuple[str, int]:
    """Of a TPU slice's name, such as "v5e:4x8": the generation and how many chips it has.

    Raises:
        SegjaxError: it is no such name.
    """
    match = re.fullmatch(r"(v4|v5e|v5p|v6e):(\d+)x(\d+)(?:x(\d+))?", topology)
    if not match or (bool(match[4]) and match[1] in ("v5e", "v6e")):
        raise SegjaxError(
            f"{topology!r} is no TPU slice. Expected a generation and its chips' rows and columns: "
            "v5e:1x1, v5e:2x2, v5e:4x8, … v6e:16x16; of v4 and v5p layers too: v4:2x2x4, v5p:4x4x8."
        )
    generation, *sides = match.groups(default="1")
    return generation, math.prod(int(side) for side in sides)


def slice_devices(topology: str) -> list[Any]:
    """The devices of a TPU slice that is not here, to compile for.

    Raises:
        NoCompiler: libtpu is not installed.
        SegjaxError: there is no such slice.
    """
    generation, _ = slice_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise NoCompiler(
            "To compile for a TPU takes its compiler, and no TPU: pip install 'segjax[tpu]'"
        )
    for name, value in _NO_TPU_HERE.items():
        os.environ.setdefault(name, value)
    # A host has 2×2 chips by libtpu's default; any slice may be of hosts of one chip.
    options: dict[str, Any] = {}
    if any(int(side) % 2 for side in re.findall(r"\d+", topology.partition(":")[2])[:2]):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # both cores as one device, as JAX runs a v4
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except jax.errors.JaxRuntimeError as error:
        raise SegjaxError(f"libtpu knows no slice {topology!r}: {error}") from error
    return list(found.devices)


def lower(train_step: Callable[..., Any], state: Any, batch: Any) -> jax.stages.Lowered:
    """The step as training runs it, donation included, traced for shapes alone."""
    if isinstance(train_step, partial):
        # The very program that training runs, which finds it in the compilation cache.
        jitted: Any = train_step.func
        return jitted.lower(state, batch, **train_step.keywords)
    return jax.jit(train_step, donate_argnums=0).lower(state, batch)


def step_cost(train_step: Callable[..., Any], state: Any, batch: Any) -> Cost:
    """Compile a step for shapes alone, without data, and ask the compiler what it takes.

    Args:
        train_step: of `make_train_step`.
        state, batch: trees of `jax.ShapeDtypeStruct` (with shardings, for several devices).

    Returns:
        A `Cost`; what a backend does not tell is NaN.

    Raises:
        DoesNotFit: a TPU's compiler found no way to fit it into the memory.
    """
    started = time.perf_counter()
    lowered = lower(train_step, state, batch)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        told = re.search(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", str(error))
        if told is None:
            raise
        raise DoesNotFit(float(told[1]), float(told[2])) from error
    seconds = time.perf_counter() - started
    return of_compiled(compiled, parameters=count(state.params), seconds=seconds)


def of_compiled(
    compiled: jax.stages.Compiled, *, parameters: int = 0, seconds: float = math.nan
) -> Cost:
    """What a compiled program takes, as its compiler has it."""
    memory: Any = compiled.memory_analysis()
    analysis: Any = compiled.cost_analysis() or {}

    def told(name: str) -> float:
        return getattr(memory, f"{name}_size_in_bytes", math.nan)

    return Cost(
        parameters=parameters,
        arguments=told("argument"),
        temporaries=told("temp"),
        outputs=told("output"),
        compile_seconds=seconds,
        aliased=told("alias"),
        flops=float(analysis.get("flops", math.nan)),
        bytes_accessed=float(analysis.get("bytes accessed", math.nan)),
        collectives=collectives(compiled.as_text() or ""),
    )


def count(params: Any) -> int:
    """How many numbers a tree holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def step_flops(train_step: Callable[..., Any], state: Any, batch: Any) -> float:
    """FLOPs of a step on all devices, as it stands before compilation; two for a multiply-add.

    The body of a loop counts once: give it a network that scans nothing.

    Args:
        train_step, state, batch: as of `step_cost`.
    """
    found: Any = jax.jit(train_step).lower(state, batch).cost_analysis()
    return float(found["flops"])


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_HEAD = re.compile(r"^(?:ENTRY )?(%?[\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?(%?[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:,|$)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


def collectives(hlo: str) -> Collectives:
    """How often the devices talk to each other, in a compiled program's text: kind -> (n, bytes).

    An instruction's bytes are those of its operands: what each device gives. One that is split into
    a start and a done counts once; one in a loop's body as often as the loop runs, where the
    compiler knows that, else once.
    """
    times = _times(hlo)
    sizes: dict[str, int] = {}
    found: Collectives = {}
    computation = ""
    for line in hlo.splitlines():
        if head := _HEAD.match(line):
            computation = head[1].lstrip("%")
        if not (match := _LINE.match(line)):
            continue
        name, shape, operation, operands = match.groups()
        sizes[name.lstrip("%")] = _bytes(shape)
        kind = operation.removesuffix("-start")
        if kind not in _KINDS.split("|"):
            continue
        size = sum(sizes.get(given, 0) for given in re.findall(r"%([\w.\-]+)", operands))
        if kind == "all-reduce" and "all-reduce-scatter" in computation:
            kind = "reduce-scatter"  # a TPU's fusion of the two
        number, total = found.get(kind, (0, 0))
        n = times(computation)
        found[kind] = (number + n, total + n * size)
    return found


def _times(hlo: str) -> Callable[[str], int]:
    """How often each computation of a program runs, by the trips of the loops around it."""
    callers: dict[str, tuple[str, int]] = {}
    computation = ""
    for line in hlo.splitlines():
        if head := _HEAD.match(line):
            computation = head[1].lstrip("%")
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        for word in re.finditer(
            r"(body|calls|to_apply|branch_computations)=\{?([%\w.\-, ]+)", line
        ):
            for called in word[2].split(","):
                n = int(trips[1]) if trips and word[1] == "body" else 1
                callers.setdefault(called.strip().lstrip("%"), (computation, n))

    def times(name: str) -> int:
        caller, n = callers.get(name, ("", 1))
        return n * times(caller) if caller else 1

    return times


def _bytes(shape: str) -> int:
    """Of an array's or a tuple's type, such as `(f32[64]{0}, bf16[3,3]{1,0:T(8,128)})`."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        sides = [int(side) for side in dims.split(",") if side]
        bits = re.sub(r"\D*(\d+).*", r"\1", dtype)
        total += math.prod(sides) * (int(bits) // 8 if bits.isdigit() else 1)  # pred is a byte
    return total


class Roofline(NamedTuple):
    """Seconds that a step takes at least, each part at the device's peak; they may overlap."""

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """Of the slowest part: a bound from below."""
        return max(self)

    @property
    def bound(self) -> str:
        """Which part that is."""
        return self._fields[self.index(self.seconds)]


def roofline(
    device: Device,
    *,
    flops: float,
    traffic: float,
    collectives: Collectives,
    devices: int,
    float32: bool,
) -> Roofline:
    """The least time for a device's share of a step.

    Args:
        device: of `devices`.
        flops, traffic: FLOPs and bytes of one device.
        collectives: of `Cost`, among all devices.
        devices: how many talk to each other.
        float32: whether products are of float32.
    """
    # What a device sends at least for each byte that it gives, on n of them.
    n = devices
    shares = {
        "all-reduce": 2 * (n - 1) / n,
        "all-gather": n - 1,
        "reduce-scatter": (n - 1) / n,
        "all-to-all": (n - 1) / n,
        "collective-permute": 1,
    }
    sent = sum(shares[kind] * size for kind, (_, size) in collectives.items())
    peak = device.flops_float32 if float32 else device.flops
    return Roofline(flops / peak, traffic / device.bandwidth, sent / device.link)
