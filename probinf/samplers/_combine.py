r"""`cycle` and `mixture`: kernels that leave a target invariant, one after the other or one at random.

$\pi K_1 = \pi$ and $\pi K_2 = \pi$ give $\pi K_1 K_2 = \pi$ and $\pi (p K_1 + (1 - p) K_2) = \pi$ (Tierney 1994). A
mixture of reversible kernels is reversible, a cycle in general is not.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from probinf.core import Kernel, Point, Status, Target, choose, cond, is_concrete, point_log_density, unwrap_key
from probinf.core._choices import categorical
from probinf.core._types import Position, PRNGKey
from probinf.samplers._mhg import MHGState


class CombinedInfo(NamedTuple):
    """One transition of a cycle or a mixture.

    Attributes:
        acceptance_rate: [], the mean over the kernels that ran.
        acceptance_rates: [kernels], of each kernel; NaN for one that did not run.
        log_density: [] of the new state, up to the constant of the target.
        divergent: [] bool, whether a kernel diverged.
        status: [] uint32, the bits of this step.
    """

    acceptance_rate: Array
    acceptance_rates: Array
    log_density: Array
    divergent: Array
    status: Array


class Cycle(eqx.Module):
    """The kernel made by `cycle`.

    Attributes:
        kernels: in the order in which they run.
    """

    kernels: tuple[Any, ...]

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`, with gradients if a kernel needs them."""
        return _shared_state(self.kernels, key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, CombinedInfo]:
        """One transition of each kernel. Leaves the target invariant."""
        rates, status = [], jnp.zeros_like(state.status)
        for kernel, key_kernel in zip(self.kernels, jax.random.split(key, len(self.kernels)), strict=True):
            state, info = kernel.step(key_kernel, target, state)
            rates.append(info.acceptance_rate)
            status |= info.status
        return state, _info(target, state, jnp.stack(rates), status)


class Mixture(eqx.Module):
    """The kernel made by `mixture`.

    Attributes:
        kernels: those to choose from.
        probabilities: [kernels].
    """

    kernels: tuple[Any, ...]
    probabilities: Array

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`, with gradients if a kernel needs them."""
        return _shared_state(self.kernels, key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, CombinedInfo]:
        """One transition of one kernel. Leaves the target invariant; reversible if all kernels are."""
        key_which, key_step = jax.random.split(key)
        which = choose(key_which, categorical, self.probabilities[None])[0]
        bits, restore = unwrap_key(key_step)

        def branch(kernel: Kernel) -> Callable[..., Any]:
            def run(bits: Array, state: MHGState) -> tuple[MHGState, Array, Array]:
                new, info = kernel.step(restore(bits), target, state)
                return new, info.acceptance_rate, info.status

            return run

        new, rate, status = _switch(which, [branch(kernel) for kernel in self.kernels], bits, state)
        rates = jnp.where(jnp.arange(len(self.kernels), dtype=which.dtype) == which, rate, jnp.nan)
        return new, _info(target, new, rates, status)


def cycle(*kernels: Kernel) -> Cycle:
    """Runs kernels one after the other; a step of the cycle is a step of each.

    Leaves the target invariant if every kernel does. Not reversible in general, even where they are.

    Args:
        *kernels: kernels of one state type, `MHGState`, such as `birth_death(...)` and `active_random_walk(...)`.

    Returns:
        A `Kernel`.

    Raises:
        ValueError: no kernel is given.
        TypeError: one is no kernel, or (at `init`) has another state.
    """
    return Cycle(_checked(kernels))


def mixture(kernels: Sequence[Kernel], probabilities: Any = None) -> Mixture:
    """Runs one of several kernels, chosen at random at every step.

    Leaves the target invariant if every kernel does, because the probabilities do not depend on the state. Under
    `vmap` every chain computes the steps of all kernels and keeps one: a cycle does more in the same time.

    Args:
        kernels: kernels of one state type, `MHGState`.
        probabilities: [kernels], non-negative, of sum 1; None for equal ones.

    Returns:
        A `Kernel` with the array leaf `probabilities`.

    Raises:
        ValueError: no kernel is given, or `probabilities` has another shape, or is concrete and no law.
        TypeError: one is no kernel, or (at `init`) has another state.
    """
    kernels = _checked(tuple(kernels))
    if probabilities is None:
        return Mixture(kernels, jnp.full(len(kernels), 1 / len(kernels)))
    if np.shape(probabilities) != (len(kernels),):
        raise ValueError(f"`probabilities` has shape {np.shape(probabilities)}, but there are {len(kernels)} kernels")
    if is_concrete(probabilities):
        values = np.asarray(probabilities, np.float64)
        if not (np.all(values >= 0) and abs(values.sum() - 1) < 1e-5):
            raise ValueError(f"`probabilities` must be non-negative and have sum 1, but are {values.tolist()}")
    return Mixture(kernels, jnp.asarray(probabilities))


def _checked(kernels: tuple[Any, ...]) -> tuple[Any, ...]:
    if not kernels:
        raise ValueError("needed at least one kernel")
    for kernel in kernels:
        if not isinstance(kernel, Kernel):
            raise TypeError(f"needed kernels, with methods `init` and `step`, but got a {type(kernel).__name__}")
    return kernels


def _shared_state(kernels: tuple[Any, ...], key: PRNGKey, target: Target, position: Position) -> MHGState:
    """A state that every kernel can start from: its position is in the form that each wants, its caches the most."""
    states = []
    for kernel, key_kernel in zip(kernels, jax.random.split(key, len(kernels)), strict=True):
        state = kernel.init(key_kernel, target, position)
        if not isinstance(state, MHGState):
            raise TypeError(f"kernels that share a state need `MHGState`, but {type(kernel).__name__} has another")
        states.append(state)
        position = state.position
    status = states[0].status
    for state in states[1:]:
        status |= state.status
    widest = max(states, key=lambda state: len(jax.tree.leaves(state))).point
    return MHGState(Point(position, *widest[1:]), status)


def _switch(index: Int[Array, ""], branches: list[Callable[..., Any]], *operands: Any) -> Any:
    """`lax.switch` that an enumerator can see through."""
    if len(branches) == 1:
        return branches[0](*operands)
    return cond(index == 0, branches[0], lambda *rest: _switch(index - 1, branches[1:], *rest), *operands)


def _info(target: Target, state: MHGState, rates: Float[Array, " kernels"], status: Array) -> CombinedInfo:
    log_density = point_log_density(target, state.point)
    divergent = (status & jnp.uint32(int(Status.DIVERGENT))) != 0
    return CombinedInfo(jnp.nanmean(rates), rates, log_density, divergent, status)
