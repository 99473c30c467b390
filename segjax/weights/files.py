"""Files of weights -> names and arrays, and our variables -> such a file. Nothing here runs code
that a file brings with it.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict

from segjax import cache_folder
from segjax.download import fetch
from segjax.errors import SegjaxError
from segjax.weights.table import Entry, Table, Tensors, same


def read(source: str | Path, *, sha256: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a weights file, by the names that they have there.

    Args:
        source: path or URL (http, https) of an .npz, .safetensors, .pth, .pt or .h5 file. PyTorch
            files need the extra `torch`, Keras files the extra `h5`. Of a PyTorch file the part
            "state_dict" or "model" is taken where it has one, and a "module." before every name is
            dropped; the names of a Keras file are those of the layers, as "conv1/kernel".
        sha256: of the file; needed for a URL, whose file is kept in ~/.cache/segjax/weights.

    Raises:
        SegjaxError: there is no such file, it is broken, of another kind, or holds more than
            arrays.
    """
    if str(source).startswith(("http://", "https://")):
        if sha256 is None:
            raise SegjaxError(f"{source}: name the file's SHA-256, by which it is verified.")
        path = fetch(str(source), cache_folder("weights"), sha256=sha256)
    else:
        path = Path(source)
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise SegjaxError(
            f"{path}: weights are read from {', '.join(_READERS)} files, got {path.suffix!r}."
        )
    if not path.is_file():
        raise SegjaxError(f"{path}: no such file.")
    try:
        tensors = reader(path)
    except ModuleNotFoundError as error:
        extra = {"torch": "torch", "h5py": "h5"}[str(error.name)]
        raise SegjaxError(
            f"{path}: reading it needs {error.name}; install it with pip install 'segjax[{extra}]'."
        ) from error
    except SegjaxError:
        raise
    except Exception as error:  # whatever a reader makes of a broken file
        raise SegjaxError(
            f"{path}: cannot be read: {error} Get the file again, or look whether it is what its "
            "name says."
        ) from error
    return tensors


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import torch

    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SegjaxError(
            f"{path}: is broken, or holds more than tensors, such as a whole pickled model, whose "
            "code is never run here. Save its state_dict() instead."
        ) from error
    if not isinstance(held, Mapping):
        raise SegjaxError(f"{path}: expected a state dict, got a {type(held).__name__}.")
    for part in ("state_dict", "model"):
        if isinstance(held.get(part), Mapping):
            held = held[part]
    prefix = "module." if all(name.startswith("module.") for name in held) else ""

    def array(value: Any) -> np.ndarray:
        if isinstance(value, torch.Tensor):
            # NumPy knows no bfloat16.
            value = value.float() if value.dtype == torch.bfloat16 else value
            return value.numpy()
        return np.asarray(value)

    return {name.removeprefix(prefix): array(value) for name, value in held.items()}


def _read_keras(path: Path) -> dict[str, np.ndarray]:
    import h5py

    found = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer_weights/"):
            # [model_weights/]layer/layer/kernel:0; the group of the layer comes first.
            within = name.removeprefix("model_weights/").split("/")[1:]
            found["/".join(within).removesuffix(":0")] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".h5": _read_keras,
}


def save(
    path: str | Path, variables: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write variables to a .safetensors file under their paths, "params/down_0/conv_0/kernel".

    `fill(variables, read(path), own(variables))` gives them back, bit for bit; `read_metadata` what
    was written beside them.
    """
    flat: Tensors = flatten_dict(dict(variables), sep="/")
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
    told = {"format": "segjax", **(metadata or {})}
    # Not save_file, whose files only their owner may read, whatever the umask: a server could not.
    Path(path).write_bytes(safetensors.numpy.save(arrays, metadata=told))


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a .safetensors file says of its tensors, text by name.

    Raises:
        SegjaxError: there is no such file, or it is broken or of another kind.
    """
    if not Path(path).is_file():
        raise SegjaxError(f"{path}: no such file.")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise SegjaxError(f"{path}: cannot be read: {error} Get the file again.") from error


def own(variables: Mapping[str, Any]) -> Table:
    """The layout of a file that `save` has written."""
    return Table({path: Entry((path,), same) for path in flatten_dict(dict(variables), sep="/")})
