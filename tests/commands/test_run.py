"""The run folder: what is written there rebuilds the network and its data, and nothing else."""

import dataclasses
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from segjax.commands.run import Run, as_json, read_json, start_run, write_whole
from segjax.data.augment import Normalise
from segjax.data.folder import Folder
from segjax.data.shapes import Shapes
from segjax.data.weight_map import Weighted
from segjax.errors import SegjaxError
from segjax.evaluation.baselines import Otsu
from segjax.models import FCN, UNet

UNET = UNet(3, widths=(4, 8, 16), padding="valid", norm="none", dropout=0.5)
NORMALISE = Normalise(mean=(1.0, 2.0, 3.0), deviation=(4.0, 5.0, 6.0))
FIELDS = {
    **{"steps": 100, "seed": 0, "rate": 0.1, "crop": (32, 64), "data": Path("here"), "name": "a"},
    **{"batch_size": 4, "workers": 1, "channels": 3, "canvas": (32, 64), "buckets": ()},
    "normalise": NORMALISE,
}
FOLDER = Folder(
    Path("/data/cells"),
    classes=("ground", "cell"),
    palette=((0, 0, 0), (255, 0, 0)),
    part=(5, None),
    values=((255, 1),),
)
PARTS = {
    **{"model": UNET, "normalise": NORMALISE, "source": Shapes(12, (48, 64), seed=3)},
    **{"classes": ("a", "b"), "palette": ((0, 0, 0), (1, 2, 3))},
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "first"


def start(folder, *, name="unet_shapes", fields=(), parts=(), **more):
    """A start that comes to a checkpoint; one that does not binds nobody."""
    start_run(folder, name=name, fields=FIELDS | dict(fields), parts=PARTS | dict(parts), **more)
    (folder / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)


def edit(folder, change):
    """Rewrite recipe.json by hand."""
    path = folder / "recipe.json"
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def same(rebuilt, original):
    """Linen modules compare by field, and so do all other dataclasses; types count, too."""
    assert type(rebuilt) is type(original) and rebuilt == original
    for field in dataclasses.fields(original):
        if field.name not in ("parent", "name"):
            assert type(getattr(rebuilt, field.name)) is type(getattr(original, field.name))
    assert hash(rebuilt) == hash(original)


@pytest.mark.parametrize(
    "part, thing",
    [
        ("model", UNET),
        ("model", UNet(7)),
        ("model", FCN(21, stride=16, padding="same", widths=(2, 2, 2, 2, 2), classifier_width=4)),
        ("normalise", NORMALISE),
        ("source", Shapes(12, (48, 64), seed=3)),
        ("source", FOLDER),
        ("source", Weighted(FOLDER, w0=3.0)),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_what_is_written_rebuilds_it(folder, part, thing):
    start(folder, parts={part: thing})
    same(Run(folder).rebuild(part), thing)


def test_tuples_of_tuples_come_back(folder):
    start(folder, parts={"palette": ((0, 0, 0), (1, 2, 3)), "classes": ("a", "b")})
    assert Run(folder).rebuild("palette") == ((0, 0, 0), (1, 2, 3))
    assert Run(folder).rebuild("classes") == ("a", "b")


def test_a_relative_path_is_written_whole(folder):
    start(folder, parts={"source": dataclasses.replace(FOLDER, root=Path("cells"))})
    assert Run(folder).rebuild("source").root == Path.cwd() / "cells"
    assert Run(folder).fields["data"] == str(Path.cwd() / "here")


def test_fields_are_plain_values(folder):
    start(folder)
    fields = Run(folder).fields
    assert fields["crop"] == [32, 64] and fields["rate"] == 0.1 and fields["name"] == "a"


def test_each_start_is_noted(folder):
    start(folder)
    start(folder)
    first, second = json.loads((folder / "environment.json").read_text())
    assert first["devices"] == second["devices"] and len(first["devices"]) == 8
    assert first["packages"]["jax"] and first["python"] and first["command"]
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["checkpoints", "environment.json", "recipe.json"]


@pytest.mark.parametrize(
    "changed", [{"steps": 900}, {"log_every": 3}, {"data": Path("/moved")}], ids=str
)
def test_what_may_change_is_written_down_anew(folder, changed):
    start(folder, fields={"log_every": 20})
    start(folder, fields={"log_every": 20} | changed)
    [(name, value)] = changed.items()
    written = Run(folder).fields[name]
    assert written == (str(value) if isinstance(value, Path) else value)


@pytest.mark.parametrize(
    "fields, parts, told",
    [
        ({"seed": 1}, {}, r"  seed: 0 in the run, 1 asked for"),
        ({"crop": (32, 32)}, {}, r"  crop: \[32, 64\] in the run, \[32, 32\] asked for"),
        ({"new": 1}, {}, r"  new: None in the run, 1 asked for"),
        ({}, {"model": UNET.clone(dropout=0.1)}, r"  model dropout: 0.5 in the run, 0.1 asked for"),
        (
            {"seed": 1},
            {"model": UNET.clone(num_classes=4)},
            r"  model num_classes: 3 in the run, 4 asked for\n  seed: 0 in the run",
        ),
        ({}, {"model": FCN(3)}, r"  model: segjax\S+:UNet in the run, segjax\S+:FCN asked for"),
        (
            {"normalise": Normalise()},
            {},
            r"  normalise: .*\[1.0, 2.0, 3.0\].* in the run, .*\[127.5\].* asked for",
        ),
    ],
    ids=["field", "tuple", "new", "dropout", "two", "network", "normalise"],
)
def test_another_setting_is_refused_with_both_values(folder, fields, parts, told):
    start(folder)
    before = {path: path.read_text() for path in folder.glob("*.json")}
    with pytest.raises(SegjaxError, match=rf"trained with other settings:\n(.*\n)*{told}") as error:
        start(folder, fields=fields, parts=parts)
    assert f"this one's state with --fork {folder} or from nothing" in str(error.value)
    assert {path: path.read_text() for path in folder.glob("*.json")} == before


DATA = {"train": {"pictures": 8, "names": "a1"}, "val": {"pictures": 2, "names": "b2"}}


@pytest.mark.parametrize(
    "split, now, told",
    [
        ("train", {"pictures": 9, "names": "c3"}, "8 then, 9 now"),
        ("val", {"pictures": 2, "names": "c3"}, "2 as then, of other names"),
        ("train", {"pictures": 7, "names": None}, "8 then, 7 now"),
    ],
)
def test_other_pictures_are_refused(folder, split, now, told):
    start(folder, data=DATA)
    start(folder, data=DATA)
    with pytest.raises(SegjaxError, match=f"first: the {split} pictures are others .*: {told}"):
        start(folder, data=DATA | {split: now})
    edit(folder, lambda stored: stored.pop("data"))  # of before it was noted
    start(folder, data=DATA | {split: now})
    start(folder, data=DATA | {split: now})
    with pytest.raises(SegjaxError, match="Put them back to go on"):
        start(folder, data=DATA)


EVALUATED = '{"step": 1, "mean_iou": 0.5}\n'


@pytest.mark.parametrize(
    "log, held, told",
    [
        (None, None, ""),
        ("", None, ""),
        ('{"step": 1, "loss": 1.0}\n', None, "is missing"),
        ('{"step": 1, "loss": 1.0}\n', (), ""),  # killed before its first checkpoint
        (EVALUATED * 2, (), ""),
        (EVALUATED * 3, (), "is empty"),
        (EVALUATED * 3, ("4.orbax-checkpoint-tmp",), ""),
        (EVALUATED * 3, ("4.damaged",), ""),  # told by those who read it
        (EVALUATED * 3, ("4",), ""),
    ],
)
def test_a_run_that_has_lost_its_checkpoints_does_not_begin_anew_unsaid(folder, log, held, told):
    start(folder)
    shutil.rmtree(folder / "checkpoints")
    if log is not None:
        (folder / "metrics.jsonl").write_text(log)
    if held is not None:
        (folder / "checkpoints").mkdir()
        for name in held:
            (folder / "checkpoints" / name).mkdir()
    if not told:
        start(folder)
        return
    with pytest.raises(SegjaxError, match=f"tells of a training, but its folder .*{told}. Put it"):
        start(folder)
    start(folder, restart=True)


def test_what_a_start_notes(folder):
    start(folder, note={"forked_from": {"run": "x", "step": 3}})
    start(folder)
    first, second = json.loads((folder / "environment.json").read_text())
    assert first["forked_from"]["step"] == 3 and "forked_from" not in second


def test_another_recipe_is_refused(folder):
    start(folder)
    with pytest.raises(SegjaxError, match="is a run of the recipe unet_shapes, not fcn_voc"):
        start(folder, name="fcn_voc")


def test_a_folder_of_other_things_is_left_alone(folder):
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("long")
    with pytest.raises(SegjaxError, match="first: exists, but holds no run"):
        start(folder)
    with pytest.raises(SegjaxError, match=r"thesis[.]txt: exists, but holds no run"):
        start(folder / "thesis.txt")
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_taken(folder):
    folder.mkdir(parents=True)
    start(folder)
    same(Run(folder).rebuild("model"), UNET)


def test_a_first_start_that_was_killed_is_no_run(folder):
    """Or is still going on in another process."""
    folder.mkdir(parents=True)
    (folder / "recipe.json.partial").write_text("{")
    start(folder)
    same(Run(folder).rebuild("model"), UNET)


@pytest.mark.parametrize("thing", [jnp.bfloat16, np.int64(3), {1, 2}], ids=str)
def test_what_cannot_be_written_is_named(folder, thing):
    with pytest.raises(SegjaxError, match=f"{re.escape(repr(thing))} cannot be written to recipe"):
        start(folder, parts={"model": UNET.clone(dtype=thing)})
    assert not folder.exists()


def test_a_folder_without_a_run(folder):
    with pytest.raises(SegjaxError, match=r"first: no run here \(recipe.json is missing\)"):
        Run(folder)


@pytest.mark.parametrize(
    "content", [b"", b'{"segjax": ', b"[", b"\xff\xfe\x00"], ids=["empty", "cut", "list", "bytes"]
)
def test_a_recipe_that_is_no_json(folder, content):
    start(folder)
    (folder / "recipe.json").write_bytes(content)
    with pytest.raises(SegjaxError, match=r"recipe.json: no valid JSON .* Restore the file"):
        Run(folder)
    with pytest.raises(SegjaxError, match=r"recipe.json: no valid JSON"):
        start(folder)


KEYS = ["segjax", "recipe", "fields", "model", "normalise", "source", "classes", "palette"]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(folder, key):
    start(folder)
    edit(folder, lambda stored: stored.pop(key))
    for use in (lambda: Run(folder), lambda: start(folder)):
        with pytest.raises(SegjaxError, match=f"recipe.json: has no '{key}'. Restore the file"):
            use()


@pytest.mark.parametrize("text", ["[1, 2]", "3", "null", '"fields"', "{}"])
def test_json_of_another_kind(folder, text):
    start(folder)
    (folder / "recipe.json").write_text(text)
    with pytest.raises(SegjaxError, match=r"recipe.json: has no 'segjax'"):
        Run(folder)


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("crop", "a", "expected a height and a width"),
        ("crop", [0, 32], "expected a height and a width"),
        ("canvas", [32], "expected a height and a width"),
        ("batch_size", None, "expected a number of at least 1"),
        ("workers", 0.5, "expected a number of at least 1"),
        ("channels", True, "expected a number of at least 1"),
        ("buckets", [32, 32], "expected heights and widths"),
    ],
)
def test_a_field_of_another_kind_is_named(folder, key, value, told):
    start(folder)
    edit(folder, lambda stored: stored["fields"].update({key: value}))
    with pytest.raises(SegjaxError, match=f"recipe.json: its field '{key}' is .*, {told}"):
        Run(folder)


@pytest.mark.parametrize(
    "cls, told",
    [
        ("segjax.models.unet:Gone", "has no attribute 'Gone'"),
        ("gone_package.models:UNet", "No module named 'gone_package'"),
        ("subprocess:run", "subprocess:run is no dataclass"),
        ("os:system", "os:system is no dataclass"),
        ("builtins:eval", "builtins:eval is no dataclass"),
        ("", "Empty module name"),
    ],
)
def test_a_class_that_is_no_network_is_refused(folder, cls, told):
    start(folder)
    edit(folder, lambda stored: stored["model"].update({"class": cls}))
    with pytest.raises(SegjaxError, match=f"recipe.json: its model cannot be rebuilt: .*{told}"):
        Run(folder).rebuild("model")


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored["model"].pop("class"),
        lambda stored: stored["model"].pop("fields"),
        lambda stored: stored["model"].update(fields=None),
        lambda stored: stored["model"].update({"class": 3}),
        lambda stored: stored.update(model="UNet"),
    ],
    ids=["class missing", "fields missing", "fields null", "class 3", "name alone"],
)
def test_what_describes_no_class(folder, change):
    start(folder)
    edit(folder, change)
    with pytest.raises(SegjaxError, match=r"its 'model' is .*, expected a class and its fields"):
        Run(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored["model"]["fields"].pop("num_classes"),
        lambda stored: stored["model"]["fields"].update(depth=3),
    ],
    ids=["field missing", "field new"],
)
def test_a_description_with_pieces_missing(folder, change):
    start(folder)
    edit(folder, change)
    with pytest.raises(SegjaxError, match=r"recipe.json: its model cannot be rebuilt: "):
        Run(folder).rebuild("model")


