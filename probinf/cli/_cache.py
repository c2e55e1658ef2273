"""The persistent compilation cache: on for every command, so that a second run compiles (almost) nothing."""

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """Where compiled programs are kept: `JAX_COMPILATION_CACHE_DIR`, else `probinf/xla` in the user's cache folder."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "probinf" / "xla"


def enable_cache() -> str:
    """Turns the cache on, unless the process has already chosen one.

    A folder that cannot be written is not an error: things compile as they would without a cache.

    Returns:
        The folder in use, or why there is none.
    """
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is not None:
        return str(chosen)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"off: {folder} cannot be made ({error.strerror})"
    if not os.access(folder, os.W_OK):
        return f"off: {folder} cannot be written"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Most of our programs compile in well under the default second, but there are many of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return str(folder)
