"""The files of experiments/cluster, without a cluster: stand-ins take the place of its commands."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import yaml
from recipes import EXPERIMENTS, recipe_of

from segjax.commands.run import Run
from segjax.commands.trained import load_step
from segjax.evaluation.report import read_metrics
from segjax.recipe import main

CLUSTER = EXPERIMENTS / "cluster"
# Of `man sbatch`, those that are used and their kin.
OPTIONS = {
    "job-name", "nodes", "ntasks", "ntasks-per-node", "gpus", "gpus-per-node", "gpus-per-task",
    "gres", "cpus-per-task", "cpus-per-gpu", "mem", "time", "signal", "requeue", "open-mode",
    "partition", "account", "output", "error", "exclusive",
}  # fmt: skip
# Starts a command once per task, as srun does, with the variables by which JAX finds Slurm.
SRUN = """#!{python}
import os, signal, subprocess, sys
tasks = int(os.environ["TASKS"])
started = []
for i in range(tasks):
    place = {{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_NTASKS": str(tasks)}}
    place |= {{"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}}
    started.append(subprocess.Popen([sys.executable, *sys.argv[2:]], env=os.environ | place))
open("pids", "w").write(" ".join(str(process.pid) for process in started))
sys.exit(max(process.wait() for process in started))
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Makes a command that notes its arguments in a file of its name, or that runs a script."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "bin").mkdir()

    def make(name, script='#!/bin/sh\nprintf "%s\\n" "$@" >> {home}/{name}.txt\n'):
        path = tmp_path / "bin" / name
        path.write_text(script.format(home=tmp_path, name=name, python=sys.executable))
        path.chmod(0o755)
        return tmp_path / f"{name}.txt"

    return make


def parses(words, capsys):
    """Whether the words after the script are options of its recipe's verb."""
    assert words[0].startswith("experiments/") and words[1] == "train"
    with pytest.raises(SystemExit) as stopped:
        main(recipe_of(Path(words[0]).stem), [*words[1:], "--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    return all(word in told for word in words if word.startswith("--"))


@pytest.mark.parametrize("name", ["train.sbatch", "cloud_tpu.sh"])
def test_the_scripts_parse(name):
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)


def test_the_options_are_slurms():
    lines = (CLUSTER / "train.sbatch").read_text().splitlines()
    given = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    names = [option.removeprefix("--").partition("=")[0] for option in given]
    assert set(names) <= OPTIONS and len(names) == len(set(names))
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < min(
        i for i, line in enumerate(lines) if line and not line.startswith("#")
    )  # after the first command Slurm reads none


def test_the_job_set_is_as_its_schema_wants_and_starts_the_recipe(capsys):
    """The fields that the schema of JobSet v1alpha2 requires, and what has to agree in them."""
    found = yaml.safe_load((CLUSTER / "jobset.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    name, spec = found["metadata"]["name"], found["spec"]
    (job,) = spec["replicatedJobs"]
    of_job = job["template"]["spec"]
    assert of_job["completions"] == of_job["parallelism"] and of_job["backoffLimit"] == 0
    pod = of_job["template"]["spec"]
    (container,) = pod["containers"]
    # What a policy of exit codes asks for.
    assert pod["restartPolicy"] == "Never"
    (rule,) = of_job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    (policy,) = spec["failurePolicy"]["rules"]
    assert policy["action"] == "FailJobSet"
    assert policy["onJobFailureReasons"] == ["PodFailurePolicy"]

    environment = {variable["name"]: variable for variable in container["env"]}
    host = f"{name}-{job['name']}-0-0.{name}"  # the first pod's, by JobSet's headless service
    assert environment["JAX_COORDINATOR_ADDRESS"]["value"].partition(":")[0] == host
    assert environment["JAX_NUM_PROCESSES"]["value"] == str(of_job["completions"])
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    python, *words = container["command"] + container["args"]
    assert python == "python" and all(isinstance(word, str) for word in words)
    assert parses(words, capsys)


def test_the_cloud_tpu_command_starts_the_recipe_on_all_hosts(stand_ins, capsys):
    told = stand_ins("gcloud")
    words = ["experiments/fcn8s_voc.py", "--data", "/mnt/my data", "--run", "/mnt/run"]
    environment = os.environ | {"TPU": "slice", "ZONE": "us-central2-b"}
    subprocess.run(["bash", CLUSTER / "cloud_tpu.sh", *words], env=environment, check=True)
    *given, command = told.read_text().splitlines()
    assert given == [
        "compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=us-central2-b", "--worker=all",
    ]  # fmt: skip
    assert command.startswith("--command=cd segjax && python ")
    called = shlex.split(command.partition("python ")[2])
    assert called == [words[0], "train", "--distributed", *words[1:]]
    assert parses(called, capsys)


def submit(home, tasks, *options):
    """The job's script, as Slurm starts it."""
    environment = os.environ | {
        "TASKS": str(tasks), "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu",
        "SLURM_JOB_ID": str(random.randrange(10**6)),  # which tells JAX a port
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    words = ["bash", CLUSTER / "train.sbatch", tiny.__file__, "--data", home, *options]
    return subprocess.Popen(
        [str(word) for word in words], env=environment, cwd=home, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def told(home, kind):
    """Of each line of metrics.jsonl of scores, or of training, what does not depend on the time."""
    lines = read_metrics(home / "metrics.jsonl")
    return [(x["step"], x["loss"]) for x in lines if ("mean_iou" in x) == (kind == "scores")]


def test_four_processes_under_slurm_train_as_one_with_four_devices(tmp_path, stand_ins):
    """And one folder is written, with each picture counted once."""
    stand_ins("srun", SRUN)
    home = tiny.make_data(tmp_path / "data")
    options = ["--steps", 4, "--evaluate-every", 2, "--batch-size", 4]
    job = submit(home, 4, *options, "--run", home / "four")
    alone = [sys.executable, tiny.__file__, "train", "--data", home, "--run", home / "one"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [str(word) for word in [*alone, *options]], check=True, stdout=subprocess.DEVNULL,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    text = job.communicate(timeout=120)[1]
    assert job.returncode == 0, text
    (step, one), (same, four) = (load_step(Run(home / x), "newest") for x in ("one", "four"))
    assert step == same == 4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.variables, four.variables
    )
    for kind in ("training", "scores"):
        want, got = (np.array(told(home / run, kind)) for run in ("one", "four"))
        np.testing.assert_allclose(got, want, rtol=1e-5)
    files = [
        sorted(str(path.relative_to(home / run)) for path in (home / run / "report").rglob("*"))
        for run in ("one", "four")
    ]
    assert files[0] == files[1]
    scores = [
        json.loads((home / run / "report/scores.json").read_text()) for run in ("one", "four")
    ]
    assert scores[0]["confusion"] == scores[1]["confusion"]  # every held-out pixel once
    ids = [[picture["id"] for picture in score["pictures"]] for score in scores]
    assert ids[0] == ids[1] and len(ids[0]) == 2  # of four processes
    assert sum(scores[0]["calibration"]["count"]) == sum(scores[1]["calibration"]["count"])


def test_a_signal_to_one_task_saves_and_requeues_and_a_dead_one_too(tmp_path, stand_ins):
    stand_ins("srun", SRUN)
    requeued = stand_ins("scontrol")
    home = tiny.make_data(tmp_path / "data")
    options = ["--steps", 10**6, "--evaluate-every", 10**6, "--run", home / "run"]

    def once_it_trains(number):
        metrics = home / "run/metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        job = submit(home, 2, *options)
        until = time.monotonic() + 240
        while time.monotonic() < until and not (
            metrics.exists() and metrics.stat().st_size > before
        ):
            time.sleep(0.1)
        os.kill(int((home / "pids").read_text().split()[1]), number)
        began = time.monotonic()
        text = job.communicate(timeout=60)[1]
        assert "Traceback" not in text and "Check failure" not in text, text
        assert time.monotonic() - began < 60
        return job.returncode, text

    status, text = once_it_trains(signal.SIGUSR1)
    assert status == 128 + signal.SIGUSR1 and text.count("Interrupted after step") == 2, text
    step, _ = load_step(Run(home / "run"), "newest")
    assert f"Interrupted after step {step}; the same command" in text
    status, text = once_it_trains(signal.SIGKILL)
    assert status == 75 and text.count("error: ") == 1, text
    assert "error: Process 1 of 2 (on " in text and "has died, so the others end too" in text
    assert requeued.read_text().splitlines()[::2] == ["requeue", "requeue"]
    assert load_step(Run(home / "run"), "newest")[0] == step
