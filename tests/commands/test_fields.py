"""The fields and methods that every recipe has, each by runs of a recipe that takes a moment."""

import dataclasses
import json
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from recipes import state_of
from tiny import Tiny, TinyRecipe, make_data

import segjax
from segjax.commands.evaluate import evaluate
from segjax.commands.observing import Observing
from segjax.commands.run import Run
from segjax.commands.step import Parts, in_steps
from segjax.commands.train import _since_best
from segjax.errors import SegjaxError
from segjax.evaluation import report
from segjax.evaluation.report import read_metrics
from segjax.models import Output
from segjax.recipe import main
from segjax.training import observers, optimizers, sharding
from segjax.training.observers import Observer


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One device, so that a batch of two divides; and no curves, a third of the time."""
    monkeypatch.setattr(report, "plot_curves", lambda *_, **__: None, raising=False)
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda *_, **__: make_mesh(jax.devices()[:1]))


@pytest.fixture
def home(tmp_path):
    return make_data(tmp_path / "data")


def train(home, *options, recipe=TinyRecipe, run="run"):
    """Train in the folder `run` of the data's; gives it."""
    main(recipe, ["train", "--data", str(home), "--run", str(home / run), *map(str, options)])
    return home / run


def scores_of(run, place="report"):
    scores = json.loads((run / place / "scores.json").read_text())
    scores.pop("throughput")  # another each time
    return scores


# Splits


@dataclass(frozen=True, kw_only=True)
class WithTest(TinyRecipe):
    """Its data has a test split."""

    splits = ("train", "val", "test")


@pytest.fixture
def tested(home):
    """Data with three pictures to test on, all of the second class."""
    for kind in ("images", "masks"):
        (home / kind / "test").mkdir()
    for i in range(3):
        shutil.copy(home / "images/val/0.png", home / f"images/test/{i}.png")
        Image.fromarray(np.ones((16, 16), np.uint8)).save(home / f"masks/test/{i}.png")
    return home


def test_a_recipe_with_a_test_split_is_reported_on_it(tested, capsys):
    run = train(tested, recipe=WithTest)
    told = capsys.readouterr().out
    assert "2 pictures of val" in told and "3 pictures of test. Look at" in told
    val, test = scores_of(run), scores_of(run, "report/test")
    assert (val["split"], test["split"]) == ("val", "test")
    assert np.sum(val["confusion"]) == 2 * 16 * 16
    assert np.sum(test["confusion"], axis=1).tolist() == [0, 3 * 16 * 16]
    assert val["step"] == test["step"]  # the best on val
    assert (run / "report/test/preview.png").exists()

    shutil.rmtree(run / "report")
    evaluate(run, split="test")  # which needs the folder alone
    assert scores_of(run, "report/test") == test and not (run / "report/scores.json").exists()
    evaluate(run)
    assert scores_of(run) == val
    main(WithTest, ["evaluate", "--run", str(run), "--split", "test", "--out", str(run / "out")])
    assert scores_of(run, "out") == test


def test_the_test_split_is_audited_and_moves_with_the_data(tested, tmp_path, capsys):
    run = train(tested, recipe=WithTest)
    moved = tested.rename(tmp_path / "moved")
    run = moved / "run"
    with pytest.raises(SegjaxError, match=r"no data there.*--data"):
        evaluate(run, split="test")
    evaluate(run, split="test", data=moved)
    with pytest.raises(SystemExit):  # one picture thrice, and in two splits
        main(WithTest, ["audit", "--data", str(moved), "--out", str(tmp_path / "audit")])
    found = json.loads((tmp_path / "audit/audit.json").read_text())
    assert found["splits"].keys() == {"train", "val", "test"}


def test_a_run_without_a_test_split(home):
    """As are those of before, whose recipe.json holds one source."""
    run = train(home)
    assert Run(run).splits == ("val",) and not (run / "report/test").exists()
    with pytest.raises(SegjaxError, match="run: its recipe has no test split, but val"):
        evaluate(run, split="test")


@dataclass(frozen=True, kw_only=True)
class Misnamed(TinyRecipe):
    """Its author calls the held-out data otherwise."""

    splits = ("train", "valid")


def test_other_splits_are_told(home, capsys):
    with pytest.raises(SystemExit):
        train(home, recipe=Misnamed)
    assert "has the splits train, valid; expected train and val, and" in capsys.readouterr().err


# How long


@dataclass(frozen=True, kw_only=True)
class InEpochs(TinyRecipe):
    """Says for how long in epochs, though what it inherits says steps."""

    epochs: float | None = 1.5


