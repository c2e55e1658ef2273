"""Runs on 8 simulated devices: prints `same` if `sample` gives the same bits on 1, 2 and 8 of them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from probinf.core._target import Target
from probinf.samplers._hmc import hmc
from probinf.samplers._sample import sample


def log_density(x):
    """Skewed; the coordinates depend on each other."""
    return 1.5 * x["a"] - jnp.exp(x["a"]) - jnp.sum(jnp.exp(-x["b"]) + x["b"]) - 0.1 * x["a"] * jnp.sum(x["b"] ** 2)


def main():
    target = Target(log_density)
    rng = np.random.default_rng(0)
    start = {"a": jnp.asarray(rng.normal(size=8), jnp.float32), "b": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)}
    runs = []
    for kernel in (hmc(num_steps=5), hmc(num_steps=5, dense=True)):
        for count in (None, 1, 2, 8):
            mesh = None if count is None else Mesh(np.array(jax.devices()[:count]), ("chains",))
            runs.append(
                sample(
                    jax.random.key(3),
                    kernel,
                    target,
                    num_samples=40,
                    num_warmup=200,
                    num_chains=8,
                    initial_position=start,
                    mesh=mesh,
                )
            )
        first = runs[-4]
        for run in runs[-3:]:
            for a, b in zip(jax.tree.leaves(first.samples), jax.tree.leaves(run.samples), strict=True):
                if not (a == b).all():
                    print("differs", kernel.dense, np.abs(a - b).max(), np.argmax(np.any(a != b, axis=0)))
        print("spread", runs[-1].state.position["a"].sharding.num_devices)
    if all(
        (a == b).all()
        for i in (0, 4)
        for run in runs[i : i + 4]
        for a, b in zip(jax.tree.leaves(runs[i].samples), jax.tree.leaves(run.samples), strict=True)
    ):
        print("same")
    try:
        sample(jax.random.key(0), hmc(), target, num_samples=1, num_chains=3, initial_position=jax.tree.map(lambda a: a[:3], start), mesh=Mesh(np.array(jax.devices()), ("chains",)))
    except ValueError as error:
        print("refused" if "not divisible by the 8 devices" in str(error) else error)


if __name__ == "__main__":
    main()
