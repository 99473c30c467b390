"""The verb cost: what a training step takes, without data."""

import re

import jax
import pytest
from recipes import SCRIPTS, run, small

from segjax.training import cost


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_cost_needs_no_data(script, capsys):
    name, rows = script.stem, ["parameters", "FLOPs", "temporaries"]
    if name in ("unet_shapes", "setr_pup_camvid"):
        options, rows = [], [*rows, "compile time"]
    else:
        options = ["--reckon"]  # what it compiles is what `train` does, in test_recipes.py
    run(name, "cost", *small(name), *options)
    told = capsys.readouterr().out
    for row in rows:
        assert row in told


def test_cost_counts_all_blocks_of_a_loop(capsys):
    """SETR's blocks are one loop, of which XLA counts the body once."""

    def flops(depth):
        small = "--canvas 96 96 --crop 96 96 --width 128 --decoder-channels 4 --auxiliary-taps 0 1"
        run("setr_pup_camvid", "cost", *small.split(), "--depth", depth, "--reckon")
        return float(re.search(r"FLOPs per device\W+([\d.]+) G", capsys.readouterr().out)[1])

    # Two blocks more: 24 W² FLOPs a token, forward and twice backward; and attention, norms …
    assert 1 < (flops(4) - flops(2)) / (2 * 3 * 24 * 128**2 * 36 / 1e9) < 1.5


ELSEWHERE = (
    *("--canvas", 32, 32, "--crop", 32, 32, "--widths", 4, 8),
    *("--pictures", 40, "--held-out", 9),
)


def told(capsys, *options):
    run("unet_shapes", "cost", *ELSEWHERE, *options)
    return capsys.readouterr().out


def test_a_gpu_is_reckoned_by_its_data_sheet(capsys):
    text = told(capsys, "--gpu", "h100", "--devices", 8, "--batch-size", 16)
    assert "8 × NVIDIA H100" in text and "bound: a step" in text and "fits" in text
    assert "reckoned" in text and "compiled" not in text and "1 × all-reduce" in text


def test_a_slice_without_its_compiler_is_reckoned_anyway(capsys, monkeypatch):
    monkeypatch.setattr(cost.importlib.util, "find_spec", lambda name: None)
    text = told(capsys, "--topology", "v5e:4x4", "--batch-size", 32)
    assert "pip install 'segjax[tpu]'" in text
    assert "TPU v5e:4x4" in text and "of 15.75 GiB" in text


def test_what_does_not_fit_is_told_with_what_would(capsys, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.0003")
    text = told(capsys, "--gpu", "t4", "--batch-size", 64)
    assert "does not fit" in text
    size = int(re.search(r"--batch-size (\d+) .* (?:fits|may fit)", text)[1])
    assert 1 <= size < 64
    assert "does not fit" not in told(capsys, "--gpu", "t4", "--batch-size", size)


def test_devices_are_those_that_there_are(capsys):
    text = told(capsys, "--devices", 4, "--batch-size", 8)
    assert "4 × cpu" in text and "compiled" in text and "× all-reduce" in text


@pytest.mark.parametrize(
    "options, text",
    [
        ("--gpu h1000", "no data sheet of 'h1000'. There are: .*h100"),
        ("--topology v5e", "'v5e' is no TPU slice"),
        ("--topology v5e:2x2 --gpu h100", "drop --gpu"),
        ("--devices 64", "JAX has begun with 8"),
        ("--devices 0", "expected 1 or more"),
        ("--gpu h100 --devices 8 --batch-size 12", "take a batch size of 8 or 16"),
    ],
)
def test_a_machine_that_is_none_is_told(options, text, capsys):
    assert jax.device_count() == 8  # JAX has begun, alone too
    error = run("unet_shapes", "cost", *ELSEWHERE, *options.split(), fails=True, capsys=capsys)
    assert re.search(text, error)
