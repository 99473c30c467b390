"""What a training step takes, from the compiler or reckoned without it; nothing runs."""

import math
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

Collectives = dict[str, tuple[int, int]]


class Cost(NamedTuple):
    """What a compiled step needs; memory in bytes per device, of which `aliased` counts twice.

    parameters: numbers, of the whole network.  arguments: state and batch.  temporaries: all that
    lives within the step.  outputs: the state after it.  aliased: outputs that take the place of
    arguments, the donated state.  flops, bytes_accessed: per device, a loop's body counted once.
    collectives: kind -> (how many, bytes that each device gives to them), a loop's body once.
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
    """
    started = time.perf_counter()
    compiled = lower(train_step, state, batch).compile()
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
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


def collectives(hlo: str) -> Collectives:
    """How often the devices talk to each other, in a compiled program's text: kind -> (n, bytes).

    An instruction's bytes are those of its operands: what each device gives. One that is split into
    a start and a done counts once, one in a loop's body once, whatever its trips.
    """
    found: Collectives = {}
    shapes = _shapes(hlo)
    for match in re.finditer(rf"= (.*?) ({_KINDS})(?:-start)?\((.*?)\)(?:, |\n|$)", hlo):
        _, kind, operands = match.groups()
        size = 0
        for operand in re.findall(r"%[\w.\-]+", operands):
            size += shapes.get(operand, 0)
        number, total = found.get(kind, (0, 0))
        found[kind] = (number + 1, total + size)
    return found


def _shapes(hlo: str) -> dict[str, int]:
    """Every instruction's bytes, by its name; a tuple's are its parts'."""
    lines = re.finditer(r"^\s*(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) [\w\-]+\(", hlo, re.MULTILINE)
    return {line[1]: _bytes(line[2]) for line in lines}


def _bytes(shape: str) -> int:
    """Of an array's or a tuple's type, such as `(f32[64]{0}, bf16[3,3]{1,0:T(8,128)})`."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        sides = [int(side) for side in dims.split(",") if side]
        total += math.prod(sides) * _width(dtype)
    return total


def _width(dtype: str) -> int:
    """Bytes of a number of HLO's type."""
    bits = re.sub(r"^(f|bf|s|u|c)(\d+).*", r"\2", dtype)
    return max(1, int(bits) // 8) if bits.isdigit() else np.dtype(bool).itemsize
