"""Semantic segmentation in JAX: networks equal to their papers, and what is needed to train them.

Everything in this package is a leaf that takes what it needs as arguments; things meet in
`segjax.experiment` and in the scripts of `experiments/`. This file imports nothing of it.
"""

import os
import time
from pathlib import Path

__version__ = "0.1.0"

STARTED = time.perf_counter()  # what "seconds after the start" counts from


def cache_folder(kind: str) -> Path:
    """Where what can be made anew is kept: ~/.cache/segjax/kind, or in $XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segjax" / kind
