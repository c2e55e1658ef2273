"""Warm-up of a `SteppedKernel`: chains learn together and do not wait for each other.

A step of warm-up is over when as many transitions are as there are healthy chains, whichever made them; trajectories
under way go on with the step size that they began with, and are begun anew where the matrix changes. Where a call ends
is kept in the state, so that the length of calls changes nothing.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from probinf.core._status import is_fatal
from probinf.core._types import PRNGKey
from probinf.samplers._adaptation import DualAveraging, regularised_factor, tree_sum, update_averaging, update_welford
from probinf.samplers._factor import as_rows
from probinf.samplers._interleaved import least_waiting, start_all, where_chains
from probinf.samplers._warmup_step import WarmupState, WarmupStep, gather


class InterleavedState(NamedTuple):
    """What an interleaved warm-up carries.

    Attributes:
        warmup: as of any warm-up.
        transitions: of all chains.
        made: [chains] int32, transitions begun before these.
        rate_sum, rate_num: [] acceptance rates of the present step.
    """

    warmup: WarmupState
    transitions: Any
    made: Int[Array, " chains"]
    rate_sum: Array
    rate_num: Array

    @property
    def chains(self) -> Any:
        """Kernel states, leading axis num_chains."""
        return self.warmup.chains

    @property
    def averaging(self) -> DualAveraging:
        """Of the step size."""
        return self.warmup.averaging

    @property
    def factor(self) -> Array:
        """In use."""
        return self.warmup.factor


class InterleavedWarmup(WarmupStep):
    """Blocks of warm-up steps of all chains."""

    def __call__(self, key: PRNGKey, index: Int[Array, ""], state: Any) -> tuple[Any, Array]:
        """Of the shape of a step; blocks are what is run."""
        del key, index
        return state, jnp.zeros(())

    def begin(self, state: WarmupState) -> InterleavedState:
        """The state before the first step; its transitions are none yet."""
        chains, dtype = state.chains, state.factor.dtype
        made = jnp.zeros(chains.status.shape, jnp.int32)
        shapes = eqx.filter_eval_shape(start_all, jax.random.key(0), self.kernel, self.target, chains, made)
        none = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return InterleavedState(state, none, made, jnp.zeros((), dtype), jnp.zeros((), dtype))

    def run_block(
        self, key: PRNGKey, start: Int[Array, ""], count: Int[Array, ""], state: InterleavedState, buffers: PyTree
    ) -> tuple[InterleavedState, PyTree]:
        """Steps `start .. start + count - 1`."""
        least = least_waiting(state.made.shape[0])

        def body(carry: tuple[Array, InterleavedState]) -> tuple[Array, InterleavedState]:
            index, state = carry
            kernel = self._kernel(state.warmup)
            grown = jax.vmap(kernel.grow, (None, 0, 0))(self.target, state.chains.position, state.transitions)
            state = state._replace(transitions=grown)
            flush = jnp.sum(grown.done) >= least
            return jax.lax.cond(flush, lambda i, s: self._flush(key, i, s), lambda i, s: (i, s), index, state)

        def unfinished(carry: tuple[Array, InterleavedState]) -> Array:
            index, state = carry
            return (index < start + count) & jnp.any(~is_fatal(state.chains.status))

        state = jax.lax.cond(state.warmup.search_due, lambda s: self._renewed(key, start, s), lambda s: s, state)
        return jax.lax.while_loop(unfinished, body, (start, state))[1], buffers

    def _kernel(self, warmup: WarmupState) -> Any:
        return self.kernel.tuned(jnp.exp(warmup.averaging.log_step), warmup.factor)

    def _renewed(self, key: PRNGKey, index: Int[Array, ""], state: InterleavedState) -> InterleavedState:
        """A new step size for a new matrix, and all trajectories begun anew."""
        # The number of chains is no number of a chain.
        search_key = jax.random.fold_in(jax.random.fold_in(key, state.made.shape[0]), index)
        averaging = self._restarted(search_key, state.warmup)
        warmup = state.warmup._replace(averaging=averaging, search_due=jnp.zeros((), bool))
        everyone = jnp.ones(state.made.shape, bool)
        return self._begun(key, everyone, state._replace(warmup=warmup, made=state.made + 1))

    def _begun(self, key: PRNGKey, which: Bool[Array, " chains"], state: InterleavedState) -> InterleavedState:
        fresh = start_all(key, self._kernel(state.warmup), self.target, state.chains, state.made)
        return state._replace(transitions=where_chains(which, fresh, state.transitions))

    def _flush(
        self, key: PRNGKey, index: Int[Array, ""], state: InterleavedState
    ) -> tuple[Int[Array, ""], InterleavedState]:
        """Finishes what is done, learns from it, and begins again."""
        warmup, due = state.warmup, state.transitions.done
        finish = jax.vmap(self._kernel(warmup).finish, (None, 0, 0))
        ended, infos = finish(self.target, state.chains, state.transitions)
        chains = where_chains(due, ended, state.chains)
        healthy = gather(~is_fatal(chains.status), self.mesh)
        use = gather(due, self.mesh) & healthy
        rates = gather(infos.acceptance_rate, self.mesh).astype(state.rate_sum.dtype)
        rate_sum = state.rate_sum + tree_sum(jnp.where(use & ~jnp.isnan(rates), rates, 0))
        rate_num = state.rate_num + tree_sum(use.astype(rates.dtype))
        over = (rate_num > 0) & (rate_num >= tree_sum(healthy.astype(rates.dtype)))
        updated = update_averaging(warmup.averaging, rate_sum / jnp.maximum(rate_num, 1), self.target_accept)
        averaging = jax.tree.map(lambda new, old: jnp.where(over, new, old), updated, warmup.averaging)

        learning = (index >= self.windows.start) & (index < self.windows.stop)
        welford = update_welford(warmup.welford, gather(as_rows(chains.position), self.mesh), use & learning)
        at_end = over & jnp.any(index == self.windows.ends)
        factor = jax.lax.cond(at_end, regularised_factor, lambda _, old: old, welford, warmup.factor)
        welford = jax.tree.map(lambda a: jnp.where(at_end, jnp.zeros_like(a), a), welford)

        state = InterleavedState(
            warmup=WarmupState(chains, averaging, welford, factor, at_end),
            transitions=state.transitions,
            made=state.made + due.astype(jnp.int32),
            rate_sum=jnp.where(over, 0, rate_sum),
            rate_num=jnp.where(over, 0, rate_num),
        )
        state = jax.lax.cond(at_end, lambda s: self._renewed(key, index, s), lambda s: self._begun(key, due, s), state)
        return index + over.astype(index.dtype), state
