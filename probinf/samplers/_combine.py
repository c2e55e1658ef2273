r"""`cycle`, `mixture` and `repeat`: kernels that leave a target invariant, in turn, one at random, or many times.

$\pi K_1 = \pi$ and $\pi K_2 = \pi$ give $\pi K_1 K_2 = \pi$, $\pi (p K_1 + (1 - p) K_2) = \pi$ and
$\pi K_1^n = \pi$ (Tierney 1994). A mixture of reversible kernels is reversible, and so is a power of one; a cycle in
general is not.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from probinf.core import (
    Kernel,
    Point,
    Status,
    Target,
    choose,
    cond,
    flag,
    is_concrete,
    is_fatal,
    point_log_density,
    unwrap_key,
)
from probinf.core._choices import categorical
from probinf.core._effects import repeat as loop
from probinf.core._types import Position, PRNGKey
from probinf.samplers._factor import Factor
from probinf.samplers._mhg import MHGState
from probinf.samplers._stan_tuner import TunableKernel

# By how much the sum of given probabilities may differ from 1.
SUM_TOLERANCE = 1e-5


class CombinedInfo(NamedTuple):
    """One transition of a cycle or a mixture.

    Attributes:
        acceptance_rate: [], the mean over the kernels of a cycle, NaN if one of them is; of a mixture, that of the
            kernel that ran, and 0 where its probabilities were no law.
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


class RepeatedInfo(NamedTuple):
    """The transitions of a repeated kernel, as one.

    Attributes:
        acceptance_rate: [], the mean over them, NaN if one of them is.
        log_density: [] of the last state, up to the constant of the target.
        divergent: [] bool, whether one diverged.
        status: [] uint32, the bits of all of them.
    """

    acceptance_rate: Array
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
        return state, _info(target, state, jnp.mean(jnp.stack(rates)), jnp.stack(rates), status)


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
        """One transition of one kernel. Leaves the target invariant; reversible if all kernels are.

        Probabilities that are no law leave the state where it is, flagged `DIVERGENT`.
        """
        key_which, key_step = jax.random.split(key)
        valid = _is_law(self.probabilities)
        # Where it is no law any choice will do, since its step is not kept.
        law = jnp.where(valid, self.probabilities, 1 / len(self.kernels))
        which = choose(key_which, categorical, law[None])[0]
        bits, restore = unwrap_key(key_step)

        def branch(kernel: Kernel) -> Callable[..., Any]:
            def run(bits: Array, state: MHGState) -> tuple[MHGState, Array, Array]:
                new, info = kernel.step(restore(bits), target, state)
                return new, info.acceptance_rate, info.status

            return run

        new, rate, status = _switch(which, [branch(kernel) for kernel in self.kernels], bits, state)
        refused = flag(Status.DIVERGENT, ~valid & ~is_fatal(state.status))
        point = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new.point, state.point)
        state = MHGState(point, jnp.where(valid, new.status, state.status | refused))
        ran = (jnp.arange(len(self.kernels), dtype=which.dtype) == which) & valid
        rates = jnp.where(ran, rate, jnp.nan)
        return state, _info(target, state, jnp.where(valid, rate, 0), rates, jnp.where(valid, status, refused))


