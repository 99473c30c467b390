"""Results of runs that nobody trained, complete or not, for tests of what tells of them."""

import numpy as np

from segjax.evaluation.comparison import Layer, Picture
from segjax.evaluation.results import Result

HOSTILE = (
    "<script>alert(1)</script>",
    "a\"b'c&d</bdi>",
    "pipe|`tick` *star* _under_ [a](http://b)",
    "طريق 🛣️ שביל",
    "long" * 60,
    "two\nlines",
)


def confusion(classes, rng):
    matrix = rng.integers(0, 50, (classes, classes)) * (rng.random((classes, classes)) < 0.5)
    return matrix + np.diag(rng.integers(1, 5000, classes))


def scores_made(names, *, pictures=12, seed=0):
    """A scores.json with every part that there may be."""
    rng, n = np.random.default_rng(seed), len(names)
    matrix = confusion(n, rng)
    bins = 10
    count = rng.integers(0, 1000, bins).tolist()
    count[0] = 0
    holds = [c > 0 for c in count]
    return {
        "step": 700,
        "split": "val",
        "mean_iou": 0.7 + seed / 100,
        "pixel_accuracy": 0.9,
        "mean_dice": None,
        "object_f1": 0.6,
        "calibration_ece": 0.03,
        "classes": list(names),
        "palette": rng.integers(0, 256, (n, 3)).tolist(),
        "confusion": matrix.tolist(),
        "per_class": {
            "iou": [None, *rng.random(n - 1).tolist()],
            "boundary_iou": rng.random(n).tolist(),
        },
        "intervals": {"mean_iou": [0.61, 0.79]},
        "pictures": [
            {"id": f"p{i}", "mean_iou": (i * 7 % 12) / 12, "pixel_accuracy": 0.5, "dice": None}
            for i in range(pictures)
        ],
        "calibration": {
            "edges": np.linspace(0, 1, bins + 1).tolist(),
            "count": count,
            "confidence": [(b + 0.5) / bins if holds[b] else None for b in range(bins)],
            "accuracy": [(b + 0.2) / bins if holds[b] else None for b in range(bins)],
            "ece": 0.03,
            "mce": 0.11,
        },
        "objects": {"threshold": [0.5, 0.75, 0.95], "f1": [0.6, 0.4, None], "true": 31},
        "throughput": {"pictures_per_second": 31.4, "device": "cpu"},
        "others": {"Otsu": {"mean_iou": 0.6}},
    }


def result_made(name="first", names=("sky", "road", "tree"), *, seed=0, published=(), **changes):
    """A run; changes are of its scores, where None leaves a part out."""
    scores = {k: v for k, v in (scores_made(names, seed=seed) | changes).items() if v is not None}
    training = [
        {"step": 10 * i, "loss": 2 / i, "learning_rate": 1e-2 / i, "images_per_second": 40.0}
        for i in range(1, 71)
    ]
    held_out = [{"step": 100 * i, "mean_iou": i / 10, "loss": 1 / i} for i in range(1, 8)]
    model = {"class": "segjax.models.unet:UNet", "fields": {"num_classes": len(names)}}
    recipe = {
        "segjax": "0.1.0",
        "recipe": "unet_roads",
        "fields": {"steps": 700, "seed": seed, "data": "/data", "start_from": None},
        "model": model,
        "published": list(published),
    }
    start = {
        "time": "2026-11-24",
        "command": ["unet_roads.py", "train"],
        "commit": "abc",
        "devices": ["cpu cpu"],
    }
    return Result(
        name=name, recipe=recipe, starts=[start], records=training + held_out, scores=scores
    )


def picture_made(id="p1", rank="worst 1", *, size=(24, 32), runs=("",), seed=0):
    """A picture of noise with all layers of some runs."""
    rng = np.random.default_rng(seed)

    def layer(name, flat):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        return Layer(name, pixels // 128 * 128 if flat else pixels, flat)

    of_runs = [
        layer(f"{run}{what}", what == "prediction")
        for run in runs
        for what in ("prediction", "errors")
    ]
    layers = [layer("picture", False), layer("truth", True), *of_runs]
    return Picture(id, rank, dict.fromkeys(runs, 0.25), layers)
