"""FLOPs counted once, the devices' peak, and a trace that a viewer can open."""

import gzip
import json
import math
import time

import jax
import pytest
from tiny import TinyRecipe, make_data

from segjax.commands import speed
from segjax.evaluation import report
from segjax.models import SETRNaive, UNet
from segjax.recipe import main
from segjax.training import devices, sharding


def test_flops_of_a_network_by_hand():
    """Two 3×3 convolutions, no gradient of the picture: 2·9·C·D a pixel, thrice or twice."""
    model = UNet(8, widths=(8,), norm="none")
    pixels = 2 * 16 * 16
    first, second, last = 2 * 9 * 3 * 8, 2 * 9 * 8 * 8, 2 * 8 * 8
    found = speed.model_flops(model, (2, 16, 16, 3))
    assert found == pytest.approx(pixels * (2 * first + 3 * second + 3 * last), rel=0.15)


def test_all_blocks_of_a_loop_count_and_remat_does_not():
    def flops(depth, **fields):
        encoder = {"depth": depth, "width": 32, "heads": 2, "patch": 4, "grid": (2, 2)}
        model = SETRNaive(2, channels=4, auxiliary_taps=(), **encoder, **fields)
        return speed.model_flops(model, (1, 8, 8, 3))

    four = flops(4)
    assert four - flops(2) > 2 * 3 * 24 * 32**2 * 4  # 24 W² a token and block, thrice
    assert flops(4, remat=True) == four


def test_what_takes_long_is_counted_once_and_waited_for_by_nobody():
    counted = []

    def count():
        counted.append(1)
        return 5.0

    known = speed.later(count, after=0.05)
    assert math.isnan(known()) and not counted
    end = time.monotonic() + 10
    while math.isnan(known()) and time.monotonic() < end:
        time.sleep(0.01)
    assert known() == 5.0 and counted == [1]


def test_a_network_that_cannot_be_counted_is_let_be():
    known = speed.later(lambda: 1 / 0, after=0)
    for _ in range(20):
        time.sleep(0.01)
        assert math.isnan(known())


def test_the_peak_of_all_devices(monkeypatch):
    mesh = sharding.make_mesh(jax.devices()[:2])
    assert math.isnan(speed.peak(mesh, "float32"))  # of a CPU none is known
    monkeypatch.setattr(devices, "find", lambda kind: devices.DEVICES[-1])
    assert speed.peak(mesh, "bfloat16") == 2 * devices.DEVICES[-1].flops
    assert speed.peak(mesh, "float32") == 2 * devices.DEVICES[-1].flops_float32


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "plot_curves", lambda *_, **__: None, raising=False)
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda *_, **__: make_mesh(jax.devices()[:1]))
    return make_data(tmp_path / "data")


def train(home, *options):
    main(TinyRecipe, ["train", "--data", str(home), "--run", str(home / "run"), *options])


def test_some_steps_are_traced_when_asked(home, capsys):
    train(home, "--steps", "9", "--evaluate-every", "9", "--profile", "3")
    told = capsys.readouterr().out
    folder = home / "run/profile"
    assert f"3 steps are traced in {folder}. Open them with: tensorboard --logdir" in told
    (trace,) = folder.rglob("perfetto_trace.json.gz")
    assert f"{trace} on ui.perfetto.dev" in told
    assert list(folder.rglob("*.xplane.pb"))  # TensorBoard's
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {event["args"]["step_num"] for event in events if event.get("name") == "train"}
    assert steps == {"4", "5", "6"}
    train(home, "--steps", "9", "--evaluate-every", "9", "--restart", "--yes")
    assert not folder.exists()


def test_a_trace_that_the_training_ends_before_is_whole_or_none(home, capsys):
    train(home, "--steps", "6", "--evaluate-every", "9", "--profile", "30")
    assert "2 steps are traced in" in capsys.readouterr().out
    train(home, "--steps", "8", "--evaluate-every", "9", "--profile", "30")
    assert "nothing is traced: that begins after 4 steps, and 2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train(home, "--profile", "-1")
    assert "profile is -1; expected a number of steps" in capsys.readouterr().err
