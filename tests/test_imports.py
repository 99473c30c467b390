"""Who may import whom, and what an import may cost."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import segjax

PACKAGE = Path(segjax.__file__).parent


def dotted(path: Path) -> str:
    parts = ("segjax", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}
BACKBONES = {f"segjax.models.{name}" for name in ("alexnet", "googlenet", "vgg", "vit")}


def shelves() -> dict[str, set[str]]:
    """What each package, and each module beside them, may import: the picture in the README."""
    readme = (PACKAGE.parent / "README.md").read_text()
    (picture,) = re.findall(r"```text\n([^`]*→[^`]*)```", readme)
    arrows = (line.partition("→") for line in picture.splitlines())
    return {f"segjax.{a.strip()}": {f"segjax.{b}" for b in into.split()} for a, _, into in arrows}


EVERYWHERE = {"segjax", "segjax.errors"}
SHELVES = shelves() | {name: set() for name in EVERYWHERE}

# Within these packages modules are leaves, but for what is named.
LEAVES = {
    "segjax.training": {
        "segjax.training.checkpoint": {"segjax.training.checksums"},
        "segjax.training.cost": {"segjax.training.devices"},
        "segjax.training.train": {"segjax.training.accumulation"},
        "segjax.training.losses": {
            f"segjax.training.losses.{name}" for name in ("pixels", "regions")
        },
        "segjax.training.losses.pixels": {"segjax.training.losses.masked"},
        "segjax.training.losses.regions": {"segjax.training.losses.masked"},
        "segjax.training.processes": {"segjax.training.peers"},
    },
    "segjax.inference": {
        "segjax.inference.predict": {"segjax.inference.tiles"},
        "segjax.inference.export": {"segjax.inference.predict"},
        "segjax.inference.views": {"segjax.inference.tiles"},
    },
    "segjax.evaluation": {
        # The one pass counts for all scores; each of them still knows nothing of the others.
        "segjax.evaluation.evaluator": {
            f"segjax.evaluation.{name}"
            for name in ("bootstrap", "boundary", "calibration", "metrics", "objects")
        },
        # A page has parts, and tells what results are.
        "segjax.evaluation.page": {
            f"segjax.evaluation.{name}"
            for name in ("charts", "comparison", "confusion", "markup", "results")
        },
        "segjax.evaluation.confusion": {
            f"segjax.evaluation.{name}" for name in ("comparison", "markup", "results")
        },
        "segjax.evaluation.comparison": {"segjax.evaluation.markup", "segjax.evaluation.results"},
    },
}


def shelf(module: str) -> str:
    """The package, or the single module at the top, that a module belongs to."""
    return ".".join(module.split(".")[:2])


def running(node: ast.AST) -> Iterator[ast.AST]:
    """A tree's nodes, less what stands under `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from running(child)


def imported(module: str) -> set[str]:
    """The segjax modules that a module imports, wherever in it the import stands.

    But for those under TYPE_CHECKING, which only tools read.
    """
    found = set()
    for node in running(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: import by the full name"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name.split(".")[0] == "segjax"}


def allowed(module: str) -> set[str]:
    """What the design lets a module import."""
    if module == "segjax":
        return set()
    mine = shelf(module)
    beneath = {name for name in MODULES if shelf(name) in SHELVES[mine]}
    beside = {name for name in MODULES if shelf(name) == mine} - {module}
    if module == mine:  # a package's own file names what its users import
        return EVERYWHERE | beneath | beside
    if mine in LEAVES:
        return EVERYWHERE | beneath | LEAVES[mine].get(module, set())
    if mine == "segjax.models" and module != "segjax.models.variants":
        backbones = set() if module in BACKBONES else BACKBONES
        lowest = {
            f"segjax.models.{name}" for name in ("blocks", "geometry", "lanes", "layers", "module")
        }
        return EVERYWHERE | (lowest | backbones) - {module}
    if mine == "segjax.data" and module != "segjax.data.voc":
        beneath -= {"segjax.download"}
    return EVERYWHERE | beneath | beside


def test_every_module_has_its_shelf():
    assert {shelf(module) for module in MODULES} == set(SHELVES)


def test_nothing_imports_in_a_circle():
    order = {name: imported(name) - {shelf(name), name} for name in MODULES}
    tuple(TopologicalSorter(order).static_order())  # raises CycleError


@pytest.mark.parametrize("module", MODULES)
def test_imports_keep_to_the_design(module):
    assert imported(module) <= allowed(module)


@pytest.mark.parametrize(
    "module, heavy",
    [
        ("segjax", {"jax", "numpy"}),
        ("segjax.models", {"tensorflow", "torch", "matplotlib", "orbax", "optax", "grain", "PIL"}),
        (
            "segjax.recipe",
            {"tensorflow", "torch", "matplotlib", "tensorboardX", "scipy.ndimage", "grain"},
        ),
    ],
)
def test_importing_is_lean(module, heavy):
    code = f"import sys, {module}; print(*(m for m in {heavy!r} if m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
