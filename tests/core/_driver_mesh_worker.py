"""Runs on 8 simulated devices: the same draws on 1, 2 and 8 of them, shardings kept, nothing gathered."""

import tempfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from probinf.core._chunk import run_chunk
from probinf.core._driver import run_steps


def step(key, index, x):
    """16 chains, skewed."""
    x = 0.9 * x + jax.random.gamma(key, 2.0, x.shape, x.dtype)
    return x, {"x": x}


def sharded(num_devices):
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("chains",))
    return mesh, jax.device_put(jnp.zeros((16, 3)), NamedSharding(mesh, PartitionSpec("chains")))


def main():
    key = jax.random.key(0)
    alone = run_steps(key, step, jnp.zeros((16, 3)), 100)
    runs = []
    for count in (2, 8):
        mesh, start = sharded(count)
        runs.append(run_steps(key, step, start, 100, mesh=mesh))
    if all((run.records["x"] == alone.records["x"]).all() for run in runs):
        print("same")
    mesh, start = sharded(8)
    if runs[-1].state.sharding == start.sharding:
        print("kept")
    with tempfile.TemporaryDirectory() as folder:
        run_steps(key, step, start, 60, mesh=mesh, checkpoint=folder)
        again = run_steps(key, step, start, 100, mesh=mesh, checkpoint=folder)
        if (again.records["x"] == alone.records["x"]).all() and again.state.sharding == start.sharding:
            print("resumed")
    zero = jnp.zeros((), jnp.int32)

    def chunk(state):
        return eqx.filter(run_chunk(key, step, None, zero, zero, state, None, True, (start.sharding,)), eqx.is_array)

    text = jax.jit(chunk).lower(start).compile().as_text()
    if text is not None and "all-gather" not in text and "all-to-all" not in text:
        print("no-gather")


if __name__ == "__main__":
    main()
