"""Semantic segmentation in JAX: networks equal to their papers, and what is needed to train them.

Its packages are shelves of leaves that take what they need as arguments; things meet in
`segjax.commands`, `segjax.recipe` and the scripts of `experiments/`. This file imports nothing of
them.
"""

import os
import re
import time
import warnings
from functools import partial
from glob import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segjax.commands.trained import load as load
    from segjax.segmenter import Segmenter as Segmenter

__version__ = "0.1.0"

STARTED = time.perf_counter()  # what "seconds after the start" counts from


def cache_folder(kind: str) -> Path:
    """Where what can be made anew is kept: ~/.cache/segjax/kind, or in $XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segjax" / kind


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that they are compiled once only.

    The commands do so by themselves; a program calls it once, before it compiles. The folder is
    ~/.cache/segjax/xla, or what JAX_COMPILATION_CACHE_DIR names. What is damaged there, as by a
    kill amid its writing, is compiled and kept anew.
    """
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    # By default JAX keeps only what took it over a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if getattr(warnings.showwarning, "func", None) is not _mend_cache:  # by an earlier call
        warnings.showwarning = partial(_mend_cache, warnings.showwarning)


_TORN = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


def _mend_cache(show: Any, message: Any, *place: Any, **more: Any) -> None:
    """Show a warning, but for JAX's of an unreadable program: remove what it would read again.

    JAX writes to the very file, and leaves alone what is there: a torn one would stay for ever. It
    tells only the program's name, so those of other shapes go too. It writes the file after this.
    """
    import jax

    if torn := _TORN.match(str(message)):
        for file in Path(jax.config.values["jax_compilation_cache_dir"]).glob(
            f"{escape(torn[1])}-*"
        ):
            file.unlink(missing_ok=True)
    else:
        show(message, *place, **more)


# Found when they are asked for: `import segjax` alone costs nothing.
_LAZY = {"load": "segjax.commands.trained", "Segmenter": "segjax.segmenter"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'segjax' has no attribute {name!r}")
