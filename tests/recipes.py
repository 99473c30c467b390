"""Recipes run small, in this process: what their tests share."""

import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from segjax.recipe import Recipe, main
from segjax.training.checkpoint import Checkpoints

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
# As for a script that is run; some share what camvid.py has.
sys.path[:0] = [str(EXPERIMENTS), str(EXPERIMENTS / "papers")]
SCRIPTS = sorted(path for path in EXPERIMENTS.glob("*.py") if "main(" in path.read_text())
PAPERS = sorted(p for p in EXPERIMENTS.glob("papers/*.py") if "main(" in p.read_text())
SMALL = {
    "unet_shapes": "--canvas 32 32 --crop 32 32 --widths 4 8 --pictures 40 --held-out 9",
    "fcn8s_shapes": "--canvas 32 32 --crop 32 32 --widths 4 4 4 8 8 --classifier-width 8 "
    "--pictures 40 --held-out 9",
    "unet_isbi": "--canvas 40 44 --crop 32 32 --widths 4 8 --held-out 2",
    "unet_camvid": "--canvas 40 44 --crop 32 32 --widths 4 8",
    "fcn8s_camvid": "--canvas 40 44 --crop 32 32 --widths 4 4 4 8 8 --classifier-width 8",
    "setr_pup_camvid": "--canvas 40 44 --crop 32 32 --width 8 --depth 2 --heads 2 "
    "--decoder-channels 4 --auxiliary-taps 0 1",
    "unet_dsb2018": "--canvas 40 44 --crop 32 32 --widths 4 8",
    "unet_nuclei": "--canvas 40 44 --crop 32 32 --widths 4 8",
    "unetplusplus_dsb2018": "--canvas 40 44 --crop 32 32 --widths 4 8",
}
SMALL |= {
    "papers/unet_isbi": "--canvas 40 44 --crop 28 28 --widths 4 8 --held-out 2",
    "papers/unetplusplus_nuclei": "--canvas 40 44 --crop 32 32 --widths 4 8",
    "papers/setr_cityscapes": "--canvas 48 48 --crop 32 32 --width 8 --depth 2 --heads 2 "
    "--decoder-channels 4 --taps 0 1",
}
SMALL["papers/fcn_voc"] = SMALL["fcn8s_camvid"].replace("40 44 --crop 32 32", "48 48 --crop 48 48")
SMALL["fcn8s_voc"] = SMALL["fcn8s_camvid"] + " --buckets 40 44 48 48"
SMALL["ablation_fusion_camvid"] = SMALL["fcn8s_camvid"] + " --fusion concat"
SMALL["ablation_upsampling_camvid"] = SMALL["fcn8s_camvid"] + " --upsampling learned"


def recipe_of(name):
    """The Recipe class of a script in experiments/, such as "unet_isbi" or "papers/unet_isbi"."""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and inspect look a class up
    spec.loader.exec_module(module)
    (found,) = [
        x
        for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, Recipe) and x.__module__ == name
    ]
    return found


def run(name, *arguments, fails=None, capsys=None):
    """One command in this process; where it `fails`, the text it prints to stderr."""
    if not fails:
        main(recipe_of(name), [str(a) for a in arguments])
        return ""
    with pytest.raises(SystemExit) as stopped:
        main(recipe_of(name), [str(a) for a in arguments])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def small(name, *more):
    return ["--batch-size", 8, "--steps", 4, "--evaluate-every", 2, *SMALL[name].split(), *more]


def state_of(home):
    """The step and the arrays of a run's newest checkpoint."""
    with (
        Checkpoints(home / "checkpoints", read_only=True) as checkpoints,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # Orbax: no shardings are given
        step = checkpoints.newest
        return step, checkpoints._reader.restore(checkpoints._place / str(step) / "default")


def narrow_vgg16():
    """Tensors as torchvision's, of the widths of SMALL."""
    rng = np.random.default_rng(0)
    layers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    widths = (3,) + (4,) * 7 + (8,) * 6
    shapes = {
        f"features.{n}": (width, channels, 3, 3)
        for n, width, channels in zip(layers, widths[1:], widths[:-1], strict=True)
    } | {"classifier.0": (8, 8 * 49), "classifier.3": (8, 8), "classifier.6": (1000, 8)}
    tensors = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
    return tensors | {f"{name}.bias": rng.normal(size=shape[0]) for name, shape in shapes.items()}
