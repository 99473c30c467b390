"""From a folder to a run by one command: what it finds, what it writes, and what it refuses."""

import sys

import jax
import numpy as np
import pytest
from PIL import Image
from recipes import state_of

import segjax.__main__
from segjax.commands import networks, train_folder
from segjax.commands.run import Run

MEMORY = train_folder._memory


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A small U-Net, not compiled to plan; and what a command changes is changed back."""
    monkeypatch.setattr(train_folder, "_memory", lambda plan, mesh: 0.0)
    unet = networks.NETWORKS["unet"]
    widths = unet.options["widths"]._replace(small=(4, 8))
    monkeypatch.setitem(networks.NETWORKS, "unet", unet._replace(options={"widths": widths}))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def make(root, count=10, *, lists=(), mask=lambda pixels: (pixels > 127) * np.uint8(255)):
    """Grey pictures of 40×44 pixels, in which what is bright is the foreground."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 256, (40, 44), np.uint8)
        Image.fromarray(pixels).save(root / f"images/{i:02}.png")
        Image.fromarray(mask(pixels)).save(root / f"masks/{i:02}.png")
    for name, numbers in lists:
        (root / f"{name}.txt").write_text("".join(f"{i:02}\n" for i in numbers))
    return root


def command(*words):
    sys.argv = ["segjax", *map(str, words)]
    segjax.__main__.main()


