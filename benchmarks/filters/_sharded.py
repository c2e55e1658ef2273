"""Ours on a mesh: the bootstrap filter with its particles spread over the first n devices, or on none ("no mesh").

The details are fingerprints of all ancestors and of the last particles, from a second run that keeps its history.
"""

import hashlib
from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from benchmarks.filters._probinf import feynman_kac
from benchmarks.filters._problems import Problem
from probinf import samplers

PACKAGES = ("jax", "jaxlib", "numpyro", "equinox")


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable:
    """A function from seed to log evidence and details; `variant` is "no mesh", "1 device" or "n devices".

    Raises:
        ValueError: there are fewer devices.
    """
    count, *_ = variant.split()
    mesh = None
    if count != "no":
        devices = jax.devices()[: int(count)]
        if len(devices) < int(count):
            raise ValueError(f"`variant` is {variant!r}, but JAX sees {len(devices)} devices")
        mesh = jax.sharding.Mesh(np.asarray(devices), ("particles",))
    filter_once = partial(samplers.particle_filter, model=feynman_kac(problem), num_particles=num_particles, mesh=mesh)

    def run(seed: int):
        out = filter_once(jax.random.key(seed))

        def details() -> dict[str, str]:
            history = filter_once(jax.random.key(seed), history=True).history
            if history is None:
                raise RuntimeError("`particle_filter(history=True)` kept none")
            particles = [fingerprint(leaf) for leaf in jax.tree.leaves(history.particles)]
            return {"ancestors": fingerprint(history.ancestors), "particles": "-".join(particles)}

        return float(out.log_evidence), details

    return run


def fingerprint(array: jax.Array) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