@pytest.mark.parametrize(
    "recipe, given, steps, epochs",
    [
        (TinyRecipe, {}, 2, None),
        (TinyRecipe, {"steps": 3}, 3, None),
        (TinyRecipe, {"epochs": 4}, 0, 4),
        (TinyRecipe, {"epochs": None}, 2, None),
        (InEpochs, {}, 0, 1.5),
        (InEpochs, {"steps": 3}, 3, None),
        (InEpochs, {"epochs": 0.5}, 0, 0.5),
        (InEpochs, {"epochs": None}, 2, None),
    ],
    ids=str,
)
def test_what_is_given_outright_wins_over_the_default(recipe, given, steps, epochs):
    made = recipe(data=Path(), **given)
    assert (made.steps, made.epochs) == (steps, epochs)
    assert dataclasses.replace(made, seed=1) == recipe(data=Path(), seed=1, **given)


@pytest.mark.parametrize(
    "epochs, pictures, batch_size, steps",
    [(1, 10, 5, 2), (1, 11, 5, 3), (0.5, 224, 16, 7), (0.1, 30, 1, 3), (0.01, 2, 2, 1)],
)
def test_epochs_in_steps_see_every_picture_that_often(epochs, pictures, batch_size, steps):
    recipe = TinyRecipe(data=Path(), epochs=epochs, batch_size=batch_size)
    counted = in_steps(recipe, range(pictures))
    assert (counted.steps, counted.epochs) == (steps, None)
    # The schedule is that of as many steps.
    same = TinyRecipe(data=Path(), steps=steps, batch_size=batch_size)
    assert jax.tree.leaves(counted.schedule()) == jax.tree.leaves(same.schedule())


def test_epochs_on_the_command_line(home, capsys):
    by_steps = train(home, "--steps", 5, run="by_steps")
    capsys.readouterr()
    run = train(home, "--epochs", 2.5, "--batch-size", 1, run="by_epochs")
    assert "2.5 epochs of 2 pictures are 5 steps of 1." in capsys.readouterr().out
    fields = Run(run).fields
    assert (fields["steps"], fields["epochs"], Run(by_steps).fields["epochs"]) == (5, 2.5, None)
    assert state_of(run)[0] == 5

    # Goes on with more of them, and with steps.
    train(home, "--epochs", 3, "--batch-size", 1, run="by_epochs")
    assert "going on from step 5 of 6" in capsys.readouterr().out
    train(home, "--steps", 7, "--batch-size", 1, run="by_epochs")
    assert "going on from step 6 of 7" in capsys.readouterr().out
    assert Run(run).fields["epochs"] is None


def test_pictures_that_are_skipped_are_no_part_of_an_epoch(home, capsys):
    (home / "images/train/0.png").write_bytes(b"no picture")
    train(home, "--epochs", 4, "--skip-broken")
    assert "4 epochs of 1 pictures are 2 steps of 2." in capsys.readouterr().out


def test_the_cost_of_a_recipe_in_epochs_needs_no_data(capsys):
    main(InEpochs, ["cost", "--devices", "1"])
    assert "one training step of 2 × 16×16" in capsys.readouterr().out


@dataclass(frozen=True, kw_only=True)
class Endless(TinyRecipe):
    """Says nothing of how long, and what it inherits does not either."""

    steps: int = 0