def fails(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        command(*words)
    told = capsys.readouterr()
    assert stopped.value.code == 2 and "Traceback" not in told.err
    return told.err


def planned(folder, *words):
    """The recipe that a plan of a folder says."""
    command("train", folder, "--plan-only", *words)
    script = folder.parent / f"runs/{folder.name}.py"
    return train_folder._recipe(script.read_text().replace("__main__", "never"))


def test_one_command_trains_and_its_script_is_the_same_run(tmp_path, capsys):
    folder = make(tmp_path / "cells")

    command("train", folder, "--steps", 2)

    told = " ".join(capsys.readouterr().out.split())
    assert "8 to train, 2 held out" in told and "8 pictures a step" in told
    script, run = tmp_path / "runs/cells.py", tmp_path / "runs/cells"
    assert f"python {script.relative_to(tmp_path)} train" in told
    assert (run / "report/scores.json").exists() and Run(run).recipe == "cells"

    # The script by itself, anywhere, gives the same numbers to the bit.
    train_folder.run_script(script, ["train", "--run", str(tmp_path / "again")])
    (step, ours), (_, theirs) = state_of(run), state_of(tmp_path / "again")
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    # The same command goes on, by the script that is there, though it was edited.
    script.write_text(script.read_text().replace("every: int = 1", "every: int = 2"))
    capsys.readouterr()
    command("train", folder, "--steps", 3)
    told = capsys.readouterr().out
    assert "runs/cells.py is there: it is taken as it stands" in told
    assert "going on from step 2 of 3" in told and state_of(run)[0] == 3
    assert Run(run).fields["evaluate_every"] == 2
    told = fails(capsys, "train", folder, "--model", "fcn8s")
    assert "was planned by" in told and "--model fcn8s" in told and "--run" in told
    script.unlink()
    assert "the script that trained it is not there" in fails(capsys, "train", folder)


def test_lists_and_names_beside_are_taken(tmp_path):
    folder = make(tmp_path / "cells", lists=[("train", range(6)), ("val", [8, 9])])
    (folder / "classes.txt").write_text("ground\nnucleus\n")

    recipe = planned(folder)

    assert [pair.id for pair in recipe.source("val").pairs] == ["08", "09"]
    assert len(recipe.source("train")) == 6
    assert recipe.source("train").classes == ("ground", "nucleus")
    assert recipe.source("train")[0]["label"].max() == 1 and recipe.channels == 1


def test_a_lone_list_is_parted(tmp_path):
    recipe = planned(make(tmp_path / "cells", lists=[("train", range(5)), ("test", range(5, 10))]))

    assert [len(recipe.source(split)) for split in ("train", "val")] == [4, 1]


def test_splits_may_be_the_outer_folders(tmp_path):
    for name, count in (("train", 4), ("valid", 3)):
        make(tmp_path / "cells" / name, count)
    recipe = planned(tmp_path / "cells")

    assert [len(recipe.source(split)) for split in ("train", "val")] == [4, 3]


def test_folders_of_cities_are_taken_together(tmp_path):
    folder = make(tmp_path / "cells")
    for path in (*folder.glob("images/*"), *folder.glob("masks/*")):
        city = path.parent / ("ulm" if int(path.stem) < 5 else "jena")
        city.mkdir(exist_ok=True)
        path.rename(city / path.name)

    assert len(planned(folder).source("train")) == 8


def test_masks_are_found_in_the_only_other_folder(tmp_path, capsys):
    folder = make(tmp_path / "cells")
    (folder / "masks").rename(folder / "annotations")
    (folder / "thumbnails").mkdir()
    assert len(planned(folder).source("train")) == 8

    (folder / "thumbnails/00.png").touch()
    (tmp_path / "runs/cells.py").unlink()
    told = fails(capsys, "train", folder)
    assert "several folders may hold the masks: annotations, thumbnails" in told


def test_colours_and_values_are_taken_as_told(tmp_path):
    folder = make(tmp_path / "reds", mask=lambda p: np.dstack([p // 128 * 200, 0 * p, 0 * p]))

    source = planned(folder, "--colours", 0, 0, 0, 0, 200, 0, 0, 1).source("val")
    assert source.palette == ((0, 0, 0), (200, 0, 0))
    assert source[0]["label"].max() == 1

    folder = make(tmp_path / "threes", mask=lambda p: p // 86)
    source = planned(folder, "--values", 2, 255, "--classes", "dark", "light").source("val")
    assert set(np.unique(source[0]["label"])) == {0, 1, 255}


def test_two_colours_are_found(tmp_path):
    folder = make(tmp_path / "reds", mask=lambda p: np.dstack([p // 128 * 200, 0 * p, 0 * p]))

    assert planned(folder).source("train").colours == (((0, 0, 0), 0), ((200, 0, 0), 1))


def test_what_does_not_fit_the_memory_is_halved(tmp_path, monkeypatch):
    folder, asked = make(tmp_path / "cells", 40), []

    def memory(plan, mesh):
        asked.append(plan.batch_size)
        return 1e9 * plan.batch_size

    monkeypatch.setattr(train_folder, "_memory", memory)
    monkeypatch.setattr(train_folder.memory, "left", lambda: 1.1e10)
    assert planned(folder).batch_size == 8 and asked == [16, 8]


def test_what_fits_no_memory_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_folder, "_memory", MEMORY)
    monkeypatch.setattr(train_folder.memory, "left", lambda: 1000)
    told = fails(capsys, "train", make(tmp_path / "cells"))
    assert "One picture a device" in told and "--model" in told
    assert not (tmp_path / "runs/cells.py").exists()


def broken(root):
    make(root)
    for path in (root / "masks").iterdir():
        path.write_bytes(b"")
    return root


MISTAKES = {
    "no folder": (lambda root: root / "nowhere", [], "no such folder"),
    "no masks": (
        lambda root: make(root).joinpath("masks").rename(root.parent / "m") and root,
        [],
        "masks: no such folder",
    ),
    "one picture": (lambda root: make(root, 1), [], "one picture only"),
    "unreadable": (broken, [], "00.png: an empty file"),
    "model": (make, ["--model", "unett"], "no such network"),
    "one value": (lambda root: make(root, mask=lambda p: 0 * p), [], "nothing but the value 0"),
    "names": (
        lambda root: make(root, mask=lambda p: p // 86),
        ["--classes", "a", "b"],
        "--values 2 255",
    ),
    "one name": (make, ["--colours", "0", "0", "0", "0"], "One class only, class_0"),
    "val alone": (lambda root: make(root, lists=[("val", [1])]), [], "none to train on"),
    "many colours": (
        lambda root: make(root, mask=lambda p: np.dstack([p, p // 2, p // 3])),
        [],
        "256 colours, more than there may be classes",
    ),
    "three colours": (
        lambda root: make(root, mask=lambda p: np.dstack([p // 86, 0 * p, 0 * p])),
        ["--classes", "a", "b", "c"],
        "--colours 0 0 0 0 ",
    ),
    "channels": (make, ["--channels", "2"], "--channels 2: expected 1 (grey)"),
}


@pytest.mark.parametrize("spoil, words, expected", MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_told_in_options(spoil, words, expected, tmp_path, capsys):
    told = fails(capsys, "train", spoil(tmp_path / "cells"), *words)
    assert told.startswith("error: ") and expected in told
    assert not (tmp_path / "runs").exists()


def test_a_script_is_trained_by_its_own_verb(tmp_path, capsys):
    script = tmp_path / "recipe.py"
    script.write_text("import sys\nprint(sys.argv)\n")
    command("train", script, "--steps", 3)
    assert capsys.readouterr().out.strip() == str([str(script), "train", "--steps", "3"])
