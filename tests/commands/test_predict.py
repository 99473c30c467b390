"""The verb predict: strip by strip, on again after an interruption; views, ensembles, GeoTIFFs."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny import TinyRecipe

import segjax
from segjax import segmenter
from segjax.commands import predict as verb
from segjax.commands import strips
from segjax.data.tiff_writer import georeference
from segjax.inference import memory, views
from segjax.recipe import main

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (100, 70, 3), np.uint8)
PLACE = (
    (33550, "d", 3, (0.5, 0.5, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0), True),
)


@pytest.fixture
def predict(trained, tmp_path, capsys):
    """Runs the verb; gives what it printed, or of a failure what it told."""

    def run(*arguments, fails=False):
        options = ["--run", trained / "run", "--out", tmp_path / "out"]
        command = ["predict", *map(str, [*arguments, *options])]
        if not fails:
            main(TinyRecipe, command)
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as stopped:
            main(TinyRecipe, command)
        assert stopped.value.code == fails
        return capsys.readouterr().err

    return run


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", tile=(16, 16), compression="zlib")
    return path


@pytest.fixture
def large(monkeypatch):
    """Every picture is large."""
    monkeypatch.setattr(segmenter, "_LARGE", 100)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_large_picture_goes_strip_by_strip(predict, picture, trained, tmp_path, large):
    printed = predict(picture, "--tile", 32, "--probabilities")
    assert f"{picture}: 100×70 pixels, so strip by strip, into a TIFF." in printed
    assert "tiles of" in printed and "the logits are those of the whole picture" in printed
    assert names(tmp_path / "out") == ["a.tif", "a_overlay.png", "a_probabilities.tif"]
    loaded = segjax.load(trained / "run")
    np.testing.assert_array_equal(pixels(tmp_path / "out/a.tif"), loaded.predict(PIXELS))
    shares = tifffile.imread(tmp_path / "out/a_probabilities.tif")
    assert shares.shape == (100, 70, 2) and shares.dtype == np.uint8
    assert np.abs(shares / 255 - loaded.probabilities(PIXELS)).max() < 0.002 + 1e-4
    with tifffile.TiffFile(tmp_path / "out/a_probabilities.tif") as file:
        assert json.loads(file.pages[0].description) == {"classes": ["dark", "light"]}


def test_what_the_memory_does_not_hold_goes_strip_by_strip(predict, tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(memory, "left_on_host", lambda: 100_000)
    assert "100×70 pixels, so strip by strip" in predict(tmp_path / "a.png")
    assert names(tmp_path / "out") == ["a.tif", "a_overlay.png"]


@contextmanager
def interrupted(monkeypatch, after):
    """What is read ends with Ctrl-C after some strips."""
    open_rows, count = verb.open_rows, []

    @contextmanager
    def opened(*given):
        with open_rows(*given) as rows:

            def read(first, last):
                count.append(first)
                if len(count) > after:
                    raise KeyboardInterrupt
                return rows.read(first, last)

            yield rows._replace(read=read)

    with monkeypatch.context() as patch:
        patch.setattr(verb, "open_rows", opened)
        yield count


@pytest.mark.parametrize("options", [(), ("--views", "flip", "--probabilities")], ids=str)
def test_an_interrupted_picture_goes_on(predict, picture, tmp_path, large, monkeypatch, options):
    options = (picture, "--tile", 16, *options)
    predict(*options)
    want = {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")}
    shutil.rmtree(tmp_path / "out")
    with interrupted(monkeypatch, after=4):
        predict(*options, fails=130)
    assert names(tmp_path / "out") == ["a.tif.journal", "a.tif.partial"]
    done = json.loads((tmp_path / "out/a.tif.journal").read_text())["rows"]
    assert 0 < done < 100
    with interrupted(monkeypatch, after=99) as read:
        assert f"{done} of 100 rows were done before" in predict(*options)
    assert read[0] >= done  # what was done is not computed again
    got = {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")}
    assert got == want


@pytest.mark.parametrize("change", ["picture", "option", "journal", "network"])
def test_what_is_half_done_of_another_picture_is_begun_anew(
    change, predict, picture, tmp_path, large, monkeypatch
):
    with interrupted(monkeypatch, after=4):
        predict(picture, "--tile", 16, fails=130)
    options = []
    if change == "picture":
        tifffile.imwrite(picture, 255 - PIXELS, photometric="rgb")
    elif change == "option":
        options = ["--views", "flip"]
    elif change == "journal":
        (tmp_path / "out/a.tif.journal").write_text("[]")
    else:
        monkeypatch.setattr(verb, "fingerprint", lambda _: "another")
    printed = predict(picture, "--tile", 16, *options)
    assert "it is begun anew" in printed and "done before" not in printed
    assert names(tmp_path / "out") == ["a.tif", "a_overlay.png"]


def test_a_network_is_told_by_its_variables(trained):
    loaded = segjax.load(trained / "run")
    same, other = (segjax.load(trained / "run") for _ in range(2))
    assert strips.fingerprint(same) == strips.fingerprint(loaded)
    other.variables["params"]["Conv_0"]["bias"][:] = 1
    assert strips.fingerprint(other) != strips.fingerprint(loaded)


def test_a_disk_without_room_is_told_before(predict, picture, large, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9))
    assert "GiB are free on the disk, and the results need" in predict(picture, fails=2)


@pytest.mark.parametrize("size", [(100, 70), (5000, 3), (4097, 100)])
def test_the_overlay_of_a_large_picture_is_small(size, predict, tmp_path, large):
    tifffile.imwrite(tmp_path / "a.tif", np.full((*size, 3), 200, np.uint8), photometric="rgb")
    predict(tmp_path / "a.tif")
    with Image.open(tmp_path / "out/a_overlay.png") as overlay:
        assert max(overlay.size) <= 2048 + 100  # a legend is added below


def test_a_thumbnail_is_of_the_whole():
    picture = np.zeros((4100, 30, 1), np.uint8)
    picture[2050:] = 90
    rows = strips.Rows((4100, 30), lambda a, z: picture[a:z])
    image, label = strips._thumbnail(rows, lambda a, z: (picture[a:z, :, 0] > 0).astype(np.uint8))
    assert image.shape == (1366, 10, 1) and label.shape == (1366, 10)
    np.testing.assert_array_equal(image[684:, 0, 0], 90)
    np.testing.assert_array_equal(label[:, 3], np.arange(1366) >= 683)


def test_a_label_lies_where_its_picture_does(predict, tmp_path, large, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", extratags=PLACE)
    predict(path, "--probabilities")
    by_strips = pixels(tmp_path / "out/a.tif")
    monkeypatch.setattr(segmenter, "_LARGE", 10**6)
    predict(path, "--probabilities")
    assert names(tmp_path / "out") == ["a.tif", "a_overlay.png", "a_probabilities.tif"]
    np.testing.assert_array_equal(pixels(tmp_path / "out/a.tif"), by_strips)
    for name in ("a.tif", "a_probabilities.tif"):
        assert georeference(tmp_path / "out" / name) == list(PLACE)


def test_labels_for_the_cloud(predict, tmp_path, large):
    rasterio = pytest.importorskip("rasterio")
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="rgb", extratags=PLACE)
    predict(tmp_path / "a.tif", "--cog")
    with rasterio.open(tmp_path / "out/a.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_views_are_taken(predict, picture, trained, tmp_path):
    loaded = segjax.load(trained / "run")
    predict(picture, "--views", "scales=0.5:1.5,flip", "--probabilities")
    seen = (views.flip, views.scales(0.5, 0.75, 1, 1.25, 1.5))
    want = loaded.probabilities(PIXELS, views=seen)
    got = tifffile.imread(tmp_path / "out/a_probabilities.tif") / 255
    np.testing.assert_allclose(got, want, atol=0.003)
    assert np.abs(got - loaded.probabilities(PIXELS)).max() > 0.01
    np.testing.assert_array_equal(pixels(tmp_path / "out/a.png"), want.argmax(-1))
    assert "'flop' is none. There are flip" in predict(picture, "--views", "flop", fails=2)


def test_runs_are_averaged(predict, picture, trained, tmp_path, large):
    predict(picture, "--with", trained / "run", trained / "run", "--tile", 32)
    loaded = segjax.load(trained / "run")
    np.testing.assert_array_equal(pixels(tmp_path / "out/a.tif"), loaded.predict(PIXELS))
    shutil.copytree(trained / "run", tmp_path / "other")
    stored = json.loads((tmp_path / "other/recipe.json").read_text())
    stored["classes"] = ["a", "b"]
    (tmp_path / "other/recipe.json").write_text(json.dumps(stored))
    told = predict(picture, "--with", tmp_path / "other", fails=2)
    assert "other: has the classes" in told and "expected ('dark', 'light')" in told


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_picture_is_not_written_over(suffix, trained, tmp_path, capsys, large):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PIXELS).save(path)
    before = path.read_bytes()
    command = ["predict", str(path), "--run", str(trained / "run"), "--out", str(tmp_path)]
    if suffix == "png":  # whose label is a TIFF, as it is large
        main(TinyRecipe, command)
    else:
        with pytest.raises(SystemExit):
            main(TinyRecipe, command)
        assert "a.tif: would be written over by what is made of it" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_many_pixels_are_no_warning(predict, tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # Pillow warns of more, and refuses twice
    predict(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert "more pixels than Pillow opens" in predict(tmp_path / "a.png", fails=2)


def test_an_interruption_after_the_last_row(predict, picture, tmp_path, large, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(strips, "write_tiff", stop)
        predict(picture, fails=130)
    assert "100 of 100 rows were done before" in predict(picture)
    assert names(tmp_path / "out") == ["a.tif", "a_overlay.png"]


def test_a_run_is_scored_through_views(trained, tmp_path):
    """The network sees one pixel, so that a flip changes nothing; half the size does."""
    scores = []
    for seen in ("", "flip,rotations", "scales=0.5"):
        out = tmp_path / (seen or "plain")
        main(
            TinyRecipe,
            ["evaluate", "--run", str(trained / "run"), "--views", seen, "--out", str(out)],
        )
        scores.append(json.loads((out / "scores.json").read_text())["confusion"])
    assert scores[0] == scores[1] != scores[2]
