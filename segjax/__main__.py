"""The verbs on a run folder, wherever its recipe is: python -m segjax predict RUN IMAGE…"""

from collections.abc import Callable
from pathlib import Path

import tyro
from tyro.conf import Positional

from segjax import experiment


def evaluate(
    run: Positional[Path],
    *,
    data: Path | None = None,
    batch_size: int | None = None,
    checkpoint: experiment.Which = "best",
) -> None:
    """Score a run on its held-out data and write its report.

    Args:
        run: The run folder.
        data: Where the data lies now, if it has moved.
        batch_size: Pictures at a time; the scores do not depend on it.
        checkpoint: Which checkpoint.
    """
    experiment.evaluate(run, data=data, batch_size=batch_size, checkpoint=checkpoint)


def predict(
    run: Positional[Path],
    images: Positional[tuple[Path, ...]],
    *,
    out: Path | None = None,
    checkpoint: experiment.Which = "best",
) -> None:
    """Write label PNGs and overlays of pictures of any size.

    Args:
        run: The run folder.
        images: Picture files.
        out: Where to write; by default `predictions` in the run folder.
        checkpoint: Which checkpoint.
    """
    experiment.predict(run, images, out=out, checkpoint=checkpoint)


if __name__ == "__main__":
    experiment.use_compilation_cache()
    with experiment.told_errors():
        verbs: dict[str, Callable[..., None]] = {"evaluate": evaluate, "predict": predict}
        tyro.extras.subcommand_cli_from_dict(verbs, prog="segjax", description=__doc__)
