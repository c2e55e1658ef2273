"""Warm-up of a `SteppedKernel`: chains learn together and do not wait for each other.

A step of warm-up is over when as many transitions are as there are healthy chains, whichever made them; trajectories
under way go on with the step size that they began with, and are begun anew where the tuner prepares a new one, as for
a new matrix. Where a call ends is kept in the state, so that the length of calls changes nothing.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from probinf.core._fast_key import fast_key, plain_key
from probinf.core._status import is_fatal
from probinf.core._types import PRNGKey
from probinf.samplers._initial import where_chains
from probinf.samplers._interleaved import chain_keys, draw_all, finish_all, least_waiting, start_all
from probinf.samplers._warmup_step import WarmupStep


class InterleavedState(NamedTuple):
    """What an interleaved warm-up carries.

    Attributes:
        chains: kernel states, leading axis num_chains.
        learned: state of the tuner.
        transitions: of all chains.
        made: [num_chains] int32, transitions begun before these.
        counted: [] int32, transitions of the present step.
    """

    chains: Any
    learned: Any
    transitions: Any
    made: Int[Array, " chains"]
    counted: Int[Array, ""]


class InterleavedWarmup(WarmupStep):
    """Blocks of warm-up steps of all chains."""

    @eqx.filter_jit
    def begin(self, chains: PyTree) -> Any:
        """The state before the first step; its transitions are none yet."""
        learned, made = self.tuner.begin(chains.position), jnp.zeros(chains.status.shape, jnp.int32)
        shapes = eqx.filter_eval_shape(self._first, chains, learned)
        none = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return InterleavedState(chains, learned, none, made, jnp.zeros((), jnp.int32))

    def __call__(self, key: PRNGKey, index: Int[Array, ""], state: Any) -> tuple[Any, Array]:
        """Of the shape of a step; blocks are what is run."""
        del key, index
        return state, jnp.zeros(())

    def run_block(
        self, key: PRNGKey, start: Int[Array, ""], count: Int[Array, ""], state: InterleavedState, buffers: PyTree
    ) -> tuple[InterleavedState, PyTree]:
        """Steps `start .. start + count - 1`."""
        least = least_waiting(state.made.shape[0])
        key = fast_key(jax.random.fold_in(key, 0))  # made once, since neither loop nor block may use up the run's key
        keys = chain_keys(key, state.made.shape[0])

        def body(carry: tuple[Array, InterleavedState, PyTree]) -> tuple[Array, InterleavedState, PyTree]:
            index, state, noise = carry
            # Before the first step nothing is done, and the tuner is due.
            done = state.transitions.done
            # A chain with a fatal status is done at once, and no reason to finish.
            waiting = jnp.sum(done & ~is_fatal(state.chains.status))
            flush = (waiting >= least) | jnp.all(done) | state.learned.due
            index, state, noise = jax.lax.cond(
                flush, lambda *now: self._flush(key, keys, *now), lambda *now: now, index, state, noise
            )
            grow = self._stepped(state.learned).grow
            grown = jax.vmap(grow, (None, 0, 0))(self.target, state.chains.position, state.transitions)
            return index, state._replace(transitions=grown), noise

        def unfinished(carry: tuple[Array, InterleavedState, PyTree]) -> Array:
            index, state, _ = carry
            return (index < start + count) & jnp.any(~is_fatal(state.chains.status))

        # Of the next transitions, drawn ahead (see `interleave`).
        noise = draw_all(keys, self._stepped(state.learned), state.chains, state.made + 1)
        return jax.lax.while_loop(unfinished, body, (start, state, noise))[1], buffers

    def _flush(
        self, key: PRNGKey, keys: Key[Array, " chains"], index: Int[Array, ""], state: InterleavedState, noise: PyTree
    ) -> tuple[Int[Array, ""], InterleavedState, PyTree]:
        """Finishes what is done, learns from it, and begins again: with a new kernel all chains."""
        done, kernel = state.transitions.done, self._stepped(state.learned)
        ended, infos = finish_all(kernel, self.target, state.chains, state.transitions)
        chains = where_chains(done, ended, state.chains)
        healthy = ~is_fatal(chains.status)
        counted = state.counted + jnp.sum(done & healthy, dtype=jnp.int32)
        over = (counted > 0) & (counted >= jnp.sum(healthy, dtype=jnp.int32))
        transition = self._transition(index, infos, state.chains, chains, done & healthy, over)
        learned = self.tuner.update(transition, state.learned)

        due = state.learned.due | learned.due
        # Not 0, of which `chain_keys` makes the keys of the chains.
        key_prepare = plain_key(jax.random.fold_in(jax.random.fold_in(key, done.shape[0]), index))
        learned = jax.lax.cond(
            due, lambda k, c, s: self._prepared(k, index, c, s), lambda k, c, s: s, key_prepare, chains, learned
        )
        begun = done | due
        made = state.made + begun.astype(jnp.int32)
        kernel = self._stepped(learned)
        fresh = start_all(kernel, self.target, chains, noise, state.transitions)
        transitions = where_chains(begun, fresh, state.transitions)
        noise = where_chains(begun, draw_all(keys, kernel, chains, made + 1), noise)
        state = InterleavedState(chains, learned, transitions, made, jnp.where(over, 0, counted))
        return index + over.astype(index.dtype), state, noise

    def _first(self, chains: PyTree, learned: Any) -> PyTree:
        kernel, keys = self._stepped(learned), chain_keys(jax.random.key(0), chains.status.shape[0])
        noise = draw_all(keys, kernel, chains, jnp.zeros(chains.status.shape, jnp.int32))
        return start_all(kernel, self.target, chains, noise)

    def _stepped(self, learned: Any) -> Any:
        return self.tuner.kernel(learned)
