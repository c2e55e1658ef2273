"""Worker scripts in processes of their own, for tests that need other devices or that kill what they test."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start_worker(worker: Path, *arguments: object, flags: str = "") -> subprocess.Popen[str]:
    """Starts a script that imports the package from here; on CPU, with more `XLA_FLAGS`."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(ROOT / ".cache" / "jax")
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        # Only blanks would be the name of a file to read flags from.
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
    }
    command = [sys.executable, str(worker), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_worker(process: subprocess.Popen[str], seconds: float = 120) -> tuple[str, str]:
    """What it printed on stdout and stderr, once it has ended; killed after `seconds`."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
