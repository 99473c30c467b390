"""The verb `report` on runs that were trained a little."""

import json
import shutil
import sys

import numpy as np
import pytest
from test_damage import DAMAGES, DEEP, cut, recipe, text

import segjax
from segjax.__main__ import main
from segjax.commands.command import command
from segjax.commands.report import page as page_module
from segjax.commands.report import report
from segjax.commands.run import Run
from segjax.commands.trained import held_out
from segjax.errors import SegjaxError, SegjaxWarning
from segjax.recipe import Published


@pytest.fixture(scope="module")
def evaluated(trained):
    """The run, with the scores of its two pictures, the second the worse."""
    run = trained / "run"
    path = run / "report/scores.json"
    scores = json.loads(path.read_text())
    pictures = [{"id": "0", "mean_iou": 0.75}, {"id": "1", "mean_iou": 0.25}]
    per_class = {"iou": [0.5, None]}
    path.write_text(json.dumps(scores | {"pictures": pictures, "per_class": per_class}))
    return run


def copied(run, home, **changes):
    """The run in another folder, its scores changed."""
    shutil.copytree(run, home, ignore=shutil.ignore_patterns("report.*"))
    path = home / "report/scores.json"
    scores = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in scores.items() if v is not ...}))
    return home


def test_a_page_markdown_and_json_are_written(evaluated, capsys):
    report((evaluated,))
    home = evaluated / "report"
    assert f"Look at {home / 'report.html'}" in capsys.readouterr().out
    page = (home / "report.html").read_text()
    assert page.index("<b>worst 1</b> <bdi>1</bdi>") < page.index("<b>worst 2</b> <bdi>0</bdi>")
    assert page.count("<img ") == 2 * 4
    assert "<bdi>dark</bdi>" in page and "<bdi>light</bdi>" in page
    assert (home / "report.md").read_text().startswith("# run\n")
    stored = json.loads((home / "report.json").read_text())
    assert stored["runs"][0]["scores"]["pictures"][1]["mean_iou"] == 0.25
    assert stored["runs"][0]["fields"]["model num_classes"] == 2


def test_what_a_paper_found_stands_beside(evaluated):
    """As `train` has written it down."""
    report((evaluated,), pictures=0)
    page = (evaluated / "report/report.html").read_text()
    ours = json.loads((evaluated / "report/scores.json").read_text())["mean_iou"]
    assert f"<td>0.6250</td><td>{ours:.4f}</td>" in page and "<bdi>nobody, Table 1</bdi>" in page
    with pytest.raises(SegjaxError, match=r"published mean_iou is 62\.5; expected a fraction"):
        Published(value=62.5, metric="mean_iou", split="val", source="nobody")


def test_of_a_test_split_if_there_is_one(evaluated, tmp_path):
    run = copied(evaluated, tmp_path / "run")
    with pytest.raises(SegjaxError, match=r"report/test/scores.json.*segjax evaluate .* --split"):
        report((run,), split="test")
    (run / "report/test").mkdir()
    scores = json.loads((run / "report/scores.json").read_text())
    (run / "report/test/scores.json").write_text(json.dumps(scores | {"split": "test"}))
    with pytest.raises(SegjaxError, match="its recipe has no test split"):
        report((run,))
    stored = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(stored | {"test": stored["source"]}))
    report((run,))
    page = (run / "report/test/report.html").read_text()
    assert "split <bdi>test</bdi>" in page and page.count("<img ") == 2 * 4
    assert not (run / "report/report.html").exists()
    report((run,), split="val")
    assert (run / "report/report.html").exists()
    report((run, evaluated), out=tmp_path / "both")  # of which one has no test split
    assert "split <bdi>test</bdi>" not in (tmp_path / "both/report.html").read_text()


def test_two_runs_stand_side_by_side(evaluated, tmp_path):
    other = copied(evaluated, tmp_path / "other")
    stored = json.loads((other / "recipe.json").read_text())
    stored["fields"]["seed"] = 7
    (other / "recipe.json").write_text(json.dumps(stored))
    report((evaluated, other), out=tmp_path / "both", pictures=1)
    page = (tmp_path / "both/report.html").read_text()
    assert "<title>2 runs – report" in page and "2 seeds" in page
    assert page.count("<img ") == 2 + 2 * 2
    assert "<bdi>other: prediction</bdi>" in page


