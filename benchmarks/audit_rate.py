"""How long does an audit of 12,000 pictures and masks take?

    python benchmarks/audit_rate.py
    python benchmarks/audit_rate.py --count 600

Prints a Markdown table. JPEG pictures and palette PNG masks of 500×375 pixels, all different, are
drawn by two processes into a temporary folder, and then audited on all cores; what was just written
is still in memory, so that no disk is waited for.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from drawn import draw

from segjax.data import layouts
from segjax.data.audit import Reading, audit
from segjax.errors import SegjaxError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=12_000, help="of the pictures")
    options = parser.parse_args()
    read_at = 0.0

    def track(
        items: Iterable[Reading | SegjaxError], name: str, total: int
    ) -> Iterator[Reading | SegjaxError]:
        nonlocal read_at
        yield from items
        read_at = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), options.count)
        files = [*Path(folder).glob("JPEGImages/*.jpg")]
        kilobytes = statistics.mean(path.stat().st_size for path in files) / 1000
        start = time.perf_counter()
        found = audit({"train": layouts.voc(Path(folder))}, track)
        end = time.perf_counter()
    assert not found.findings, found.findings
    print(f"`{shlex.join(['python', *sys.argv])}`: {len(os.sched_getaffinity(0))} cores;")
    print(f"{options.count:,} pictures, JPEG files of {kilobytes:.0f} kB on average.\n")
    print("| audit | s | a second |\n|---|---:|---:|")
    for name, spent in (
        ("reading, counting, hashes and fingerprints", read_at - start),
        ("comparison of all fingerprints", end - read_at),
        ("whole", end - start),
    ):
        print(f"| {name} | {spent:.1f} | {options.count / spent:,.0f} |")


if __name__ == "__main__":
    main()
