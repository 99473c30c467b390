"""The verb cost: what a training step takes, without data."""

import re

import pytest
from recipes import SCRIPTS, run, small


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_cost_needs_no_data(script, capsys):
    name = script.stem
    run(name, "cost", *small(name))
    told = capsys.readouterr().out
    for row in ("parameters", "FLOPs", "temporaries", "compile time"):
        assert row in told


def test_cost_counts_all_blocks_of_a_loop(capsys):
    """SETR's blocks are one loop, of which XLA counts the body once."""

    def flops(depth):
        small = "--canvas 32 32 --crop 32 32 --width 128 --decoder-channels 4 --auxiliary-taps 0 1"
        run("setr_pup_camvid", "cost", *small.split(), "--depth", depth)
        return float(re.search(r"FLOPs per device\W+([\d.]+) G", capsys.readouterr().out)[1])

    # Two blocks more: 24 W² FLOPs a token, forward and twice backward; and attention, norms …
    assert 1 < (flops(4) - flops(2)) / (2 * 3 * 24 * 128**2 * 4 / 1e9) < 1.5
