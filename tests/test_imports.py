"""Who may import whom, and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import segjax

PACKAGE = Path(segjax.__file__).parent


def dotted(path: Path) -> str:
    parts = ("segjax", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}
BACKBONES = {f"segjax.models.{name}" for name in ("alexnet", "googlenet", "vgg", "vit")}


def imported(module: str) -> set[str]:
    """The segjax modules that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: import by the full name"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name.split(".")[0] == "segjax"}


def allowed(module: str) -> set[str]:
    """What the design lets a module import, beside the errors and the version."""
    everywhere = {"segjax", "segjax.errors"}
    if module == "segjax":
        return set()
    if module == "segjax.__main__":
        return everywhere | {"segjax.command", "segjax.prepare", "segjax.verbs"}
    if module in ("segjax.experiment", "segjax.verbs"):
        return set(MODULES) - {"segjax.__main__", "segjax.experiment", module}
    if module == "segjax.prepare":
        return everywhere | {"segjax.data.voc"}
    if module == "segjax.audit_page":
        return everywhere | {"segjax.data.audit", "segjax.data.pictures"}
    if module.startswith("segjax.data."):
        shelf = {name for name in MODULES if name.startswith("segjax.data.")}
        return everywhere | shelf | ({"segjax.download"} if module == "segjax.data.voc" else set())
    if module == "segjax.report":
        return everywhere | {"segjax.visualise"}
    if module == "segjax.inference":
        return everywhere | {"segjax.tiles"}
    if module == "segjax.weights.files":
        return everywhere | {"segjax.download", "segjax.weights.table"}
    if module == "segjax.weights.table":
        return everywhere | {"segjax.models.layers"}
    if module == "segjax.weights":
        return {name for name in MODULES if name.startswith("segjax.weights.")}
    if module.startswith("segjax.weights."):
        networks = {name for name in MODULES if name.startswith("segjax.models")}
        layouts = {name for name in MODULES if name.startswith("segjax.weights.")}
        return everywhere | layouts | networks
    if module in ("segjax.models", "segjax.models.variants"):
        return {name for name in MODULES if name.startswith("segjax.models.")}
    if module == "segjax.models.layers":
        return everywhere | {"segjax.models.geometry"}
    if module.startswith("segjax.models.") and module != "segjax.models.geometry":
        backbones = set() if module in BACKBONES else BACKBONES
        return everywhere | {"segjax.models.geometry", "segjax.models.layers"} | backbones
    return everywhere


@pytest.mark.parametrize("module", MODULES)
def test_imports_keep_to_the_design(module):
    assert imported(module) <= allowed(module)


@pytest.mark.parametrize(
    "module, heavy",
    [
        ("segjax", {"jax", "numpy"}),
        ("segjax.models", {"tensorflow", "torch", "matplotlib", "orbax", "optax", "grain", "PIL"}),
        ("segjax.experiment", {"tensorflow", "torch", "matplotlib", "tensorboardX"}),
    ],
)
def test_importing_is_lean(module, heavy):
    code = f"import sys, {module}; print(*(m for m in {heavy!r} if m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