def test_an_instance_is_no_class(folder):
    """A dataclass with __call__: to call it with fields of a file's choosing is not to make it."""
    start(folder)
    edit(folder, lambda stored: stored["model"].update({"class": f"{__name__}:INSTANCE"}))
    with pytest.raises(SegjaxError, match="INSTANCE is no dataclass"):
        Run(folder).rebuild("model")


@dataclass(frozen=True)
class Callable:
    def __call__(self, **fields):
        raise AssertionError("called")


INSTANCE = Callable()


def test_a_damaged_list_of_starts_is_not_overwritten(folder):
    start(folder)
    (folder / "environment.json").write_text("[")
    with pytest.raises(SegjaxError, match=r"environment.json: no valid JSON"):
        start(folder)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "recipe.json"
    write_whole(path, "first")
    assert path.read_text() == "first\n"
    seen = []

    def killed(source, target):
        seen.append((Path(source).read_text(), Path(target).read_text()))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, "second")
    assert seen == [("second\n", "first\n")] and path.read_text() == "first\n"
    write_whole(path, "third: ø")
    assert path.read_text(encoding="utf-8") == "third: ø\n"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_written_for_people(tmp_path):
    told = {"train": {"3": "a 40×44 picture"}, os.fsdecode(b"\xff"): 1}
    write_whole(tmp_path / "skipped.json", as_json(told))
    assert "40×44" in (tmp_path / "skipped.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "skipped.json") == told  # a name that is no Unicode, too


def test_a_part_that_not_every_recipe_has(folder):
    start(folder)
    assert not Run(folder).has("baseline")
    start(folder.with_name("second"), parts={"baseline": Otsu()})
    assert Run(folder.with_name("second")).has("baseline")
    same(Run(folder.with_name("second")).rebuild("baseline"), Otsu())
    assert Run(folder).recipe == "unet_shapes"
