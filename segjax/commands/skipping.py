"""The examples that cannot be read, which a training leaves out where it is asked to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segjax.commands.run import read_json
from segjax.data import audit, pipeline
from segjax.data.wrapper import bare
from segjax.errors import SegjaxError


def unreadable(
    sources: Mapping[str, pipeline.Source], path: Path | None
) -> dict[str, dict[str, str]]:
    """The examples of each split that cannot be read: index -> what is wrong with it.

    As listed in the file at the run's first start: a batch stays a function of (seed, step).
    """
    if path and path.exists():
        listed = read_json(path)
        if _is_listing(listed, sources):
            return listed
        raise SegjaxError(
            f"{path}: no list of the examples that are skipped in each split. Restore the file."
        )
    return {
        split: {
            str(i): str(read.error)
            for i, read in enumerate(audit.read_all(bare(source)))
            if read.error
        }
        for split, source in sources.items()
    }


def _is_listing(listed: Any, sources: Mapping[str, pipeline.Source]) -> bool:
    """Whether a skipped.json holds what `unreadable` gives: indices of these sources, texts."""
    return isinstance(listed, dict) and all(
        split in sources
        and isinstance(broken, dict)
        and all(i.isdecimal() and int(i) < len(sources[split]) for i in broken)
        for split, broken in listed.items()
    )
