"""A step of warm-up: all chains move with the kernel that a `Tuner` proposes, and it learns from how they fared."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from probinf.core._fast_key import fast_key, plain_key
from probinf.core._kernel import point_gradient
from probinf.core._status import is_fatal
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._initial import step_chains
from probinf.samplers._tuner import Transition, Tuner, pooled_mean


class WarmupState(NamedTuple):
    """What warm-up carries.

    Attributes:
        chains: kernel states, leading axis num_chains.
        learned: state of the tuner; None where there is nothing to tune.
    """

    chains: Any
    learned: Any


class WarmupStep(eqx.Module):
    """One step of warm-up of all chains; `run_steps` runs it.

    Attributes:
        tuner: what learns.
        target: to tune for.
        mesh: devices over which chains are split, or None.
    """

    tuner: Tuner
    target: Target
    mesh: jax.sharding.Mesh | None = eqx.field(static=True)

    @eqx.filter_jit
    def begin(self, chains: PyTree) -> Any:
        """The state before the first step."""
        return WarmupState(chains, self.tuner.begin(chains.position))

    def __call__(self, key: PRNGKey, index: Int[Array, ""], state: WarmupState) -> tuple[WarmupState, Array]:
        """The next state, and the pooled acceptance rate."""
        key_prepare, key_step = plain_key(jax.random.split(fast_key(key)))
        # In a lambda, since `cond` hashes its branches and a bound method of a module with arrays has no hash.
        learned = jax.lax.cond(
            state.learned.due,
            lambda k, c, s: self._prepared(k, index, c, s),
            lambda k, c, s: s,
            key_prepare,
            state.chains,
            state.learned,
        )
        chains, transition = self._moved(key_step, index, self.tuner.kernel(learned), state.chains)
        learned = self.tuner.update(transition, learned)
        return WarmupState(chains, learned), pooled_mean(transition.infos.acceptance_rate, transition.use)

    def result(self, state: Any) -> Any:
        """The tuned kernel."""
        return self.tuner.result(state.learned)

    def _prepared(self, key: PRNGKey, index: Int[Array, ""], chains: PyTree, learned: Any) -> Any:
        def trial(key: PRNGKey, kernel: Any) -> Transition:
            return self._moved(key, index, kernel, chains)[1]

        return self.tuner.prepare(key, trial, learned)

    def _moved(self, key: PRNGKey, index: Int[Array, ""], kernel: Any, chains: PyTree) -> tuple[PyTree, Transition]:
        moved, infos = step_chains(key, kernel, self.target, chains)
        healthy = ~is_fatal(moved.status)
        return moved, self._transition(index, infos, chains, moved, healthy, jnp.ones((), bool))

    def _transition(
        self, index: Int[Array, ""], infos: Any, before: PyTree, after: PyTree, use: Array, over: Array
    ) -> Transition:
        """With arrays on every device, so that what is computed from them is the same on any number."""
        gradients = None
        if getattr(self.tuner, "needs_gradients", False):
            gradients = jax.vmap(point_gradient, (None, 0))(self.target, after.point)
        parts = (infos, before.position, after.position, use, gradients)
        infos, before, positions, use, gradients = jax.tree.map(lambda values: gather(values, self.mesh), parts)
        return Transition(index, infos, before, positions, use, over, gradients)


class PlainWarmupStep(eqx.Module):
    """The same for a kernel with nothing to tune, which is only run."""

    kernel: Any
    target: Target

    def begin(self, chains: PyTree) -> WarmupState:
        """The state before the first step."""
        return WarmupState(chains, None)

    def __call__(self, key: PRNGKey, index: Int[Array, ""], state: WarmupState) -> tuple[WarmupState, Array]:
        """The next state, and no record."""
        del index
        return WarmupState(step_chains(key, self.kernel, self.target, state.chains)[0], None), jnp.zeros(())

    def result(self, state: WarmupState) -> Any:
        """The kernel."""
        del state
        return self.kernel


def gather(values: Array, mesh: jax.sharding.Mesh | None) -> Array:
    """The array on every device of the mesh."""
    if mesh is None:
        return values
    return jax.lax.with_sharding_constraint(values, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


@eqx.filter_jit
def finish_warmup(step: Any, state: Any) -> Any:
    """The tuned kernel.

    Args:
        step: as `prepare_warmup` made it.
        state: after the last step.
    """
    return step.result(state)
