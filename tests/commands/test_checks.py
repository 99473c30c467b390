"""What a verb makes sure of before it computes."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import TinyRecipe

from segjax.commands import checks
from segjax.commands.checks import check_outputs, demand_counts, save_png
from segjax.errors import SegjaxError
from segjax.recipe import main


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.full((9, 8, 3), 70, np.uint8)).save(tmp_path / "street.png")
    return tmp_path / "street.png"


def refused(capsys, *command):
    with pytest.raises(SystemExit) as stopped:
        main(TinyRecipe, list(map(str, command)))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def predict(trained, *command):
    return ["predict", *command, "--run", trained / "run"]


def kept(path):
    return path.read_bytes()


def test_predict_beside_the_picture(trained, picture, capsys):
    before = kept(picture)
    told = refused(capsys, *predict(trained, picture, "--out", picture.parent))
    assert f"{picture}: would be written over by what is made of it. Name another" in told
    assert kept(picture) == before
    assert [path.name for path in picture.parent.iterdir()] == ["street.png"]  # nothing computed


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_predict_through_a_link(link, trained, picture, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    link(picture, tmp_path / "out/street.png")
    before = kept(picture)
    told = refused(capsys, *predict(trained, picture, "--out", tmp_path / "out"))
    assert "would be written over by what is made of it" in told and kept(picture) == before
    (tmp_path / "linked").symlink_to(tmp_path)  # the folder itself
    told = refused(capsys, *predict(trained, picture, "--out", tmp_path / "linked"))
    assert "would be written over" in told and kept(picture) == before


def test_predict_one_result_over_another(trained, picture, tmp_path, capsys):
    other = picture.with_name("street_overlay.png")
    shutil.copy(picture, other)
    told = refused(capsys, *predict(trained, picture, other, "--out", tmp_path / "out"))
    assert f"{tmp_path / 'out/street_overlay.png'}: {picture} and {other}" in told
    assert not (tmp_path / "out").exists()


def test_predict_over_what_others_have_made(trained, picture, tmp_path, capsys):
    """Such as the masks of these very pictures; but its own results it may replace."""
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (8, 9)).save(masks / "street.png")
    before = kept(masks / "street.png")
    command = predict(trained, picture, "--out", masks)
    told = refused(capsys, *command)
    assert f"{masks / 'street.png'}: is there, and was not written by segjax." in told
    assert kept(masks / "street.png") == before
    (masks / "street.png").unlink()
    for _ in range(2):
        main(TinyRecipe, list(map(str, command)))
    assert sorted(path.name for path in masks.iterdir()) == ["street.png", "street_overlay.png"]


def test_where_large_and_small_letters_are_one(tmp_path, monkeypatch):
    planned = [(tmp_path / "A.png", "A.jpg"), (tmp_path / "a.png", "a.jpg")]
    check_outputs(planned, [])
    monkeypatch.setattr(checks, "_folds", lambda _: True)
    with pytest.raises(SegjaxError, match=r"A\.png, made of A\.jpg, and .*a\.png, .*one file here"):
        check_outputs(planned, [])


def test_a_folder_tells_whether_it_folds(tmp_path, monkeypatch):
    (tmp_path / "Out").mkdir()
    assert not checks._folds(tmp_path / "Out/new")
    (tmp_path / "oUT").symlink_to(tmp_path / "Out")  # as such a file system answers
    assert checks._folds(tmp_path / "Out/new")


@pytest.mark.parametrize(
    "verb, more",
    [
        ("evaluate", ["--batch-size", -1]),
        ("evaluate", ["--batch-size", 0]),
        ("evaluate", ["--tile", 0]),
        ("predict", ["--tile", 0]),
        ("predict", ["--tile", -512]),
    ],
)
def test_numbers_below_one(verb, more, trained, picture, tmp_path, capsys):
    scores = trained / "run/report/scores.json"
    before = kept(scores)
    pictures = [picture] if verb == "predict" else []
    told = refused(capsys, verb, *pictures, "--run", trained / "run", *more)
    assert f"{more[0]} is {more[1]}; expected at least 1." in told and kept(scores) == before


def test_what_may_be_left_out_is_no_number():
    demand_counts(tile=None, batch_size=1)


def test_evaluate_writes_over_no_picture(trained, tmp_path, capsys):
    """Whose data has a picture of the name that the preview has."""
    data = tmp_path / "data"
    shutil.copytree(trained, data, ignore=lambda *_: ["run"])
    for kind in ("images", "masks"):
        (data / f"{kind}/val/0.png").rename(data / f"{kind}/val/preview.png")
    before = kept(data / "images/val/preview.png")
    out = data / "images/val"
    command = ["evaluate", "--run", trained / "run", "--data", data, "--out", out]
    assert "preview.png: would be written over by what is made of" in refused(capsys, *command)
    assert kept(data / "images/val/preview.png") == before and not (out / "scores.json").exists()


def test_show_augment_writes_over_no_picture(trained, capsys):
    path = trained / "images/train/0.png"
    before = kept(path)
    told = refused(capsys, "show-augment", "--data", trained, "--out", path)
    assert f"{path}: would be written over" in told and kept(path) == before


def test_export_writes_over_no_readme(trained, tmp_path, capsys):
    from segjax.commands.export import export

    (tmp_path / "README.md").write_text("# My thesis")
    with pytest.raises(SegjaxError, match=r"README\.md: is there, and is no model card"):
        export(trained / "run", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_png_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(Image.new("L", (3, 3)), path)
    before = kept(path)
    assert checks._is_ours(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save_png(Image.new("L", (5, 5)), path)
    assert kept(path) == before and [path.name for path in tmp_path.iterdir()] == ["a.png"]
