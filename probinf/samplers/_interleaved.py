"""Chains that do not wait for each other: each starts its next transition as soon as its last one is done.

A kernel whose transitions take steps of their own, a different number in each chain, says so by `start`, `grow` and
`finish`. All chains make one step at a time, each in its own transition, so that what is lost is the spread of their
sums over many transitions and not that of every single one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree

from probinf.core._fast_key import fast_key, plain_key
from probinf.core._kernel import Kernel
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._initial import where_chains

# Transitions are finished when an eighth of the chains wait: finishing costs all chains, waiting those that do.
WAITING_SHARE = 0.125


@runtime_checkable
class SteppedKernel(Kernel, Protocol):
    """A kernel whose transition can be left after any of its steps.

    Law: `step` is `draw`, `start`, `grow` until `done`, and `finish`, and is done after a bounded number of steps.
    `grow` goes on with the step size that `start` had, and changes nothing of what is done that `finish` reads.
    """

    def draw(self, key: PRNGKey, state: Any) -> Any:
        """The random numbers of a transition; of the state only shapes and dtypes matter."""
        ...

    def start(self, noise: Any, target: Target, state: Any, before: Any = None) -> Any:
        """The transition before its first step; it has a `done`, [] bool.

        What is not known yet may be left as it is in `before`, some earlier transition.
        """
        ...

    def grow(self, target: Target, position: Any, transition: Any, /) -> Any:
        """One step. `position` is any one of the shape of the state's."""
        ...

    def finish(self, target: Target, state: Any, transition: Any, /) -> tuple[Any, Any]:
        """What `Kernel.step` returns."""
        ...


def whole_transition(key: PRNGKey, kernel: SteppedKernel, target: Target, state: Any) -> tuple[Any, Any]:
    """A transition from its first step to its last: the `step` of a `SteppedKernel`."""
    start = kernel.start(kernel.draw(key, state), target, state)
    ended = jax.lax.while_loop(lambda t: ~t.done, lambda t: kernel.grow(target, state.position, t), start)
    return kernel.finish(target, state, ended)


class _Loop(NamedTuple):
    """What the loop carries: transitions of all chains, noise of the next ones, how many are made, and what is kept.

    Noise is drawn a transition ahead: where it is used XLA would draw it again in everything that needs it.
    """

    transitions: Any
    noise: Any
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
    keys, least = chain_keys(key, num_chains), least_waiting(num_chains)

    def draw(states: PyTree, made: Int[Array, " chains"]) -> Any:
        return draw_all(keys, kernel, states, first + made)

    def body(carry: tuple[PyTree, _Loop]) -> tuple[PyTree, _Loop]:
        states, loop = carry
        grown = jax.vmap(kernel.grow, (None, 0, 0))(target, states.position, loop.transitions)
        due = grown.done & (loop.made < count)
        running = jnp.any(~grown.done & (loop.made < count))
        flush = (jnp.sum(due) >= least) | ~running
        loop = loop._replace(transitions=grown)
        return jax.lax.cond(flush, finish, lambda due, states, loop: (states, loop), due, states, loop)

    def finish(due: Bool[Array, " chains"], states: PyTree, loop: _Loop) -> tuple[PyTree, _Loop]:
        ended, infos = finish_all(kernel, target, states, loop.transitions)
        states = where_chains(due, ended, states)
        kept = keep(states, infos, loop.made, due, loop.kept)
        made = loop.made + due.astype(loop.made.dtype)
        fresh = start_all(kernel, target, states, loop.noise, loop.transitions)
        transitions = where_chains(due, fresh, loop.transitions)
        noise = where_chains(due, draw(states, made + 1), loop.noise)
        return states, _Loop(transitions, noise, made, kept)

    made = jnp.zeros(num_chains, jnp.int32)
    drawn = jax.vmap(draw, (None, 0))(states, jnp.stack([made, made + 1]))
    now, ahead = jax.tree.map(lambda each: each[0], drawn), jax.tree.map(lambda each: each[1], drawn)
    start = (states, _Loop(start_all(kernel, target, states, now), ahead, made, kept))
    states, loop = jax.lax.while_loop(lambda carry: jnp.any(carry[1].made < count), body, start)
    return states, loop.kept


def least_waiting(num_chains: int) -> int:
    """How many chains must wait until their transitions are finished."""
    return max(1, int(num_chains * WAITING_SHARE))


def chain_keys(key: PRNGKey, num_chains: int) -> Key[Array, " chains"]:
    """A key for each chain, which depends on its number alone.

    They are threefry keys whatever the run's key is: those of `rbg` would draw all chains from the key of the first,
    which may not be due.
    """
    words = jax.random.bits(jax.random.fold_in(fast_key(key), 0), (2,), jnp.uint32)
    base = fast_key(jax.random.wrap_key_data(words, impl="threefry2x32"))
    return jax.vmap(jax.random.fold_in, (None, 0))(base, jnp.arange(num_chains))


def draw_all(
    keys: Key[Array, " chains"], kernel: SteppedKernel, states: PyTree, numbers: Int[Array, " chains"]
) -> PyTree:
    """The noise of one transition of each chain, which depends on the chain's key and the transition's number alone."""
    return jax.vmap(kernel.draw)(plain_key(jax.vmap(jax.random.fold_in)(keys, numbers)), states)


def start_all(kernel: SteppedKernel, target: Target, states: PyTree, noise: PyTree, before: PyTree = None) -> PyTree:
    """Transitions of all chains."""
    return jax.vmap(kernel.start, (0, None, 0, 0))(noise, target, states, before)


def finish_all(kernel: SteppedKernel, target: Target, states: PyTree, transitions: PyTree) -> tuple[PyTree, PyTree]:
    """The states after their transitions, whose status has the bits of these too, and the infos."""
    ended, infos = jax.vmap(kernel.finish, (None, 0, 0))(target, states, transitions)
    # A kernel may flag a step in its info alone.
    return eqx.tree_at(lambda c: c.status, ended, ended.status | infos.status), infos
