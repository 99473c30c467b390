"""All tests run on eight CPU devices and leave the user's cache folder alone."""

import gc
import os

import jax
import numpy as np
import pytest
from PIL import Image

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", None)
# Small programs take longer to compile than to run.
jax.config.update("jax_disable_most_optimizations", True)
# Tracing makes many objects that live on: looking through them again and again is 8 % of the time.
gc.set_threshold(50_000, 20, 50)
# As many workers as cores, each with its programs on its own: moving about takes 5 % of the time.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    if int(os.environ["PYTEST_XDIST_WORKER_COUNT"]) == len(cores):
        os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))]})


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """Where `use_compilation_cache` writes to, should a test or what it starts call it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_PLATFORMS", "cpu")  # libtpu, where it is, looks for a TPU at length
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # as above, of what is started
        yield


@pytest.fixture
def folder(tmp_path):
    """A folder data set of CamVid's and ISBI's layouts in one: 8 pictures a split."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (40, 44, 3), np.uint8)
            mask = rng.integers(0, 12, (40, 44), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"data/images/{split}/{i}.jpg")
            Image.fromarray(mask).save(tmp_path / f"data/masks/{split}/{i}.png")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of `tiny`'s data with a run of it in `run`; on one device, so that 2 divides."""
    from tiny import TinyRecipe, make_data

    from segjax.recipe import main
    from segjax.training import sharding

    make_mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda *_, **__: make_mesh(jax.devices()[:1]))
        patch.setattr(jax, "local_device_count", lambda: 1)
        home = make_data(tmp_path_factory.mktemp("tiny"))
        options = ["--data", str(home), "--run", str(home / "run"), "--skip-broken"]
        main(TinyRecipe, ["train", *options])
        yield home


@pytest.fixture
def isbi(tmp_path):
    """A folder of ISBI's layout, 6 grey slices with masks of 0 and 255."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "isbi" / kind).mkdir(parents=True)
    for i in range(6):
        cells = rng.integers(0, 2, (40, 44), np.uint8) * 255
        Image.fromarray(cells).save(tmp_path / f"isbi/images/{i}.png")
        Image.fromarray(cells).save(tmp_path / f"isbi/masks/{i}.png")
    return tmp_path / "isbi"
