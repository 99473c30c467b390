import json
import math
import struct
import time
from io import StringIO

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from segjax.training.progress import RunLog


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_log(tmp_path, clock):
    """A RunLog with small numbers, off a terminal; what it prints is `log.out.getvalue()`."""

    def make(terminal=False, **options):
        out = StringIO()
        console = Console(file=out, force_terminal=terminal, width=100)
        options = {"total": 10, "start": 0, "batch_size": 8, "log_every": 2} | options
        log = RunLog(tmp_path, console=console, clock=clock, **options)
        log.out = out
        return log

    return make


def advance(log, clock, number, *, seconds=2.0, waited=0.5, loss=1.0, **scalars):
    clock.now += seconds
    log.step(number, {"loss": loss, "learning_rate": 0.01, **scalars}, waited=waited)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """(step, tag, value) of every scalar; a record is length, checksum, event, checksum."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            data = data[16 + length :]
    return found


def test_lines_hold_the_mean_loss_and_the_last_of_the_other_scalars(make_log, clock, tmp_path):
    began = time.time()
    with make_log() as log:
        for number in range(1, 6):
            advance(log, clock, number, loss=float(number), grad_norm=number * 10)
        first, second = lines(tmp_path)  # flushed at once; step 5 belongs to the next line
    assert [first["step"], first["loss"], first["grad_norm"]] == [2, 1.5, 20]
    assert [second["step"], second["loss"], second["grad_norm"]] == [4, 3.5, 40]
    assert second["learning_rate"] == 0.01
    assert began <= first["time"] <= time.time()


def test_the_last_step_is_logged_whatever_its_number(make_log, clock, tmp_path):
    with make_log(total=3) as log:
        for number in range(1, 4):
            advance(log, clock, number, loss=float(number))
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(2, 1.5), (3, 3.0)]


def test_rates_leave_out_the_compilation_and_pauses(make_log, clock, tmp_path):
    with make_log() as log:
        advance(log, clock, 1, seconds=60, waited=30)
        advance(log, clock, 2, seconds=2, waited=0.5)
        advance(log, clock, 3, seconds=1, waited=0)
        with pytest.raises(RuntimeError), log.paused():
            clock.now += 1000
            raise RuntimeError
        advance(log, clock, 4, seconds=3, waited=1)
    first, second = lines(tmp_path)
    assert (first["images_per_second"], first["data_wait"]) == (8 / 2, 0.5 / 2)
    assert (second["images_per_second"], second["data_wait"]) == (16 / 4, 1 / 4)


def test_flops_are_told_from_when_they_are_known(make_log, clock, tmp_path):
    known = [math.nan]
    with make_log(flops=lambda: known[-1], peak=4e12) as log:
        for number in range(1, 5):
            known += [3e12] if number == 3 else []
            advance(log, clock, number, seconds=20)
    first, second = lines(tmp_path)
    assert not {"flops_per_second", "mfu"} & first.keys()
    assert (second["flops_per_second"], second["mfu"]) == (3e12 / 20, 3 / 80)


def test_a_share_of_an_unknown_peak_is_not_told(make_log, clock, tmp_path):
    with make_log(total=2, flops=lambda: 3e12) as log:
        advance(log, clock, 1, seconds=20)
        advance(log, clock, 2, seconds=2)
    assert "img/s  1.5 TFLOP/s  wait" in log.out.getvalue().splitlines()[-1]
    (line,) = lines(tmp_path)
    assert line["flops_per_second"] == 1.5e12 and "mfu" not in line
    with make_log(total=2, flops=lambda: 3e12, peak=3e12) as log:
        advance(log, clock, 1, seconds=20)
        advance(log, clock, 2, seconds=2)
    assert "img/s  1.5 TFLOP/s (50% of the peak)  wait" in log.out.getvalue().splitlines()[-1]


def test_skipped_steps_are_counted_and_no_part_of_the_loss(make_log, clock, tmp_path):
    with make_log(log_every=3) as log:
        for number, loss in enumerate((1.0, math.nan, 3.0, math.nan, math.nan, math.nan), 1):
            advance(log, clock, number, loss=loss, skipped=float(math.isnan(loss)))
    assert [(line["loss"], line["skipped"]) for line in lines(tmp_path)] == [(2, 1), (None, 3)]


def test_a_line_of_the_first_step_alone_has_no_rate(make_log, clock, tmp_path):
    with make_log(log_every=1) as log:
        advance(log, clock, 1)
    assert lines(tmp_path)[0]["images_per_second"] is None
    assert lines(tmp_path)[0]["data_wait"] is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_null(make_log, clock, tmp_path, loss):
    with make_log() as log:
        advance(log, clock, 1, loss=loss)
        advance(log, clock, 2, extra=loss)
        log.scores(2, {"mean_iou": loss})
        assert "loss nan" in log.out.getvalue() or "inf" in log.out.getvalue()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert [lines(tmp_path)[0][name] for name in ("loss", "extra")] == [None, None]
    assert lines(tmp_path)[1]["mean_iou"] is None


def test_the_shown_loss_recovers_from_one_that_is_not_finite(make_log, clock):
    with make_log(total=3) as log:
        advance(log, clock, 1, seconds=20, loss=math.nan)
        advance(log, clock, 2, seconds=20, loss=1.0)
        advance(log, clock, 3, seconds=20, loss=2.0)
    shown = [line.split("  ")[1] for line in log.out.getvalue().splitlines()]
    assert shown == ["loss nan", "loss 1.0000", "loss 1.0500"]


def test_scores_are_written_and_printed(make_log, tmp_path):
    with make_log() as log:
        log.scores(4, {"mean_iou": 0.51239, "pixel_accuracy": 0.9})
        (line,) = lines(tmp_path)
    assert line.keys() == {"step", "mean_iou", "pixel_accuracy", "time"}
    assert (line["step"], line["mean_iou"]) == (4, 0.51239)
    assert log.out.getvalue() == "step 4  mean_iou 0.5124  pixel_accuracy 0.9000\n"


def test_tensorboard_gets_the_same(make_log, clock, tmp_path):
    with make_log() as log:
        advance(log, clock, 1, loss=1.0)
        advance(log, clock, 2, loss=2.0)
        log.scores(2, {"mean_iou": 0.5})
    found = {(step, tag): value for step, tag, value in events(tmp_path)}
    assert found.keys() == {
        (2, f"train/{name}") for name in ("loss", "learning_rate", "images_per_second", "data_wait")
    } | {(2, "val/mean_iou")}
    assert (found[2, "train/loss"], found[2, "val/mean_iou"]) == (1.5, 0.5)


@pytest.mark.parametrize("torn", ['{"step": 7, "lo', '{"step": 4, "lo'])
def test_a_resumed_run_drops_what_is_beyond_its_checkpoint(make_log, clock, tmp_path, torn):
    kept = '{"step": 2, "loss": 3.0}\n{"step": 4, "loss": 2.0}\n{"step": 4, "mean_iou": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_text(kept + '{"step": 6, "loss": 1.0}\n' + torn)
    with make_log(start=4) as log:
        assert (tmp_path / "metrics.jsonl").read_text() == kept
        advance(log, clock, 5)
        advance(log, clock, 6, loss=0.0)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 4, 6]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_a_resumed_run_keeps_a_broken_line_amid_for_a_person_to_see(make_log, tmp_path):
    kept = '{"step": 2}\nbroken\n{"step": 4}'  # and ends the last line, if it is whole
    (tmp_path / "metrics.jsonl").write_text(kept)
    with make_log(start=4):
        assert (tmp_path / "metrics.jsonl").read_text() == kept + "\n"


def test_a_run_from_the_start_drops_all(make_log, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n')
    with make_log():
        assert lines(tmp_path) == []


def test_off_a_terminal_a_line_is_printed_now_and_then(make_log, clock):
    with make_log(total=9) as log:
        for number in range(1, 10):
            advance(log, clock, number, seconds=4.0, waited=1.0, loss=0.5)
    first, *_, last = printed = log.out.getvalue().splitlines()
    assert [line.split()[1] for line in printed] == ["1/9", "4/9", "7/9", "9/9"]
    assert first == "step 1/9  loss 0.5000  lr 1.00e-02  – img/s  wait –  0:00:04<–"
    assert last == "step 9/9  loss 0.5000  lr 1.00e-02  2.0 img/s  wait 25%  0:00:36<0:00:00"
    assert printed[1].endswith("0:00:16<0:00:20")  # five steps of 4 s to go


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(make_log, clock):
    with make_log(total=1000, start=900) as log:
        advance(log, clock, 901, seconds=50)
        advance(log, clock, 902, seconds=10)
    assert log.out.getvalue().splitlines()[1].endswith("0:01:00<0:16:20")  # 98 steps of 10 s


def test_said_lines_are_printed_as_they_are(make_log):
    text = "[bold]no markup[/bold] :smile: " + 100 * "x"
    with make_log() as log:
        log.say(text)
    assert log.out.getvalue() == text + "\n"


def test_on_a_terminal_there_is_a_bar_with_lines_above(make_log, clock):
    with make_log(terminal=True) as log:
        advance(log, clock, 1)
        advance(log, clock, 2, loss=1.0)
        log.say("saved [2]")
    text = log.out.getvalue()
    assert "compiling the first step" in text
    assert "saved [2]\n" in text
    final = text[text.rindex("saved") :]
    assert "2/10" in final and "━" in final
    assert "loss 1.0000  lr 1.00e-02  4.0 img/s  wait 25%  0:00:04<0:00:16" in final
    assert "step 2/10" not in text


def test_the_bar_fits_80_columns(tmp_path, clock):
    console = Console(file=StringIO(), force_terminal=True, width=80)
    options = {"total": 40000, "start": 19998, "batch_size": 800, "log_every": 50}
    with RunLog(tmp_path, console=console, clock=clock, **options) as log:
        advance(log, clock, 19999)
        advance(log, clock, 20000, waited=1.2)
    assert "wait 60%  0:00:04<11:06:40" in console.file.getvalue()


def test_the_bar_is_taken_down_after_an_error(make_log, clock):
    with pytest.raises(KeyboardInterrupt), make_log(terminal=True) as log:
        advance(log, clock, 1)
        raise KeyboardInterrupt
    assert log.out.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_writes_prints_and_tells_nothing(make_log, clock, tmp_path, terminal):
    told = []
    with make_log(terminal=terminal, quiet=True, tell=lambda *what: told.append(what)) as log:
        advance(log, clock, 1)
        advance(log, clock, 10)
        with log.paused():
            log.scores(10, {"mean_iou": 0.5})
        log.say("nothing")
    assert log.out.getvalue() == "" and told == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_told(make_log, clock, tmp_path):
    told = []
    with make_log(tell=lambda *what: told.append(what)) as log:
        advance(log, clock, 1, loss=3.0)
        advance(log, clock, 2, loss=1.0)
        log.scores(2, {"mean_iou": 0.5})
    assert [(event, number) for event, number, _ in told] == [("logged", 2), ("evaluated", 2)]
    for (*_, values), line in zip(told, lines(tmp_path), strict=True):
        assert {**values, "step": 2, "time": line["time"]} == line
    assert told[0][2]["loss"] == 2.0


def test_a_first_line_without_a_rate_draws_no_warning(make_log, clock, tmp_path, caplog):
    """As of a run that goes on right before a line: tensorboardX warns of NaN."""
    with make_log(start=3, log_every=2) as log:
        advance(log, clock, 4)
    assert not caplog.records
    assert {name for _, name, _ in events(tmp_path)} == {"train/loss", "train/learning_rate"}


@pytest.mark.parametrize("width", [80, 40])
def test_a_terminal_breaks_no_score(tmp_path, clock, width):
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system=None)
    names = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "object_f1")
    scores = {name: 0.1234 + i for i, name in enumerate(names)}
    with RunLog(
        tmp_path, total=9, start=0, batch_size=1, log_every=1, console=console, clock=clock
    ) as log:
        log.scores(5, scores)
    told = [line for line in out.getvalue().splitlines() if "0.1234" in line or "iou" in line]
    assert all(len(line) <= width for line in told)
    for name, value in scores.items():
        assert f"{name} {value:.4f}" in out.getvalue()
