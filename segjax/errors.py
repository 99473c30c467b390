"""How mistakes that the user can mend are told. Every module may import it."""

from typing import Any


class SegjaxError(ValueError):
    """A user's mistake, told in full: what, expected, got, in which file, and what to do.

    The commands print its text and exit with its status, 2; a library user catches it as a
    ValueError.
    """

    status = 2


class SegjaxWarning(UserWarning):
    """What looks like a mistake but may be meant, told in full; the commands print its text."""


def held(labels: Any) -> str:
    """The values of an array of integers, in words: "0–10, 77 and 255".

    Args:
        labels: of NumPy or JAX; of one on the devices of several processes, this one's part.
    """
    import numpy as np  # here, so that commands without arrays start without it

    parts = [shard.data for shard in getattr(labels, "addressable_shards", ())] or [labels]
    values = sorted({int(value) for part in parts for value in np.unique(np.asarray(part))})
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    told = [f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
