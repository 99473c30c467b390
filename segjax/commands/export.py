"""The verb that hands a trained network on: one file for any JAX, its weights, and a model card."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import segjax
from segjax.commands import exported, load_exported
from segjax.commands.checks import make_folder
from segjax.commands.run import Run, read_json, write_whole
from segjax.commands.trained import Which, load_step
from segjax.errors import SegjaxError
from segjax.inference.export import export_labels, flat
from segjax.segmenter import Segmenter

_BY = "exported by segjax"  # tells our model cards
_TO_FILL = "*to be filled in*"


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def export(
    run: Path,
    *,
    out: Path | None = None,
    checkpoint: Which = "best",
    licence: str = "",
    data: str = "",
    use: str = "",
    size: tuple[int, int] | None = None,
) -> None:
    """Write what a run has trained for others: for plain JAX, as safetensors, with a model card.

    Args:
        run: The run folder.
        out: Where to write; by default `export` in the run folder.
        checkpoint: Which checkpoint.
        licence: Of the weights, for the model card.
        data: What it was trained on, for the model card.
        use: What it is meant for, for the model card.
        size: Fix height and width of the pictures, for a network of your own whose shapes cannot
            be left open.

    Raises:
        SegjaxError: there is no such run, or its network cannot be exported.
    """
    stored = Run(run)
    out = out or run / "export"
    card = out / exported.CARD
    if card.exists() and _BY not in card.read_text(encoding="utf-8", errors="replace"):
        raise SegjaxError(
            f"{card}: is there, and is no model card of segjax, which would be written over it. "
            "Name another folder with --out."
        )
    make_folder(out)  # before it computes
    step, trained = load_step(stored, checkpoint)
    dtype = np.dtype(np.float32 if trained.ranges else np.uint8)
    made = export_labels(
        trained.model,
        trained.variables,
        normalise=trained.normalise,
        channels=trained.channels,
        dtype=dtype,
        threshold=trained.threshold,
        size=size,
    )
    (out / exported.LABELS).write_bytes(made.serialize())
    exported.save(out / exported.WEIGHTS, trained)
    shutil.copyfile(load_exported.__file__, out / exported.LOADER)
    differing = _check(out, trained, size or tuple(stored.fields["crop"]), dtype)
    names = (exported.LABELS, exported.WEIGHTS, exported.LOADER)
    hashes = {name: _sha256(out / name) for name in names}
    scores = _scores(run / "report" / "scores.json", step)
    text = model_card(
        trained,
        name=run.resolve().name,
        step=step,
        recipe=stored.recipe,
        fields=stored.fields,
        size=size,
        scores=scores,
        hashes=hashes,
        licence=licence,
        data=data,
        use=use,
    )
    write_whole(card, text)
    for name in (*names, exported.CARD):
        print(f"{out / name}  {(out / name).stat().st_size:,} bytes")
    print(
        f"Checkpoint of step {step}. Read from these files again, it labels a picture of noise "
        + ("as the run does." if not differing else f"but for {differing} pixels as the run does.")
    )
    if scores is None:
        print(f"The model card has no scores of it: run segjax evaluate {run}, and export again.")


def _check(out: Path, trained: Segmenter, size: Sequence[int], dtype: np.dtype) -> int:
    """In how many pixels what was written differs from what is in use; on a CPU in none."""
    shape = (1, *size, trained.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(dtype)
    return int(np.count_nonzero(load_exported.load(out)(images) != trained.predict(images)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scores(path: Path, step: int) -> Mapping[str, Any] | None:
    """What `evaluate` has written of this very checkpoint."""
    found = read_json(path) if path.exists() else None
    return found if isinstance(found, dict) and found.get("step") == step else None


def model_card(
    trained: Segmenter,
    *,
    name: str,
    step: int,
    recipe: str,
    fields: Mapping[str, Any],
    size: tuple[int, int] | None,
    scores: Mapping[str, Any] | None,
    hashes: Mapping[str, str],
    licence: str = "",
    data: str = "",
    use: str = "",
) -> str:
    """What a user has to know of the exported files, in Markdown.

    Args:
        trained: what they hold.
        name: of the run.
        step: of its checkpoint.
        recipe, fields: by which it was trained.
        size: height and width where they are fixed.
        scores: as `evaluate` writes them; None where it was not evaluated.
        hashes: SHA-256 by file.
        licence, data, use: the parts that only a person knows.
    """
    kind = "float32 in 0–255" if trained.ranges else "uint8"
    sides = "H and W any number" if size is None else f"H = {size[0]}, W = {size[1]}"
    height, width = fields["crop"]
    ways = [
        f"- It knows its {len(trained.classes)} classes and nothing else: of whatever is shown, "
        "each pixel gets one of them.",
        f"- It was trained on crops of {height}×{width} pixels; objects of other sizes than they "
        "had there, other cameras and other light are labelled worse.",
        "- EXIF orientation is not applied: turn photographs as those it was trained on.",
        "- A picture is computed at once, so memory grows with its size; segjax itself has tiles.",
        "- The same labels bit for bit hold on a CPU; a GPU or TPU rounds otherwise, and pixels "
        "between two equally likely classes may change.",
    ]
    if trained.ranges:
        told = ", ".join(f"{low:g} to {high:g}" for low, high in trained.ranges)
        ways.append(
            f"- Stored values are scaled to 0–255 before: {told} (one range, or a channel)."
        )
    lines = [
        f"# {_plain(name)}",
        "",
        f"Semantic segmentation into {len(trained.classes)} classes: "
        f"{', '.join(map(_plain, trained.classes))}. A {type(trained.model).__name__} of "
        f"{_count(trained):,} parameters, trained by the recipe `{_plain(recipe)}`, step {step}, "
        f"{_BY} {segjax.__version__} with JAX {jax.__version__}.",
        "",
        f"**Licence:** {_plain(licence) or _TO_FILL}",
        "",
        "## Intended use",
        "",
        _plain(use) or _TO_FILL,
        "",
        "## Data",
        "",
        _plain(data) or _TO_FILL,
        "",
        "## Scores",
        "",
        *_score_lines(trained.classes, scores),
        "",
        "## Limits",
        "",
        *ways,
        "",
        "## How to load it",
        "",
        f"With JAX alone, on CPU, CUDA or TPU; `load()` in {exported.LOADER} is the part for a "
        "program:",
        "",
        "```sh",
        "pip install jax flatbuffers safetensors pillow",
        f"python {exported.LOADER} picture.png labels.png",
        "```",
        "",
        f"Pictures are {kind}, (B, H, W, {trained.channels}), {sides}; labels uint8 (B, H, W). "
        "Scaling and padding are inside.",
        "",
        "With segjax:",
        "",
        "```python",
        "import segjax",
        "",
        f'labels = segjax.load("{exported.WEIGHTS}").predict("picture.png")',
        "```",
        "",
        "## Files",
        "",
        "SHA-256, as `sha256sum -c` takes them:",
        "",
        "```text",
        *(f"{sha}  {file}" for file, sha in hashes.items()),
        "```",
    ]
    return "\n".join(lines)


def _score_lines(classes: Sequence[str], scores: Mapping[str, Any] | None) -> list[str]:
    if scores is None:
        return ["Not evaluated."]
    intervals = scores.get("intervals") or {}
    rows = []
    for name, value in scores.items():
        if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        told = f"{value:.4f}"
        if name in intervals and None not in intervals[name]:
            low, high = intervals[name]
            told += f" ({low:.4f} to {high:.4f})"
        rows.append(f"| {_plain(name.replace('_', ' '))} | {told} |")
    split = scores.get("split", "held-out")
    bounds = "; in brackets 95 % intervals by bootstrap over pictures" if intervals else ""
    lines = [f"On the {split} split{bounds}.", "", "| score | value |", "|---|---:|", *rows]
    of_class = {
        name: values
        for name, values in (scores.get("per_class") or {}).items()
        if len(values) == len(classes)
    }
    if of_class:
        heads = " | ".join(_plain(name.replace("_", " ")) for name in of_class)
        lines += ["", f"| class | {heads} |", "|---|" + "---:|" * len(of_class)]
        for i, label in enumerate(classes):
            values = (column[i] for column in of_class.values())
            told = " | ".join("–" if value is None else f"{value:.4f}" for value in values)
            lines.append(f"| {_plain(label)} | {told} |")
    return lines


def _count(trained: Segmenter) -> int:
    weights = flat(trained.variables)
    return sum(int(x.size) for name, x in weights.items() if name.startswith("params/"))


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    text = " ".join(text.split())
    return "".join(f"\\{x}" if x in "\\`*_[]<>|#" else x for x in text)