@pytest.mark.parametrize(
    "recipe, options, told",
    [
        (TinyRecipe, "--steps 2 --epochs 3", "Both --steps and --epochs are given"),
        (TinyRecipe, "--steps=9 --epochs=3", "Both --steps and --epochs are given"),
        (TinyRecipe, "--epochs 0", "epochs is 0.0; expected a number above 0"),
        (TinyRecipe, "--epochs inf", "epochs is inf; expected a number above 0"),
        (TinyRecipe, "--steps 0", "Neither steps nor epochs are given; expected"),
        (TinyRecipe, "--weight-decay nan", "weight_decay is nan; expected a number of at least 0"),
        (TinyRecipe, "--clip -1", "clip is -1.0; expected a length above 0"),
        (TinyRecipe, "--ema 1", "ema is 1.0; expected a decay between 0 and 1, such as 0.999"),
        (TinyRecipe, "--patience 0", "patience is 0; expected at least 1 evaluation"),
        (TinyRecipe, "--log-to tensorbored", "'wandb', 'mlflow'"),
        (TinyRecipe, "--accumulate 0", "accumulate is 0; expected at least 1"),
        (TinyRecipe, "--accumulate 3", "2 pictures in 3 parts (accumulate) does not divide among"),
        (TinyRecipe, "--memory less", "invalid choice 'less' for argument '--memory'"),
        (TinyRecipe, "--not-finite ignore", "invalid choice 'ignore' for argument"),
    ],
)
def test_values_that_no_field_can_have_are_told(recipe, options, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(recipe, ["cost", *options.split()])
    assert stopped.value.code == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_choices_are_checked_in_python_too():
    with pytest.raises(SegjaxError, match="memory is 'less'; expected one of plain, remat, fit"):
        TinyRecipe(data=Path(), memory="less")
    with pytest.raises(SegjaxError, match="not_finite is 'go on'; expected one of stop, skip"):
        TinyRecipe(data=Path(), not_finite="go on")


def test_both_in_python():
    with pytest.raises(SegjaxError, match=r"Both steps \(9\) and epochs \(3\) are given"):
        TinyRecipe(data=Path(), steps=9, epochs=3)


# What trains


def lines_of(run, of="loss"):
    return [line[of] for line in read_metrics(run / "metrics.jsonl") if of in line]


def test_a_clipped_gradient_makes_a_step_of_its_length(home):
    """Of SGD without momentum, whose step is the gradient times the rate."""

    @dataclass(frozen=True, kw_only=True)
    class Plain(TinyRecipe):
        steps: int = 1

        def optimizer(self):
            return optax.sgd(1.0)

        def schedule(self):
            return optimizers.constant(1.0)

    parts = Parts(Plain(data=home), sharding.make_mesh())
    before = jax.device_get(parts.make_state().params)
    for clip, length in ((0.25, 0.25), (1e9, None)):
        run = train(home, "--clip", clip, recipe=Plain, run=f"clip{clip}")
        (norm,) = lines_of(run, "gradient_norm")  # as it was before
        step = jax.tree.map(np.subtract, state_of(run)[1]["params"], before)
        assert optax.tree.norm(step) == pytest.approx(length or norm, rel=1e-4)
        assert norm > 0.25 and Run(run).fields["clip"] == clip


def test_weights_decay_as_told(home):
    runs = [train(home, "--weight-decay", w, run=f"decay{w}") for w in (0, 0.5)]
    kernels, biases = zip(
        *(
            (params["Conv_0"]["kernel"], params["Conv_0"]["bias"])
            for params in (state_of(run)[1]["params"] for run in runs)
        ),
        strict=True,
    )
    assert np.linalg.norm(kernels[1]) < np.linalg.norm(kernels[0])
    np.testing.assert_allclose(*biases, rtol=1e-2)  # which only feel that the kernels do
    with pytest.raises(SystemExit):
        train(home, "--weight-decay", 0.1, run="decay0")


def test_a_batch_in_parts_is_the_batch(home, capsys):
    """Of an uneven one: the second picture's mask is nearly all ignored."""
    mask = np.full((16, 16), 255, np.uint8)
    mask[0, :5] = 1
    Image.fromarray(mask).save(home / "masks/train/1.png")
    whole, parts = (train(home, "--accumulate", n, run=f"in{n}") for n in (1, 2))
    states = [state_of(run)[1]["params"] for run in (whole, parts)]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), *states)
    assert lines_of(whole) == pytest.approx(lines_of(parts), rel=1e-5)
    capsys.readouterr()
    with pytest.raises(SystemExit):  # with batch norm it would be another training
        train(home, "--accumulate", 1, run="in2")
    assert "  accumulate: 2 in the run, 1 asked for" in capsys.readouterr().err


def test_a_run_from_before_these_fields_goes_on(home, capsys):
    """They are not written in its recipe.json; at their defaults they change nothing."""
    run = train(home)
    stored = json.loads((run / "recipe.json").read_text())
    names = ("epochs", "weight_decay", "clip", "ema", "patience", "log_to")
    for name in (*names, "accumulate", "memory", "not_finite"):
        del stored["fields"][name]
    (run / "recipe.json").write_text(json.dumps(stored))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train(home, "--steps", 3, "--ema", 0.9)
    assert "  ema: None in the run, 0.9 asked for" in capsys.readouterr().err
    train(home, "--steps", 3)
    assert "going on from step 2 of 3" in capsys.readouterr().out


@dataclass(frozen=True, kw_only=True)
class Steady(TinyRecipe):
    """At a rate that does not depend on the number of steps: some and then more are all at once."""

    learning_rate: float = 0.1

    def schedule(self):
        return optimizers.constant(self.learning_rate)


