"""Services are told of a training as TensorBoard is, and go on with a run that goes on.

By the real packages where they are installed, offline; and by stand-ins that take no more than what
the packages take.
"""

import functools
import importlib
import inspect
import json
import math
import sys
import types
from types import SimpleNamespace

import pytest

from segjax.errors import SegjaxError
from segjax.training import observers
from segjax.training.observers import MLflow, Observer, WandB, services

FIELDS = {"steps": 4, "crop": [16, 16], "clip": None}


@pytest.fixture
def run(tmp_path):
    """A run folder as it is when training starts."""
    (tmp_path / "a run").mkdir()
    started = [{"time": "2026-01-02T03:04:05", "command": ["train"]}]
    (tmp_path / "a run/environment.json").write_text(json.dumps(started))
    return tmp_path / "a run"


def tell(observer, run, *, start=0, scores=None):
    """Two steps, told as `RunLog` tells them: the rate is not known at once."""
    observer.started(run, FIELDS, start)
    for step in (start + 1, start + 2):
        observer.logged(step, {"loss": 1 / step, "images_per_second": math.nan})
    observer.evaluated(start + 2, {"mean_iou": 0.5})
    observer.finished(start + 2, {"mean_iou": 0.75} if scores is None else scores)


def test_an_observer_need_hear_nothing(run):
    tell(Observer(), run)


def test_services_by_name(monkeypatch):
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    made = services(("mlflow", "wandb"))
    assert [type(x) for x in made] == [MLflow, WandB] and services(()) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed_is_told(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SegjaxError, match=rf"{name} is not installed .*'segjax\[{name}\]'"):
        services((name,))


def test_a_run_is_the_same_each_time_and_wherever_it_lies(run, tmp_path):
    first = observers._identity(run)
    starts = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps([*starts, {"time": "later"}]))
    assert observers._identity(run.rename(tmp_path / "moved")) == first
    (tmp_path / "moved/environment.json").write_text(json.dumps([{"time": "later"}]))
    assert observers._identity(tmp_path / "moved") != first


class FakeWandB(types.ModuleType):
    """Notes what it is called with."""

    def __init__(self):
        super().__init__("wandb")
        self.calls, self.summary = [], {}

    def init(self, *, project, id, name, dir, config, resume):
        self.calls.append(("init", project, id, name, config, resume))
        return self

    def define_metric(self, name, step_metric=None):
        self.calls.append(("define_metric", name, step_metric))

    def log(self, data):
        self.calls.append(("log", data))

    def finish(self, exit_code=None):
        self.calls.append(("finish", exit_code))


