"""What a step will take, told from its jaxpr in seconds, where a compiler takes minutes.

XLA writes to memory what its large operations (products, convolutions, poolings, loops) read and
give. The rest (sums, activations, normalisations, casts) it computes on the way between them, again
for the gradient where that keeps less. So is counted here: an array counts from the operation that
gives it to the last one that reads it, or what is computed from it. Compilers do better and worse
than that, and lay arrays out with gaps: docs/cost.md shows how near it comes.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core


class Reckoned(NamedTuple):
    """In bytes: the most that lives at once within the program, and what it reads and writes."""

    temporaries: int
    traffic: int


def reckon(step: Any, *arguments: Any) -> Reckoned:
    """What a function takes on one device, traced for shapes.

    Args:
        step: a pure function; what it returns takes the place of its arguments.
        arguments: trees of `jax.ShapeDtypeStruct`.
    """
    jaxpr = jax.make_jaxpr(step)(*arguments)
    return _reckon(jaxpr.jaxpr)


# What is written as a whole, and reads what is written.
_LARGE = {
    "dot_general",
    "conv_general_dilated",
    "reduce_window_max",
    "reduce_window_sum",
    "reduce_window",
    "select_and_scatter_add",
    "scan",
    "while",
    "sort",
    "top_k",
    "gather",
    "scatter",
    "scatter_add",
    "dynamic_update_slice",
    "cumsum",
    "fft",
}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin", "reduce_prod"}


class _Operation(NamedTuple):
    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    within: Reckoned  # of a loop's body
    trips: int


class _Program:
    """A jaxpr's operations in their order, calls inlined; arrays are numbers."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.operations: list[_Operation] = []

    def array(self, aval: Any) -> int:
        self.sizes.append(_bytes(aval))
        return len(self.sizes) - 1

    def add(self, jaxpr: Any, arguments: Sequence[int | None]) -> list[int | None]:
        """Inline a jaxpr; returns its results. None is a constant of the program."""
        known: dict[Any, int | None] = dict(
            zip((*jaxpr.constvars, *jaxpr.invars), arguments, strict=True)
        )

        def of(variables: Iterable[Any]) -> list[int | None]:
            return [None if isinstance(v, core.Literal) else known[v] for v in variables]

        for eqn in jaxpr.eqns:
            reads = of(eqn.invars)
            inner, skipped = _inner(eqn)
            if inner is not None:
                open_, consts = _opened(inner)
                writes = self.add(open_, [*[None] * consts, *reads[skipped:]])
                known.update(zip(eqn.outvars, writes, strict=True))
                continue
            outs = [self.array(v.aval) for v in eqn.outvars]
            known.update(zip(eqn.outvars, outs, strict=True))
            name = eqn.primitive.name
            within, trips = _loop(eqn)
            real = tuple(a for a in reads if a is not None)
            self.operations.append(_Operation(name, real, tuple(outs), within, trips))
        return of(jaxpr.outvars)


def _reckon(jaxpr: Any, *, free_results: bool = True) -> Reckoned:
    program = _Program()
    arguments = [program.array(v.aval) for v in (*jaxpr.constvars, *jaxpr.invars)]
    results = {a for a in program.add(jaxpr, arguments) if a is not None}
    sizes = program.sizes

    uses = [0] * len(sizes)
    large: set[int] = set()  # what a large operation reads
    for operation in program.operations:
        for array in operation.reads:
            uses[array] += 1
        if operation.name in _LARGE:
            large.update(operation.reads)

    # What is kept in memory to have an array: itself, or what it is computed from.
    roots: list[frozenset[int]] = [frozenset()] * len(sizes)
    for array in arguments:
        roots[array] = frozenset([array])
    born: dict[int, int] = {}
    dies: dict[int, int] = {}
    traffic = 0
    extra = [0] * len(program.operations)
    for i, (name, reads, writes, within, trips) in enumerate(program.operations):
        sources = frozenset().union(*(roots[a] for a in reads))
        weight = sum(sizes[a] for a in sources)
        stored = name in _LARGE or name in _REDUCTIONS
        for array in writes:
            # A sum of many is not put off until all of them are there.
            again = weight > sizes[array] * (1 if uses[array] > 1 else 2)
            if stored or array in large or array in results or again:
                roots[array] = frozenset([array])
                born[array] = i
            else:
                roots[array] = sources
        if any(array in born for array in writes):
            dies.update(dict.fromkeys(sources, i))
            written = sum(sizes[a] for a in writes if a in born)
            traffic += weight + written if name != "scan" else 0
        extra[i] = within.temporaries
        traffic += within.traffic * trips

    change = [0] * (len(program.operations) + 1)
    for array, begin in born.items():
        if free_results and array in results:
            continue
        change[begin] += sizes[array]
        end = len(program.operations) if array in results else dies.get(array, begin) + 1
        change[end] -= sizes[array]
    peak = now = 0
    for i, extra_now in enumerate(extra):
        now += change[i]
        peak = max(peak, now + extra_now)
    return Reckoned(peak, traffic)


def _inner(eqn: Any) -> tuple[Any, int]:
    """The jaxpr that an equation calls once, and how many of its operands are not its arguments."""
    if eqn.primitive.name == "cond":
        return eqn.params["branches"][-1], 1  # of a form by platform, that of accelerators
    if eqn.primitive.name in ("scan", "while"):
        return None, 0
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return eqn.params[name], 0
    return None, 0


def _opened(jaxpr: Any) -> tuple[Any, int]:
    """A jaxpr and how many constants come before its arguments."""
    opened = getattr(jaxpr, "jaxpr", jaxpr)
    return opened, len(opened.constvars)


def _loop(eqn: Any) -> tuple[Reckoned, int]:
    """What a loop's body takes each time, and how often it runs; once where that is open."""
    if eqn.primitive.name == "scan":
        body = _reckon(eqn.params["jaxpr"].jaxpr)
        return body, eqn.params["length"]
    if eqn.primitive.name == "while":
        return _reckon(eqn.params["body_jaxpr"].jaxpr), 1
    return Reckoned(0, 0), 1


def _bytes(aval: Any) -> int:
    if not hasattr(aval, "shape"):
        return 0
    width = getattr(aval.dtype, "itemsize", 4)
    return math.prod(aval.shape) * int(width)


def bytes_per_device(tree: Any) -> int:
    """Of arrays or their shapes, as their shardings lay them out; exact."""

    def size(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
        return math.prod(shape) * np.dtype(leaf.dtype).itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))