def test_the_average_is_what_is_scored_used_and_started_from(home):
    run = train(home, "--ema", 0.6, "--steps", 6, recipe=Steady)
    plain = train(home, "--steps", 6, recipe=Steady, run="plain")
    step, state = state_of(run)
    _, without = state_of(plain)
    assert step == 6 and not without.get("ema")
    jax.tree.map(np.testing.assert_array_equal, state["params"], without["params"])
    assert lines_of(run) != lines_of(plain)  # of the held-out data too
    newest = segjax.load(run, "newest")
    jax.tree.map(np.testing.assert_array_equal, newest.variables["params"], state["ema"]["params"])
    assert not np.array_equal(state["ema"]["params"]["Conv_0"]["bias"], without_bias(state))

    # evaluate, and the training's own evaluations, of the best checkpoint.
    logged = lines_of(run, "mean_iou")
    scores = scores_of(run)
    assert scores["mean_iou"] == max(logged) == logged[scores["step"] - 1]

    begun = train(home, "--start-from", run, "--learning-rate", 0, recipe=Steady, run="begun")
    best = segjax.load(run).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, state_of(begun)[1]["params"], best)
    begun = train(
        home, "--start-from", run, "--learning-rate", 0, "--ema", 0.9, recipe=Steady, run="both"
    )
    jax.tree.map(np.testing.assert_array_equal, state_of(begun)[1]["ema"]["params"], best)


def without_bias(state):
    return state["params"]["Conv_0"]["bias"]


def test_a_run_with_an_average_goes_on_to_the_bit(home, capsys):
    options = ("--ema", 0.9, "--clip", 0.5)
    straight = train(home, *options, "--steps", 7, recipe=Steady)
    train(home, *options, "--steps", 3, recipe=Steady, run="twice")
    resumed = train(home, *options, "--steps", 7, recipe=Steady, run="twice")
    assert "going on from step 3 of 7" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, state_of(straight)[1], state_of(resumed)[1])
    assert lines_of(straight, "mean_iou") == lines_of(resumed, "mean_iou")


# What is not finite


@dataclass(frozen=True, kw_only=True)
class White(TinyRecipe):
    """Its loss is NaN for a white picture, the second one."""

    batch_size: int = 1

    def loss(self, output, example):
        return super().loss(output, example) + jnp.where(example.image.min() == 255, jnp.nan, 0)


@pytest.fixture
def white(home):
    Image.new("RGB", (16, 16), "white").save(home / "images/train/1.png")
    return home


def test_the_batch_of_a_step_that_is_not_finite_is_kept_for_a_look(white, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(white, "--steps", 5, recipe=White)
    assert stopped.value.code == 2
    told, run = capsys.readouterr().err, white / "run"
    (failed,) = (run / "failed").iterdir()
    number = int(failed.name.removeprefix("step_"))
    assert f"stopped at step {number}: loss is nan" in told and f"for a look: {failed}." in told
    kept = f"of step {number - 1} is kept" if number > 1 else "No checkpoint yet"
    assert kept in told
    (row,) = json.loads((failed / "ids.json").read_text())
    assert (row["record"], row["id"]) == (1, "1") and row["epoch"] == (number - 1) // 2
    with np.load(failed / "batch.npz") as stored:
        batch = dict(stored)
    assert batch["image"].min() == 255 and batch["label"].shape == (1, 16, 16)
    assert np.array_equal(np.asarray(Image.open(failed / "0_image.png")), batch["image"][0])
    assert np.array_equal(np.asarray(Image.open(failed / "0_label.png")), batch["label"][0])

    # To skip it is no other training.
    train(white, "--steps", 5, "--not-finite", "skip", recipe=White)
    assert state_of(run)[0] == 5
    train(white, "--restart", "--yes", "--not-finite", "skip", recipe=White)
    assert not failed.exists()


def test_steps_that_are_not_finite_are_skipped_when_asked(white, capsys):
    run = train(white, "--steps", 6, "--not-finite", "skip", recipe=White)
    assert "3 of 6 steps were skipped, for they were not finite" in capsys.readouterr().out
    assert sum(lines_of(run, "skipped")) == 3
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "skipped" in line]
    assert sum(loss is None for loss in losses) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state_of(run)[1]["params"]))


