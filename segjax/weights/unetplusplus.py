"""U-Net++'s checkpoints: 4uiiurz1/pytorch-nested-unet and the authors' Keras network. For other
classes than theirs, name "params/head_*" in `expected`.

pytorch-nested-unet's `train.py` normalises for ImageNet and divides by 255 once more: (x - MEAN) /
DEVIATION of values in 0–255. Trap: on BGR pictures, as OpenCV reads them, but with the numbers for
RGB in this order; turn ours by `images[..., ::-1]`. The authors' `helper_functions.py` says nothing
of what its network takes: ask who trained the weights.
"""

import numpy as np

from segjax.models.unetplusplus import UNetPlusPlus
from segjax.weights.table import Entry, Table, conv, same, torch_conv, torch_norm

MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395 * 255, 57.12 * 255, 57.375 * 255)


def nested_unet(model: UNetPlusPlus) -> Table:
    """The state dict of 4uiiurz1/pytorch-nested-unet's NestedUNet.

    Its convolutions have biases that the batch norm after them takes away again. Ours have none:
    they are subtracted from the running means. (x + bias - mean = x - (mean - bias).)

    Args:
        model: UNetPlusPlus(N, up="bilinear_corners"), and deep_supervision=False where theirs is.

    Source: `archs.py`.
    """
    entries: dict[str, Entry] = {}
    for i, j in _nodes(model):
        for n in range(2):
            ours, theirs = f"x_{i}_{j}/conv_{n}", f"conv{i}_{j}.conv{n + 1}"
            norm, their_norm = f"x_{i}_{j}/norm_{n}", f"conv{i}_{j}.bn{n + 1}"
            entries |= torch_conv(ours, theirs, bias=False) | torch_norm(norm, their_norm)
            names = f"{their_norm}.running_mean", f"{theirs}.bias"
            entries[f"batch_stats/{norm}/mean"] = Entry(names, np.subtract)

        def up_first(tensor: np.ndarray, skips: int = j * model.widths[i]) -> np.ndarray:
            """Theirs concatenates the upsampled map last, ours first."""
            return np.roll(conv(tensor), -skips, axis=2)

        first = Entry((f"conv{i}_{j}.conv1.weight",), up_first)
        entries[f"params/x_{i}_{j}/conv_0/kernel"] = first
    entries["params/x_0_0/conv_0/kernel"] = Entry(("conv0_0.conv1.weight",), conv, stem=True)
    for j in model.heads:
        entries |= torch_conv(f"head_{j}", f"final{j}" if model.deep_supervision else "final")
    return Table(entries, unused=("*.num_batches_tracked",))


def keras(model: UNetPlusPlus) -> Table:
    """The layers of the authors' Keras network: "conv11_1/kernel", "up12/bias", "output_4/kernel".

    Layer "conv{i+1}{j+1}_{1,2}" is a convolution of x[i, j], "up{i+1}{j+1}" its up-convolution,
    "output_{j}" head j. Names are of the layer and its weight, without ":0". Where ours has fewer
    heads, "output_*" are left over.

    Args:
        model: UNetPlusPlus(N, norm="none"), and deep_supervision=False where theirs is.

    Source: `keras/helper_functions.py` (UNetPlusPlus) of MrGiovanni/UNetPlusPlus.
    """
    layers = {f"head_{j}": f"output_{j}" for j in model.heads}
    ups = {}
    for i, j in _nodes(model):
        layers |= {f"x_{i}_{j}/conv_{n}": f"conv{i + 1}{j + 1}_{n + 1}" for n in range(2)}
        if j:
            ups[f"up_{i}_{j}"] = f"up{i + 1}{j + 1}"

    def up_kernel(tensor: np.ndarray) -> np.ndarray:
        """Keras' transposed convolution kernel (H, W, O, I) -> (H, W, I, O), neither flipped."""
        return tensor.swapaxes(2, 3)

    entries = {f"params/{a}/kernel": Entry((f"{b}/kernel",), same) for a, b in layers.items()}
    entries |= {f"params/{a}/kernel": Entry((f"{b}/kernel",), up_kernel) for a, b in ups.items()}
    entries["params/x_0_0/conv_0/kernel"] = Entry(("conv11_1/kernel",), same, stem=True)
    biases = {**layers, **ups}.items()
    return Table(entries | {f"params/{a}/bias": Entry((f"{b}/bias",), same) for a, b in biases})


def _nodes(model: UNetPlusPlus) -> list[tuple[int, int]]:
    """The (i, j) of every x[i, j]."""
    levels = len(model.widths)
    return [(i, j) for i in range(levels) for j in range(levels - i)]
