r"""`TemperingTuner`: temperatures of equal rejection, and a step size and a matrix for each, learned in one warm-up.

Temperatures are set anew after a 32nd, a 16th, ..., a half of warm-up, from the rates of the exchanges since the time
before (Syed, Bouchard-Cote, Deligiannidis, Doucet 2022, algorithm 4), and then stay. The kernel of every
temperature is tuned by a `StanTuner` of its own on the replicas that are there.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._adaptation import LARGEST_LOG_STEP, start_averaging, tree_sum
from probinf.samplers._low_rank_tuner import refuse_rank
from probinf.samplers._stan_tuner import MAX_DOUBLINGS, StanState, StanTuner, TunableKernel, stan_tuner
from probinf.samplers._tempering_ladder import tuned_inverse_temperatures
from probinf.samplers._tuner import HasTuner, Transition, Trial, pooled_mean

NUM_ROUNDS = 5
SHORTEST_ROUND = 4


class WatchedInfo(NamedTuple):
    """What the tuner wants to know of a step: as of `TemperingInfo`, and where the replicas are, [R, ...]."""

    acceptance_rate: Array
    acceptance_rates: Array
    swap_rates: Array
    positions: Any
    status: Array


class Watched(eqx.Module):
    """Parallel tempering that tells where its replicas are."""

    tempering: Any

    def init(self, key: PRNGKey, target: Target, position: Position) -> Any:
        """As the kernel does."""
        return self.tempering.init(key, target, position)

    def step(self, key: PRNGKey, target: Target, state: Any) -> tuple[Any, WatchedInfo]:
        """As the kernel does."""
        state, info = self.tempering.step(key, target, state)
        watched = (info.acceptance_rate, info.acceptance_rates, info.swap_rates, state.points.position, info.status)
        return state, WatchedInfo(*watched)


class _Rate(NamedTuple):
    """The info of the kernel of one temperature."""

    acceptance_rate: Array


class TemperingTunerState(NamedTuple):
    """What is learned.

    Attributes:
        inverse_temperatures: [R], in use.
        swap_sum: [R - 1] of the swap rates of this round, with `swap_num` terms each.
        swap_num: [].
        kernels: states of the tuners of the kernels, leading axis R; None where they have nothing to tune.
        due: [] bool, whether step sizes are searched for before the next step.
    """

    inverse_temperatures: Array
    swap_sum: Array
    swap_num: Array
    kernels: StanState | None
    due: Array


class TemperingTuner(eqx.Module):
    """The tuner of `parallel_tempering`.

    Attributes:
        initial: the kernel to start from.
        kernels: a tuner for each temperature, leading axis R; None where there is nothing to tune.
        ends: [NUM_ROUNDS] int32, the last step of each round of temperatures, or -1.
    """

    initial: Any
    kernels: StanTuner | None
    ends: Int[Array, " rounds"]

    def begin(self, positions: PyTree) -> TemperingTunerState:
        """The kernel's own temperatures, step sizes and matrices."""
        betas = self.initial.inverse_temperatures
        zeros, no = jnp.zeros_like(betas[1:]), jnp.zeros((), bool)
        if self.kernels is None:
            return TemperingTunerState(betas, zeros, zeros[0], None, no)
        kernels = eqx.filter_vmap(lambda tuner: tuner.begin(positions))(self.kernels)
        return TemperingTunerState(betas, zeros, zeros[0], kernels, kernels.due[0])

    def prepare(self, key: PRNGKey, trial: Trial, state: TemperingTunerState) -> TemperingTunerState:
        """Step sizes of the right order: `StanTuner.search` for all temperatures at once."""
        kernels = state.kernels
        if kernels is None or self.kernels is None:
            return state._replace(due=jnp.zeros((), bool))
        aim, first, factors = self.kernels.target_accept, jnp.exp(kernels.averaging.log_step), kernels.factor
        bound = jnp.exp(jnp.full_like(first, LARGEST_LOG_STEP))

        def body(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            number, sizes, upwards, crossed = carry
            doubled = jnp.clip(jnp.where(upwards, sizes * 2, sizes * 0.5), 1 / bound, bound)
            sizes = jnp.where((number == 0) | crossed, sizes, doubled)
            short = eqx.filter_vmap(lambda tuner, size, factor: tuner.initial.tuned(size, factor).short())
            made = trial(jax.random.fold_in(key, number), self._watched(short(self.kernels, sizes, factors), state))
            rates = made.infos.acceptance_rates
            high = jax.vmap(pooled_mean, (1, None))(rates, made.use) > aim.astype(rates.dtype)
            upwards = jnp.where(number == 0, high, upwards)
            # Where the prior is drawn from no kernel runs, and there is nothing to search for.
            return number + 1, sizes, upwards, crossed | (high != upwards) | jnp.all(jnp.isnan(rates), axis=0)

        def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
            return (carry[0] <= MAX_DOUBLINGS) & ~jnp.all(carry[3])

        no = jnp.zeros(first.shape, bool)
        _, sizes, _, _ = jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), first, no, no))
        averaging = jax.vmap(start_averaging)(sizes)
        kernels = kernels._replace(averaging=averaging, due=jnp.zeros_like(kernels.due))
        return state._replace(kernels=kernels, due=jnp.zeros((), bool))

    def kernel(self, state: TemperingTunerState) -> Watched:
        """With what is to be tried next."""
        if self.kernels is None:
            return self._watched(self.initial.kernel, state)
        return self._watched(eqx.filter_vmap(lambda tuner, s: tuner.kernel(s))(self.kernels, state.kernels), state)

    def update(self, transition: Transition, state: TemperingTunerState) -> TemperingTunerState:
        """Step sizes and moments after every step, temperatures after a round."""
        use, rates = transition.use, transition.infos.swap_rates
        swap_sum = state.swap_sum + jax.vmap(pooled_mean, (1, None))(rates, use).astype(state.swap_sum.dtype)
        swap_num = state.swap_num + jnp.minimum(tree_sum(use.astype(state.swap_num.dtype)), 1)
        at_end = jnp.any(transition.index == self.ends) & (swap_num > 0)
        tuned = tuned_inverse_temperatures(state.inverse_temperatures, 1 - swap_sum / jnp.maximum(swap_num, 1))
        betas = jnp.where(at_end, tuned, state.inverse_temperatures)
        swap_sum, swap_num = jnp.where(at_end, 0, swap_sum), jnp.where(at_end, 0, swap_num)
        if self.kernels is None:
            return TemperingTunerState(betas, swap_sum, swap_num, None, state.due)

        def one(tuner: StanTuner, state: StanState, rates: Float[Array, " n"], positions: PyTree) -> StanState:
            # Where no kernel ran, its step size stays.
            rates = jnp.where(jnp.all(jnp.isnan(rates)), tuner.target_accept.astype(rates.dtype), rates)
            return tuner.update(
                Transition(transition.index, _Rate(rates), positions, positions, use, transition.over), state
            )

        infos = transition.infos
        positions = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), infos.positions)
        kernels = eqx.filter_vmap(one)(self.kernels, state.kernels, infos.acceptance_rates.T, positions)
        return TemperingTunerState(betas, swap_sum, swap_num, kernels, kernels.due[0])

    def result(self, state: TemperingTunerState) -> Any:
        """With the last temperatures, and the averages of the step sizes."""
        kernels = self.initial.kernel
        if self.kernels is not None:
            kernels = eqx.filter_vmap(lambda tuner, s: tuner.result(s))(self.kernels, state.kernels)
        return self.initial.with_kernels(kernels, state.inverse_temperatures)

    def _watched(self, kernels: Any, state: TemperingTunerState) -> Watched:
        return Watched(self.initial.with_kernels(kernels, state.inverse_temperatures))


def tempering_tuner(tempering: Any, num_steps: int, target_accept: float | None) -> TemperingTuner:
    """The tuner of `parallel_tempering`, as `HasTuner.tuner`."""
    inner = tempering.kernel
    kernels = None
    # A tuner of the kernel's own would make trials of its own kernel, and not of tempering.
    if isinstance(inner, TunableKernel) and not isinstance(inner, HasTuner):
        refuse_rank(inner)
        kernels = eqx.filter_vmap(lambda kernel: stan_tuner(kernel, num_steps, target_accept))(inner)
    lengths = [num_steps // 2**k for k in range(NUM_ROUNDS, 0, -1)]
    ends = [length - 1 if length >= SHORTEST_ROUND else -1 for length in lengths]
    return TemperingTuner(tempering, kernels, jnp.asarray(ends, jnp.int32))
