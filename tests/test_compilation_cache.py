"""A program that was torn as it was cached is compiled once more, not at each start."""

import os
import subprocess
import sys

PATHS = {n: os.environ[n] for n in ("PATH", "PYTHONPATH") if n in os.environ}
SCRIPT = """
import os, sys, warnings
from pathlib import Path
import jax, jax.numpy as jnp
import segjax

segjax.use_compilation_cache()
shown = warnings.showwarning
segjax.use_compilation_cache()
assert warnings.showwarning is shown, "each call would be one deeper"
missed = []
jax.monitoring.register_event_listener(
    lambda event, **_: missed.append(event) if "cache_misses" in event else None
)
double = jax.jit(lambda x: x + x)

def start():
    warnings.simplefilter("always")  # as in a new process, which has not told it yet
    jax.clear_caches()
    missed.clear()
    double(jnp.float32(1))
    return len(missed)

files = Path(sys.argv[1]) / "segjax/xla"
assert start() > 0 and start() == 0
for damage in (bytes(60), None, b""):
    for file in files.iterdir():
        file.write_bytes(file.read_bytes()[:60] if damage is None else damage)
    assert start() > 0, "it was torn"
    assert start() == 0, "it was not written anew"
print("mended")
"""


def test_a_torn_program_is_mended(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", **PATHS}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert ran.stdout == "mended\n" and "Warning" not in ran.stderr, ran.stderr
