"""Evaluated runs as one HTML file that needs no other: scores, pictures, curves, settings.

The page loads nothing, which its content security policy holds it to. It can be read without
scripts, and on paper; with them, tables sort and pictures are compared by a split that moves.
"""

import base64
import hashlib
import html
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segjax.evaluation import charts, markup, results
from segjax.evaluation.charts import Bars, Line
from segjax.evaluation.comparison import Picture, comparison
from segjax.evaluation.confusion import confusion
from segjax.evaluation.markup import Cell
from segjax.evaluation.results import Result, best, told, words

_STYLE = Path(__file__).with_name("page.css")
_SCRIPT = Path(__file__).with_name("page.js")
_CARDS = ("mean_iou", "dice", "boundary_iou", "f1", "pixel_accuracy")  # the first four there are
_ROWS = 300  # of a table of pictures


def page(
    runs: Sequence[Result],
    pictures: Sequence[Picture],
    legend: Sequence[tuple[str, tuple[int, ...]]],
    *,
    title: str,
    when: str,
    notes: Sequence[str] = (),
) -> str:
    """The page.

    Args:
        runs: at least one, all of the same classes.
        pictures: held-out ones to look at, in the order in which they are shown.
        legend: names and colours of what the pictures show.
        title: what stands above.
        when: the page was made.
        notes: what a reader has to know, a sentence each.
    """
    sections = [
        ("scores", "Scores", [*_cards(runs), *_scores(runs), *_published(runs)]),
        ("pictures", "Worst and best pictures", [*comparison(pictures, legend), *_ranking(runs)]),
        ("classes", "Classes", _classes(runs)),
        ("confusion", "What is taken for what", confusion(runs)),
        ("calibration", "Calibration", _calibration(runs)),
        ("curves", "Curves", _curves(runs)),
        ("throughput", "Throughput", _throughput(runs)),
        ("recipe", "Recipe", _recipe(runs)),
        ("environment", "Environment", _environment(runs)),
    ]
    filled = [(name, heading, "\n".join(parts)) for name, heading, parts in sections]
    filled = [section for section in filled if section[2]]
    script, style = _SCRIPT.read_text("utf-8"), _STYLE.read_text("utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{allowed}'"
    )
    links = "".join(f'<li><a href="#{name}">{heading}</a>' for name, heading, _ in filled)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)} – report</title><style>{style}</style></head><body>",
        f"<header><h1>{markup.text(title)}</h1><p class=muted>{html.escape(when)}</p>",
        _facts(runs),
        *(f'<p class="note">{html.escape(note)}</p>' for note in notes),
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>',
        *(
            f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>\n{body}\n</section>'
            for name, heading, body in filled
        ),
        f"</main><script>{script}</script></body></html>\n",
    ]
    return "\n".join(parts)


def _facts(runs: Sequence[Result]) -> str:
    """A line for each run: which recipe, checkpoint and pictures."""
    lines = []
    for i, run in enumerate(runs):
        facts = [f"recipe {markup.text(run.recipe['recipe'])}"]
        if "step" in run.scores:
            facts.append(f"checkpoint of step {run.scores['step']}")
        of = [f"{number}"] if (number := results.pictures_told(run)) else []
        of += [f"split {markup.text(run.scores['split'])}"] if "split" in run.scores else []
        facts += [" of ".join(of)] if of else []
        name = "" if len(runs) == 1 else f"<b>{_key(i)}{markup.text(run.name)}</b>: "
        lines.append(f"<p>{name}{', '.join(facts)}</p>")
    return "".join(lines)


def _key(i: int) -> str:
    """The colour and dash of a run's line in the charts."""
    return charts.key(i) + " "


