"""The losses of other packages, by which ours are checked where they agree."""

import importlib.util
import sys
import types

import pytest


@pytest.fixture(scope="session")
def monai():
    """MONAI's losses; it needs no more than PyTorch."""
    pytest.importorskip("torch")
    pytest.importorskip("monai")
    import monai.losses

    return monai.losses


@pytest.fixture(scope="session")
def smp():
    """The losses of segmentation_models.pytorch, alone.

    They need no more than PyTorch, but the package imports timm and torchvision before them: an
    empty one takes its place.
    """
    pytest.importorskip("torch")
    name = "segmentation_models_pytorch"
    found = importlib.util.find_spec(name)
    if found is None:
        pytest.skip(f"{name} is not installed")  # importorskip would import its dependencies
    package = types.ModuleType(name)
    package.__path__ = found.submodule_search_locations
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, package)
        yield importlib.import_module(f"{name}.losses")
        for module in [m for m in sys.modules if m.startswith(f"{name}.")]:
            patch.delitem(sys.modules, module)