@dataclass(frozen=True, kw_only=True)
class Leaping(TinyRecipe):
    """Its parameters are 1e30 after one step of a finite loss."""

    def schedule(self):
        return optimizers.constant(1e30)

    def optimizer(self):
        return optax.sgd(1.0)


def test_absurd_parameters_are_saved_nowhere(home, capsys):
    with pytest.raises(SystemExit):
        train(home, recipe=Leaping)
    told = capsys.readouterr().err
    assert "stopped at step 1: parameter_norm is inf" in told and "No checkpoint yet." in told
    assert not [p for p in (home / "run/checkpoints").iterdir() if p.is_dir()]


class Drifting(Tiny):
    """Its statistics overflow, which training alone does not see."""

    @nn.compact
    def __call__(self, images, *, train=False):
        seen = self.variable("batch_stats", "seen", jnp.zeros, ())
        if train:
            seen.value += jnp.inf
            return Output(nn.Conv(self.num_classes, (1, 1))(images))
        return Output(nn.Conv(self.num_classes, (1, 1))(images) + seen.value - seen.value)


@dataclass(frozen=True, kw_only=True)
class OfDrifting(TinyRecipe):
    """Finite in training, not in evaluation."""

    def model(self):
        return Drifting(2)


def test_a_state_whose_held_out_loss_is_not_finite_is_not_saved(home, capsys):
    with pytest.raises(SystemExit):
        train(home, recipe=OfDrifting)
    told = capsys.readouterr().err
    assert "the loss on the held-out pictures is nan, so this state is not saved" in told
    assert not [p for p in (home / "run/checkpoints").iterdir() if p.is_dir()]


# When to stop


@pytest.mark.parametrize(
    "scores, since",
    [
        ([], 0),
        ([0.1], 0),
        ([0.1, 0.1, 0.1], 2),
        ([0.1, 0.3, 0.2, 0.3], 2),
        ([0.3, 0.1, 0.4], 0),
        ([math.nan, math.nan], 2),
        ([math.nan, 0.0, math.nan], 1),
    ],
)
def test_evaluations_since_the_best(scores, since):
    assert _since_best(scores) == since


def test_patience_ends_a_training_that_no_longer_gets_better(home, capsys):
    still = ("--learning-rate", 0, "--steps", 9, "--patience", 2)
    run = train(home, *still, recipe=Steady)
    told = capsys.readouterr().out
    why = "for 2 evaluations brought no better mean IoU (--patience)"
    assert f"stopped at step 3 of 9, {why}" in told
    assert state_of(run)[0] == 3 and scores_of(run)["mean_iou"] == lines_of(run, "mean_iou")[0]

    train(home, *still, recipe=Steady)
    assert f"{run}: stopped at step 3, {why}; nothing is left" in capsys.readouterr().out
    assert state_of(run)[0] == 3 and len(lines_of(run, "mean_iou")) == 3
    train(home, *still[:-1], 4, recipe=Steady)
    assert "stopped at step 5 of 9" in capsys.readouterr().out