def _cards(runs: Sequence[Result]) -> Iterator[str]:
    """The first scores of a run alone, large."""
    if len(runs) > 1:
        return
    overall = {name: value for name, value in runs[0].overall.items() if value is not None}
    chosen: list[str] = []
    for wanted in _CARDS:
        chosen += [name for name in overall if wanted in name and name not in chosen][:1]
    cards = []
    for name in chosen[:4]:
        limits = runs[0].interval(name)
        small = f"<small>95 %: {told(limits[0])} to {told(limits[1])}</small>" if limits else ""
        cards.append(
            f"<div><dt>{html.escape(words(name))}<dd>{told(overall[name])}{small}</dd></div>"
        )
    if cards:
        yield f"<dl class=cards>{''.join(cards)}</dl>"


def _scores(runs: Sequence[Result]) -> Iterator[str]:
    """All overall scores, a column for each run, for seeds together, for each baseline."""
    groups = results.seeds(runs)
    others = (runs[0].scores.get("others") or {}) if len(runs) == 1 else {}
    told_apart = len(runs) == 1 and bool(runs[0].scores.get("intervals"))  # in their own column
    heading = ["score", *(markup.text(run.name) for run in runs), *["95 % interval"] * told_apart]
    heading += [html.escape(results.group_name(runs, group)) for group in groups]
    heading += [markup.text(name) for name in others]
    rows = []
    for score in results.union([run.overall for run in runs]):
        values = [run.overall.get(score) for run in runs]
        intervals = [_interval(run, score) for run in runs]
        first = best(score, values)
        cells = [Cell(html.escape(words(score)))]
        for i, value in enumerate(values):
            small = f"<small>{intervals[i]}</small>" if intervals[i] and not told_apart else ""
            cells.append(Cell(told(value) + small, value, "best" if i in first else ""))
        cells += [Cell(intervals[0], kind="muted")] if told_apart else []
        cells += [Cell(results.pooled(runs, group, score)) for group in groups]
        cells += [Cell(told(held.get(score)), held.get(score)) for held in others.values()]
        rows.append(cells)
    if not rows:
        return
    said = ["Over all held-out pictures."]
    if any(run.scores.get("intervals") for run in runs):
        where = "" if told_apart else "Beneath: "
        said.append(f"{where}95 % intervals, by bootstrap over the pictures.")
    if groups:
        said.append("Seeds: mean ± deviation of a sample.")
    if len(runs) > 1:
        said.append("Bold: the best.")
    beside = "".join(_objects(runs))
    table = markup.table(" ".join(said), heading, rows)
    yield f"<div class=beside>{table}{beside}</div>" if len(runs) == 1 else table + beside


def _interval(run: Result, score: str) -> str:
    limits = run.interval(score)
    return f"{told(limits[0])}–{told(limits[1])}" if limits else ""


def _objects(runs: Sequence[Result]) -> Iterator[str]:
    """How well objects are found where more and more of each has to be."""
    lines = [
        Line(run.name, of["threshold"], _column_of(of["f1"]), i, marked=True)
        for i, run in enumerate(runs)
        if (of := run.scores.get("objects"))
    ]
    name = "F1 of objects over the IoU from which one counts as found"
    options: Any = {"x_name": "IoU", "y_name": "F1", "y_range": (0, 1)}
    if chart := charts.line_chart(lines, title=name, **options):
        yield f"{_keys(runs)}<div class=charts>{_chart(name, chart)}</div>"


def _published(runs: Sequence[Result]) -> Iterator[str]:
    rows = [
        [
            Cell(html.escape(words(figure["metric"]))),
            Cell(told(figure["value"])),
            *(Cell(told(value)) for value in ours),
            Cell(markup.text(figure["split"]), kind="text"),
            Cell(markup.text(figure["source"]), kind="text"),
        ]
        for figure, ours in results.publications(runs)
    ]
    if rows:
        names = ["ours"] if len(runs) == 1 else [markup.text(run.name) for run in runs]
        heading = ["score", "published", *names, "published of", "source"]
        yield markup.table("Published figures beside ours.", heading, rows)


