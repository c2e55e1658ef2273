"""Environments of the peers that cannot share ours, made under `.bench/` on first use and reused afterwards."""

import hashlib
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "environments"
# numpy 1.26, the last before 2.0 and what `particles` needs, has no wheels after Python 3.12.
NEWEST_PYTHON = {"particles": (3, 12)}


def environment_python(peer: str, folder: Path, *, say=print) -> str:
    """The interpreter of the peer's environment, which is built if it is absent or its requirements changed.

    Peers written in JAX get our version of JAX, so that libraries are compared and not compilers.

    Args:
        peer: the name in `environments/requirements-<peer>.txt`.
        folder: where environments live; it ignores itself in git.
        say: called with a line of progress.

    Raises:
        RuntimeError: no suitable Python is there, or an installation failed.
    """
    requirements = REQUIREMENTS / f"requirements-{peer}.txt"
    text = requirements.read_text()
    base = _base_python(peer)
    pins = [f"jax=={version('jax')}"] if "# needs our JAX" in text else []
    mark = hashlib.sha256(f"{text}{base}{pins}".encode()).hexdigest()
    home = folder / peer
    python, stamp = home / "bin" / "python", home / "stamp"
    if stamp.exists() and stamp.read_text() == mark:
        return str(python)
    say(f"  building the environment of {peer} in {home}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    shutil.rmtree(home, ignore_errors=True)
    _call([base, "-m", "venv", str(home)])
    _call([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements), *pins])
    stamp.write_text(mark)
    return str(python)


def _base_python(peer: str) -> str:
    newest = NEWEST_PYTHON.get(peer)
    if newest is None or sys.version_info[:2] <= newest:
        return sys.executable
    for minor in range(newest[1], 9, -1):
        found = shutil.which(f"python3.{minor}")
        # A version manager's shim is on the path even where that version is not installed.
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    raise RuntimeError(f"`{peer}` needs Python 3.{newest[1]} or older: install one, or leave it out with `--peers`")


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
