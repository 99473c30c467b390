"""The plan of a training, made from what a folder holds: each choice with its reason.

The rules are here, as functions of what was found; `script` writes a plan as a recipe, and
`train_folder` looks, prints and trains.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from segjax.commands.networks import Network
from segjax.data.folder import Folder
from segjax.data.survey import Survey
from segjax.training import losses

Size = tuple[int, int]

_ACROSS = 5  # typical objects that a crop holds along a side
_LEAST_CROP = 96  # pixels, where pictures are as large
_LARGEST_CROP = {"cpu": 256}  # else 512
_PIXELS = 2**18  # of a step's pictures on a CPU: about 4 of 256×256, 7 of 192×192
_BATCHES = {"cpu": (2, 16)}  # least and most pictures a step; else 8 and 16
_EPOCHS = 100
_STEPS = {"cpu": (200, 1000)}  # least and most of `_EPOCHS`; else 2000 and 20000
_EVALUATIONS = 5
_BUCKETS = 4
_CUT = 1024  # pixels of a side, more than which no canvas has
_CUT_HELD_OUT = 2048  # nor one of held-out pictures
_UNEVEN = 20  # times as many pixels of the commonest class as of the rarest: weights
_MOST_WEIGHT = 10.0
_LOWEST_LEVEL = 8  # pixels a side that a U-Net's lowest level keeps of a crop


class Where(NamedTuple):
    """Which examples of the folder: a split, which of its sorted pairs, and the folders of both."""

    split: str | None = None
    part: tuple[int | None, int | None] = (None, None)
    images: str = "images"
    masks: str = "masks"


class Found(NamedTuple):
    """What was found in a folder.

    folder: as the script reads it, of any split.
    train, val: which examples are which.
    held_out: how that was decided, in words.
    coding: how the masks' meaning was decided, in words.
    grey: whether pictures that are stored in colour are grey.
    survey: of both, trained on first.
    """

    folder: Folder
    train: Where
    val: Where
    held_out: str
    coding: str
    grey: bool
    survey: Survey


class Line(NamedTuple):
    """A choice, what was chosen, and why."""

    what: str
    chosen: str
    why: str


@dataclass(frozen=True)
class Plan:
    """A training, field by field as in a recipe, and the reason of each choice by its name.

    cut: whether pictures larger than the canvas are cut to train on, and those held out.
    """

    found: Found
    network: Network
    options: Mapping[str, Any]
    steps: int
    batch_size: int
    canvas: Size
    cut: tuple[bool, bool]
    crop: Size
    buckets: tuple[Size, ...]
    learning_rate: float
    compute: str
    evaluate_every: int
    class_weights: tuple[float, ...]
    scale: tuple[float, float]
    brightness: float
    why: Mapping[str, str]

    @property
    def upright(self) -> bool:
        """Whether the pictures have an up, so that they are mirrored left and right alone."""
        return self.found.survey.upright

    def smaller(self, batch_size: int, why: str) -> "Plan":
        """The same with fewer pictures a step."""
        return replace(self, batch_size=batch_size, why={**self.why, "batch_size": why})

    def lines(self) -> list[Line]:
        """What was chosen and why, for people."""
        folder, survey = self.found.folder, self.found.survey
        examples = {name: sum(sizes.values()) for name, sizes in survey.sizes.items()}
        classes = len(folder.classes)
        shares = ", ".join(
            f"{name} {share:.1%}"
            for name, share in zip(folder.classes[:12], survey.shares, strict=False)
        )
        more = f" and {classes - 12} more" if classes > 12 else ""
        turns = "left and right" if self.upright else "both ways, turned by 90°"
        weights = (
            "even" if not self.class_weights else " ".join(f"{w:g}" for w in self.class_weights)
        )
        options = ", ".join(_told(value) for value in self.options.values())
        others = self.buckets != (self.canvas,)
        buckets = f"; held out {_sizes(self.buckets)}" if others else ""
        rows = {
            "examples": f"{examples['train']} to train, {examples['val']} held out",
            "pictures": f"{folder.channels} channel{'s' * (folder.channels > 1)}",
            "classes": f"{classes}: {shares}{more}",
            "network": f"{self.network.title} {options}".strip(),
            "canvas": _sizes([self.canvas]) + buckets,
            "crop": _sizes([self.crop]),
            "batch_size": f"{self.batch_size} pictures a step",
            "normalise": f"mean {_told(survey.mean)}, deviation {_told(survey.deviation)}",
            "class_weights": weights,
            "flips": turns,
            "scale": f"{self.scale[0]:g} to {self.scale[1]:g}",
            "brightness": f"±{self.brightness:g}, contrast 0.8 to 1.25",
            "learning_rate": f"{self.learning_rate:g}, warm-up, cosine",
            "steps": f"{self.steps}, evaluated every {self.evaluate_every}",
            "compute": self.compute,
        }
        return [Line(name.replace("_", " "), rows[name], self.why[name]) for name in rows]


def table(plan: Plan, title: str) -> Table:
    """The plan to print: a row a choice, with its reason."""
    rows = Table(title=Text(title), title_justify="left", show_lines=False, expand=False)
    for name, ratio in (("what", 2), ("plan", 5), ("because", 7)):
        rows.add_column(name, ratio=ratio, overflow="fold")
    for line in plan.lines():
        rows.add_row(*map(Text, line))
    return rows


def make_plan(
    found: Found,
    network: Network,
    *,
    platform: str,
    devices: int = 1,
    steps: int | None = None,
) -> Plan:
    """Plan a training.

    Args:
        found: in the folder.
        network: to train.
        platform: "cpu", "gpu" or "tpu".
        devices: that share a batch.
        steps: of training; by default as many as show each picture a hundred times, within limits.
    """
    survey, small = found.survey, platform == "cpu"
    sizes = survey.sizes["train"]
    crop, why_crop = _crop(survey, platform)
    canvas, cut, why_canvas = _canvas(survey, crop[0])
    examples = _pieces(sizes, canvas)
    batch_size, why_batch = _batch_size(crop[0], examples, platform, devices)
    options, why_network = _options(network, crop[0], small=small)
    steps, why_steps = _steps(steps, examples, batch_size, platform)
    weights, why_weights = _class_weights(survey)
    most, least = float(survey.shares.max()), float(survey.shares[survey.shares > 0].min())
    class_up = found.folder.classes[survey.above[1]]
    above = f"{class_up} has {abs(survey.above[0]):.0%} more of the"
    above += f" {'upper' if survey.above[0] > 0 else 'lower'} half"
    buckets = (canvas,) if cut[1] else _buckets(survey.sizes["val"])
    big = max(options.get("widths", (0,))) > 256 or options.get("width", 0) > 256
    grey = "the pictures are grey" if found.grey else "as told"
    return Plan(
        found=found,
        network=network,
        options=options,
        steps=steps,
        batch_size=batch_size,
        canvas=canvas,
        cut=cut,
        crop=crop,
        buckets=buckets,
        learning_rate=network.rates[big],
        compute="float32" if small else "bfloat16",
        evaluate_every=max(1, -(-steps // _EVALUATIONS)),
        class_weights=weights,
        scale=(0.5, 1.5) if survey.upright else (0.75, 1.5),
        brightness=max(1.0, round(float(np.mean(survey.deviation)) / 3)),
        why={
            "examples": found.held_out,
            "pictures": "in colour" if found.folder.channels == 3 else grey,
            "classes": found.coding,
            "network": why_network,
            "canvas": why_canvas,
            "crop": why_crop,
            "batch_size": why_batch,
            "normalise": "the pictures' own",
            "class_weights": f"{why_weights}: the commonest class has {most / least:.3g} times "
            "the pixels of the rarest",
            "flips": f"the pictures have an up: {above}"
            if survey.upright
            else "the pictures have no up: the classes' shares above and below agree",
            "scale": "upright pictures show things near and far"
            if survey.upright
            else "pictures without an up are taken at about one magnification",
            "brightness": "a third of the pictures' deviation",
            "learning_rate": f"AdamW, {'large' if big else 'small'} {network.title}",
            "steps": why_steps,
            "compute": "a CPU's own type" if small else "half the memory; sums stay float32",
        },
    )


def _crop(survey: Survey, platform: str) -> tuple[Size, str]:
    """A square in multiples of 32, which every network here takes."""
    sizes = survey.sizes["train"]
    sides = np.repeat([min(size) for size in sizes], list(sizes.values()))
    side, limit = float(np.median(sides)), _LARGEST_CROP.get(platform, 512)
    if side <= _LEAST_CROP:
        return (_up(side),) * 2, "the whole picture"
    half, why = side / 2, "half of the pictures' shorter side"
    if platform != "cpu":
        half, why = side, "the pictures' shorter side"
    wanted = half
    if survey.scale and _ACROSS * survey.scale < wanted:
        wanted = _ACROSS * survey.scale
        why = f"{_ACROSS} typical objects across, of {survey.scale:.0f} pixels"
    if wanted > limit:
        wanted, why = limit, f"the most on a {platform.upper()}; {why} would be more"
    nearest = 32 * round(max(wanted, _LEAST_CROP) / 32)
    return (nearest,) * 2, why


def _canvas(survey: Survey, crop: int) -> tuple[Size, tuple[bool, bool], str]:
    """What holds the pictures; where a few are much larger than the rest, or all large, pieces."""
    sizes, held_out = survey.sizes["train"], survey.sizes["val"]
    largest = _largest(sizes)
    every = np.repeat(list(sizes), list(sizes.values()), axis=0)
    usual = np.maximum(1.25 * np.median(every, axis=0), 3 * crop)
    most = tuple(min(_up(side), _CUT) for side in usual)
    if largest[0] <= most[0] and largest[1] <= most[1]:
        why = "all of one size" if len(sizes) == 1 else f"holds the largest of {len(sizes)} sizes"
        return largest, (False, False), why
    canvas = (min(largest[0], most[0]), min(largest[1], most[1]))
    cut = max(_largest(held_out)) > _CUT_HELD_OUT
    why = f"pictures of up to {_sizes([largest])} are cut into pieces"
    why += ", held-out ones too: objects at the cuts score a little less" if cut else ""
    return canvas, (True, cut), why


def _largest(sizes: Mapping[Size, int]) -> Size:
    return max(h for h, _ in sizes), max(w for _, w in sizes)


def _pieces(sizes: Mapping[Size, int], canvas: Size) -> int:
    """Into how many pieces of at most a canvas pictures are cut."""
    return sum(-(-h // canvas[0]) * -(-w // canvas[1]) * n for (h, w), n in sizes.items())


def _batch_size(side: int, examples: int, platform: str, devices: int) -> tuple[int, str]:
    least, most = _BATCHES.get(platform, (8, 16))
    if platform == "cpu":
        wanted, why = 2 ** round(math.log2(_PIXELS / side**2)), "about 2¹⁸ pixels a step on a CPU"
    else:
        wanted, why = most, "fits the memory"
    batch_size = min(max(wanted, least), most)
    if batch_size != wanted:
        why = f"no more than {most}" if wanted > batch_size else f"no fewer than {least}"
    if examples < batch_size:
        batch_size = 2 ** math.ceil(math.log2(examples))
        why = "there are no more pictures"
    whole = devices * math.ceil(batch_size / devices)
    return whole, why if whole == batch_size else f"one for each of {devices} devices"


def _options(network: Network, side: int, *, small: bool) -> tuple[dict[str, Any], str]:
    """The network's fields: small ones for a CPU, and no more levels than a crop has room for."""
    options = {n: option.small if small else option.paper for n, option in network.options.items()}
    why = "small, for a CPU" if small else "the paper's size"
    if not options:
        why = "its only size"
    if network.cls in ("UNet", "UNetPlusPlus"):
        levels = max(2, int(math.log2(side / _LOWEST_LEVEL)) + 1)
        if levels < len(options["widths"]):
            why += f"; one level more would see less than {_LOWEST_LEVEL} pixels of a crop"
            options["widths"] = options["widths"][:levels]
    return options, why