class Repeated(eqx.Module):
    """The kernel made by `repeat`.

    Attributes:
        kernel: what is repeated.
        num_steps: [] int32.
    """

    kernel: Any
    num_steps: Int[Array, ""]

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`."""
        return _shared_state((self.kernel,), key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, RepeatedInfo]:
        """All transitions, one after the other. Leaves the target invariant; reversible if the kernel is."""
        return _steps(self.kernel, self.num_steps, key, target, state)


class TunableRepeated(eqx.Module):
    """The kernel made by `repeat` of a `TunableKernel`, which can itself be tuned.

    Attributes:
        kernel: what is repeated.
        num_steps: [] int32.
    """

    kernel: Any
    num_steps: Int[Array, ""]

    @property
    def step_size(self) -> Array:
        """That of the kernel."""
        return self.kernel.step_size

    @property
    def factor(self) -> Factor | None:
        """That of the kernel."""
        return self.kernel.factor

    @property
    def dense(self) -> bool:
        """Whether warm-up learns a full matrix."""
        return self.kernel.dense

    @property
    def rank(self) -> int:
        """How many directions warm-up learns beside the diagonal."""
        return getattr(self.kernel, "rank", 0)

    @property
    def default_target_accept(self) -> float:
        """The acceptance rate that warm-up aims at."""
        return self.kernel.default_target_accept

    def tuned(self, step_size: Array, factor: Factor | None) -> "TunableRepeated":
        """As many transitions of the tuned kernel."""
        return TunableRepeated(self.kernel.tuned(step_size, factor), self.num_steps)

    def short(self) -> Any:
        """The cheapest kernel whose acceptance tells whether the step size is of the right order."""
        return self.kernel.short()

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`."""
        return _shared_state((self.kernel,), key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, RepeatedInfo]:
        """All transitions, one after the other. Leaves the target invariant; reversible if the kernel is."""
        return _steps(self.kernel, self.num_steps, key, target, state)


def cycle(*kernels: Kernel) -> Cycle:
    """Runs kernels one after the other; a step of the cycle is a step of each.

    Leaves the target invariant if every kernel does. Not reversible in general, even where they are.

    Args:
        *kernels: kernels of one state type, `MHGState`, such as `birth_death(...)` and `active_random_walk(...)`, or
            `hmc(...)`, `barker(...)`, `elliptical_slice(...)` and `repeat(slice_sampling(...), 5)`.

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
        probabilities: [kernels], non-negative, of sum 1; None for equal ones. Traced ones that are not are flagged
            `DIVERGENT` at every step, and the chain stays.

    Returns:
        A `Kernel` with the array leaf `probabilities`.

    Raises:
        ValueError: no kernel is given, or `probabilities` has another shape, or is concrete and no law.
        TypeError: `kernels` is no sequence, one is no kernel or (at `init`) has another state, or `probabilities` are
            no real numbers.
    """
    if not isinstance(kernels, Iterable):
        raise TypeError(f"`kernels` must be a sequence of kernels, but is {kernels!r}: write `mixture([one, two])`")
    kernels = _checked(tuple(kernels))
    if probabilities is None:
        return Mixture(kernels, jnp.full(len(kernels), 1 / len(kernels)))
    if not all(eqx.is_array_like(leaf) and not np.iscomplexobj(leaf) for leaf in jax.tree.leaves(probabilities)):
        raise TypeError(f"`probabilities` must be {len(kernels)} real numbers, one a kernel, but is {probabilities!r}")
    law = jnp.asarray(probabilities)
    if law.shape != (len(kernels),):
        raise ValueError(
            f"`probabilities` has shape {law.shape}, but there are {len(kernels)} kernels: give one number for each"
        )
    if is_concrete(probabilities):
        values = np.asarray(probabilities, np.float64)
        if not (np.all(values >= 0) and abs(values.sum() - 1) < SUM_TOLERANCE):
            raise ValueError(
                f"`probabilities` must be non-negative and have sum 1, but are {values.tolist()}: divide by their sum"
            )
    return Mixture(kernels, law if jnp.issubdtype(law.dtype, jnp.floating) else law.astype(jnp.result_type(float)))


def repeat(kernel: Kernel, num_steps: Any) -> Repeated | TunableRepeated:
    """Runs a kernel many times; a step of the result is `num_steps` steps of it.

    Leaves the target invariant if the kernel does. In a `cycle` it gives a kernel more weight, without compiling it
    more than once; in SMC moves and warm-up it makes a cheap kernel move as far as a dear one. To keep every so many
    draws use `sample(..., thin=...)`, with which chains of `nuts` or `slice_sampling` need not wait for each other.

    Args:
        kernel: a kernel whose state is `MHGState`, such as `random_walk(...)`; a `TunableKernel` stays one.
        num_steps: how often, at least 1; traced (changing it does not recompile). A traced one below 1 is flagged
            `DIVERGENT` at every step, and the chain stays.

    Returns:
        A `Kernel` with the array leaf `num_steps`.

    Raises:
        TypeError: `kernel` is no kernel or (at `init`) has another state, or `num_steps` is no integer.
        ValueError: `num_steps` is below 1, or no scalar.
    """
    (kernel,) = _checked((kernel,))
    number = eqx.is_array_like(num_steps) and not isinstance(num_steps, bool)
    if not (number and jnp.issubdtype(jnp.result_type(num_steps), jnp.integer)):
        raise TypeError(f"`num_steps` must be an integer, but is {num_steps!r}")
    if jnp.ndim(num_steps) != 0 or (is_concrete(num_steps) and not 1 <= int(num_steps) <= np.iinfo(np.int32).max):
        raise ValueError(f"`num_steps` must be a scalar of at least 1, but is {num_steps}: try 10")
    count = jnp.asarray(num_steps, jnp.int32)
    return (TunableRepeated if isinstance(kernel, TunableKernel) else Repeated)(kernel, count)


def _is_law(probabilities: Float[Array, " kernels"]) -> Bool[Array, ""]:
    """Whether they are non-negative and have sum 1, up to rounding."""
    tolerance = max(SUM_TOLERANCE, float(jnp.finfo(probabilities.dtype).eps) ** 0.5)
    return jnp.all(probabilities >= 0) & (jnp.abs(jnp.sum(probabilities) - 1) <= tolerance)


def _checked(kernels: tuple[Any, ...]) -> tuple[Any, ...]:
    if not kernels:
        raise ValueError("`kernels` is empty: needed at least one kernel, such as `random_walk(0.5)`")
    for i, kernel in enumerate(kernels):
        if isinstance(kernel, type):
            raise TypeError(f"`kernels[{i}]` is the class {kernel.__name__}: give a kernel, such as `random_walk(0.5)`")
        if not isinstance(kernel, Kernel):
            raise TypeError(f"`kernels[{i}]` must be a kernel, with methods `init` and `step`, but is {kernel!r}")
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


def _steps(
    kernel: Any, num_steps: Int[Array, ""], key: PRNGKey, target: Target, state: MHGState
) -> tuple[MHGState, RepeatedInfo]:
    def body(index: Any, carry: tuple[MHGState, Array, Array]) -> tuple[MHGState, Array, Array]:
        state, rates, bits = carry
        state, info = kernel.step(jax.random.fold_in(key, index), target, state)
        return state, rates + info.acceptance_rate.astype(rates.dtype), bits | info.status

    # No step at all would stand still and look healthy.
    refused = flag(Status.DIVERGENT, (num_steps < 1) & ~is_fatal(state.status))
    zero = jnp.zeros_like(state.point.log_prior)
    state, rates, bits = loop(num_steps, body, (state, zero, jnp.zeros_like(state.status)))
    bits |= refused
    info = RepeatedInfo(
        acceptance_rate=rates / jnp.maximum(num_steps, 1).astype(rates.dtype),
        log_density=point_log_density(target, state.point),
        divergent=(bits & jnp.uint32(int(Status.DIVERGENT))) != 0,
        status=bits,
    )
    return MHGState(state.point, state.status | refused), info


def _switch(index: Int[Array, ""], branches: list[Callable[..., Any]], *operands: Any) -> Any:
    """`lax.switch` that an enumerator can see through."""
    if len(branches) == 1:
        return branches[0](*operands)
    return cond(index == 0, branches[0], lambda *rest: _switch(index - 1, branches[1:], *rest), *operands)


def _info(target: Target, state: MHGState, rate: Array, rates: Float[Array, " kernels"], status: Array) -> CombinedInfo:
    log_density = point_log_density(target, state.point)
    divergent = (status & jnp.uint32(int(Status.DIVERGENT))) != 0
    return CombinedInfo(rate, rates, log_density, divergent, status)
