"""The verb that lists the networks."""

from typing import Any

import jax
import jax.numpy as jnp
import rich
from rich.table import Table

from segjax.models.variants import VARIANTS


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
    for name, (network, side, channels) in VARIANTS.items():
        images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
        variables = jax.eval_shape(network.init, jax.random.key(0), images)
        table.add_row(
            name,
            str(network.num_classes),
            f"{side}×{side}×{channels}",
            f"{sum(leaf.size for leaf in jax.tree.leaves(variables['params'])):,}",
            f"{_flops(network, variables, images) / 1e9:,.1f}",
            str(network.geometry.stride),
            str(network.geometry.halo or "all"),
        )
    rich.print(table)


def _flops(network: Any, variables: Any, images: jax.ShapeDtypeStruct) -> float:
    """Of a prediction, as it stands before compilation."""
    if hasattr(network, "scan"):
        network = network.clone(scan=False)  # XLA counts the body of a loop once
    logits = jax.jit(lambda variables, images: network.apply(variables, images).logits)
    found: Any = logits.lower(variables, images).cost_analysis()
    return float(found["flops"])
