"""Whatever has happened to a run folder, a verb works or says in a line which file is to blame."""

import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
from tiny import TinyRecipe

from segjax.errors import SegjaxWarning
from segjax.evaluation import report
from segjax.recipe import main


def text(name, content):
    """Damage that writes something else to a file."""
    return lambda run: (run / name).write_bytes(content)


def cut(name):
    def damage(run):
        path = next(iter(sorted(run.glob(name))))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def gone(name):
    def damage(run):
        for path in list(run.glob(name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def folder(name):
    def damage(run):
        gone(name)(run)
        (run / name).mkdir()

    return damage


def file(name):
    def damage(run):
        gone(name)(run)
        (run / name).write_text("a file")

    return damage


def garbage(name):
    def damage(run):
        for path in run.glob(name):
            path.write_bytes(bytes(range(256)) * 3)

    return damage


def recipe(change):
    """Damage that changes what recipe.json holds."""

    def damage(run):
        stored = json.loads((run / "recipe.json").read_text())
        change(stored)
        (run / "recipe.json").write_text(json.dumps(stored))

    return damage


def fields(**values):
    return recipe(lambda stored: stored["fields"].update(values))


def part(name, **values):
    return recipe(lambda stored: stored[name]["fields"].update(values))


def scores(content):
    """Damage to what the checkpoints' scores are read from."""

    def damage(run):
        for path in run.glob("checkpoints/*/metrics/metrics"):
            path.write_bytes(content)

    return damage


def fifo(name):
    def damage(run):
        (run / name).unlink()
        os.mkfifo(run / name)

    return damage


def broken_link(name):
    def damage(run):
        gone(name)(run)
        (run / name).symlink_to("nowhere")

    return damage


DEEP = b"[" * 100_000 + b"]" * 100_000
NESTED = json.loads("[" * 300 + "]" * 300)
DAMAGES = {
    "recipe.json gone": gone("recipe.json"),
    "recipe.json a folder": folder("recipe.json"),
    "recipe.json a pipe": fifo("recipe.json"),
    "recipe.json a broken link": broken_link("recipe.json"),
    "recipe.json empty": text("recipe.json", b""),
    "recipe.json cut": cut("recipe.json"),
    "recipe.json no text": garbage("recipe.json"),
    "recipe.json []": text("recipe.json", b"[]"),
    "recipe.json null": text("recipe.json", b"null"),
    "recipe.json a number": text("recipe.json", b"3"),
    "recipe.json deep": text("recipe.json", DEEP),
    "no model": recipe(lambda stored: stored.pop("model")),
    "no fields": recipe(lambda stored: stored.pop("fields")),
    "no palette": recipe(lambda stored: stored.pop("palette")),
    "no crop": recipe(lambda stored: stored["fields"].pop("crop")),
    "fields a list": recipe(lambda stored: stored.update(fields=[1])),
    "model a text": recipe(lambda stored: stored.update(model="UNet")),
    "class of no module": recipe(lambda stored: stored["model"].update({"class": "x"})),
    "class without a file": recipe(lambda stored: stored["model"].update(file="/nowhere/x.py")),
    "file a number": recipe(lambda stored: stored["model"].update(file=3)),
    "crop a text": fields(crop="a"),
    "crop negative": fields(crop=[-16, 16]),
    "batch_size null": fields(batch_size=None),
    "buckets numbers": fields(buckets=[16, 16]),
    "canvas nested": fields(canvas=NESTED),
    "workers 0": fields(workers=0),
    "channels many": fields(channels=99),
    "num_classes a text": part("model", num_classes="two"),
    "num_classes 0": part("model", num_classes=0),
    "num_classes 3": part("model", num_classes=3),
    "an unknown field": part("model", depth=3),
    "mean a text": part("normalise", mean="grey"),
    "mean of 5 channels": part("normalise", mean=[1, 2, 3, 4, 5]),
    "root a number": part("source", root=3),
    "root null": part("source", root=None),
    "images a number": part("source", images=3),
    "split a list": part("source", split=[1]),
    "part a text": part("source", part="ab"),
    "classes 3": part("source", classes=["a", "b", "c"], palette=[[0, 0, 0]] * 3),
    "palette short": recipe(lambda stored: stored.update(palette=[[0, 0, 0]])),
    "palette of texts": recipe(lambda stored: stored.update(palette=["red", "blue"])),
    "classes nested": recipe(lambda stored: stored.update(classes=NESTED)),
    "environment.json {}": text("environment.json", b"{}"),
    "environment.json a folder": folder("environment.json"),
    "environment.json cut": cut("environment.json"),
    "skipped.json []": text("skipped.json", b"[]"),
    "skipped.json of others": text("skipped.json", b'{"train": {"77": "gone"}}'),
    "skipped.json a folder": folder("skipped.json"),
    "metrics.jsonl no text": garbage("metrics.jsonl"),
    "metrics.jsonl of texts": text(
        "metrics.jsonl", b'{"step": "a", "loss": "b", "learning_rate": "c"}\n' * 3
    ),
    "metrics.jsonl of lists": text(
        "metrics.jsonl", b'{"step": 1, "mean_iou": [1], "learning_rate": {}}\n' * 3
    ),
    "metrics.jsonl deep": text("metrics.jsonl", DEEP + b"\n" + DEEP + b"\n"),
    "metrics.jsonl a folder": folder("metrics.jsonl"),
    "tensorboard a file": file("tensorboard"),
    "report a file": file("report"),
    "overlays a file": file("report/overlays"),
    "scores.json a folder": folder("report/scores.json"),
    "preview.png a folder": folder("report/preview.png"),
    "predictions a file": lambda run: (run / "predictions").write_text(""),
    "checkpoints gone": gone("checkpoints"),
    "checkpoints empty": folder("checkpoints"),
    "checkpoints a file": file("checkpoints"),
    "checkpoint a file": file("checkpoints/2"),
    "checkpoint empty": folder("checkpoints/2"),
    "scores gone": gone("checkpoints/*/metrics"),
    "scores empty": scores(b""),
    "scores null": scores(b"null"),
    "scores a list": scores(b"[1]"),
    "scores a text": scores(b'{"mean_iou": "high"}'),
    "scores null inside": scores(b'{"mean_iou": null}'),
    "scores deep": scores(DEEP),
    "scores no text": garbage("checkpoints/*/metrics/metrics"),
    "arrays gone": gone("checkpoints/*/default/d"),
    "arrays garbage": garbage("checkpoints/*/default/d/*"),
    "array metadata garbage": garbage("checkpoints/*/default/_METADATA"),
    "array metadata deep": lambda run: [
        path.write_bytes(DEEP) for path in run.glob("checkpoints/*/default/_METADATA")
    ],
    "checkpoint metadata garbage": garbage("checkpoints/*/_CHECKPOINT_METADATA"),
    "manifest garbage": garbage("checkpoints/*/default/manifest.ocdbt"),
    "stray file": lambda run: (run / "checkpoints/notes.txt").write_text("x"),
    "stray step": lambda run: (run / "checkpoints/7").mkdir(),
}


# Orbax closes its event loop while other reads of the damaged checkpoint still end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::segjax.errors.SegjaxWarning")  # of what is set aside
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_works_or_is_told(name, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "plot_reliability", lambda *_, **__: None)  # which reads no file
    home, run = trained, tmp_path / "run"
    verbs = {
        "evaluate": ["evaluate", "--run", run],
        "predict": ["predict", home / "images/val/0.png", "--run", run],
        "train": ["train", "--data", home, "--run", run, "--skip-broken", "--steps", 3],
    }
    for verb, arguments in verbs.items():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(home / "run", run)
        DAMAGES[name](run)
        capsys.readouterr()
        try:
            main(TinyRecipe, list(map(str, arguments)))
        except SystemExit as stopped:
            told = capsys.readouterr().err
            assert stopped.code == 2, verb
            assert "error: " in told and str(run) in told and "Traceback" not in told, verb


def test_a_flipped_bit_is_told_and_the_training_goes_on(trained, tmp_path, capsys):
    """Silently restored, it would spoil what is trained; nothing but a checksum tells it."""
    run = tmp_path / "run[1]"  # any name
    shutil.copytree(trained / "run", run)
    newest = run / "checkpoints" / "2"
    path = max(newest.glob("default/ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    name = path.relative_to(newest).as_posix()
    told = f"{newest}: the checkpoint is damaged: {name} is not as it was written"
    with pytest.raises(SystemExit):
        main(TinyRecipe, ["evaluate", "--run", str(run), "--checkpoint", "newest"])
    assert told in capsys.readouterr().err and newest.exists()
    train = ["train", "--data", str(trained), "--run", str(run), "--skip-broken", "--steps", "2"]
    with pytest.warns(SegjaxWarning, match=re.escape(f"{told} (its checksum differs). It is set")):
        main(TinyRecipe, train)
    assert "going on from step 1 of 2" in capsys.readouterr().out
    held = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert held == ["1", "2", "2.damaged"]


def test_a_pair_added_between_two_starts_is_told(trained, tmp_path, capsys):
    """The same pictures in another place are the same data."""
    home = Path(shutil.copytree(trained, tmp_path / "moved"))
    train = ["train", "--data", str(home), "--run", str(home / "run"), "--skip-broken"]
    main(TinyRecipe, train)
    assert "at step 2 already, nothing is left to train" in capsys.readouterr().out
    before = (home / "run/metrics.jsonl").read_bytes()
    for kind in ("images", "masks"):
        shutil.copy(home / kind / "train/0.png", home / kind / "train/2.png")
    with pytest.raises(SystemExit):
        main(TinyRecipe, [*train, "--steps", "3"])
    told = capsys.readouterr().err
    assert "run: the train pictures are others than at its first start: 2 then, 3 now. Put" in told
    assert (home / "run/metrics.jsonl").read_bytes() == before
    for kind in ("images", "masks"):
        (home / kind / "train/2.png").unlink()
    shutil.rmtree(home / "run/checkpoints")
    with pytest.raises(SystemExit):
        main(TinyRecipe, [*train, "--steps", "3"])
    assert "tells of a training, but its folder checkpoints/ is missing" in capsys.readouterr().err
    assert (home / "run/metrics.jsonl").read_bytes() == before


def test_a_run_folder_that_is_none(trained, tmp_path, capsys):
    """A file, a socket, or a picture and a run in the wrong order."""
    picture, run = trained / "images/val/0.png", trained / "run"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
    for place in (picture, tmp_path / "s", picture / "run", tmp_path / "absent"):
        verbs = {"evaluate": [], "predict": [picture]}
        if place.name != "absent":
            verbs["train"] = ["--data", trained]
        for verb, more in verbs.items():
            with pytest.raises(SystemExit) as stopped:
                main(TinyRecipe, [verb, "--run", str(place), *map(str, more)])
            assert stopped.value.code == 2 and str(place) in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(TinyRecipe, ["predict", str(run), "--run", str(picture)])
    assert "The run comes first, then the pictures" in capsys.readouterr().err
