"""Semantic segmentation in JAX: networks equal to their papers, and what is needed to train them.

Everything in this package is a leaf that takes what it needs as arguments; things meet in
`segjax.experiment` and in the scripts of `experiments/`. This file imports nothing of it.
"""

import time

__version__ = "0.1.0"

STARTED = time.perf_counter()  # what "seconds after the start" counts from