def _steps(steps: int | None, examples: int, batch: int, platform: str) -> tuple[int, str]:
    if steps is not None:
        return steps, f"as asked for: each picture {steps * batch / examples:.0f} times"
    least, most = _STEPS.get(platform, (2000, 20000))
    wanted = math.ceil(_EPOCHS * examples / batch)
    steps = min(max(wanted, least), most)
    times = f"each picture {steps * batch / examples:.0f} times"
    if steps == wanted:
        return steps, times
    return steps, f"{'most' if wanted > most else 'least'} unless --steps says more; {times}"


def _class_weights(survey: Survey) -> tuple[tuple[float, ...], str]:
    """Roots of the weights by median frequency, where shares are very uneven.

    The weights themselves make rare classes as frequent as others, which draws them too large.
    """
    present = survey.shares[survey.shares > 0]
    if present.max() < _UNEVEN * present.min():
        return (), "none needed"
    weights = np.minimum(np.sqrt(losses.class_weights(survey.counts)), _MOST_WEIGHT)
    weights = np.where(survey.shares > 0, weights, 1)
    return tuple(float(f"{w:.2g}") for w in weights), "roots of median frequency"


def _buckets(sizes: Mapping[Size, int]) -> tuple[Size, ...]:
    """A few canvases for held-out pictures of several sizes, so that few programs are compiled."""
    if len(sizes) == 1:
        return tuple(sizes)
    if len(sizes) <= _BUCKETS:
        return tuple(sorted(sizes))
    ordered = sorted(sizes, key=math.prod)
    chosen = [ordered[round(i * (len(ordered) - 1) / _BUCKETS)] for i in range(1, _BUCKETS)]
    return tuple(dict.fromkeys([*chosen, _largest(sizes)]))


def _up(side: float) -> int:
    return 32 * math.ceil(side / 32)


def _sizes(sizes: Sequence[Size]) -> str:
    return ", ".join(f"{height}×{width}" for height, width in sizes)


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return "–".join(dict.fromkeys(f"{x:g}" for x in (value[0], value[-1])))
    return f"{value:g}"
