r"""`exchange`: copies particles to the slots of their offspring where both are spread over a mesh.

Device d holds particles and slots $[d n, (d + 1) n)$ with $n = N / D$. In round r = 1, 2, ... every device passes
what it holds to both neighbours of a ring, so that it then sees the particles of the devices at distance r. Rounds
end with the last one that an ancestor needs, at the latest with round $\lfloor D / 2 \rfloor$, when everybody has
seen everything: what each device receives is $2 n$ particles a round, and never more than gathering all of them
takes (one shard more for even D > 2). Systematic ancestors are sorted and slot i's lies within $O(\sqrt N)$ of i for
weights without spatial order, so that one round does unless shards are that small.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, PyTree

from probinf.core._feynman_kac import take


def exchange(mesh: Mesh, particles: PyTree, ancestors: Int[Array, " n"]) -> PyTree:
    """The particles at `ancestors`, as `take` gives, spread over the first axis of the mesh.

    Args:
        mesh: a mesh whose first axis has a size that divides N.
        particles: leaves [N, ...], spread over that axis.
        ancestors: [N], in [0, N), whole on every device.

    Returns:
        Leaves [N, ...], spread likewise.
    """
    axis = mesh.axis_names[0]
    num_devices = mesh.shape[axis]
    size = ancestors.shape[0] // num_devices
    ahead = (ancestors // size - jnp.arange(ancestors.shape[0], dtype=jnp.int32) // size) % num_devices
    reach = jnp.max(jnp.minimum(ahead, num_devices - ahead))  # of whole arrays: every device finds the same

    leaves, structure = jax.tree.flatten(particles)
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    bits = [jax.random.key_data(leaf) if key else leaf for leaf, key in zip(leaves, is_key, strict=True)]
    spread = PartitionSpec(axis)

    def on_device(held: list[Array], ancestors: Int[Array, " k"], reach: Int[Array, ""]) -> list[Array]:
        here = jax.lax.axis_index(axis)

        def copies(shard: list[Array], owner: Array) -> tuple[Array, list[Array]]:
            index = ancestors - owner * size
            return (index >= 0) & (index < size), take(shard, jnp.clip(index, 0, size - 1))

        def receive(carry: tuple, distance: Array) -> tuple:
            found, shards = carry
            passed = []
            for step, shard in zip(steps, shards, strict=True):
                ring = [(device, (device + step) % num_devices) for device in range(num_devices)]
                shard = jax.lax.ppermute(shard, axis, ring)
                mine, new = copies(shard, (here - step * distance) % num_devices)
                found = [jnp.where(_column(mine, a), b, a) for a, b in zip(found, new, strict=True)]
                passed.append(shard)
            return found, passed

        def one_round(carry: tuple, distance: Array) -> tuple[tuple, None]:
            return jax.lax.cond(distance <= reach, receive, lambda carry, _: carry, carry, distance), None

        steps = (1, -1) if num_devices > 2 else (1,)
        start = (copies(held, here)[1], [held for _ in steps])
        # A scan, where a loop that ends at `reach` would have no reverse-mode gradient.
        rounds = jnp.arange(1, num_devices // 2 + 1, dtype=jnp.int32)
        return jax.lax.scan(one_round, start, rounds)[0][0]

    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(spread, spread, PartitionSpec()), out_specs=spread)
    moved = mapped(bits, ancestors, reach)
    rewrapped = [
        jax.random.wrap_key_data(new, impl=jax.random.key_impl(leaf)) if key else new
        for new, leaf, key in zip(moved, leaves, is_key, strict=True)
    ]
    return jax.tree.unflatten(structure, rewrapped)


def _column(mask: Array, like: Array) -> Array:
    return mask.reshape(-1, *(1,) * (like.ndim - 1))
