"""What README and docs show works: every fenced block of every page is found, and run.

The blocks of a page go in order, in one temporary folder that holds `experiments/` and a small data
set, `data/cells`:

    python   runs, all of a page in one namespace; with title="FILE" it is written to that file
    sh       each line is run where it is cheap, else its options are parsed by the real parser
    text     nothing to run: a tree of folders, or what a command prints

A block that cannot run says why on the line before: <!-- not run: needs a cluster -->.
"""

import configparser
import dataclasses
import functools
import importlib.util
import json
import pkgutil
import re
import shlex
import shutil
import sys
import types
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tyro
from PIL import Image

import segjax
from segjax import recipe
from segjax.__main__ import main as segjax_main
from segjax.recipe import Recipe, main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
LANGUAGES = {"python", "sh", "text"}
NOT_RUN = 4  # blocks of all pages together that may give a reason instead
BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]+) -->\n\n?)?"
    r'^(?P<indent> *)```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n'
    r"(?P<text>.*?)\n(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block: where it starts, what it is, and why it is not run, if it is not."""

    where: str
    language: str
    title: str | None
    text: str
    reason: str | None


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks_of(page):
    text = page.read_text()
    found = list(BLOCK.finditer(text))
    fences = re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)
    assert len(fences) == 2 * len(found), f"{page.name}: a fence that this test cannot read"
    for block in found:
        line = text.count("\n", 0, block.start("text")) + 1
        indent = block["indent"]
        yield Block(
            f"{name_of(page)}:{line}",
            block["language"],
            block["title"],
            "\n".join(row.removeprefix(indent) for row in block["text"].split("\n")) + "\n",
            block["reason"],
        )


ALL = {name_of(page): list(blocks_of(page)) for page in PAGES}


def test_every_block_is_of_a_kind_that_is_checked():
    unknown = [
        f"{block.where}: {block.language or 'no language'}"
        for blocks in ALL.values()
        for block in blocks
        if block.language not in LANGUAGES
    ]
    assert not unknown, f"known are {', '.join(sorted(LANGUAGES))}; got {unknown}"


def test_few_blocks_are_not_run():
    reasons = [f"{b.where}: {b.reason}" for blocks in ALL.values() for b in blocks if b.reason]
    assert len(reasons) <= NOT_RUN, "\n".join(reasons)


