import json
from io import StringIO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from segjax.errors import SegjaxError
from segjax.evaluation.report import (
    pictures_csv,
    pictures_markdown,
    plot_curves,
    plot_reliability,
    read_metrics,
    score_table,
    score_tables,
    scores_markdown,
    worst_first,
)

CLASSES = ["ground", "[sky]", "a|b"]
PER_CLASS = {"iou": [0.91234, np.nan, 0.5], "f1": np.array([0.95, np.nan, 0.6])}
OVERALL = {"mean_iou": 0.70617, "pixel_accuracy": float("nan")}


def test_table_shows_classes_absent_ones_and_the_overall_scores():
    console = Console(file=StringIO(), width=80)
    console.print(score_table(CLASSES, PER_CLASS, OVERALL))
    lines = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]
    for expected in [
        ["ground", "0.9123", "0.9500"],
        ["[sky]", "–", "–"],
        ["a|b", "0.5000", "0.6000"],
        ["mean_iou", "0.7062"],
        ["pixel_accuracy", "–"],
    ]:
        assert expected in lines


@pytest.mark.parametrize("width, tables", [(80, 1), (40, 2), (30, 4)])
def test_tables_break_no_number_at_a_terminals_width(width, tables):
    """Nor a name, of a class or of a score beneath."""
    classes = ("pedestrian", "sky")
    names = ("iou", "precision", "recall", "f1")
    per_class = {name: [0.1111 * (i + 1), 0.5] for i, name in enumerate(names)}
    overall = {"mean_iou": 0.7062, "frequency_weighted_iou": 0.1234}
    found = score_tables(classes, per_class, overall, width=width)
    assert len(found) == tables
    console = Console(file=StringIO(), width=width)
    for table in found:
        console.print(table)
    lines = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]
    cells = [cell for line in lines for cell in line]
    assert [cell for cell in cells if "…" in cell] == []
    assert {"0.1111", "0.2222", "0.3333", "0.4444", *classes} <= set(cells)
    assert ["frequency_weighted_iou", "0.1234"] in lines


def test_markdown_has_the_same_scores():
    assert scores_markdown(CLASSES, PER_CLASS, OVERALL) == (
        "| score | network |\n"
        "| --- | ---: |\n"
        "| mean_iou | 0.7062 |\n"
        "| pixel_accuracy | – |\n"
        "\n"
        "| class | iou | f1 |\n"
        "| --- | ---: | ---: |\n"
        "| ground | 0.9123 | 0.9500 |\n"
        "| [sky] | – | – |\n"
        "| a\\|b | 0.5000 | 0.6000 |\n"
    )


def test_intervals_stand_beside_their_scores():
    overall = OVERALL | {"mean_dice": 0.25}
    intervals = {"mean_iou": (0.68123, 0.73), "mean_dice": (np.nan, np.nan)}
    others = {"Otsu": {"mean_iou": 0.5}}
    told = scores_markdown(CLASSES, PER_CLASS, overall, others, intervals).splitlines()
    assert told[0] == "| score | network | 95 % interval | Otsu |"
    assert told[2:5] == [
        "| mean_iou | 0.7062 | 0.681 to 0.730 | 0.5000 |",
        "| pixel_accuracy | – | – | – |",
        "| mean_dice | 0.2500 | – | – |",
    ]
    console = Console(file=StringIO(), width=80)
    for table in score_tables(CLASSES, PER_CLASS, overall, others, intervals, width=80):
        console.print(table)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["mean_iou", "0.7062", "0.681", "to", "0.730", "0.5000"] in lines


PICTURES = [
    {"id": "a", "mean_iou": 0.5, "dice": 0.6},
    {"id": "b", "mean_iou": np.nan, "dice": np.nan},
    {"id": 'c,"|', "mean_iou": 0.25, "dice": 0.4},
]


def test_the_worst_picture_comes_first_and_what_has_no_score_last():
    worst = worst_first(PICTURES)
    assert [one["id"][0] for one in worst] == ["c", "a", "b"]
    assert pictures_csv(worst) == 'id,mean_iou,dice\n"c,""|",0.25,0.4\na,0.5,0.6\nb,,\n'
    assert pictures_markdown(worst[:2]) == (
        "| worst pictures | mean_iou | dice |\n"
        "| --- | ---: | ---: |\n"
        '| c,"\\| | 0.2500 | 0.4000 |\n'
        "| a | 0.5000 | 0.6000 |\n"
    )


