"""Runs beside each other: what their files tell, by the same names, in Markdown and as JSON.

Takes what the files of a run folder hold. What is missing there, for an earlier version wrote it or
the data has no such thing, is left out.
"""

import html
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segjax.errors import SegjaxError

# Of scores.json what is no score of the whole data set.
_OTHER_PARTS = frozenset(
    {
        "step",
        "split",
        "classes",
        "palette",
        "confusion",
        "per_class",
        "intervals",
        "pictures",
        "calibration",
        "objects",
        "throughput",
        "others",
    }
)
_LESS_IS_BETTER = ("loss", "ece", "mce", "error")  # what such a score's name ends in
# Fields that may differ between seeds of one recipe: they are of the machine or its disk.
_ELSEWHERE = frozenset({"seed", "data", "workers", "cache", "log_every"})
_SPECIAL = {
    "dsb2018": "DSB 2018",
    "isbi": "ISBI",
    "iou": "IoU",
    "dice": "Dice",
    "ece": "ECE",
    "mce": "MCE",
    "pq": "PQ",
    "rand": "Rand",
    "f1": "F1",
    "ap": "AP",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run that was evaluated.

    Args:
        name: what it is called beside the others.
        recipe: what recipe.json holds.
        starts: what environment.json holds, the last start last.
        records: the lines of metrics.jsonl.
        scores: what scores.json holds.
    """

    name: str
    recipe: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    records: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Any]

    @property
    def classes(self) -> Sequence[str]:
        """Their names."""
        return self.scores["classes"]

    @property
    def overall(self) -> dict[str, float | None]:
        """The scores of the whole data set by name; None is one that has no value."""
        return {k: v for k, v in self.scores.items() if k not in _OTHER_PARTS and _is_score(v)}

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the recipe, and those of its network after "model"."""
        model = self.recipe["model"]
        inner = {f"model {name}": value for name, value in model["fields"].items()}
        return {**self.recipe["fields"], "model": model["class"], **inner}

    @property
    def published(self) -> Sequence[Mapping[str, Any]]:
        """Figures that the recipe's paper gives: value, metric, split, source."""
        return self.recipe.get("published") or ()

    @property
    def environment(self) -> Mapping[str, Any]:
        """Of the last start."""
        return self.starts[-1] if self.starts else {}

    def interval(self, score: str) -> tuple[float, float] | None:
        """The ends of a score's 95 % interval, where there is one."""
        low, high = (self.scores.get("intervals") or {}).get(score) or (None, None)
        return None if low is None or high is None else (low, high)


def check(scores: Any, path: str) -> None:
    """Raise SegjaxError unless a scores.json holds, of what it holds, what `Result` expects.

    Args:
        scores: what was read.
        path: from where, for the message.
    """
    held = scores if isinstance(scores, dict) else {}
    names = held.get("classes")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise SegjaxError(f"{path}: names no classes. Write it anew: segjax evaluate RUN")
    number = len(names)

    def many(value: Any, of: Any, length: int | None = None) -> bool:
        fits = isinstance(value, list) and (length is None or len(value) == length)
        return fits and all(map(of, value))

    def count(value: Any) -> bool:
        return type(value) is int and value >= 0

    def named(value: Any, of: Any) -> bool:
        return isinstance(value, dict) and all(map(of, value.values()))

    def is_calibration(value: Any) -> bool:
        bins = len(value["count"]) if named(value, lambda _: True) and "count" in value else 0
        return (
            bins > 0
            and many(value["count"], count, bins)
            and many(value.get("edges"), _is_score, bins + 1)
            and all(many(value.get(k), _is_score, bins) for k in ("confidence", "accuracy"))
        )

    def is_objects(value: Any) -> bool:
        held: dict[str, Any] = value if isinstance(value, dict) else {}
        at, f1 = held.get("threshold"), held.get("f1")
        return many(at, _is_score) and many(f1, _is_score) and len(at or ()) == len(f1 or ())

    kinds = {
        "step": count,
        "palette": lambda value: many(value, lambda of: many(of, count, 3), number),
        "confusion": lambda value: many(value, lambda row: many(row, count, number), number),
        "per_class": lambda value: named(value, lambda of: many(of, _is_score, number)),
        "intervals": lambda value: named(value, lambda of: many(of, _is_score, 2) or of is None),
        "pictures": lambda value: many(value, _is_picture),
        "calibration": is_calibration,
        "objects": is_objects,
        "throughput": lambda value: isinstance(value, dict),
        "others": lambda value: named(value, lambda of: named(of, _is_score)),
    }
    for name, fits in kinds.items():
        if held.get(name) is not None and not fits(held[name]):
            raise SegjaxError(
                f"{path}: its {name!r} is {str(held[name])[:80]}, which `evaluate` does not write. "
                "Write it anew: segjax evaluate RUN"
            )


def _is_picture(value: Any) -> bool:
    held = isinstance(value, dict) and isinstance(value.get("id"), str)
    return held and _is_score(value.get("mean_iou"))


def _is_score(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def union(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of all, in the order in which they come first."""
    return list(dict.fromkeys(key for part in parts for key in part))


def words(name: str) -> str:
    """A score's name as people write it: mean_iou is mean IoU."""
    return " ".join(_SPECIAL.get(word, word) for word in re.split(r"[_ ]", name))


def told(value: float | None) -> str:
    """A score with four decimals, or three digits if that is more; "–" where it has no value."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def pictures_told(result: Result) -> str:
    """On how many pictures a run was scored, if that is known."""
    number = len(result.scores.get("pictures") or ())
    return "1 picture" if number == 1 else f"{number} pictures" if number else ""


def short(value: Any) -> str:
    """A field's value in a line: a dataclass as it is called, a list as a tuple."""
    if isinstance(value, dict) and "class" in value and "fields" in value:
        inner = ", ".join(f"{name}={short(of)}" for name, of in value["fields"].items())
        return f"{value['class'].rpartition(':')[2]}({inner})"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {short(of)}" for name, of in value.items())
    if isinstance(value, list):
        return f"({', '.join(map(short, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def best(score: str, values: Sequence[float | None]) -> set[int]:
    """Which of several values of a score are the best; none where there is nothing to compare."""
    given = [value for value in values if value is not None]
    if len(given) < 2 or len(set(given)) < 2:
        return set()
    wanted = min(given) if score.endswith(_LESS_IS_BETTER) else max(given)
    return {i for i, value in enumerate(values) if value == wanted}


def seeds(results: Sequence[Result]) -> list[list[int]]:
    """Which runs differ in nothing but the seed: groups of at least two, of different seeds."""
    groups: dict[str, list[int]] = {}
    for i, result in enumerate(results):
        same = {k: v for k, v in result.fields.items() if k not in _ELSEWHERE}
        key = json.dumps(
            [result.recipe["recipe"], result.scores.get("split"), same], sort_keys=True
        )
        groups.setdefault(key, []).append(i)
    return [
        group
        for group in groups.values()
        if len({results[i].fields.get("seed") for i in group}) == len(group) > 1
    ]


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Of seeds: the mean, and the deviation of a sample (n - 1); None unless all have a value."""
    given = [value for value in values if value is not None and not math.isnan(value)]
    if len(given) < len(values) or len(given) < 2:
        return None
    return statistics.fmean(given), statistics.stdev(given)


def pooled(results: Sequence[Result], group: Sequence[int], score: str) -> str:
    """A score of seeds as mean ± deviation."""
    of_all = mean_and_deviation([results[i].overall.get(score) for i in group])
    return " ± ".join(map(told, of_all)) if of_all else "–"


def differing(results: Sequence[Result]) -> dict[str, list[Any]]:
    """The fields in which runs differ: a value of each run, None where it has no such field."""
    fields = [result.fields | {"recipe": result.recipe["recipe"]} for result in results]
    values = {name: [of.get(name) for of in fields] for name in union(fields)}
    return {name: of for name, of in values.items() if any(value != of[0] for value in of)}


def publications(results: Sequence[Result]) -> Iterator[tuple[Mapping[str, Any], list[Any]]]:
    """Each published figure once, with the same score of each run whose recipe names it."""
    every = [one for result in results for one in result.published]
    for i, figure in enumerate(every):
        if figure not in every[:i]:
            metric = figure["metric"]
            ours = [r.overall.get(metric) if figure in r.published else None for r in results]
            yield figure, ours


def per_class(results: Sequence[Result]) -> dict[str, list[Sequence[float | None]]]:
    """By score, the values of the classes in each run; a run without such a score has none."""
    absent = [None] * len(results[0].classes)
    parts = [result.scores.get("per_class") or {} for result in results]
    return {score: [part.get(score) or absent for part in parts] for score in union(parts)}


def confusions(matrix: Sequence[Sequence[int]]) -> list[tuple[int, int, int, float]]:
    """What is taken for what, most pixels first: truth, prediction, pixels, share of the truth."""
    found = [
        (true, predicted, count, count / sum(row))
        for true, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if predicted != true and count
    ]
    return sorted(found, key=lambda one: -one[2])


def markdown(results: Sequence[Result], *, title: str) -> str:
    """The scores of runs in tables, as for a pull request.

    Args:
        results: at least one, all of the same classes.
        title: the heading.

    Returns:
        Markdown that ends in a newline.
    """
    groups = seeds(results)
    names = [result.name for result in results]
    parts = [f"# {_md(title)}\n"]
    for result in results:
        facts = [f"recipe {_md(result.recipe['recipe'])}"]
        if "split" in result.scores:
            facts.append(f"{_md(str(result.scores['split']))} split")
        facts.append(f"step {result.scores.get('step', '–')}")
        if number := pictures_told(result):
            facts.append(number)
        if commit := result.environment.get("commit"):
            facts.append(f"commit {_md(str(commit))}")
        parts.append(f"- **{_md(result.name)}**: {', '.join(facts)}")
    parts.append("")
    others = (results[0].scores.get("others") or {}) if len(results) == 1 else {}
    rows = []
    for score in union([result.overall for result in results]):
        values = [result.overall.get(score) for result in results]
        first = best(score, values)
        cells = []
        for i, value in enumerate(values):
            cell = f"**{told(value)}**" if i in first else told(value)
            if limits := results[i].interval(score):
                cell += f" ({told(limits[0])} to {told(limits[1])})"
            cells.append(cell)
        cells += [pooled(results, group, score) for group in groups]
        cells += [told(held.get(score)) for held in others.values()]
        rows.append([_md(words(score)), *cells])
    heading = ["score", *map(_md, names), *(_md(group_name(results, g)) for g in groups)]
    parts.append(_md_table([*heading, *map(_md, others)], rows))
    if any(result.scores.get("intervals") for result in results):
        parts.append("In brackets: 95 % intervals, by bootstrap over the pictures.\n")
    figures = [
        [
            _md(words(figure["metric"])),
            told(figure["value"]),
            *map(told, ours),
            _md(f"{figure['source']}; {figure['split']}"),
        ]
        for figure, ours in publications(results)
    ]
    if figures:
        parts.append("## Published\n")
        parts.append(_md_table(["score", "published", *map(_md, names), "source"], figures))
    if len(results) > 1 and (unlike := differing(results)):
        parts.append("## What differs\n")
        rows = [[_md(name), *(_md(short(v)) for v in values)] for name, values in unlike.items()]
        parts.append(_md_table(["field", *map(_md, names)], rows))
    columns = [
        (words(score) if len(results) == 1 else f"{words(score)}, {name}", values)
        for score, of_runs in per_class(results).items()
        if len(results) == 1 or score == "iou"
        for name, values in zip(names, of_runs, strict=True)
    ]
    if columns:
        parts.append("## Classes\n")
        rows = [
            [_md(name), *(told(values[c]) for _, values in columns)]
            for c, name in enumerate(results[0].classes)
        ]
        parts.append(_md_table(["class", *(_md(name) for name, _ in columns)], rows))
    return "\n".join(parts).rstrip("\n") + "\n"


def group_name(results: Sequence[Result], group: Sequence[int]) -> str:
    """What a column of mean ± deviation is called."""
    which = "" if len(group) == len(results) else f" of {results[group[0]].name}, …"
    return f"{len(group)} seeds{which}"


def as_json(results: Sequence[Result], *, title: str) -> str:
    """All that the page tells but for pictures and curves: settings, environment and scores."""
    document = {
        "title": title,
        "runs": [
            {
                "name": result.name,
                "recipe": result.recipe["recipe"],
                "fields": result.fields,
                "published": list(result.published),
                "environment": result.environment,
                "scores": result.scores,
            }
            for result in results
        ],
        "seeds": [
            {
                "runs": [results[i].name for i in group],
                "scores": {
                    score: mean_and_deviation([results[i].overall.get(score) for i in group])
                    for score in union([results[i].overall for i in group])
                },
            }
            for group in seeds(results)
        ],
    }
    return json.dumps(document, ensure_ascii=False, indent=1)


def _md(text: str) -> str:
    """Text in a line of Markdown, which shows it as it is."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", line)


def _md_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [heading, rule, *rows])