@pytest.fixture
def home(tmp_path, monkeypatch, trained):
    """A working folder as a reader has it: scripts, a run, a small data set of 0/255 masks."""
    (tmp_path / "experiments").mkdir()
    for path in (ROOT / "experiments").iterdir():
        (tmp_path / "experiments" / path.name).symlink_to(path)
    rng = np.random.default_rng(0)
    cells = tmp_path / "data/cells"
    for kind in ("images", "masks"):
        (cells / kind).mkdir(parents=True)
    names = [f"cell_{i:02}" for i in range(12)]
    for name in names:
        mask = np.kron(rng.random((4, 4)) < 0.4, np.ones((16, 16))).astype(bool)
        pixels = np.where(mask[..., None], 180, 60) + rng.integers(0, 60, (64, 64, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(cells / f"images/{name}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(cells / f"masks/{name}.png")
    (cells / "train.txt").write_text("\n".join(names[:8]) + "\n")
    (cells / "val.txt").write_text("\n".join(names[8:]) + "\n")
    (tmp_path / "new").mkdir()
    shutil.copy(cells / "images/cell_00.png", tmp_path / "new/photo.png")
    shutil.copytree(trained / "run", tmp_path / "runs/mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "experiments")
    monkeypatch.syspath_prepend(tmp_path / "experiments/papers")
    return tmp_path


@pytest.mark.parametrize("page", [page for page, blocks in ALL.items() if blocks])
def test_every_block_of_a_page_runs(page, home, monkeypatch, capsys):
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look their module up
    written = set()
    for block in ALL[page]:
        if block.reason:
            continue
        try:
            if block.title:
                (home / block.title).parent.mkdir(parents=True, exist_ok=True)
                (home / block.title).write_text(block.text)
                written.add(block.title)
            elif block.language == "python":
                exec(compile(block.text, block.where, "exec"), vars(module))
            elif block.language == "sh":
                for line in commands(block.text):
                    check(line, written, monkeypatch)
        except (Exception, SystemExit) as error:
            error.add_note(f"in the block at {block.where}\n{capsys.readouterr().err}")
            raise
    scores = re.findall(r"^mIoU (0\.\d+)", capsys.readouterr().out, re.MULTILINE)
    assert all(float(score) > 0.1 for score in scores)  # 0.1: background alone
    assert scores or page != "README.md", "its library example prints what it has trained"


# Lines of a shell


def commands(text):
    """The commands of a block as lists of words, without comments and VARIABLE=value before."""
    for line in text.replace("\\\n", " ").split("\n"):
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            yield words


def check(words, written, monkeypatch):
    """Run a command, or have its options parsed; raises what is wrong with it."""
    match words:
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert targets and set(targets) <= set(known)
        case ["pip", "install", "-e", what]:
            extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what)
            assert extras and set((extras[1] or "").split(",")) <= {"", *known_extras()}
        case ["srun", *started]:
            check(started, written, monkeypatch)
        case ["sbatch" | "bash", script, *started]:  # of experiments/cluster
            assert (ROOT / script).is_file()
            check(
                ["python", started[0], "train", "--distributed", *started[1:]], written, monkeypatch
            )
        case ["kubectl", "apply", "-f", manifest]:
            assert (ROOT / manifest).is_file()
        case ["segjax", *argv] | ["python", "-m", "segjax", *argv]:
            with monkeypatch.context() as patch:
                if not is_cheap(argv):
                    patch.setattr(tyro.extras, "subcommand_cli_from_dict", parse_only)
                patch.setattr(sys, "argv", ["segjax", *argv])
                finished(segjax_main)
        case ["python", "-m", "pytest", *options]:
            paths = [option for option in options if "/" in option]
            assert all((ROOT / path.partition("::")[0]).exists() for path in paths)
        case ["python", script, *argv] if script.startswith("benchmarks/"):
            assert (ROOT / script).is_file() and not argv
        case ["python", script, *argv]:
            with monkeypatch.context() as patch:
                patch.setattr(recipe, "train", functools.partial(train_a_little, recipe.train))
                if script not in written:
                    patch.setattr(tyro.extras, "subcommand_cli_from_dict", parse_only)
                finished(main, recipe_in(Path(script)), argv)
        case _:
            raise AssertionError(f"{shlex.join(words)}: this test does not know how to check it")


def known_extras():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    return settings["options.extras_require"]


def is_cheap(argv):
    """Whether a verb takes no time here, or what it reads lies in the working folder."""
    verb, *rest = argv
    if verb in {"audit", "evaluate", "predict", "report"}:
        return Path(rest[0]).is_dir()
    return verb in {"models", "--version", "--help", "--tyro-print-completion"}


def train_a_little(train, given, folder, **options):
    small = dataclasses.replace(given, steps=2, epochs=None, evaluate_every=2, batch_size=8)
    train(small, folder, **options)


_parse = tyro.extras.subcommand_cli_from_dict


def parse_only(verbs, **options):
    """tyro's parser of these verbs, none of which does anything."""

    def idle(verb):
        @functools.wraps(verb)
        def nothing(*args, **kwargs):
            pass

        return nothing

    _parse({name: idle(verb) for name, verb in verbs.items()}, **options)


def finished(run, *args, **kwargs):
    """Run it; its exit, if it makes one, must tell success."""
    try:
        run(*args, **kwargs)
    except SystemExit as stopped:
        if stopped.code not in (None, 0):
            raise


def recipe_in(script):
    """The recipe that a script hands to `main`."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module  # where dataclasses and inspect look a class up
    spec.loader.exec_module(module)
    (found,) = [
        x
        for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, Recipe) and x.__module__ == script.stem
    ]
    return found


def test_a_wrong_option_is_noticed(home, monkeypatch):
    for wrong in (
        "segjax predict runs/a b.png --tiel 5",
        "segjax audti data/cells",
        "python experiments/unet_shapes.py train --stepps 5",
        "python experiments/nothing.py train",
        "make toast",
        "pip install -e '.[toast]'",
        "rm -r data",
    ):
        with pytest.raises((SystemExit, AssertionError, FileNotFoundError)):
            check(shlex.split(wrong), set(), monkeypatch)


# What pages say of the files


def test_readme_is_short_and_names_both_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.split("\n")) < 220
    assert "make demo" in text and "make test" in text


def test_what_the_readme_links_to_is_there():
    """Of the site, `make docs` sees to it."""
    for page in PAGES[:2]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (ROOT / target).exists(), f"{page.name} links to {target}"


def test_the_way_of_a_batch_is_followed_in_eight_files():
    text = (DOCS / "design.md").read_text()
    section = re.search(r"^## The way of a batch\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    files = re.findall(r"^\d+\. `([\w/]+\.py)`", section[1], re.MULTILINE)
    assert 4 <= len(files) <= 8
    assert [path for path in files if not (ROOT / path).is_file()] == []


def test_every_package_is_in_the_reference():
    told = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    packages = {f"segjax.{m.name}" for m in pkgutil.iter_modules(segjax.__path__) if m.ispkg}
    assert packages <= set(re.findall(r"^::: ([\w.]+)", told, re.MULTILINE))


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads((DOCS / "first_segmentation.ipynb").read_text())["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
