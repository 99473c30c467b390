"""A plan as the script of a recipe, to be read, edited and run again; formatted as by ruff."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segjax.commands.plan import Plan
from segjax.data.folder import Folder

_WIDTH = 100
_PLAIN = Folder(Path(), ("",), ((0, 0, 0),))  # of what need not be written


class _Group(NamedTuple):
    """What stands in brackets; a call may hold its arguments on one line of their own."""

    begin: str
    items: Sequence["str | _Group"]
    end: str = ")"

    @property
    def is_call(self) -> bool:
        """Else it is a tuple."""
        return self.begin[-2:-1].isalnum()

    @property
    def inner(self) -> str:
        return ", ".join(item if isinstance(item, str) else item.flat() for item in self.items)

    def flat(self) -> str:
        lone = not self.is_call and len(self.items) == 1
        return f"{self.begin}{self.inner}{',' * lone}{self.end}"


def write(plan: Plan, *, name: str, command: str) -> str:
    """The script.

    Args:
        plan: of the training.
        name: of the recipe, its file's less the suffix.
        command: by which it was planned.
    """
    cls = "".join(part[:1].upper() + part[1:] for part in re.findall(r"[A-Za-z0-9]+", name))
    cls = f"{'My' if not cls[:1].isalpha() else ''}{cls}Recipe"
    body = [*_fields(plan), "", *_model(plan), "", *_source(plan), "", *_augment(plan)]
    if plan.class_weights or plan.network.heads:
        body += ["", *_loss(plan)]
    parts = [
        f'"""{plan.network.title} on {_in_docstring(str(plan.found.folder.root.name))}: a plan of '
        "segjax, to be edited and run again.",
        "",
        *textwrap.wrap(
            f"Planned by: {_in_docstring(command)}",
            _WIDTH,
            break_long_words=False,
            break_on_hyphens=False,
        ),
        '"""',
        "",
        *_imports(plan),
        "",
        *_constants(plan),
        "",
        "",
        "@dataclass(frozen=True, kw_only=True)",
        f"class {cls}(Recipe):",
        f'    """{plan.network.title}, {len(plan.found.folder.classes)} classes."""',
        "",
        *("    " + line if line else "" for line in body),
        "",
        "",
        'if __name__ == "__main__":',
        f"    main({cls})",
    ]
    return "\n".join(parts) + "\n"


def _imports(plan: Plan) -> list[str]:
    moved = ["Example", "Normalise", "at_once", "compose", "flip", "scale_crop"]
    if not plan.upright:
        moved.insert(5, "rot90")
    heads = plan.network.heads or plan.class_weights
    models = sorted(["Output"] * bool(heads) + [plan.network.cls], key=_isort)
    typing = ["from typing import Literal"] if plan.compute != "float32" else []
    arrays = ["import jax.numpy as jnp"] if plan.class_weights else []
    return [
        "from dataclasses import dataclass",
        "from functools import partial",
        "from pathlib import Path",
        *typing,
        "",
        "import jax",
        *arrays,
        "",
        *_import("segjax.data.augment", moved),
        "from segjax.data.colour import random_grey_values",
        "from segjax.data.folder import Folder",
        *(["from segjax.data.wrapper import Pieces"] if plan.cut[0] else []),
        f"from segjax.models import {', '.join(models)}",
        "from segjax.recipe import Recipe, Split, main",
    ]


def _isort(name: str) -> tuple[bool, str]:
    """Constants first, as ruff sorts names."""
    return not name.isupper(), name


def _import(module: str, names: Sequence[str]) -> list[str]:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= _WIDTH:
        return [line]
    return [f"from {module} import (", *(f"    {name}," for name in names), ")"]


def _constants(plan: Plan) -> list[str]:
    folder, survey = plan.found.folder, plan.found.survey
    lines = _lines("CLASSES = ", _python(folder.classes), indent=0)
    lines += _lines("PALETTE = ", _python(folder.palette), indent=0)
    scaling = [f"mean={_flat(survey.mean)}", f"deviation={_flat(survey.deviation)}"]
    lines += _lines("SCALING = ", _Group("Normalise(", scaling), indent=0)
    if plan.class_weights:
        lines += _comment(plan.why["class_weights"])
        lines += _lines("CLASS_WEIGHTS = ", _python(plan.class_weights), indent=0)
    return lines


def _fields(plan: Plan) -> list[str]:
    folder = plan.found.folder
    train = plan.found.train
    where = f"{train.images} and {train.masks}"
    path = _python(str(folder.root.absolute()))
    lines = [*_lines("data: Path = ", _Group("Path(", [path])), f'"""Folder with {where}."""']

    def add(name: str, kind: str, value: Any, *, what: str = "", key: str = "") -> None:
        lines.extend(_comment(plan.why.get(key or name, "")))
        lines.extend(_lines(f"{name}: {kind} = ", _python(value)))
        lines.extend([f'"""{what}"""'] if what else [])

    add("steps", "int", plan.steps)
    add("batch_size", "int", plan.batch_size)
    add("canvas", "tuple[int, int]", plan.canvas)
    if plan.buckets and plan.buckets != (plan.canvas,):
        add("buckets", "tuple[tuple[int, int], ...]", plan.buckets)
    add("crop", "tuple[int, int]", plan.crop)
    add("learning_rate", "float", plan.learning_rate)
    add("evaluate_every", "int", plan.evaluate_every)
    if folder.channels != 3:
        add("channels", "int", folder.channels, key="pictures")
    lines.append("normalise: Normalise = SCALING")
    lines.append('"""Scaling of pixel values before the network."""')
    if plan.compute != "float32":
        add("compute", 'Literal["float32", "bfloat16"]', plan.compute)
    for name, value in plan.options.items():
        option = plan.network.options[name]
        add(name, option.type, value, what=option.what, key="network" if name == "widths" else "")
    add("scale", "tuple[float, float]", plan.scale, what="Of resizing in training.")
    return lines


