"""All tests run on eight CPU devices and leave the user's cache folder alone."""

import gc
import io

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


@pytest.fixture
def nuclei(tmp_path):
    rng = np.random.default_rng(0)
    home = tmp_path / "dsb2018"
    for kind in ("images", "masks_instance", "masks"):
        (home / kind).mkdir(parents=True)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 44, 4), np.uint8)).save(home / f"images/{i}.png")
        numbers = rng.integers(0, 370, (40, 44)).astype(np.uint16)
        for kind in ("masks_instance", "masks"):  # as they are named in two recipes
            Image.fromarray(numbers).save(home / f"{kind}/{i}.png")
    (home / "train.txt").write_text("0\n1\n2\n3\n4\n5\n")
    (home / "val.txt").write_text("6\n7\n")
    return home


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """As `prepare` leaves it."""
    from segjax.data.voc import VocSegmentation

    rng = np.random.default_rng(0)

    def encoded(pixels, kind):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        return file.getvalue()

    def examples(height):
        for i in range(8):
            picture = rng.integers(0, 256, (height, 44 - i), np.uint8)
            mask = rng.choice([0, 1, 20, 255], picture.shape).astype(np.uint8)
            picture = encoded(np.stack([picture] * 3, -1), "jpeg")
            yield i, {"image": picture, "mask": encoded(mask, "png"), "id": f"2007_{i}"}

    builder = VocSegmentation(config="2012_sbd", data_dir=tmp_path / "voc")
    # Held-out pictures fit the second of the buckets, but not the canvas.
    splits = {"trainaug": examples(40), "val": examples(46)}
    splits |= {"sbd_train": examples(40), "seg11valid": examples(46)}
    monkeypatch.setattr(builder, "_split_generators", lambda downloads: splits)
    builder.download_and_prepare(file_format="array_record")
    return tmp_path / "voc"
