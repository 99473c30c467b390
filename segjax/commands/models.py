"""The verb that lists the networks."""

import json
from pathlib import Path

import rich
from rich.table import Table

import segjax

# Written by segjax.models.variants. Read, not computed, so that the list comes at once.
_FIGURES = Path(segjax.__file__).parent / "models" / "variants.json"


def models() -> None:
    """Print the networks by the names of their papers: parameters, FLOPs, stride and halo.

    FLOPs are of one prediction at the stated size, two for each multiplication and addition;
    auxiliary heads are no part of it, but their parameters are counted.
    """
    table = Table(
        caption="GFLOPs: of one prediction, two for each multiplication and addition, without "
        "auxiliary heads.\nParameters: fixed upsampling has none. SETR's paper counts 0.1 to 0.4 % "
        "more (305.67 M and so on): classifiers that are never used, and what has no effect."
    )
    table.add_column("network")
    for name in ("classes", "input", "parameters", "GFLOPs", "stride", "halo"):
        table.add_column(name, justify="right")
    for name, of in json.loads(_FIGURES.read_text(encoding="utf-8")).items():
        table.add_row(
            name,
            str(of["classes"]),
            "×".join(map(str, of["input"])),
            f"{of['parameters']:,}",
            f"{of['gflops']:,.1f}",
            str(of["stride"]),
            str(of["halo"] or "all"),
        )
    rich.print(table)
