import json
import re

import pytest
from evaluated import HOSTILE, result_made, scores_made

from segjax.errors import SegjaxError
from segjax.evaluation import report, results

FIGURE = {"value": 0.627, "metric": "mean_iou", "split": "val", "source": "Long et al., Table 2"}


def rows_of(markdown, first):
    """The rows of the table whose first heading is given, as lists of cells."""
    (table,) = re.findall(rf"^\| {first} \|.*\n\| ---.*\n((?:\|.*\n)+)", markdown, re.MULTILINE)
    return [[c.strip() for c in line[1:-1].split(" | ")] for line in table.splitlines()]


def test_overall_scores_are_those_of_the_whole_set():
    assert result_made(mean_iou=0.7).overall == {
        "mean_iou": 0.7,
        "pixel_accuracy": 0.9,
        "object_f1": 0.6,
        "calibration_ece": 0.03,
    }


def test_names_of_scores_are_those_of_the_field():
    names = ("mean_iou", "boundary_iou", "calibration_ece", "object_dsb2018", "mean_dice")
    told = ["mean IoU", "boundary IoU", "calibration ECE", "object DSB 2018", "mean Dice"]
    assert [results.words(name) for name in names] == told


def test_runs_that_differ_in_their_seed_alone_are_seeds():
    runs = [result_made(str(seed), seed=seed) for seed in (0, 1, 2)]
    other = result_made("other", seed=3)
    other.recipe["fields"]["steps"] = 1
    elsewhere = result_made("elsewhere", seed=4)
    elsewhere.recipe["fields"]["data"] = "/somewhere/else"
    assert results.seeds([*runs, other]) == [[0, 1, 2]]
    assert results.seeds([runs[0], other, elsewhere]) == [[0, 2]]
    assert results.seeds(runs[:1]) == []
    assert results.seeds([result_made("a"), result_made("b")]) == []  # of one seed
    assert results.seeds([runs[0], result_made(seed=1, split="test")]) == []


def test_seeds_are_pooled_by_mean_and_deviation_of_a_sample():
    runs = [result_made(seed=i, mean_iou=value) for i, value in enumerate((0.5, 0.6, 0.7))]
    assert results.pooled(runs, [0, 1, 2], "mean_iou") == "0.6000 ± 0.1000"
    runs.append(result_made(seed=3, mean_iou=float("nan")))
    assert results.pooled(runs, [0, 1, 2, 3], "mean_iou") == "–"
    assert results.pooled(runs, [0, 1], "unheard_of") == "–"


def test_the_best_is_the_greatest_but_of_errors_the_least():
    assert results.best("mean_iou", [0.5, None, 0.7, 0.7]) == {2, 3}
    assert results.best("calibration_ece", [0.5, None, 0.7]) == {0}
    assert results.best("mean_iou", [0.5, None]) == set()
    assert results.best("mean_iou", [0.5, 0.5]) == set()


def test_what_differs():
    runs = [result_made(seed=0), result_made(seed=1)]
    runs[1].recipe["fields"]["crop"] = [8, 8]
    assert results.differing(runs) == {"seed": [0, 1], "crop": [None, [8, 8]]}


def test_fields_are_told_as_they_are_called():
    scaling = {"class": "segjax.data.augment:Normalise", "fields": {"mean": [13.0], "to": None}}
    assert results.short(scaling) == "Normalise(mean=(13), to=None)"
    assert results.short([[1, 2], "a"]) == "((1, 2), a)"


def test_confusions_are_ranked_by_pixels():
    found = results.confusions([[5, 3, 0], [0, 0, 0], [10, 1, 9]])
    assert found == [(2, 0, 10, 0.5), (0, 1, 3, 3 / 8), (2, 1, 1, 0.05)]


def test_markdown_of_a_run():
    told = results.markdown([result_made(published=[FIGURE])], title="first")
    assert told.startswith("# first\n\n- **first**: recipe unet\\_roads, val split, step 700, 12 p")
    assert rows_of(told, "score \\| first")[0] == [
        "mean IoU",
        "0.7000 (0.6100 to 0.7900)",
        "0.6000",
    ]
    figures = rows_of(told, "score \\| published")
    assert figures == [["mean IoU", "0.6270", "0.7000", "Long et al., Table 2; val"]]
    assert rows_of(told, "class")[0][:2] == ["sky", "–"]
    assert "What differs" not in told


