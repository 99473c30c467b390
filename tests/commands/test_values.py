"""Values that no field can have are refused in a sentence, before anything is made of them."""

import math
from pathlib import Path

import jax
import psutil
import pytest
from recipes import recipe_of
from tiny import TinyRecipe

from segjax.commands.checks import check_batch
from segjax.errors import SegjaxError
from segjax.models import FCN, SETRPUP, UNet, UNetPlusPlus

HUGE = 10**20
VALUES = {
    "steps": [-1, 1e20, HUGE, True, "many", 2**31],
    "batch_size": [0, -1, 10**8, HUGE, 1.5, "8", None],
    "canvas": [(0, 32), (-32, 32), (10**6, 10**6), (32,), 32, (HUGE, 32), (32.5, 32), (), None],
    "crop": [(0, 0), (-16, -16), (10**6, 10**6), (32,), (32, 32, 3), "32", (True, 32)],
    "epochs": [-1.0, 0.0, math.nan, math.inf],
    "learning_rate": [math.nan, -1.0, math.inf, 1e39, "fast", None],
    "losses": [(), ("no",), ""],
    "weight_decay": [-1.0, math.nan, math.inf],
    "clip": [0.0, math.nan, -1.0],
    "ema": [0.0, 1.0, math.nan, 2.0, -1.0],
    "channels": [0, -1, 10**6, HUGE, 3.0],
    "compute": ["float8", "", None],
    "seed": [-1, 2**32, 2**63, 2**64, 10**30, 1.5],
    "buckets": [((0, 0),), ((-1, 3),), (32,), ((10**6, 10**6),), ((32, 32), (1,))],
    "workers": [0, -1, 10**6],
    "cache": ["", "ram", True],
    "evaluate_every": [0, -1, HUGE],
    "patience": [0, -1],
    "log_every": [0, -5, HUGE],
}
OF_NETWORKS = [
    (UNet, {"widths": widths})
    for widths in [(), (0, 8), (-4, 8), (10**8,), (4.5, 8), (4,) * 33, 8, ("4",)]
]
OF_NETWORKS += [(UNetPlusPlus, {"widths": widths}) for widths in [(), (0, 8), (HUGE, 8)]]
OF_NETWORKS += [(FCN, {"widths": widths}) for widths in [(), (4,), (4,) * 6, (0, 4, 4, 8, 8)]]
OF_NETWORKS += [(FCN, {"classifier_width": width}) for width in (0, -1, 10**9)]
OF_NETWORKS += [(kind, {"num_classes": n}) for kind in (UNet, FCN, SETRPUP) for n in (0, -1, 1.0)]
OF_NETWORKS += [
    (SETRPUP, fields)
    for fields in [
        *({"width": width} for width in (0, -8, 7, 10**9)),
        *({"depth": depth} for depth in (0, -1, 10**6)),
        *({"heads": heads} for heads in (0, 3, -2)),
        *({"channels": channels} for channels in (0, -1)),
        *({"auxiliary_taps": taps} for taps in ((24,), (-1,), 3)),
        *({"patch": patch} for patch in (0, -1)),
        *({"grid": grid} for grid in ((0, 1), (24,))),
    ]
]


@pytest.mark.parametrize(
    "name, value", [(name, value) for name, values in VALUES.items() for value in values], ids=str
)
def test_a_field_of_every_recipe(name, value):
    with pytest.raises(SegjaxError, match=rf"{name} is .*; expected ") as told:
        TinyRecipe(data=Path(), **{name: value})
    assert str(told.value).count("\n") == 0


@pytest.mark.parametrize("kind, fields", OF_NETWORKS, ids=str)
def test_a_field_of_a_network(kind, fields):
    with pytest.raises(SegjaxError, match=rf"{kind.__name__}: .* (expected|does not divide)"):
        kind(**({"num_classes": 3} | fields))


def test_too_many_levels_do_not_hang():
    with pytest.raises(SegjaxError, match="too many levels"):
        _ = UNet(3, widths=(4,) * 30).geometry


def test_what_they_may_be():
    TinyRecipe(data=Path(), seed=2**32 - 1, buckets=((1, 1), [2**16, 3]), learning_rate=0)
    SETRPUP(3, auxiliary_taps=(), width=8, heads=2, depth=1)
    UNet(3, widths=[4, 8])


def test_a_batch_beyond_the_memory_is_refused_before_it_is_made(monkeypatch):
    recipe = TinyRecipe(data=Path(), batch_size=1000, canvas=(1000, 1000))
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(total=14 * 2**30))
    with pytest.raises(SegjaxError, match="1,000 pictures of 1000×1000 take 15 GiB as they are re"):
        check_batch(recipe)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    check_batch(recipe)


@pytest.mark.parametrize("name", ["unet_shapes", "fcn8s_shapes"])
@pytest.mark.parametrize("field", ["pictures", "held_out"])
@pytest.mark.parametrize("number", [0, -1])
def test_no_shapes(name, field, number):
    recipe = recipe_of(name)(**{field: number})
    with pytest.raises(SegjaxError):
        recipe.source("train" if field == "pictures" else "val")
