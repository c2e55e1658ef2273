"""Chains that do not wait for each other: each starts its next transition as soon as its last one is done.

A kernel whose transitions take steps of their own, a different number in each chain, says so by `start`, `grow` and
`finish`. All chains make one step at a time, each in its own transition, so that what is lost is the spread of their
sums over many transitions and not that of every single one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from probinf.core._kernel import Kernel
from probinf.core._target import Target
from probinf.core._types import PRNGKey

# Transitions are finished when an eighth of the chains wait: finishing costs all chains, waiting those that do.
WAITING_SHARE = 0.125


@runtime_checkable
class SteppedKernel(Kernel, Protocol):
    """A kernel whose transition can be left after any of its steps.

    Law: `step` is `start`, `grow` until `done`, and `finish`, and is done after a bounded number of steps. `grow` goes
    on with the step size that `start` had, and changes nothing of what is done that `finish` reads.
    """

    def start(self, key: PRNGKey, target: Target, state: Any) -> Any:
        """The transition before its first step; it has a `done`, [] bool."""
        ...

    def grow(self, target: Target, position: Any, transition: Any) -> Any:
        """One step. `position` is any one of the shape of the state's."""
        ...

    def finish(self, target: Target, state: Any, transition: Any) -> tuple[Any, Any]:
        """What `Kernel.step` returns."""
        ...


class _Loop(NamedTuple):
    """What the loop carries: transitions of all chains, how many transitions each has made, and what is kept."""

    transitions: Any
    made: Int[Array, " chains"]
    kept: Any


def interleave(
    key: PRNGKey,
    kernel: SteppedKernel,
    target: Target,
    states: PyTree,
    first: Int[Array, ""],
    count: Int[Array, ""],
    kept: PyTree,
    keep: Callable[[PyTree, PyTree, Int[Array, " chains"], Bool[Array, " chains"], PyTree], PyTree],
) -> tuple[PyTree, PyTree]:
    """Transitions `first .. first + count - 1` of all chains.

    Args:
        key: of the run. The key of a transition depends on it, on the chain, and on the number of the transition.
        kernel: what makes them.
        target: its target.
        states: of all chains, leading axis.
        first: number of the first one; traced.
        count: how many; traced.
        kept: what `keep` starts from.
        keep: `(states, infos, made, due, kept) -> kept`, called when some chains have finished a transition: those
            where `due`, of which it was number `made`, counted from 0.

    Returns:
        The states and what was kept.
    """
    num_chains = states.status.shape[0]
    least = least_waiting(num_chains)

    def begin(states: PyTree, made: Int[Array, " chains"]) -> Any:
        return start_all(key, kernel, target, states, first + made)

    def body(carry: tuple[PyTree, _Loop]) -> tuple[PyTree, _Loop]:
        states, loop = carry
        grown = jax.vmap(kernel.grow, (None, 0, 0))(target, states.position, loop.transitions)
        due = grown.done & (loop.made < count)
        running = jnp.any(~grown.done & (loop.made < count))
        flush = (jnp.sum(due) >= least) | ~running
        loop = loop._replace(transitions=grown)
        return jax.lax.cond(flush, finish, lambda due, states, loop: (states, loop), due, states, loop)

    def finish(due: Bool[Array, " chains"], states: PyTree, loop: _Loop) -> tuple[PyTree, _Loop]:
        ended, infos = jax.vmap(kernel.finish, (None, 0, 0))(target, states, loop.transitions)
        states = where_chains(due, ended, states)
        kept = keep(states, infos, loop.made, due, loop.kept)
        made = loop.made + due.astype(loop.made.dtype)
        return states, _Loop(where_chains(due, begin(states, made), loop.transitions), made, kept)

    made = jnp.zeros(num_chains, jnp.int32)
    start = (states, _Loop(begin(states, made), made, kept))
    states, loop = jax.lax.while_loop(lambda carry: jnp.any(carry[1].made < count), body, start)
    return states, loop.kept


def least_waiting(num_chains: int) -> int:
    """How many chains must wait until their transitions are finished."""
    return max(1, int(num_chains * WAITING_SHARE))


def start_all(
    key: PRNGKey, kernel: SteppedKernel, target: Target, states: PyTree, numbers: Int[Array, " chains"]
) -> PyTree:
    """Transitions of all chains, with keys that depend on chain and number alone.

    They are threefry keys whatever the run's key is: those of `rbg` would draw all chains from the key of the first,
    which may not be due.
    """
    words = jax.random.bits(jax.random.fold_in(key, 0), (2,), jnp.uint32)
    base = jax.random.wrap_key_data(words, impl="threefry2x32")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(base, jnp.arange(numbers.shape[0]))
    return jax.vmap(kernel.start, (0, None, 0))(jax.vmap(jax.random.fold_in)(keys, numbers), target, states)


def where_chains(mask: Bool[Array, " chains"], new: PyTree, old: PyTree) -> PyTree:
    """`new` for some chains."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b), new, old)
