"""Draws the pictures of the site from experiments/nuclei: python docs/draw.py."""

import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from segjax.data import Folder, Weighted
from segjax.inference import tiles
from segjax.models import UNet

ROOT = Path(__file__).parents[1]
PICTURES = Path(__file__).parent / "pictures"
BACKGROUND, ORANGE = (0, 0, 0), (240, 160, 40)


def crowded(nuclei: Folder) -> int:
    """The picture of the most nuclei."""
    return max(range(len(nuclei)), key=lambda i: nuclei[i]["instances"].max())


def draw_augment() -> None:
    """The sheet of the demo's show-augment, at a size for a page."""
    sheet = PICTURES / "augment.png"
    script = ROOT / "experiments/unet_nuclei.py"
    subprocess.run([sys.executable, script, "show-augment", "--out", sheet], check=True)
    with Image.open(sheet) as drawn:
        drawn.thumbnail((1000, 1000))
        drawn.quantize(128).save(sheet, optimize=True)


def draw_weight_map(nuclei: Folder) -> None:
    """A picture, its instances with gaps between them, and the weight of each pixel."""
    i = crowded(nuclei)
    image, instances = nuclei[i]["image"], nuclei[i]["instances"]
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    axes[0].imshow(image / image.max())
    axes[0].set_title("picture")
    shuffled = np.random.default_rng(0).permutation(instances.max()) + 1
    numbers = np.concatenate([[0], shuffled])[instances]
    axes[1].imshow(np.ma.masked_equal(numbers, 0), cmap="prism", interpolation="none")
    axes[1].set_facecolor("black")
    axes[1].set_title("instances")
    drawn = axes[2].imshow(Weighted(nuclei)[i]["weight"], cmap="magma")
    axes[2].set_title("weight of each pixel in the loss")
    figure.colorbar(drawn, ax=axes[2], shrink=0.9)
    finish(figure, axes, "weight_map.png")


def draw_tiles(nuclei: Folder) -> None:
    """What a tile computes and what is kept of it, for a U-Net of three levels."""
    image = nuclei[crowded(nuclei)]["image"]
    plan = tiles.plan(UNet(2, widths=(4, 8, 16)), image.shape[:2], 136)
    figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
    axis.imshow(image / image.max())
    for top, bottom in plan.rows.kept:
        for left, right in plan.columns.kept:
            width, height = right - left, bottom - top
            axis.add_patch(Rectangle((left, top), width, height, fill=False, color="0.7", lw=1))
    row, column = 1, 1
    (top, bottom), (left, right) = plan.rows.kept[row], plan.columns.kept[column]
    kept = Rectangle((left, top), right - left, bottom - top, color="tab:orange", alpha=0.45)
    axis.add_patch(kept)
    corner = plan.columns.starts[column], plan.rows.starts[row]
    size = plan.columns.tile, plan.rows.tile
    computed = Rectangle(corner, *size, fill=False, color="tab:cyan", lw=2, ls="--")
    axis.add_patch(computed)
    axis.legend([computed, kept], ["what a tile computes", "what is kept of it"], loc="upper right")
    finish(figure, [axis], "tiles.png")


def finish(figure: plt.Figure, axes: list[plt.Axes], name: str) -> None:
    """Without ticks, to a file."""
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(PICTURES / name, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    demo = Folder(
        ROOT / "experiments/nuclei",
        classes=("background", "nucleus"),
        palette=(BACKGROUND, ORANGE),
        split="train",
        instances=True,
    )
    draw_augment()
    draw_weight_map(demo)
    draw_tiles(demo)
