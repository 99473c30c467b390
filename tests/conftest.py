"""All tests run on eight CPU devices and leave the user's cache folder alone."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", None)
# Small programs take longer to compile than to run.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """Where `use_compilation_cache` writes to, should a test or what it starts call it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
