"""One record of a run of chains: `thin` transitions of each, in lockstep or interleaved."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from probinf.core._kernel import Kernel
from probinf.core._status import Status
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._initial import per_chain, step_chains, where_chains
from probinf.samplers._interleaved import SteppedKernel, interleave


class SampleState(NamedTuple):
    """What a run of `sample` carries; every array has the leading axis num_chains.

    Attributes:
        chains: kernel states.
        num_divergent: int32, steps with a divergence.
        first_divergent: int32, index of the first such draw, or -1.
    """

    chains: Any
    num_divergent: Array
    first_divergent: Array


class SampleStep(eqx.Module):
    """`thin` transitions of all chains and one record; `run_steps` runs it."""

    kernel: Any
    target: Target
    thin: int = eqx.field(static=True)

    def __call__(self, key: PRNGKey, index: Int[Array, ""], state: SampleState) -> tuple[SampleState, dict[str, Any]]:
        """The next state, and `{"samples": constrained positions, "info": dict}`."""
        chains, info = self._transitions(key, state.chains)
        # Counted here and not from the records, which are not kept in a run with `collect=False`.
        divergent = (info["status"] & jnp.uint32(int(Status.DIVERGENT))) != 0
        first = jnp.where(divergent & (state.first_divergent < 0), index, state.first_divergent)
        record = {"samples": jax.vmap(self.target.constrain)(chains.position), "info": info}
        return SampleState(chains, state.num_divergent + divergent.astype(jnp.int32), first), record

    def _transitions(self, key: PRNGKey, chains: PyTree) -> tuple[PyTree, dict[str, Array]]:
        def one(chains: PyTree, key: PRNGKey) -> tuple[PyTree, dict[str, Array]]:
            chains, info = step_chains(key, self.kernel, self.target, chains)
            return chains, info._asdict()

        if self.thin == 1:
            return one(chains, key)
        chains, infos = jax.lax.scan(one, chains, jax.random.split(key, self.thin))
        within = jnp.broadcast_to(jnp.arange(self.thin)[:, None], infos["status"].shape)
        return chains, jax.lax.scan(_joined, jax.tree.map(lambda values: values[0], infos), (infos, within))[0]


class InterleavedStep(SampleStep):
    """The same for a `SteppedKernel`: in a block of records no chain waits for another."""

    def run_block(
        self, key: PRNGKey, start: Int[Array, ""], count: Int[Array, ""], state: SampleState, buffers: PyTree
    ) -> tuple[SampleState, PyTree]:
        """Records `start .. start + count - 1` of all chains, in buffers `[capacity, num_chains, ...]`, if any."""
        num_chains = state.num_divergent.shape[0]
        zeros = jnp.zeros(num_chains, jnp.uint32)

        def keep(chains: PyTree, infos: Any, made: Array, due: Array, kept: _Kept) -> _Kept:
            index, within = made // self.thin, made % self.thin
            info, _ = _joined(kept.info, (infos._asdict(), within))
            # A fault of any of its transitions is one of the draw.
            divergent = due & (within == self.thin - 1) & ((info["status"] & jnp.uint32(int(Status.DIVERGENT))) != 0)
            first = jnp.where(divergent & (kept.first_divergent < 0), start + index, kept.first_divergent)
            row = {"positions": chains.position, "info": info}
            return _Kept(
                _written(kept.rows, row, index, due),
                where_chains(due, info, kept.info),
                kept.num_divergent + divergent.astype(jnp.int32),
                first,
            )

        # Without records only the faults of a draw are joined, so that they can be counted.
        rows, info = None, {"status": zeros}
        if buffers is not None:
            info = {name: jnp.zeros(made.shape[1:], made.dtype) for name, made in buffers["info"].items()}
            capacity = jax.tree.leaves(buffers["info"])[0].shape[0]
            positions = jax.tree.map(lambda a: jnp.zeros((capacity, *a.shape), a.dtype), state.chains.position)
            rows = {"positions": positions, "info": buffers["info"]}
        kept = _Kept(rows, info, state.num_divergent, state.first_divergent)
        made, more = start * self.thin, count * self.thin
        chains, kept = interleave(key, self.kernel, self.target, state.chains, made, more, kept, keep)
        if buffers is not None:
            samples = self._constrained(kept.rows["positions"], buffers["samples"], count)
            buffers = {"samples": samples, "info": kept.rows["info"]}
        return SampleState(chains, kept.num_divergent, kept.first_divergent), buffers

    def _constrained(self, positions: PyTree, samples: PyTree, count: Int[Array, ""]) -> PyTree:
        """The samples of a block, each made once."""

        def one(i: Array, samples: PyTree) -> PyTree:
            made = jax.vmap(self.target.constrain)(jax.tree.map(lambda rows: rows[i], positions))
            return jax.tree.map(lambda rows, row: jax.lax.dynamic_update_index_in_dim(rows, row, i, 0), samples, made)

        return jax.lax.fori_loop(jnp.zeros_like(count), count, one, samples)


class _Kept(NamedTuple):
    """What interleaved chains leave behind: rows of records, the info of the present draws, divergences."""

    rows: Any
    info: dict[str, Array]
    num_divergent: Array
    first_divergent: Array


def _written(rows: PyTree, row: PyTree, index: Array, due: Array) -> PyTree:
    """The rows with an entry of each chain that is due; None stays None."""
    if rows is None:
        return None
    chain = jnp.arange(index.shape[0])

    def leaf(buffer: Array, values: Array) -> Array:
        return buffer.at[jnp.where(due, index, buffer.shape[0]), chain].set(values, mode="drop")

    return jax.tree.map(leaf, rows, row)


def _joined(before: dict[str, Array], one_more: tuple[dict[str, Array], Array]) -> tuple[dict[str, Array], None]:
    """The info of a draw with one more of its transitions: faults are kept, rates averaged, else the last counts.

    Args:
        before: of its transitions so far; says which entries are wanted.
        one_more: the info of the next transition, and how many of the draw each chain has made before it.

    Returns:
        The info, and what `jax.lax.scan` wants besides.
    """
    infos, within = one_more

    def join(name: str, old: Array, value: Array) -> Array:
        if name == "status" or value.dtype == bool:
            value = jnp.where(per_chain(within > 0, value), old | value, value)
        elif name == "acceptance_rate":
            # From zero, not from what the last draw left there, which may be NaN.
            old = jnp.where(within > 0, old, 0)
            value = old + (value - old) / (within + 1).astype(value.dtype)
        return value

    return {name: join(name, old, infos[name]) for name, old in before.items()}, None


def step_of(kernel: Kernel, target: Target, thin: int) -> SampleStep:
    """The step of a run: interleaved where the kernel can be."""
    return (InterleavedStep if isinstance(kernel, SteppedKernel) else SampleStep)(kernel, target, thin)
