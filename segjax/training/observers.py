"""Who is told of a training while it runs: observers of one's own, Weights & Biases, MLflow.

Both services are extras, `pip install 'segjax[wandb]'` and `'segjax[mlflow]'`, imported where they
are used, and set up by their own environment variables.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from segjax.errors import SegjaxError

_PROJECT = "segjax"  # where the environment names no other


class Observer:
    """What is told of a training; override what you want to hear.

    Of several processes the first alone calls. What one raises ends the training after its step,
    whose state is kept; of several processes, where all would have to end, it is not called again.
    """

    def started(self, run: Path, fields: Mapping[str, Any], step: int) -> None:
        """Before the first step, and each time that a run goes on.

        Args:
            run: the run folder.
            fields: of the recipe, plain values as in recipe.json.
            step: steps that are done already.
        """

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Every `log_every` steps, a line of metrics.jsonl: "loss", "learning_rate", …

        The loss is the mean since the last line. What is not known yet is NaN.
        """

    def evaluated(self, step: int, scores: Mapping[str, float]) -> None:
        """After each evaluation: "mean_iou", "loss", … of val."""

    def finished(self, step: int, scores: Mapping[str, float]) -> None:
        """At the end: the scores that are reported, or none of a training that was broken off."""


def services(names: tuple[str, ...]) -> list[Observer]:
    """The observers of services by their names, "wandb" and "mlflow".

    Raises:
        SegjaxError: one is not installed.
    """
    return [{"wandb": WandB, "mlflow": MLflow}[name]() for name in names]


class WandB(Observer):
    """A run of Weights & Biases, in the project that WANDB_PROJECT names, or "segjax".

    Raises:
        SegjaxError: it is not installed.
    """

    def __init__(self) -> None:
        self._wandb = _module("wandb")

    def started(self, run: Path, fields: Mapping[str, Any], step: int) -> None:
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=_identity(run),
            name=run.resolve().name,
            dir=os.environ.get("WANDB_DIR", str(run)),
            config=dict(fields),
            resume="allow",
        )
        # Steps as wandb counts them only rise; a run that was killed does some again.
        self._run.define_metric("*", step_metric="step")

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **_named("train", values)})

    def evaluated(self, step: int, scores: Mapping[str, float]) -> None:
        self._run.log({"step": step, **_named("val", scores)})

    def finished(self, step: int, scores: Mapping[str, float]) -> None:
        self._run.summary.update(_named("report", scores))
        self._run.finish(exit_code=0 if scores else 1)


class MLflow(Observer):
    """A run of MLflow, in the experiment that MLFLOW_EXPERIMENT_NAME names, or "segjax".

    Raises:
        SegjaxError: it is not installed.
    """

    def __init__(self) -> None:
        self._mlflow = _module("mlflow")

    def started(self, run: Path, fields: Mapping[str, Any], step: int) -> None:
        self._client = client = self._mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        same = f"tags.{_PROJECT} = '{_identity(run)}'"
        if runs := client.search_runs([experiment], same, max_results=1):
            self._id = runs[0].info.run_id  # its parameters cannot be written twice
            client.update_run(self._id, status="RUNNING")
            return
        made = client.create_run(
            experiment, tags={_PROJECT: _identity(run)}, run_name=run.resolve().name
        )
        self._id = made.info.run_id
        entity = self._mlflow.entities.Param
        params = [entity(name, json.dumps(value)[:500]) for name, value in fields.items()]
        client.log_batch(self._id, params=params)

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, _named("train", values))

    def evaluated(self, step: int, scores: Mapping[str, float]) -> None:
        self._log(step, _named("val", scores))

    def finished(self, step: int, scores: Mapping[str, float]) -> None:
        self._log(step, _named("report", scores))
        self._client.set_terminated(self._id, "FINISHED" if scores else "KILLED")

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        now, entity = int(time.time() * 1000), self._mlflow.entities.Metric
        metrics = [entity(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise SegjaxError(
            f"{name} is not installed ({error}): pip install 'segjax[{name}]', or drop it from "
            "--log-to."
        ) from error


def _named(group: str, values: Mapping[str, float]) -> dict[str, float]:
    """The values that are numbers, as TensorBoard has them too: "val/mean_iou"."""
    return {f"{group}/{name}": float(x) for name, x in values.items() if math.isfinite(x)}


def _identity(run: Path) -> str:
    """The same each time that a run goes on, wherever its folder lies: that of its first start."""
    first = json.loads((run / "environment.json").read_text(encoding="utf-8"))[0]
    return hashlib.sha256(json.dumps(first).encode()).hexdigest()[:16]
