"""What `evaluate` writes, and that it predicts every picture once."""

import csv
import json
import math

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import TinyRecipe, make_data

from segjax.commands import evaluate as verb
from segjax.commands.evaluate import evaluate
from segjax.data.folder import Folder
from segjax.evaluation import metrics
from segjax.recipe import main
from segjax.training import sharding


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run whose five held-out pictures are of several sizes, one of them all ignored."""
    home = make_data(tmp_path_factory.mktemp("sizes"))
    rng = np.random.default_rng(1)
    for i in range(5):
        size = (16 - i, 12 + i)
        picture = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(picture).save(home / f"images/val/{i}.png")
        mask = np.full(size, 255, np.uint8) if i == 3 else (picture[..., 0] > 127).astype(np.uint8)
        Image.fromarray(mask).save(home / f"masks/val/{i}.png")
    make_mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda *_, **__: make_mesh(jax.devices()[:1]))
        main(TinyRecipe, ["train", "--data", str(home), "--run", str(home / "run")])
        yield home


@pytest.fixture(scope="module")
def scores(home):
    return json.loads((home / "run/report/scores.json").read_text())


def test_scores_json_is_as_the_page_reads_it(scores):
    assert scores["split"] == "val" and scores["step"] == 2
    assert scores["classes"] == ["dark", "light"]
    assert scores["palette"] == [[0, 0, 0], [255, 255, 255]]
    confusion = np.array(scores["confusion"])
    for name, value in metrics.summary(confusion).items():
        assert scores[name] == value
        low, high = scores["intervals"][name]
        assert low <= high
    for name, values in metrics.per_class(confusion).items():
        np.testing.assert_allclose(np.array(scores["per_class"][name], float), values)
    assert len(scores["per_class"]["boundary_iou"]) == 2
    bins = scores["calibration"]
    assert len(bins["edges"]) == 16 and sum(bins["count"]) == confusion.sum()
    assert None in bins["accuracy"] and 0 <= bins["ece"] <= bins["mce"] <= 1
    assert scores["calibration_ece"] == bins["ece"]
    assert scores["throughput"]["pictures_per_second"] > 0
    assert scores["throughput"]["device"] == "1 × cpu"
    assert not {"objects", "others"} & scores.keys()


def test_pictures_are_in_the_sources_order_and_their_table_has_the_worst_first(home, scores):
    assert [one["id"] for one in scores["pictures"]] == ["0", "1", "2", "3", "4"]
    assert {name for name, x in scores["pictures"][3].items() if x is None} == {
        "mean_iou", "dice", "pixel_accuracy", "mean_boundary_iou"
    }  # fmt: skip
    with (home / "run/report/pictures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1] == dict.fromkeys(rows[0], "") | {"id": "3"}
    ious = [float(row["mean_iou"]) for row in rows[:-1]]
    assert ious == sorted(ious)
    of = {one["id"]: one["mean_iou"] for one in scores["pictures"]}
    assert [of[row["id"]] for row in rows[:-1]] == ious
    told = (home / "run/report/scores.md").read_text()
    assert f"| {rows[0]['id']} | {ious[0]:.4f} |" in told.partition("worst pictures")[2]


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"tile": 16}], ids=str)
def test_every_picture_is_predicted_once(home, scores, tmp_path, monkeypatch, options):
    """And the sheet shows what was scored."""
    seen, drawn = [], []
    for name in ("make_predict", "make_tiled_predict"):
        made = getattr(verb, name)

        def counting(*arguments, made=made, **more):
            predict = made(*arguments, **more)

            def counted(variables, images):
                seen.append(len(images))
                return predict(variables, images)

            return counted

        monkeypatch.setattr(verb, name, counting)
    sheet = verb.visualise.preview_sheet
    monkeypatch.setattr(
        verb.visualise,
        "preview_sheet",
        lambda rows, *more: drawn.extend(rows) or sheet(rows, *more),
    )
    found = evaluate(home / "run", out=tmp_path, **options)
    size = 1 if "tile" in options else options.get("batch_size", 2)
    assert seen == [size] * -(-5 // size)
    want = {name: math.nan if x is None else x for name, x in scores.items() if name in found}
    assert found == pytest.approx(want, abs=1e-4, nan_ok=True)

    source = Folder(home, ("dark", "light"), ((0, 0, 0), (255, 255, 255)), split="val")
    assert len(drawn) == 5
    total = np.zeros((2, 2), int)
    for example, row in zip(source, drawn, strict=True):
        assert row.prediction.shape == example["label"].shape
        assert row.caption.startswith(example["id"])
        valid = example["label"] != 255
        np.add.at(total, (example["label"][valid], np.asarray(row.prediction)[valid]), 1)
    np.testing.assert_array_equal(total, scores["confusion"])


def test_one_picture_has_a_report_without_intervals(trained, tmp_path):
    """Nor a rate: its batch is the first, which is compiled."""
    for kind in ("images", "masks"):
        (tmp_path / kind / "val").mkdir(parents=True)
        kept = (trained / kind / "val/0.png").read_bytes()
        (tmp_path / kind / "val/0.png").write_bytes(kept)
    evaluate(trained / "run", data=tmp_path, out=tmp_path / "out")
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["intervals"] == {} and scores["throughput"]["pictures_per_second"] is None
    assert "interval" not in (tmp_path / "out/scores.md").read_text()
    assert len(scores["pictures"]) == 1