def test_markdown_of_several_runs():
    runs = [result_made("a"), result_made("b", seed=1, published=[FIGURE])]
    told = results.markdown(runs, title="2 runs")
    scores = rows_of(told, "score \\| a")
    assert scores[0] == [
        "mean IoU",
        "0.7000 (0.6100 to 0.7900)",
        "**0.7100** (0.6100 to 0.7900)",
        "0.7050 ± 0.0071",
    ]
    assert "| score | a | b | 2 seeds |" in told
    assert rows_of(told, "field") == [["seed", "0", "1"]]
    assert rows_of(told, "score \\| published")[0][1:4] == ["0.6270", "–", "0.7100"]
    assert "| class | IoU, a | IoU, b |" in told


def test_markdown_shows_any_name_as_it_is():
    told = results.markdown([result_made(HOSTILE[1], HOSTILE)], title="two\nlines")
    assert told.startswith("# two lines\n")
    assert "<script>" not in told and "&lt;script&gt;" in told
    assert "pipe\\|\\`tick\\` \\*star\\* \\_under\\_ \\[a\\](http://b)" in told
    tables = [line for line in told.splitlines() if line.startswith("|")]
    unescaped = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert set(unescaped) == {4}  # three columns in each of its tables


def test_json_holds_all():
    runs = [result_made("a"), result_made("b", seed=1, published=[FIGURE])]
    stored = json.loads(results.as_json(runs, title="ab"))
    assert [run["name"] for run in stored["runs"]] == ["a", "b"]
    assert stored["runs"][0]["scores"] == runs[0].scores
    assert stored["runs"][1]["published"] == [FIGURE]
    (pooled,) = stored["seeds"]
    assert pooled["runs"] == ["a", "b"]
    assert pooled["scores"]["mean_iou"] == pytest.approx([0.705, 0.01 / 2**0.5])


def test_whole_scores_and_those_of_an_earlier_version_can_be_used():
    whole = scores_made(("a", "b"))
    results.check(whole, "scores.json")
    results.check({"classes": ["a"], "step": 3, "mean_iou": None}, "scores.json")
    results.check(dict.fromkeys(whole) | {"classes": ["a"]}, "scores.json")


@pytest.mark.parametrize(
    "part, value",
    [
        ("confusion", [[1, 2]]),
        ("confusion", [[1, 2.5], [0, 0]]),
        ("confusion", [[1, -2], [0, 0]]),
        ("palette", [[0, 0, 0]]),
        ("per_class", {"iou": [0.5]}),
        ("per_class", [0.5, 0.5]),
        ("intervals", {"mean_iou": [0.5]}),
        ("pictures", [{"mean_iou": 0.5}]),
        ("pictures", [{"id": "a", "mean_iou": float("nan")}]),  # no JSON, though Python reads it
        ("pictures", [{"id": "a", "mean_iou": "high"}]),
        ("calibration", {"edges": [0, 1], "count": [1], "confidence": [0.5], "accuracy": []}),
        ("calibration", []),
        ("objects", 5),
        ("objects", {"threshold": [0.5], "f1": []}),
        ("throughput", "fast"),
        ("others", {"Otsu": 0.5}),
        ("step", "last"),
    ],
)
def test_damaged_scores_are_told(part, value):
    scores = scores_made(("a", "b")) | {part: value}
    with pytest.raises(SegjaxError, match=rf"there: its '{part}' is .* segjax evaluate RUN"):
        results.check(scores, "there")


@pytest.mark.parametrize("scores", [None, [], {}, {"classes": []}, {"classes": [1]}])
def test_scores_without_classes_are_told(scores):
    with pytest.raises(SegjaxError, match="there: names no classes"):
        results.check(scores, "there")


@pytest.mark.parametrize(
    "value, text", [(0.0611, "0.0611"), (0.001, "0.0010"), (0.000353, "0.000353"), (0, "0.0000")]
)
def test_small_scores_keep_three_digits(value, text):
    assert results.told(value) == report._told(value) == text
