r"""`Tuner`: what learns the numbers of a kernel in warm-up, from all chains together.

A kernel supplies its own by a method `tuner`; a `TunableKernel` without one gets `StanTuner`, and `cycle`, `mixture`,
`repeat` and `on_sites` are tuned part by part. Warm-up then is, for a tuner `t` and chains at `states`,

    learned = t.begin(positions)
    for index in range(num_steps):
        if learned.due:
            learned = t.prepare(key, trial, learned)
        states, infos = jax.vmap(t.kernel(learned).step, (0, None, 0))(keys, target, states)
        learned = t.update(Transition(index, infos, ...), learned)
    tuned = t.result(learned)

compiled once for every number of steps. A kernel with a scale that is to be accepted half of the time:

    class HalfState(NamedTuple):
        log_scale: Array
        due: Array

    class Half(eqx.Module):
        walk: RandomWalk

        def begin(self, positions):
            return HalfState(jnp.log(self.walk.scale), jnp.zeros((), bool))

        def prepare(self, key, trial, state):
            return state

        def kernel(self, state):
            return eqx.tree_at(lambda walk: walk.scale, self.walk, jnp.exp(state.log_scale))

        def update(self, transition, state):
            rate = pooled_mean(transition.infos.acceptance_rate, transition.use)
            return HalfState(state.log_scale + (rate - 0.5) / jnp.sqrt(transition.index + 1.0), state.due)

        def result(self, state):
            return self.kernel(state)

    class HalfWalk(RandomWalk):
        def tuner(self, num_steps, target_accept):
            return Half(self)
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from probinf.core._kernel import Kernel
from probinf.core._types import PRNGKey
from probinf.samplers._adaptation import tree_sum


class Transition(NamedTuple):
    """What a tuner learns from: a transition of all chains, or of some. Arrays are on every device.

    Attributes:
        index: [] int32, the step of warm-up, from 0.
        infos: what `step` of the tuner's kernel told, leading axis num_chains.
        before, positions: where chains were and are, leaves `[num_chains, ...]`.
        use: [num_chains] bool, chains that count: without a fatal status, and moved by this transition.
        gradients: of the log density at `positions`, for a tuner whose `needs_gradients` is true; else None.
        over: [] bool, whether the step of warm-up ends with it. False only where chains are interleaved (see
            `SteppedKernel`): then a step has several of these, of other chains each, and `index` stays.
    """

    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    infos: Any
    before: PyTree
    positions: PyTree
    use: Array
    over: Array
    gradients: PyTree = None


@runtime_checkable
class Trial(Protocol):
    """Makes one transition of all chains with a kernel, which is not kept."""

    def __call__(self, key: PRNGKey, kernel: Kernel) -> Transition:
        """The transition; `kernel` has the state type of the kernel that is tuned."""
        ...


@runtime_checkable
class Tuner(Protocol):
    r"""Tunes a kernel.

    An `equinox.Module` of what stays fixed, such as the kernel to start from and a schedule: numbers in array leaves
    (the length of warm-up too), so that other numbers compile nothing. What is learned is a state: a NamedTuple of
    arrays of fixed shapes and dtypes with at least `due`, [] bool, whether `prepare` is to be called before the next
    step.

    Law: results depend on the chains in `Transition.use` alone, so that a chain at NaN disturbs no other, and sums
    over chains are made by `pooled_mean` or `tree_sum`, so that they are the same bits on any number of devices. All
    is called under `jit`, and every loop is bounded.
    """

    def begin(self, positions: PyTree) -> Any:
        """The state before the first step.

        Args:
            positions: where the chains start, leaves `[num_chains, ...]`.
        """
        ...

    def prepare(self, key: PRNGKey, trial: Trial, state: Any) -> Any:
        """A state that is not due, such as after the search of a first step size by trials; called when it is due."""
        ...

    def kernel(self, state: Any) -> Kernel:
        """The kernel of the next step.

        It has the state type of the kernel that is tuned. Its info may be another, with all that `update` wants to
        know: it is not stored.
        """
        ...

    def update(self, transition: Transition, state: Any) -> Any:
        """What is known after a transition.

        Where it is due, interleaved chains begin anew with the kernel that `prepare` leads to; where it is not,
        trajectories under way go on with what they began with.
        """
        ...

    def result(self, state: Any) -> Kernel:
        """The tuned kernel, of the type and tree structure of the one that `warmup` was given, a factor excepted."""
        ...


@runtime_checkable
class HasTuner(Kernel, Protocol):
    """A kernel that supplies its own tuner."""

    def tuner(self, num_steps: int, target_accept: float | None) -> Tuner:
        """The tuner of a warm-up of `num_steps` steps.

        Args:
            num_steps: length; must end up in array leaves.
            target_accept: acceptance rate to aim at; None takes the kernel's. Must end up in an array leaf.
        """
        ...


def pooled_mean(values: Float[Array, " n"], use: Bool[Array, " n"]) -> Float[Array, ""]:
    """The mean over the chains in `use`, and 0 where there are none; NaN counts as 0.

    Args:
        values: of each chain.
        use: which count.
    """
    kept = jnp.where(use & ~jnp.isnan(values), values, 0)
    return tree_sum(kept) / jnp.maximum(tree_sum(use.astype(values.dtype)), 1)


def check_target_accept(target_accept: float | None) -> None:
    """Raises `ValueError` unless the rate is None or strictly between 0 and 1."""
    if target_accept is not None and not 0 < target_accept < 1:
        raise ValueError(f"`target_accept` must be between 0 and 1, but is {target_accept}: try 0.9")
