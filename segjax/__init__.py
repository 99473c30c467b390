"""Semantic segmentation in JAX: networks equal to their papers, and what is needed to train them.

Its packages are shelves of leaves that take what they need as arguments; things meet in
`segjax.commands`, `segjax.recipe` and the scripts of `experiments/`. This file imports nothing of
them.
"""

import os
import time
from pathlib import Path

__version__ = "0.1.0"

STARTED = time.perf_counter()  # what "seconds after the start" counts from


def cache_folder(kind: str) -> Path:
    """Where what can be made anew is kept: ~/.cache/segjax/kind, or in $XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segjax" / kind
