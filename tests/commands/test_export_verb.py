"""The verb export: files that work without segjax, a model card, and the way back."""

import hashlib
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import segjax
from segjax import __main__ as entry
from segjax.commands import exported
from segjax.commands.export import model_card
from segjax.data.augment import Normalise
from segjax.errors import SegjaxError
from segjax.models import UNet
from segjax.weights import files

# What a page of plain JAX does, in a process that cannot import segjax.
ALONE = """
import runpy, sys
sys.modules["segjax"] = None
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
assert not [name for name in sys.modules if name.startswith("segjax.")]
"""


def run(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["segjax", *map(str, argv)])
    monkeypatch.setattr(segjax, "use_compilation_cache", lambda: None)
    entry.main()


@pytest.fixture(scope="module")
def handed_on(trained):
    """The files of a run, with its scores on the card."""
    (trained / "run/report/scores.json").write_text(
        json.dumps(
            {
                "step": segjax.commands.trained.load_step(
                    segjax.commands.run.Run(trained / "run"), "best"
                )[0],
                "split": "val",
                "mean_iou": 0.5,
                "pixel_accuracy": None,
                "classes": ["dark", "light"],
                "confusion": [[1, 0], [0, 1]],
                "intervals": {"mean_iou": [0.25, 0.75]},
                "per_class": {"iou": [0.5, None]},
            }
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        given = ["--licence", "CC0", "--data", "two | pictures", "--use", "tests"]
        run(patch, "export", trained / "run", *given)
    return trained / "run/export"


def test_the_files_work_without_segjax(trained, handed_on, tmp_path):
    """At a size that is not the training's."""
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    command = [sys.executable, "-c", ALONE, handed_on / "load.py", path, tmp_path / "b.png"]
    subprocess.run(command, check=True, cwd=tmp_path, env={"JAX_PLATFORMS": "cpu"})
    with Image.open(tmp_path / "b.png") as labels:
        want = segjax.load(trained / "run").predict(path)
        np.testing.assert_array_equal(np.asarray(labels), want)
    assert len(np.unique(want)) == 2


def test_the_card_says_what_it_is(handed_on):
    card = (handed_on / "README.md").read_text()
    for told in (
        "# run\n",
        "classes: dark, light. A Tiny of 8 parameters, trained by the recipe",
        "**Licence:** CC0",
        "two \\| pictures",
        "On the val split; in brackets 95 %",
        "| mean iou | 0.5000 (0.2500 to 0.7500) |",
        "| dark | 0.5000 |\n| light | – |",
        "crops of 16×16 pixels",
        "uint8, (B, H, W, 3), H and W any number",
    ):
        assert told in card
    sums = re.findall(r"^([0-9a-f]{64})  (\S+)$", card, re.MULTILINE)
    assert {name for _, name in sums} == {"labels.jax", "weights.safetensors", "load.py"}
    for sha, name in sums:
        assert hashlib.sha256((handed_on / name).read_bytes()).hexdigest() == sha


def test_what_is_told(trained, tmp_path, monkeypatch, capsys):
    (trained / "run/report/scores.json").unlink(missing_ok=True)
    run(monkeypatch, "export", trained / "run", "--out", tmp_path / "x", "--size", 8, 9)
    told = capsys.readouterr().out
    assert "it labels a picture of noise as the run does." in told
    assert "has no scores of it: run segjax evaluate" in told
    card = (tmp_path / "x/README.md").read_text()
    assert "H = 8, W = 9" in card and "Not evaluated." in card and "to be filled in" in card


def test_a_network_of_ones_own_is_not_loaded_from_a_file_of_weights(handed_on):
    with pytest.raises(SegjaxError, match="is of the class tiny:Tiny, no part of segjax"):
        segjax.load(handed_on / "weights.safetensors")


def segmenter():
    model = UNet(1, widths=(2, 3))
    return segjax.Segmenter(
        model=model,
        variables=model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))),
        normalise=Normalise((1.5,), (2.5,)),
        classes=("void", "`<b>` | *x*"),
        palette=((0, 0, 0), (9, 8, 7)),
        threshold=0.3,
        ranges=((0, 1000),),
        window=77,
    )


def test_weights_come_back_as_what_they_were(tmp_path):
    made = segmenter()
    exported.save(tmp_path / "a.safetensors", made)
    loaded = segjax.load(tmp_path / "a.safetensors")
    for name in ("model", "normalise", "classes", "palette", "threshold", "ranges", "window"):
        assert getattr(loaded, name) == getattr(made, name)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, dict(made.variables))


def test_files_that_are_none(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(SegjaxError, match="no such file"):
        segjax.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(SegjaxError, match="cannot be read"):
        segjax.load(path)
    arrays = {"a": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(SegjaxError, match="holds weights alone"):
        segjax.load(path)
    exported.save(path, segmenter())
    held = files.read_metadata(path)
    safetensors.numpy.save_file(arrays, path, metadata=held)
    with pytest.raises(SegjaxError, match="missing: params/down_0/conv_0/kernel"):
        segjax.load(path)
    for change, told in (
        (("0.3", "7"), "threshold is 7"),
        (('"widths"', '"breadths"'), "unexpected keyword argument 'breadths'"),
        (("{", "", 1), "cannot be used"),
    ):
        metadata = {"segjax": held["segjax"].replace(*change)}
        files.save(path, segmenter().variables, metadata=metadata)
        with pytest.raises(SegjaxError, match=f"a.safetensors: .*{told}"):
            segjax.load(path)


def test_names_are_no_markup_on_the_card():
    card = model_card(
        segmenter(),
        name="<script>",
        step=1,
        recipe="r",
        fields={"crop": (8, 8)},
        size=None,
        scores=None,
        hashes={},
    )
    assert "# \\<script\\>" in card
    assert "void, \\`\\<b\\>\\` \\| \\*x\\*" in card
    assert "float32 in 0–255" in card and "0 to 1000" in card