def _ranking(runs: Sequence[Result]) -> Iterator[str]:
    """How the pictures' scores spread, and each of them, worst first."""
    scored = [
        (run.name, [p["mean_iou"] for p in run.scores.get("pictures") or () if _finite(p)])
        for run in runs
    ]
    if not all(values for _, values in scored):
        return
    edges = np.linspace(0, 1, 21)
    chart = charts.histogram(
        [Bars(n, np.histogram(of, edges)[0], i) for i, (n, of) in enumerate(scored)],
        edges,
        title="How many pictures have which mean IoU",
        x_name="mean IoU of a picture",
        y_name="pictures",
    )
    yield f"{_keys(runs)}<div class=charts>{_chart('Scores of the pictures', chart)}</div>"
    by_id = [{p["id"]: p.get("mean_iou") for p in run.scores["pictures"]} for run in runs]
    names = ["mean_iou"]
    if len(runs) == 1:
        listed = runs[0].scores["pictures"]
        names = [k for k in results.union(listed) if any(_number(p.get(k)) for p in listed)]
        table = [(p["id"], [p.get(name) for name in names]) for p in listed]
    else:
        table = [(id, [of.get(id) for of in by_id]) for id in results.union(by_id)]
    first = names.index("mean_iou") if len(runs) == 1 else 0
    table.sort(key=lambda row: (row[1][first] is None, row[1][first]))
    heading = [html.escape(words(name)) for name in names]
    if len(runs) > 1:
        heading = [markup.text(run.name) for run in runs]
    rows = [
        [Cell(markup.text(id)), *(Cell(_score(value), value) for value in values)]
        for id, values in table[:_ROWS]
    ]
    more = f" The worst {_ROWS} of {len(table)}." if len(table) > _ROWS else ""
    caption = "Mean IoU of each picture" if len(runs) > 1 else "Scores of each picture"
    body = markup.table(
        f"{caption}, worst first.{more}", ["picture", *heading], rows, sortable=True
    )
    yield f"<details class=screen><summary>Each picture</summary>{body}</details>"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(picture: Mapping[str, Any]) -> bool:
    return _number(picture.get("mean_iou"))


def _score(value: float | None) -> str:
    """A fraction with four decimals, a count as it is."""
    return str(value) if isinstance(value, int) else told(value)


def _classes(runs: Sequence[Result]) -> Iterator[str]:
    """Of a run all scores; of several the IoU of each, the other scores folded."""
    scores = results.per_class(runs)
    if not scores:
        return
    classes, palette = runs[0].classes, runs[0].scores.get("palette") or []
    rows_of_truth = np.array(runs[0].scores.get("confusion") or np.zeros((len(classes), 1)))
    shares = rows_of_truth.sum(1) / max(rows_of_truth.sum(), 1)

    def of_classes(caption: str, columns: Mapping[str, Sequence[float | None]]) -> str:
        rows = []
        for c, name in enumerate(classes):
            colour = markup.swatch(palette[c]) if c < len(palette) else ""
            cells = [
                Cell(colour + markup.text(name)),
                Cell(markup.percent(shares[c]), float(shares[c])),
            ]
            values = [values[c] for values in columns.values()]
            first = best("iou", values) if len(runs) > 1 else set()
            for i, value in enumerate(values):
                kind = " ".join(filter(None, ("bar", "best" if i in first else "")))
                bar = f"--v:{min(max(value, 0), 1):.4f}" if value is not None else "--v:0"
                cells.append(Cell(told(value), value, kind, bar))
            rows.append(cells)
        return markup.table(caption, ["class", "share of truth", *columns], rows, sortable=True)

    absent = "“–”: a class that is neither in the truth nor predicted."
    if len(runs) == 1:
        columns = {html.escape(words(name)): of[0] for name, of in scores.items()}
        yield of_classes(absent, columns)
        return
    names = [markup.text(run.name) for run in runs]
    for i, (score, of_runs) in enumerate(scores.items()):
        # Names of runs are keys here, and differ.
        body = of_classes(f"{words(score)}. {absent}", dict(zip(names, of_runs, strict=True)))
        name = html.escape(words(score))
        yield body if i == 0 else f"<details><summary>{name}</summary>{body}</details>"


