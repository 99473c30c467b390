"""The verb that draws what a recipe's augmentation makes of its pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from segjax.commands.checks import check_outputs, files_of, make_folder, save_png
from segjax.commands.step import make_prepare
from segjax.data import pipeline
from segjax.data.audit import evenly
from segjax.evaluation import visualise

if TYPE_CHECKING:
    from segjax.recipe import Recipe

_SHEET = (4, 4)  # training pictures and augmentations of each on a sheet


def show_augment(recipe: "Recipe", out: Path) -> None:
    """Draw a few training pictures with their labels, each beside what augmentation makes of it.

    Args:
        recipe: whose training data and `augment` are shown, as its network is given them.
        out: the PNG to write.

    Raises:
        SegjaxError: what is wrong with the data.
    """
    source = recipe.source("train")
    check_outputs([(out, "its training pictures")], files_of(source))
    make_folder(out.parent)
    prepare = make_prepare(recipe, margin=cast(Any, recipe.model()).geometry.margin)
    draw, key = jax.jit(lambda key, batch: prepare(key, batch)[1]), jax.random.key(recipe.seed)
    rows = []
    for record in evenly(len(source), _SHEET[0]):
        example = pipeline.read_example(source, record)
        epochs = np.arange(_SHEET[1])
        batch = pipeline.pad_to_canvas([example] * len(epochs), recipe.canvas)
        drawn = draw(key, batch | {"epoch": epochs, "record": np.full(len(epochs), record)})
        pairs = [(example["image"], example["label"])]
        pairs += zip(np.clip(drawn.image, 0, 255), drawn.label, strict=True)
        sizes = ["×".join(map(str, label.shape)) for label in (example["label"], drawn.label[0])]
        rows.append((f"{example['id']}    {sizes[0]}, augmented {sizes[1]}", pairs))
    save_png(visualise.augmentation_sheet(rows, source.classes, source.palette), out)
    print(f"{out}: pictures on the left, beside each {_SHEET[1]} augmentations of it.")