def test_patience_outlasts_a_kill(home, capsys):
    """After an evaluation that is told, and before its checkpoint was whole: it is done again."""
    still = ("--learning-rate", 0, "--patience", 2)
    run = train(home, *still, "--steps", 2, recipe=Steady)
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 3, "mean_iou": 0.1}\n{"ste')
    train(home, *still, "--steps", 9, recipe=Steady)
    assert "stopped at step 3 of 9" in capsys.readouterr().out
    assert len(lines_of(run, "mean_iou")) == 3


# Who is told


class Recorder(Observer):
    """Notes what it is told, and fails in the event that `fails` names, at a step."""

    def __init__(self, heard, fails=None, at=None):
        self.heard, self.fails, self.at = heard, fails, at

    def note(self, event, step, values):
        self.heard.append((event, step, values))
        if event == self.fails and step >= self.at:
            raise ConnectionError("no route to host")

    def started(self, run, fields, step):
        self.note("started", step, (run, fields))

    def logged(self, step, values):
        self.note("logged", step, values)

    def evaluated(self, step, scores):
        self.note("evaluated", step, scores)

    def finished(self, step, scores):
        self.note("finished", step, scores)


def watched(*observers):
    @dataclass(frozen=True, kw_only=True)
    class Watched(Steady):
        steps: int = 4

        def observers(self):
            return observers

    return Watched


def events(heard):
    return [(event, step) for event, step, _ in heard]


def test_observers_hear_what_the_run_tells(home):
    heard = []
    run = train(home, "--log-every", 2, recipe=watched(Recorder(heard)), run="a run")
    assert events(heard) == [
        ("started", 0),
        ("evaluated", 1),
        *[("logged", 2), ("evaluated", 2), ("evaluated", 3), ("logged", 4), ("evaluated", 4)],
        ("finished", 4),
    ]
    folder, fields = heard[0][2]
    assert folder == run and fields == Run(run).fields and fields["learning_rate"] == 0.1
    losses = [values["loss"] for event, _, values in heard if event in ("logged", "evaluated")]
    assert losses == lines_of(run)  # the mean of both steps, as in metrics.jsonl
    reported = heard[-1][2]
    assert reported["mean_iou"] == scores_of(run)["mean_iou"]

    heard.clear()
    train(home, "--log-every", 2, recipe=watched(Recorder(heard)), run="a run")
    assert events(heard) == [("started", 4), ("finished", 4)]


@pytest.mark.parametrize(
    "event, at, kept", [("logged", 1, 2), ("logged", 2, 2), ("evaluated", 2, 2)]
)
def test_an_observer_that_fails_costs_nothing(event, at, kept, home, capsys):
    """Of a step it is told while the next one runs, which is then the last."""
    every = ("--evaluate-every", 2)
    straight = train(home, *every, recipe=watched(), run="straight")
    heard, beside = [], []
    with pytest.raises(SystemExit) as stopped:
        train(home, *every, recipe=watched(Recorder(heard, event, at), Recorder(beside)))
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert f"The observer Recorder raised in its `{event}`: ConnectionError: no route to" in told
    assert f"(test_fields.py, line {line_of('raise Conn')})" in told and "Traceback" not in told
    assert f"The same command goes on from step {kept}." in told
    assert events(heard)[-1] == (event, at)  # no more of what has failed
    assert beside[-1] == ("finished", kept, {})
    run = train(home, *every, recipe=watched(Recorder([])))
    assert f"going on from step {kept} of 4" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, state_of(straight)[1], state_of(run)[1])


def line_of(text):
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_an_observer_that_fails_at_the_ends(home, capsys):
    for event in ("started", "evaluated", "finished"):
        with pytest.raises(SystemExit):
            train(home, recipe=watched(Recorder([], event, 4 * (event == "evaluated"))), run=event)
        told = capsys.readouterr().err
        assert f"raised in its `{event}`" in told and "goes on" not in told
    for event in ("evaluated", "finished"):
        assert state_of(home / event)[0] == 4 and scores_of(home / event)
    assert not list((home / "started/checkpoints").iterdir())


def test_of_several_processes_none_is_stopped_by_an_observer(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    heard = []
    observing = Observing([Recorder(heard, "logged", 1)])
    with pytest.raises(SegjaxError, match="raised in its `logged`"), observing.to_the_end():
        observing.start(Path(), {}, 0)
        for step in (1, 2):
            observing.tell("logged", step, {})
            assert observing.error and not observing.to_stop
    assert events(heard) == [("started", 0), ("logged", 1)]


def test_services_are_observers_too(home, monkeypatch):
    heard = []
    monkeypatch.setattr(observers, "MLflow", lambda: Recorder(heard))
    run = train(home, "--log-to", "mlflow", recipe=Steady)
    assert events(heard)[0] == ("started", 0) and events(heard)[-1] == ("finished", 2)
    assert Run(run).fields["log_to"] == ["mlflow"]
    train(home, recipe=Steady)  # which is the same run


def test_a_service_that_is_not_there_is_told_before_the_data_is_read(home, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    shutil.rmtree(home / "images")
    with pytest.raises(SystemExit):
        train(home, "--log-to", "wandb")
    assert "wandb is not installed" in capsys.readouterr().err and not (home / "run").exists()


def test_help_tells_of_every_field(capsys):
    with pytest.raises(SystemExit):
        main(TinyRecipe, ["train", "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "--epochs {None}|FLOAT Passes over the training data, in place of steps",
        "--weight-decay FLOAT How fast kernels decay",
        "--clip {None}|FLOAT The longest gradient",
        "--ema {None}|FLOAT Decay of a moving average",
        "--patience {None}|INT Evaluations without a better mean IoU",
        "--accumulate INT Parts in which each device takes its pictures",
        "--memory {plain,remat,fit} What is kept for the gradient",
        "--not-finite {stop,skip} What a loss or gradient does",
        "--profile INT Trace so many steps",
        "--log-to [{wandb,mlflow} [{wandb,mlflow} ...]] Services that are told",
    ):
        assert text in told
    assert "--splits" not in told