def _calibration(runs: Sequence[Result]) -> Iterator[str]:
    held = [
        (i, run, run.scores["calibration"])
        for i, run in enumerate(runs)
        if run.scores.get("calibration")
    ]
    held = [(i, run, of) for i, run, of in held if sum(of.get("count") or ())]
    if not held:
        return
    errors = ""
    if len(runs) == 1:
        of = held[0][2]
        named = [f"{words(name)} {told(of[name])}" for name in ("ece", "mce") if name in of]
        errors = f" {', '.join(named)}." if named else ""
    yield (
        "<p>The share of pixels that are right, by how sure the network is; on the dashed line "
        f"the two are the same.{errors}</p>"
    )
    lines = [Line(run.name, *_filled(of), index=i, marked=True) for i, run, of in held]
    reliability = charts.line_chart(
        lines,
        title="Share of right pixels over confidence",
        x_name="confidence",
        y_name="share that is right",
        x_range=(0, 1),
        y_range=(0, 1),
        diagonal=True,
    )
    edges = held[0][2]["edges"]
    shares = [
        Bars(run.name, np.array(of["count"]) / sum(of["count"]), i)
        for i, run, of in held
        if of["edges"] == edges
    ]
    counts = charts.histogram(
        shares,
        edges,
        title="Share of pixels over confidence",
        x_name="confidence",
        y_name="share of pixels",
    )
    yield (
        f"{_keys(runs)}<div class=charts>{_chart('Reliability', reliability)}"
        f"{_chart('How sure it is', counts)}</div>"
    )
    for _, run, of in held:
        rows = [
            [
                Cell(f"{low:.3f} to {high:.3f}"),
                Cell(f"{count:,}"),
                *(Cell(told(of[name][b])) for name in ("confidence", "accuracy")),
            ]
            for b, (low, high, count) in enumerate(
                zip(of["edges"], of["edges"][1:], of["count"], strict=False)
            )
        ]
        name = "" if len(runs) == 1 else f" of {markup.text(run.name)}"
        body = markup.table(
            "Means of the pixels in each bin of confidence.",
            ["confidence from", "pixels", "mean confidence", "share that is right"],
            rows,
        )
        yield f"<details class=screen><summary>Bins{name}</summary>{body}</details>"


