"""What a number depends on besides the seed: versions, devices, precision. Printed by every report and by `doctor`."""

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

import jax

import probinf
from probinf.core._storage import probinf_version

PACKAGES = ("jax", "jaxlib", "equinox", "numpyro", "arviz", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of Python, probinf and what it stands on; `"not installed"` where one is missing."""
    found = {"python": platform.python_version(), "probinf": probinf_version()}
    return found | {name: _version(name) for name in PACKAGES}


def environment() -> dict[str, str]:
    """Versions, devices, precision and the machine, as text."""
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    return versions() | {
        "devices": f"{len(devices)} {', '.join(kinds)}",
        "float64 by default": "yes" if jax.config.jax_enable_x64 else "no",  # pyright: ignore[reportAttributeAccessIssue]
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def source_digest() -> str:
    """A hash of the package's own source and data: a changed line is a different run."""
    root = Path(probinf.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")):
        if file.suffix in {".py", ".csv"}:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