def test_labels_are_those_of_predict(evaluated, tmp_path, monkeypatch):
    drawn = {}

    def kept(_, pictures, *__, **___):
        drawn["pictures"] = pictures
        return ""

    monkeypatch.setattr(page_module, "page", kept)
    report((evaluated,), out=tmp_path)
    source = held_out(Run(evaluated))
    for picture in drawn["pictures"]:
        example = source[int(picture.id)]
        label = segjax.load(evaluated).predict(example["image"])
        layers = {layer.name: layer.pixels for layer in picture.layers}
        np.testing.assert_array_equal(layers["prediction"][..., 0] // 255, label)
        np.testing.assert_array_equal(layers["truth"][..., 0] // 255, example["label"])


def test_none_of_the_pictures_needs_no_data_and_no_network(evaluated, tmp_path):
    run = copied(evaluated, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    report((run,), pictures=0)
    assert "<img" not in (run / "report/report.html").read_text()


def test_scores_of_an_earlier_version_are_told_and_used(evaluated, tmp_path):
    run = copied(evaluated, tmp_path / "run", pictures=..., per_class=...)
    with pytest.warns(SegjaxWarning, match="without per_class and pictures.*segjax evaluate"):
        report((run,))
    page = (run / "report/report.html").read_text()
    assert page.count("<img ") == 2 * 4 and "worst 1" not in page
    assert "precision" in page  # of the confusion matrix


def test_runs_without_scores_of_pictures_show_the_same_ones(evaluated, tmp_path):
    runs = [copied(evaluated, tmp_path / name, pictures=...) for name in "ab"]
    with pytest.warns(SegjaxWarning, match="without pictures"):
        report(runs, out=tmp_path / "both")
    assert (tmp_path / "both/report.html").read_text().count("<img ") == 2 * (2 + 2 * 2)
    shutil.copytree(evaluated.parent, tmp_path / "data")
    for kind in ("images", "masks"):
        folder = tmp_path / "data" / kind / "val"
        (folder / "1.png").rename(folder / "9.png")
    stored = json.loads((runs[1] / "recipe.json").read_text())
    stored["source"]["fields"]["source"]["fields"]["root"] = str(tmp_path / "data")
    (runs[1] / "recipe.json").write_text(json.dumps(stored))
    with pytest.raises(SegjaxError, match=r"b: its data has other pictures now"):
        report(runs, out=tmp_path / "both")


def test_a_run_that_is_not_evaluated_is_told_what_to_do(evaluated, tmp_path):
    run = copied(evaluated, tmp_path / "run")
    (run / "report/scores.json").unlink()
    with pytest.raises(SegjaxError, match=r"not evaluated yet .* segjax evaluate .*run"):
        report((run,))


def test_scores_of_other_pictures_are_told(evaluated, tmp_path):
    pictures = [{"id": "0", "mean_iou": 0.5}, {"id": "gone", "mean_iou": 0.1}]
    run = copied(evaluated, tmp_path / "run", pictures=pictures)
    with pytest.raises(
        SegjaxError, match=r"other pictures now than were scored: gone is not in its"
    ):
        report((run,))


def test_scores_of_another_checkpoint_are_told(evaluated, tmp_path):
    run = copied(evaluated, tmp_path / "run", step=99)
    with pytest.warns(SegjaxWarning, match="scores are of step 99, its pictures of the best"):
        report((run,))
    assert "scores are of step 99" in (run / "report/report.html").read_text()


def test_damaged_files_are_told(evaluated, tmp_path):
    run = copied(evaluated, tmp_path / "run", confusion=[[1]])
    with pytest.raises(SegjaxError, match=r"scores\.json: its 'confusion' is"):
        report((run,))
    run = copied(evaluated, tmp_path / "other", classes=["a", "b"])
    with pytest.raises(SegjaxError, match="of other classes than the run's"):
        report((run,))
    run = copied(evaluated, tmp_path / "third")
    recipe(lambda stored: stored.update(published="0.5"))(run)
    with pytest.raises(SegjaxError, match="its 'published' is no list of figures"):
        report((run,))


STARTS = (b"[1]", b'[{"packages": [1], "command": "x", "devices": 3}]', b"[[]]")
SCORES = (b"", b"[]", b"null", b"{}", b'{"classes": ["dark", "light"]}', DEEP, bytes(range(256)))
DAMAGED = (
    DAMAGES
    | {f"environment.json {i}": text("environment.json", of) for i, of in enumerate(STARTS)}
    | {f"scores.json {i}": text("report/scores.json", of) for i, of in enumerate(SCORES)}
    | {
        "scores.json cut": cut("report/scores.json"),
        "metrics.jsonl without steps": text("metrics.jsonl", b'{"mean_iou": 1}\n' * 2),
        "published texts": recipe(lambda stored: stored.update(published=["0.5"])),
        "published of no text": recipe(
            lambda stored: stored.update(published=[{"value": 1, "metric": [], "source": {}}])
        ),
    }
)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as in test_damage
@pytest.mark.filterwarnings("ignore::segjax.errors.SegjaxWarning")
@pytest.mark.parametrize("name", DAMAGED)
def test_of_a_damaged_run_there_is_a_page_or_an_error(name, evaluated, tmp_path, capsys):
    run = copied(evaluated, tmp_path / "run")
    DAMAGED[name](run)
    try:
        command({"report": report}, description="", argv=["report", str(run)])
    except SystemExit as stopped:
        told = capsys.readouterr().err
        assert stopped.code == 2
        assert "error: " in told and str(run) in told and "Traceback" not in told
    else:
        assert (run / "report/report.html").exists()


def test_runs_of_other_classes_and_one_run_twice_are_told(evaluated, tmp_path):
    run = copied(evaluated, tmp_path / "run", classes=["a", "b"])
    stored = json.loads((run / "recipe.json").read_text()) | {"classes": ["a", "b"]}
    (run / "recipe.json").write_text(json.dumps(stored))
    with pytest.raises(SegjaxError, match=r"has the classes a, b, .* dark, light"):
        report((evaluated, run))
    with pytest.raises(SegjaxError, match="named twice"):
        report((evaluated, evaluated))
    with pytest.raises(SegjaxError, match="--pictures is -1"):
        report((evaluated,), pictures=-1)


def test_the_command(evaluated, tmp_path, monkeypatch, capsys):
    argv = ["segjax", "report", str(evaluated), "--pictures", "2", "--out", str(tmp_path / "x")]
    monkeypatch.setattr(sys, "argv", argv)
    main()
    assert (tmp_path / "x/report.html").exists()
    monkeypatch.setattr(sys, "argv", ["segjax", "report", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "no run here" in capsys.readouterr().err