def _filled(calibration: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Confidence and accuracy of the bins that hold a pixel."""
    bins = zip(*(calibration[k] for k in ("confidence", "accuracy", "count")), strict=True)
    kept = [(x, y) for x, y, count in bins if count and x is not None and y is not None]
    return [x for x, _ in kept], [y for _, y in kept]


def _curves(runs: Sequence[Result]) -> Iterator[str]:
    training = [[r for r in run.records if "learning_rate" in r] for run in runs]
    held_out = [[r for r in run.records if "mean_iou" in r] for run in runs]
    drawn = []
    for name, records, key, unit in (
        ("Training loss", training, "loss", "loss"),
        ("Held-out loss", held_out, "loss", "cross-entropy, without weights"),
        ("Held-out mean IoU", held_out, "mean_iou", "mean IoU"),
        ("Learning rate", training, "learning_rate", "learning rate"),
    ):
        lines = [
            Line(run.name, _column(of, "step"), _column(of, key), i, marked=records is held_out)
            for i, (run, of) in enumerate(zip(runs, records, strict=True))
            if of
        ]
        title = f"{name} over steps"
        chart = charts.line_chart(lines, title=title, x_name="step", y_name=unit)
        drawn.append(_chart(name, chart) if chart else "")
    if not any(drawn):
        return
    yield f"{_keys(runs)}<div class=charts>{''.join(drawn)}</div>"
    for run, told_of in zip(runs, held_out, strict=True):
        names = [n for n in results.union(told_of) if n not in ("step", "time")]
        rows = [
            [Cell(str(r.get("step", "–"))), *(Cell(told(r.get(n)), r.get(n)) for n in names)]
            for r in told_of[-_ROWS:]
        ]
        if rows:
            of = "" if len(runs) == 1 else f" of {markup.text(run.name)}"
            heading = ["step", *(html.escape(words(n)) for n in names)]
            body = markup.table("Held-out scores during training.", heading, rows)
            yield f"<details class=screen><summary>Evaluations{of}</summary>{body}</details>"


def _column(records: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return _column_of([record.get(name) for record in records])


def _column_of(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _throughput(runs: Sequence[Result]) -> Iterator[str]:
    columns: dict[str, list[str]] = {}
    for i, run in enumerate(runs):
        for record, name, form in (
            ("images_per_second", "training, pictures per second", "{:.3g}"),
            ("data_wait", "training, share of time waiting for data", "{:.1%}"),
        ):
            if values := [r[record] for r in run.records if r.get(record) is not None]:
                columns.setdefault(name, [""] * len(runs))[i] = form.format(
                    statistics.median(values)
                )
        for name, value in (run.scores.get("throughput") or {}).items():
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            name = f"evaluation, {words(name)}"
            columns.setdefault(name, [""] * len(runs))[i] = shown
    if columns:
        rows = [
            [Cell(html.escape(n)), *(Cell(markup.text(v)) for v in of)] for n, of in columns.items()
        ]
        heading = ["", *(markup.text(run.name) for run in runs)]
        yield markup.table("Of training the median of what was logged.", heading, rows)


def _recipe(runs: Sequence[Result]) -> Iterator[str]:
    heading = ["field", *(markup.text(run.name) for run in runs)]
    if len(runs) > 1:
        if unlike := results.differing(runs):
            yield markup.table("What differs.", heading, _field_rows(unlike))
        else:
            yield "<p>The runs have the same settings.</p>"
    every = {
        name: [run.fields.get(name) for run in runs]
        for name in results.union([run.fields for run in runs])
    }
    body = markup.table(
        "All fields of the recipe, and those of its network.", heading, _field_rows(every)
    )
    yield body if len(runs) == 1 else f"<details><summary>All fields</summary>{body}</details>"


def _field_rows(fields: Mapping[str, Sequence[Any]]) -> list[list[Cell]]:
    return [
        [
            Cell(markup.text(name)),
            *(Cell(markup.text(results.short(v)), kind="text") for v in values),
        ]
        for name, values in fields.items()
    ]


def _environment(runs: Sequence[Result]) -> Iterator[str]:
    told_of: list[dict[str, str]] = []
    for run in runs:
        of = dict(run.environment)
        packages, command = of.pop("packages", {}), of.pop("command", [])
        values = {"starts": len(run.starts), **of, **packages}
        values |= {"devices": ", ".join(map(str, of.get("devices", [])))}
        values |= {"command": " ".join(map(str, command))}
        told_of.append({k: results.short(v) for k, v in values.items() if v not in (None, "")})
    rows = [
        [
            Cell(markup.text(name)),
            *(Cell(markup.text(of.get(name, "–")), kind="text") for of in told_of),
        ]
        for name in results.union(told_of)
    ]
    if any(run.starts for run in runs):
        heading = ["", *(markup.text(run.name) for run in runs)]
        yield markup.table("Where it was trained: the last start.", heading, rows)


def _keys(runs: Sequence[Result]) -> str:
    """Which line is whose, where there are several."""
    if len(runs) == 1:
        return ""
    entries = "".join(f"<li>{_key(i)}{markup.text(run.name)}</li>" for i, run in enumerate(runs))
    return f'<ul class=keys aria-label="Lines">{entries}</ul>'


def _chart(name: str, svg: str) -> str:
    return f"<figure><figcaption>{name}</figcaption>{svg}</figure>"
