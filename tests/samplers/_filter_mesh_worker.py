"""Runs on 8 simulated devices; prints as JSON what of `particle_filter` differs on 1, 2 and 8 of them."""

import functools
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import probinf as pb
from probinf.samplers import particle_filter

NUM_PARTICLES = 256


class Skewed(pb.FeynmanKac):
    """A pair (level, count) with gamma noise and a potential that depends on the particle before."""

    batch: ClassVar[bool] = True
    ys: jax.Array

    @property
    def num_steps(self):
        return self.ys.shape[0]

    def init(self, key, num_particles):
        return {"x": jax.random.normal(key, (num_particles,)), "n": jnp.zeros(num_particles, jnp.int32)}

    def mutate(self, key, t, x):
        noise = jax.random.normal(key, x["x"].shape) ** 2
        moved = 0.8 * x["x"] + 0.5 * noise
        return {"x": moved, "n": x["n"] + (noise > 1).astype(jnp.int32)}

    def log_potential(self, t, x_prev, x):
        pull = 0.0 if x_prev is None else jnp.where(x_prev["n"] % 2 == 1, 0.3, 0.0)
        return -(jnp.abs(self.ys[t] - x["x"]) ** 1.5) + pull


@functools.cache
def run(num_devices, scheme="systematic", num_replicates=None, seed=3):
    ys = jnp.asarray(np.random.default_rng(0).gamma(2.0, 1.0, 20), jnp.float32)
    mesh = None if num_devices is None else Mesh(np.array(jax.devices()[:num_devices]), ("particles",))
    return particle_filter(
        jax.random.key(seed),
        Skewed(ys),
        num_particles=NUM_PARTICLES,
        resampling=scheme,
        quantiles=(0.1, 0.5),
        history=True,
        num_replicates=num_replicates,
        mesh=mesh,
    )


def arrays(result):
    """Everything in the result, as NumPy arrays by name."""
    leaves = jax.tree_util.tree_leaves_with_path(result)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def gaps(one, two):
    """The largest relative difference of each array that is not bit-equal."""
    result = {}
    for name, a in arrays(one).items():
        b = arrays(two)[name]
        if a.tobytes() != b.tobytes():
            result[name] = float(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-6)))
    return result


def main():
    alone = run(None)
    found = {str(count): gaps(alone, run(count)) for count in (1, 2, 8)}
    found["replicates"] = gaps(*(run(count, "multinomial", 2) for count in (None, 8)))
    sharding = run(8).population.particles["x"].sharding
    found |= {
        "names": list(arrays(alone)),
        "resampled": int(np.sum(np.asarray(alone.resampled))),
        "devices": 1 if sharding.is_fully_replicated else sharding.num_devices,
        "other_seed": gaps(alone, run(None, seed=4)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
