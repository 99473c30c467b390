"""Networks, scalings and sources as JSON, and back: the class and fields of a frozen dataclass.

Of a class in the recipe's script, or in a file beside it, the file is written down too. No class
is known here.
"""

import dataclasses
import importlib.util
import os
import sys
import sysconfig
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from segjax.errors import SegjaxError

_LINEN = {"parent", "name"}  # fields that Linen gives to every module


def describe(thing: Any) -> Any:
    """A plain value, a path, or a dataclass of such, as JSON.

    Raises:
        SegjaxError: it cannot be written down, or its class could not be found again.
    """
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        names = [f.name for f in dataclasses.fields(thing) if f.init and f.repr]
        fields = {name: describe(getattr(thing, name)) for name in names if name not in _LINEN}
        return {**_place(type(thing)), "fields": fields}
    if isinstance(thing, dict):
        return {name: describe(value) for name, value in thing.items()}
    if isinstance(thing, tuple | list):
        return [describe(x) for x in thing]
    if thing is None or isinstance(thing, str | int | float):
        return thing
    if isinstance(thing, Path):
        return str(thing.absolute())
    raise SegjaxError(
        f"{thing!r} cannot be written to recipe.json. Networks, sources and recipes hold numbers, "
        "strings, paths, tuples and dataclasses of these; give a dtype by its name, as 'bfloat16'."
    )


def less_files(value: Any) -> Any:
    """What `describe` gives, less the files that classes are in: a script may move."""
    if isinstance(value, list):
        return [less_files(x) for x in value]
    if not isinstance(value, dict):
        return value
    dropped = {"file"} if "class" in value else set()
    return {name: less_files(x) for name, x in value.items() if name not in dropped}


def _place(cls: type) -> dict[str, str]:
    """Where a class is found again: module and name, and the file of a script's module."""
    module = sys.modules.get(cls.__module__)
    file = file_of(cls)
    name = _name(cls.__module__, file)
    if module is None or "<locals>" in cls.__qualname__ or name == "__main__":
        raise SegjaxError(
            f"The class {cls.__qualname__} could not be found again from the run folder, for it is "
            "defined in a function, a notebook or a command. Move it to the top of a file, "
            f"my_{cls.__name__.lower()}.py, and import it from there."
        )
    place = {"class": f"{name}:{cls.__qualname__}"}
    if file and "." not in name and not hasattr(module, "__path__") and not _installed(file):
        place["file"] = str(file.absolute())
    return place


def file_of(cls: type) -> Path | None:
    """The file that a class is defined in; None of a notebook, a command or standard input."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return Path(file) if file and Path(file).is_file() else None  # "<stdin>" is none


def _name(module: str, file: Path | None) -> str:
    """A module's name; of a script that is run, the one by which others import it."""
    if file and module == str(file):  # as `_module` names a second one of a name
        return file.stem
    if module != "__main__":
        return module
    if spec := getattr(sys.modules[module], "__spec__", None):  # python -m name
        return str(spec.name)
    return file.stem if file else module


def _installed(file: Path) -> bool:
    """Whether a module's file is where Python looks for modules from any folder."""
    return any(
        file.is_relative_to(sysconfig.get_path(kind)) for kind in ("purelib", "platlib", "stdlib")
    )


def rebuild(stored: Any) -> Any:
    """The inverse of `describe`; lists come back as tuples."""
    if isinstance(stored, list):
        return tuple(rebuild(x) for x in stored)
    if not isinstance(stored, dict):
        return stored
    module, _, name = stored["class"].partition(":")
    cls: Any = attrgetter(name)(_module(module, stored.get("file")))
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"{stored['class']} is no dataclass")
    fields = {name: rebuild(value) for name, value in stored["fields"].items()}
    return cls(**fields)


def _module(name: str, file: str | None) -> ModuleType:
    """A module by its name, or from the file of a script; the one that is loaded if there is one.

    Raises:
        SegjaxError: the file is gone, and no other is found by the name; or it cannot be run.
    """
    if file is None:
        return importlib.import_module(name)
    for loaded in list(sys.modules.values()):
        if _same_file(file, getattr(loaded, "__file__", None)):
            return loaded
    if not Path(file).is_file():
        try:
            return importlib.import_module(name)
        except ImportError:
            raise SegjaxError(
                f"{file}: gone. The run's classes are defined in it: put it back; or run `train` "
                "of the script from where it lies now, which notes the new place; or name its "
                "folder in PYTHONPATH."
            ) from None
    name = name if name not in sys.modules else file  # another script's of the same name
    spec: Any = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    sys.path.insert(0, str(Path(file).parent))  # for what lies beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SegjaxError(
            f"{file}: the run's classes are defined in it, but it cannot be imported: "
            f"{type(error).__name__}: {error}. Mend it; what it is to do when it is started stands "
            'beneath `if __name__ == "__main__":`.'
        ) from error
    finally:
        sys.path.remove(str(Path(file).parent))
    return module


def _same_file(one: str, other: str | None) -> bool:
    if not other or os.path.basename(one) != os.path.basename(other):
        return False  # without a look at the disk
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
