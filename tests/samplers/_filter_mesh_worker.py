"""Runs on 8 simulated devices; prints as JSON what of `particle_filter` differs on 1, 2, 4 and 8 of them."""

import functools
import json
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import probinf as pb
from probinf.core import place, take
from probinf.samplers import particle_filter

NUM_PARTICLES = 256
WIDTH = 5


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


class Ahead(Skewed):
    """The same, resampled with a look at the next observation."""

    def look_ahead(self, t, x):
        return -0.5 * (jnp.abs(self.ys[t] - 0.8 * x["x"] - 0.5) ** 1.5)


class Wide(pb.FeynmanKac):
    """Independent random walks, so that particles are told from weights by their shape."""

    batch: ClassVar[bool] = True
    ys: jax.Array

    @property
    def num_steps(self):
        return self.ys.shape[0]

    def init(self, key, num_particles):
        return jax.random.normal(key, (num_particles, WIDTH))

    def mutate(self, key, t, x):
        return x + jax.random.normal(key, x.shape)

    def log_potential(self, t, x_prev, x):
        return -jnp.sum((self.ys[t] - x) ** 2, axis=1)


class GatheredWhole(Wide):
    """Planted: the gather that does not know of devices."""

    def gather(self, particles, ancestors):
        return take(particles, ancestors)


def observations():
    return jnp.asarray(np.random.default_rng(0).gamma(2.0, 1.0, 20), jnp.float32)


def mesh_of(num_devices):
    return None if num_devices is None else Mesh(np.array(jax.devices()[:num_devices]), ("particles",))


@functools.cache
def run(num_devices, scheme="systematic", num_replicates=None, seed=3, kind=Skewed):
    return particle_filter(
        jax.random.key(seed),
        kind(observations()),
        num_particles=NUM_PARTICLES,
        resampling=scheme,
        quantiles=(0.1, 0.5) if kind is Skewed and num_replicates is None else (),
        history=True,
        num_replicates=num_replicates,
        mesh=mesh_of(num_devices),
    )


def arrays(result):
    """Everything in the result by name; NumPy arrays where this process holds it."""
    leaves = jax.tree_util.tree_leaves_with_path(result)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {name: np.asarray(leaf) if readable(leaf) else leaf for name, leaf in named.items()}


def readable(leaf):
    return leaf.is_fully_addressable or leaf.is_fully_replicated


def gaps(expected, found):
    """The largest relative difference of each array that is not bit-equal, in the parts that this process holds."""
    result = {}
    for name, b in found.items():
        parts = [(..., b)] if isinstance(b, np.ndarray) else [(s.index, s.data) for s in b.addressable_shards]
        for index, part in parts:
            a, part = np.asarray(expected[name][index]), np.asarray(part)
            if a.shape != part.shape or a.tobytes() != part.tobytes():
                gap = np.max(np.abs(a - part) / np.maximum(np.abs(a), 1e-6))
                result[name] = max(result.get(name, 0.0), float(gap))
    return result


def collectives(kind, num_devices):
    """What the compiled filter sends: pairs of the operation and its shape, each once."""

    @jax.jit
    def evidence(key):
        model = kind(observations())
        return particle_filter(key, model, num_particles=NUM_PARTICLES, mesh=mesh_of(num_devices)).log_evidence

    text = evidence.lower(jax.random.key(0)).compile().as_text() or ""
    sent = set()
    for line in text.splitlines():
        found = re.search(
            r"= (.*?) (all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)(-start)?\(", line
        )
        if found:
            sent |= {(shape, found[2]) for shape in re.findall(r"\w+\[[\d,]*\]", found[1])}
    return sorted(sent)


def exchanged(num_devices):
    """What of `place.gather` differs from `take`, for ancestors near, far, reversed and random."""
    rng = np.random.default_rng(1)
    count = 48
    particles = {
        "wide": jnp.asarray(rng.normal(size=(count, 3)), jnp.float32),
        "flag": jnp.asarray(rng.random(count) < 0.5),
        "key": jax.random.split(jax.random.key(5), count),
    }
    cases = {
        "own": np.arange(count),
        "near": np.clip(np.sort(np.arange(count) + rng.integers(-3, 4, count)), 0, count - 1),
        "one": np.full(count, 17),
        "reversed": np.arange(count)[::-1],
        "random": rng.integers(0, count, count),
        "around": (np.arange(count) + 5) % count,
    }
    home = place(mesh_of(num_devices))
    gather = jax.jit(home.gather)
    different = []
    for name, ancestors in cases.items():
        ancestors = jnp.asarray(ancestors, jnp.int32)
        moved, expected = gather(home.spread(particles), ancestors), take(particles, ancestors)
        moved, expected = (tree | {"key": jax.random.key_data(tree["key"])} for tree in (moved, expected))
        if any(np.asarray(moved[leaf]).tobytes() != np.asarray(expected[leaf]).tobytes() for leaf in particles):
            different.append(name)
    return different


def slope(num_devices):
    """A gradient back through an exchange."""
    home = place(mesh_of(num_devices))
    ancestors = jnp.asarray(np.sort(np.random.default_rng(2).integers(0, 16, 16)), jnp.int32)
    gather = home.gather if num_devices else take
    return jax.jit(jax.grad(lambda x: jnp.sum(gather(x**2, ancestors) * jnp.arange(16.0))))(jnp.arange(1.0, 17.0))


def refusals():
    """What `particle_filter` says of meshes that it cannot use."""
    said = []
    for mesh in (mesh_of(4), "cpu", [1, 2]):
        try:
            particle_filter(jax.random.key(0), Skewed(observations()), num_particles=10, mesh=mesh)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def main():
    alone = arrays(run(None))
    found = {str(count): gaps(alone, arrays(run(count))) for count in (1, 2, 4, 8)}
    found["replicates"] = gaps(*(arrays(run(count, "multinomial", 2)) for count in (None, 8)))
    found["ahead"] = gaps(*(arrays(run(count, kind=Ahead)) for count in (None, 8)))
    sharding = run(8).population.particles["x"].sharding
    found |= {
        "names": list(alone),
        "resampled": int(np.sum(alone[".resampled"])),
        "resampled_ahead": int(np.sum(np.asarray(run(None, kind=Ahead).resampled))),
        "devices": 1 if sharding.is_fully_replicated else sharding.num_devices,
        "other_seed": gaps(alone, arrays(run(None, seed=4))),
        "sent": collectives(Wide, 8),
        "sent_whole": collectives(GatheredWhole, 8),
        "exchanged": {count: exchanged(count) for count in (1, 2, 3, 8)},
        "slopes": [np.asarray(slope(count)).tolist() for count in (None, 2, 8)],
        "refusals": refusals(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