def _model(plan: Plan) -> list[str]:
    network = plan.network
    arguments = ["len(CLASSES)"]
    arguments += [
        f"{option.argument or name}=self.{name}" for name, option in network.options.items()
    ]
    arguments += re.findall(r"\w+=(?:\([^()]*(?:\([^()]*\))?[^()]*\)|[^,]+)", network.fixed)
    call = _Group(f"{network.cls}(", [*arguments, "dtype=self.compute"])
    return [f"def model(self) -> {network.cls}:", *_indented(_lines("return ", call, indent=8))]


def _source(plan: Plan) -> list[str]:
    folder, train, val = plan.found.folder, plan.found.train, plan.found.val
    arguments: list[str | _Group] = ["self.data", "CLASSES", "PALETTE"]
    if train.split == "train" and val.split == "val":
        arguments.append("split=split")
    elif (train.split, val.split) != (None, None):
        arguments.append(f"split={_either(train.split, val.split)}")
    if train.part != val.part:
        arguments.append(f"part={_either(train.part, val.part)}")
    for name in ("images", "masks"):
        ours, theirs = getattr(train, name), getattr(val, name)
        if ours != theirs:
            in_split = ours.removeprefix("train"), theirs.removeprefix("val")
            same = in_split[0] == in_split[1] and ours != in_split[0]
            either = f'f"{{split}}{in_split[0]}"' if same else _either(ours, theirs)
            arguments.append(f"{name}={either}")
        elif ours != getattr(_PLAIN, name):
            arguments.append(f"{name}={_flat(ours)}")
    for name in ("values", "endings", "ranges", "instances", "colours"):
        value = getattr(folder, name)
        if value != getattr(_PLAIN, name):
            of = _python(value)
            named = of._replace(begin=f"{name}={of.begin}") if isinstance(of, _Group) else None
            arguments.append(named or f"{name}={of}")
    if folder.channels != 3:
        arguments.append("channels=self.channels")
    call = _Group("Folder(", arguments)
    if not plan.cut[0]:
        head = "def source(self, split: Split) -> Folder:"
        return [head, *_indented(_lines("return ", call, indent=8))]
    either = "" if plan.cut[1] else ' if split == "train" else pictures'
    return [
        "def source(self, split: Split) -> Folder | Pieces:",
        *_indented(_lines("pictures = ", call, indent=8)),
        f"    return Pieces(pictures, self.canvas){either}",
    ]


def _either(train: Any, val: Any) -> str:
    if train == val:
        return _flat(train)
    return f'{_flat(train)} if split == "train" else {_flat(val)}'


def _augment(plan: Plan) -> list[str]:
    moves = [
        "partial(scale_crop, size=self.crop, scale=self.scale)",
        *([] if plan.upright else ["rot90"]),
        "flip",
    ]
    steps = [
        f"at_once({', '.join(moves)})",
        f"partial(random_grey_values, brightness={plan.brightness})",
    ]
    return [
        "def augment(self, key: jax.Array, example: Example) -> Example:",
        *_indented(_comment(plan.why["flips"])),
        "    return compose(",
        *(f"        {step}," for step in steps),
        "    )(key, example)",
    ]


def _loss(plan: Plan) -> list[str]:
    """Of `losses`, as ever: of each head, and with the classes' weights."""
    lines = ["def loss(self, output: Output, example: Example) -> jax.Array:"]
    if plan.class_weights:
        lines += [
            "    # an ignored pixel's weight does not count",
            '    weight = jnp.take(jnp.asarray(CLASS_WEIGHTS), example.label, mode="clip")',
            "    example = example._replace(weight=weight)",
        ]
    if not plan.network.heads:
        return [*lines, "    return super().loss(output, example)"]
    lines.append("    of_head = super().loss")
    of_each = "of_head(Output(logits), example) for logits in"
    if plan.network.heads == "every":
        lines.append(f"    heads = [{of_each} output.auxiliary]")
        return [*lines, "    return sum(heads[1:], heads[0])"]
    lines.append("    heads = (output.logits, *output.auxiliary)")
    lines.append(f"    main, *auxiliary = ({of_each} heads)")
    return [*lines, "    return main + 0.4 * sum(auxiliary)"]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH - 6, initial_indent="# ", subsequent_indent="# ")


def _indented(lines: Sequence[str]) -> list[str]:
    return ["    " + line for line in lines]


def _in_docstring(text: str) -> str:
    return text.replace("\\", "/").replace('"', "'")


def _flat(value: Any) -> str:
    of = _python(value)
    return of if isinstance(of, str) else of.flat()


def _python(value: Any) -> "str | _Group":
    """A value as Python source."""
    if isinstance(value, tuple):
        return _Group("(", [_python(x) for x in value])
    if isinstance(value, str):
        text = repr(value)
        return text if '"' in value else '"' + text[1:-1].replace("\\'", "'") + '"'
    return repr(value)


def _lines(prefix: str, of: "str | _Group", suffix: str = "", indent: int = 4) -> list[str]:
    """An expression on one line, or one item a line where it is too long."""
    flat = of if isinstance(of, str) else of.flat()
    room = _WIDTH - indent
    if isinstance(of, str) or len(prefix + flat + suffix) <= room:
        return [f"{prefix}{flat}{suffix}"]
    if of.is_call and len(of.inner) <= room - 4:
        body = [f"    {of.inner}"]
    else:
        body = [
            f"    {line}" for item in of.items for line in _lines("", item, ",", indent=indent + 4)
        ]
    return [f"{prefix}{of.begin}", *body, f"{of.end}{suffix}"]
