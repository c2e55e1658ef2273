"""Prints "same" for each function whose sharded results are those of one device; for `test_edges.py`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from probinf.special import iv_ratio, log_iv, log_kv


def main() -> None:
    """Runs values and derivatives on one device and on all."""
    sharding = NamedSharding(Mesh(np.array(jax.devices()), "items"), PartitionSpec("items"))
    v, x = jnp.linspace(0.0, 40, 64), jnp.geomspace(1e-3, 1e3, 64)
    by_order = jax.vmap(jax.grad(log_kv))
    for function in (partial(log_iv, reflect=False), by_order, iv_ratio):
        compiled = jax.jit(function)
        alone, sharded = compiled(v, x), compiled(*jax.device_put((v, x), sharding))
        same = np.array_equal(alone, sharded) and sharded.sharding.is_equivalent_to(sharding, 1)
        print("same" if same else f"differs by {np.max(np.abs(alone - sharded))}, {sharded.sharding}")


if __name__ == "__main__":
    main()
