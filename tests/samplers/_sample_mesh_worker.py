"""Runs on 8 simulated devices: the same bits from `sample` on 1, 2 and 8 of them, chains spread over all.

So have extensions, whether the chains stay where they are or move.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from probinf.core._target import Target
from probinf.samplers._hmc import hmc
from probinf.samplers._sample import sample
from tests._posteriors import skewed_log_density


def run(num_devices, num_chains=8):
    rng = np.random.default_rng(0)
    shapes = {"a": (num_chains,), "b": (num_chains, 2)}
    start = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    mesh = None if num_devices is None else Mesh(np.array(jax.devices()[:num_devices]), ("chains",))
    return sample(
        jax.random.key(3),
        hmc(num_steps=5, dense=True),
        Target(skewed_log_density),
        num_samples=40,
        num_warmup=200,
        num_chains=num_chains,
        initial_position=start,
        mesh=mesh,
    )


def main():
    alone, two, eight = run(None), run(2), run(8)
    if all((alone.samples[name] == other.samples[name]).all() for name in ("a", "b") for other in (two, eight)):
        print("same")
    if eight.state.position["b"].sharding.num_devices == 8:
        print("spread")
    key, mesh = jax.random.key(4), Mesh(np.array(jax.devices()), ("chains",))
    more = [draws.extend(key, num_samples=20, mesh=mesh) for draws in (alone, eight)] + [
        two.extend(key, num_samples=20)
    ]
    bits = [draws.samples["b"] for draws in more]
    if all(b.shape == (8, 60, 2) and (b == bits[0]).all() for b in bits):
        print("extended on", *(draws.state.position["b"].sharding.num_devices for draws in more))
    try:
        run(8, num_chains=3)
    except ValueError as error:
        print("refused" if "not divisible by the 8 devices" in str(error) else error)


if __name__ == "__main__":
    main()
