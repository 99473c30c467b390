"""Foreign tensors -> variables of a network, by a table; nothing is skipped silently.

A layout is a function that takes a network and gives its `Table`. This file knows no layout.
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax.errors import SegjaxError
from segjax.models.layers import adapt_stem

Tensors = Mapping[str, np.ndarray]


class Entry(NamedTuple):
    """Where one leaf of our variables comes from.

    names: of the foreign tensors, as many as `convert` takes.
    convert: those tensors -> ours; for instance `conv`. What it raises as SegjaxError is listed
        with the shapes.
    stem: whether it is the kernel of the first convolution, which `adapt_stem` brings from three
        colours to our input channels.
    """

    names: tuple[str, ...]
    convert: Callable[..., np.ndarray]
    stem: bool = False


class Table(NamedTuple):
    """One layout, for one network.

    entries: our path, as "params/down_0/conv_0/kernel", -> where it comes from.
    unused: patterns of foreign names that hold no learned weight, as "*.num_batches_tracked". A
        layout drops nothing else: whatever was learned is the caller's to leave.
    """

    entries: Mapping[str, Entry]
    unused: tuple[str, ...] = ()


def fill(
    variables: Mapping[str, Any], tensors: Tensors, table: Table, *, expected: Sequence[str] = ()
) -> dict[str, Any]:
    """Variables with every leaf that the table names taken from the tensors.

    Args:
        variables: of the network, arrays; those of `model.init`.
        tensors: foreign names -> arrays; those of `read`.
        table: of the layout.
        expected: patterns (`*` any text) of our paths that keep their value, because the tensors
            lack them or have another shape, and of foreign names that are left over.

    Returns:
        The same tree, of NumPy arrays in the variables' dtypes.

    Raises:
        SegjaxError: lists all that is missing, of another shape, or left over, unless expected.
    """
    ours = flatten_dict(dict(variables), sep="/")
    filled, wrong, used = {}, [], set()

    def is_expected(name: str, *more: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in (*expected, *more))

    for path, leaf in ours.items():
        entry = table.entries.get(path, Entry((), np.asarray))
        lacking = [name for name in entry.names if name not in tensors]
        used |= set(entry.names)
        problem = None
        if not entry.names:
            problem = f"missing: {path}: the layout has nothing for it"
        elif lacking:
            problem = f"missing: {path} {leaf.shape}: no {', '.join(lacking)}"
        else:
            shapes = [np.shape(tensors[name]) for name in entry.names]
            try:
                tensor = np.asarray(entry.convert(*(tensors[n] for n in entry.names)))
                if entry.stem and tensor.shape[2] == 3:
                    tensor = adapt_stem(tensor, leaf.shape[2])
                filled[path] = tensor
                got, said = tensor.shape, f", that is {tensor.shape}"
            except SegjaxError as error:
                got, said = None, f", {error}"
            except (ValueError, IndexError):  # as many axes as it takes are not there
                got, said = None, ""
            if got != leaf.shape:
                named = zip(entry.names, shapes, strict=True)
                have = ", ".join(f"{name} {shape}" for name, shape in named)
                problem = f"other shape: {path} {leaf.shape}: {have}{said}"
        if problem:
            filled[path] = np.asarray(leaf)
            if not is_expected(path):
                wrong.append(problem)
        filled[path] = filled[path].astype(leaf.dtype)
    wrong += [
        f"left over: {name} {np.shape(tensors[name])}"
        for name in tensors
        if name not in used and not is_expected(name, *table.unused)
    ]
    if wrong:
        lines = "\n  ".join(wrong)
        raise SegjaxError(
            f"The weights do not fit the network:\n  {lines}\nSet the network's fields to those "
            "that the weights were made with, or name what is meant to differ in `expected`, with "
            "* for any text."
        )
    return unflatten_dict({path: filled[path] for path in ours}, sep="/")


def same(tensor: np.ndarray) -> np.ndarray:
    """A tensor as it is: biases, norms, kernels that are HWIO already."""
    return tensor


def conv(tensor: np.ndarray) -> np.ndarray:
    """PyTorch's and Caffe's convolution kernel OIHW -> HWIO."""
    return tensor.transpose(2, 3, 1, 0)


def bgr_conv(tensor: np.ndarray) -> np.ndarray:
    """Such a kernel for BGR pictures -> HWIO for RGB ones."""
    return conv(tensor)[:, :, ::-1]


def linear(tensor: np.ndarray) -> np.ndarray:
    """PyTorch's linear weight (out, in) -> (in, out)."""
    return tensor.T


def deconv(tensor: np.ndarray) -> np.ndarray:
    """PyTorch's and Caffe's transposed convolution kernel IOHW -> (H, W, I, O), not flipped."""
    return tensor.transpose(2, 3, 0, 1)


def torch_norm(ours: str, theirs: str) -> dict[str, Entry]:
    """The entries of a batch norm: its path below "params" and "batch_stats", PyTorch's name."""
    return {
        f"params/{ours}/scale": Entry((f"{theirs}.weight",), same),
        f"params/{ours}/bias": Entry((f"{theirs}.bias",), same),
        f"batch_stats/{ours}/mean": Entry((f"{theirs}.running_mean",), same),
        f"batch_stats/{ours}/var": Entry((f"{theirs}.running_var",), same),
    }


def torch_conv(ours: str, theirs: str, *, bias: bool = True) -> dict[str, Entry]:
    """The entries of a convolution: its path below "params", PyTorch's name."""
    entries = {f"params/{ours}/kernel": Entry((f"{theirs}.weight",), conv)}
    return entries | ({f"params/{ours}/bias": Entry((f"{theirs}.bias",), same)} if bias else {})
