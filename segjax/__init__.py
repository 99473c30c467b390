"""Semantic segmentation in JAX: networks equal to their papers, and what is needed to train them.

Its packages are shelves of leaves that take what they need as arguments; things meet in
`segjax.commands`, `segjax.recipe` and the scripts of `experiments/`. This file imports nothing of
them.
"""

import os
import time
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
    ~/.cache/segjax/xla, or what JAX_COMPILATION_CACHE_DIR names.
    """
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    # By default JAX keeps only what took it over a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# Found when they are asked for: `import segjax` alone costs nothing.
_LAZY = {"load": "segjax.commands.trained", "Segmenter": "segjax.segmenter"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'segjax' has no attribute {name!r}")