@pytest.fixture
def fake_wandb(monkeypatch):
    for name in ("WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_what_wandb_is_told(run, fake_wandb):
    tell(WandB(), run)
    identity = observers._identity(run)
    assert fake_wandb.calls == [
        ("init", "segjax", identity, "a run", FIELDS, "allow"),
        ("define_metric", "*", "step"),
        ("log", {"step": 1, "train/loss": 1.0}),
        ("log", {"step": 2, "train/loss": 0.5}),
        ("log", {"step": 2, "val/mean_iou": 0.5}),
        ("finish", 0),
    ]
    assert fake_wandb.summary == {"report/mean_iou": 0.75}
    tell(WandB(), run, start=2, scores={})  # goes on, and is broken off
    assert fake_wandb.calls[6][2] == identity and fake_wandb.calls[-1] == ("finish", 1)


def test_the_project_is_the_environments(run, fake_wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "cells")
    tell(WandB(), run)
    assert fake_wandb.calls[0][1] == "cells"


def test_wandb_takes_what_it_is_called_with():
    wandb = pytest.importorskip("wandb")
    real = {"init": wandb.init} | {
        name: functools.partial(getattr(wandb.Run, name), None)
        for name in ("define_metric", "log", "finish")
    }
    for name, function in real.items():
        wanted = inspect.signature(getattr(FakeWandB, name)).parameters.keys() - {"self"}
        assert wanted <= inspect.signature(function).parameters.keys(), name


@pytest.mark.filterwarnings("default")  # of what these packages do
def test_wandb_itself_offline(run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tell(WandB(), run)
    (kept,) = (run / "wandb").glob(f"offline-run-*-{observers._identity(run)}")
    assert list(kept.glob("*.wandb"))


@pytest.mark.filterwarnings("default")
def test_mlflow_itself_in_a_folder(run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cells")
    tell(MLflow(), run)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("cells").experiment_id

    def only_run():
        (found,) = client.search_runs([experiment])
        return found

    first = only_run()
    assert first.info.run_name == "a run" and first.info.status == "FINISHED"
    assert first.data.params == {"steps": "4", "crop": "[16, 16]", "clip": "null"}
    assert first.data.metrics == {
        "train/loss": 0.5, "val/mean_iou": 0.5, "report/mean_iou": 0.75
    }  # fmt: skip

    tell(MLflow(), run, start=2, scores={})
    assert only_run().info.status == "KILLED"
    told = client.get_metric_history(first.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in told] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]


class FakeMLflow(types.ModuleType):
    """A client that keeps one run, and takes of it what MLflow's takes."""

    def __init__(self):
        super().__init__("mlflow")
        self.entities = SimpleNamespace(
            Param=lambda key, value: (key, value),
            Metric=lambda key, value, timestamp, step: (key, value, step),
        )
        self.calls, self.runs = [], []

    def MlflowClient(self):
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="7") if self.runs else None

    def create_experiment(self, name):
        self.calls.append(("create_experiment", name))
        return "7"

    def search_runs(self, experiment_ids, filter_string="", max_results=1000):
        return [x for x in self.runs if f"tags.segjax = '{x.tags['segjax']}'" == filter_string]

    def create_run(self, experiment_id, tags=None, run_name=None):
        made = SimpleNamespace(info=SimpleNamespace(run_id="r"), tags=tags)
        self.runs.append(made)
        return made

    def update_run(self, run_id, status=None):
        self.calls.append(("update_run", run_id, status))

    def log_batch(self, run_id, metrics=(), params=()):
        self.calls.append(("log_batch", run_id, *metrics, *params))

    def set_terminated(self, run_id, status=None):
        self.calls.append(("set_terminated", run_id, status))


def test_what_mlflow_is_told(run, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    tell(MLflow(), run)
    assert fake.calls == [
        ("create_experiment", "segjax"),
        ("log_batch", "r", ("steps", "4"), ("crop", "[16, 16]"), ("clip", "null")),
        ("log_batch", "r", ("train/loss", 1.0, 1)),
        ("log_batch", "r", ("train/loss", 0.5, 2)),
        ("log_batch", "r", ("val/mean_iou", 0.5, 2)),
        ("log_batch", "r", ("report/mean_iou", 0.75, 2)),
        ("set_terminated", "r", "FINISHED"),
    ]
    fake.calls.clear()
    tell(MLflow(), run, start=2, scores={})
    assert len(fake.runs) == 1 and fake.calls[0] == ("update_run", "r", "RUNNING")
    assert fake.calls[-2:] == [("log_batch", "r"), ("set_terminated", "r", "KILLED")]


def test_mlflow_takes_what_it_is_called_with():
    client = pytest.importorskip("mlflow").MlflowClient
    for name, function in vars(FakeMLflow).items():
        if name not in ("MlflowClient", "__init__") and inspect.isfunction(function):
            wanted = inspect.signature(function).parameters
            assert wanted.keys() <= inspect.signature(getattr(client, name)).parameters.keys()
    for name, fake in vars(FakeMLflow().entities).items():
        real = getattr(importlib.import_module("mlflow.entities"), name)
        assert [*inspect.signature(real).parameters][: fake.__code__.co_argcount] == [
            *inspect.signature(fake).parameters
        ]