def test_reliability_is_drawn_also_where_bins_are_empty(tmp_path):
    bins = {"edges": np.linspace(0, 1, 5), "count": [0, 0, 30, 10]}
    bins |= {"confidence": [np.nan, np.nan, 0.6, 0.9], "accuracy": [np.nan, np.nan, 0.5, 1.0]}
    plot_reliability(bins | {"ece": 0.1, "mce": 0.1}, tmp_path / "some.png", title="a run")
    assert has_colour(tmp_path / "some.png", ORANGE) and has_colour(tmp_path / "some.png", BLUE)
    nothing = {name: [0] * 4 if name == "count" else [np.nan] * 4 for name in bins}
    nothing |= {"edges": bins["edges"], "ece": np.nan, "mce": np.nan}
    plot_reliability(nothing, tmp_path / "none.png")
    assert not has_colour(tmp_path / "none.png", BLUE)


def test_another_method_stands_beside():
    others = {"Otsu": {"mean_iou": 0.5, "pixel_accuracy": 0.25}}
    told = scores_markdown(CLASSES, PER_CLASS, OVERALL, others).splitlines()
    assert told[0] == "| score | network | Otsu |"
    assert told[2:4] == ["| mean_iou | 0.7062 | 0.5000 |", "| pixel_accuracy | – | 0.2500 |"]
    console = Console(file=StringIO(), width=80)
    console.print(score_table(CLASSES, PER_CLASS, OVERALL, others))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["score", "network", "Otsu"] in lines
    assert ["mean_iou", "0.7062", "0.5000"] in lines


@pytest.mark.parametrize("write", [score_table, scores_markdown])
def test_a_score_without_a_value_for_each_class_is_told(write):
    with pytest.raises(SegjaxError, match=r"iou: .* the 3 classes, got shape \(2,\)"):
        write(CLASSES, {"iou": [0.1, 0.2]}, {})


@pytest.mark.parametrize("torn", [b"", b'{"step": 3, "lo', b'{"step": 3, "n": "\xc3'])
def test_metrics_are_read_up_to_a_torn_line(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n' + torn)
    assert read_metrics(path) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]


@pytest.mark.parametrize("broken", ['{"step": 2, "lo', "[2]", ""])
def test_another_broken_line_is_told_by_file_and_number(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + broken + '\n{"step": 3}\n')
    with pytest.raises(SegjaxError, match=r"metrics\.jsonl, line 2: expected a JSON object"):
        read_metrics(path)


def test_missing_metrics_are_told(tmp_path):
    with pytest.raises(SegjaxError, match=r"metrics\.jsonl: .* No such file"):
        read_metrics(tmp_path / "metrics.jsonl")


def records(training=60, validation=3):
    train = [
        {"step": 10 * i, "loss": 2 / i if i != 7 else None, "learning_rate": 0.01 / i}
        for i in range(1, training + 1)
    ]
    return train + [{"step": 200 * i, "mean_iou": i / 5} for i in range(1, validation + 1)]


def has_colour(path, colour):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return (abs(pixels - colour).sum(-1) < 10).sum() > 50


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)  # of the training and the validation curve


@pytest.mark.parametrize(("training", "validation"), [(60, 3), (1, 0), (60, 0), (0, 3)])
def test_curves_are_drawn(tmp_path, training, validation):
    path = tmp_path / "curves.png"
    plot_curves(records(training, validation), path)
    if training != 1:  # one point makes no line
        assert has_colour(path, BLUE) == bool(training)
    assert has_colour(path, ORANGE) == bool(validation)


def test_curves_show_the_held_out_loss_and_whose_they_are(tmp_path):
    def drawn(records, **options):
        plot_curves(records, tmp_path / "curves.png", **options)
        with Image.open(tmp_path / "curves.png") as image:
            return np.asarray(image.convert("RGB")).astype(int)

    held_out = [{"step": 200 * i, "mean_iou": 0.5, "loss": 1 / i} for i in (1, 2, 3)]
    without = [{"step": r["step"], "mean_iou": 0.5} for r in held_out]
    training = records(60, 0)
    orange = [
        (abs(drawn(training + scores)[:400] - ORANGE).sum(-1) < 10).sum()
        for scores in (without, held_out)
    ]
    assert orange[0] == 0 < orange[1]  # in the topmost panel
    plain = drawn(training)
    titled = drawn(training, title="unet_nuclei: runs/first")
    assert plain.shape == titled.shape and not np.array_equal(plain[:40], titled[:40])
    assert drawn(held_out).shape  # a run that told no training yet


def test_the_smoothed_loss_survives_gaps(tmp_path):
    lost = [record | {"loss": None} for record in records(50, 0)]
    plot_curves(json.loads(json.dumps(lost)), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_nothing_to_draw_is_told(tmp_path):
    with pytest.raises(SegjaxError, match=r"nothing to draw; .* got 1 without"):
        plot_curves([{"step": 1}], tmp_path / "curves.png")
