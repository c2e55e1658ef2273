r"""`StanTuner`: step size and matrix of a `TunableKernel`, as Stan learns them, but pooled over all chains.

All chains share one step size and one matrix: the acceptance rate fed to dual averaging is the mean over the chains
that are healthy (no fatal status), and the moments are of the positions of all of them. So 64 chains learn a matrix in
a sixty-fourth of the steps, and a chain that is stuck at NaN disturbs no other. Formulas: `_adaptation`.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from probinf.core._fast_key import fast_key, plain_key
from probinf.core._kernel import Kernel
from probinf.core._types import PRNGKey
from probinf.samplers._adaptation import (
    LARGEST_LOG_STEP,
    DualAveraging,
    Windows,
    regularised_factor,
    stan_windows,
    start_averaging,
    start_welford,
    tree_sum,
    update_averaging,
    update_welford,
)
from probinf.samplers._factor import as_rows
from probinf.samplers._tuner import Transition, Trial, pooled_mean

MAX_DOUBLINGS = 100


@runtime_checkable
class TunableKernel(Kernel, Protocol):
    """A kernel with a step size and a matrix, which `StanTuner` tunes.

    Attributes:
        step_size: [] array leaf.
        factor: `[d]`, `[d, d]` or None.
        dense: whether a full matrix is learned.
        default_target_accept: acceptance rate to aim at.
    """

    @property
    def step_size(self) -> Array: ...
    @property
    def factor(self) -> Any: ...
    @property
    def dense(self) -> bool: ...
    @property
    def default_target_accept(self) -> float: ...

    def tuned(self, step_size: Array, factor: Any) -> "TunableKernel":
        """The same kernel with another step size and factor."""
        ...

    def short(self) -> "TunableKernel":
        """The cheapest kernel whose acceptance tells whether the step size is of the right order."""
        ...


class StanState(NamedTuple):
    """What `StanTuner` learns.

    Attributes:
        averaging: of the step size.
        moments: of the present window.
        factor: in use.
        rate_sum, rate_num: [] acceptance rates of the present step of warm-up.
        due: [] bool, whether the step size is searched for before the next step.
    """

    averaging: DualAveraging
    moments: Any
    factor: Any
    rate_sum: Array
    rate_num: Array
    due: Array


class StanTuner(eqx.Module):
    """The tuner of a `TunableKernel`.

    Attributes:
        initial: the kernel to start from.
        windows: when the matrix is learned.
        target_accept: [] acceptance rate to aim at.
    """

    initial: Any
    windows: Windows
    target_accept: Float[Array, ""]

    def begin(self, positions: PyTree) -> StanState:
        """The kernel's own step size and matrix."""
        rows = as_rows(positions)
        averaging = start_averaging(self.initial.step_size.astype(rows.dtype))
        zero = jnp.zeros((), rows.dtype)
        return StanState(averaging, self.no_moments(rows), self.first_factor(rows), zero, zero, jnp.ones((), bool))

    def first_factor(self, rows: Float[Array, "n d"]) -> Any:
        """The kernel's own, or the identity."""
        factor, dtype = self.initial.factor, rows.dtype
        factor = jnp.ones(rows.shape[1], dtype) if factor is None else factor.astype(dtype)
        return jnp.diag(factor) if self.initial.dense and factor.ndim == 1 else factor

    def no_moments(self, rows: Float[Array, "n d"]) -> Any:
        """Of no positions yet."""
        return start_welford(rows.shape[1], dense=self.initial.dense, dtype=rows.dtype)

    def collect(self, moments: Any, transition: Transition, use: Bool[Array, " n"]) -> Any:
        """With the positions of a transition."""
        return update_welford(moments, as_rows(transition.positions), use)

    def estimate(self, moments: Any, old: Any) -> Any:
        """The factor; the old one where the positions are too few."""
        return regularised_factor(moments, old)

    def prepare(self, key: PRNGKey, trial: Trial, state: StanState) -> StanState:
        """A step size of the right order, from which averaging starts anew."""
        step_size = self.search(key, trial, jnp.exp(state.averaging.log_step), state.factor)
        return state._replace(averaging=start_averaging(step_size), due=jnp.zeros((), bool))

    def search(self, key: PRNGKey, trial: Trial, first: Float[Array, ""], factor: Any) -> Float[Array, ""]:
        """Doubles or halves the step size until the acceptance of a short move crosses the target.

        At most 100 times, after which dual averaging goes on from what was reached; so a constant density, where
        nothing is ever rejected, ends the search too.
        """
        key = fast_key(key)  # once, since a loop may not use up a key of outside
        bound = jnp.exp(jnp.full_like(first, LARGEST_LOG_STEP))

        # The first turn only finds the direction: so the move is compiled once.
        def body(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            number, step_size, upwards, _ = carry
            doubled = jnp.clip(jnp.where(upwards, step_size * 2, step_size * 0.5), 1 / bound, bound)
            step_size = jnp.where(number == 0, step_size, doubled)
            made = trial(plain_key(jax.random.fold_in(key, number)), self.initial.tuned(step_size, factor).short())
            rate = pooled_mean(made.infos.acceptance_rate, made.use)
            high = rate > self.target_accept.astype(rate.dtype)
            upwards = jnp.where(number == 0, high, upwards)
            return number + 1, step_size, upwards, high != upwards

        def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
            return (carry[0] <= MAX_DOUBLINGS) & ~carry[3]

        no = jnp.zeros((), bool)
        start = (jnp.zeros((), jnp.int32), first, no, no)
        return jax.lax.while_loop(unfinished, body, start)[1]

    def kernel(self, state: StanState) -> Any:
        """With the step size to try next."""
        return self.initial.tuned(jnp.exp(state.averaging.log_step), state.factor)

    def update(self, transition: Transition, state: StanState) -> StanState:
        """Moments after every transition; the step size after a step, and the matrix after a window."""
        use, over = transition.use, transition.over
        rates = transition.infos.acceptance_rate.astype(state.rate_sum.dtype)
        rate_sum = state.rate_sum + tree_sum(jnp.where(use & ~jnp.isnan(rates), rates, 0))
        rate_num = state.rate_num + tree_sum(use.astype(rates.dtype))
        updated = update_averaging(state.averaging, rate_sum / jnp.maximum(rate_num, 1), self.target_accept)
        known = over & (rate_num > 0)
        averaging = jax.tree.map(lambda new, old: jnp.where(known, new, old), updated, state.averaging)

        index = transition.index
        learning = (index >= self.windows.start) & (index < self.windows.stop)
        moments = self.collect(state.moments, transition, use & learning)
        at_end = over & jnp.any(index == self.windows.ends)
        # In a lambda, since `cond` hashes its branches and a bound method of a module with arrays has no hash.
        factor = jax.lax.cond(at_end, lambda m, old: self.estimate(m, old), lambda _, old: old, moments, state.factor)
        moments = jax.tree.map(lambda a: jnp.where(at_end, jnp.zeros_like(a), a), moments)
        rate_sum, rate_num = jnp.where(over, 0, rate_sum), jnp.where(over, 0, rate_num)
        return StanState(averaging, moments, factor, rate_sum, rate_num, at_end)

    def result(self, state: StanState) -> Any:
        """With the average of the step sizes."""
        return self.initial.tuned(jnp.exp(state.averaging.log_average), state.factor)


def stan_tuner(kernel: Any, num_steps: int, target_accept: float | None) -> StanTuner:
    """The tuner of a `TunableKernel`, as `HasTuner.tuner`."""
    accept = kernel.default_target_accept if target_accept is None else target_accept
    return StanTuner(kernel, stan_windows(num_steps), jnp.asarray(accept, float))


def check_tunable(what: str, kernel: Any) -> None:
    """Raises `TypeError` for what is no `TunableKernel`."""
    names = ("init", "step", "step_size", "factor", "dense", "default_target_accept", "tuned", "short")
    missing = [name for name in names if not hasattr(kernel, name)]
    if isinstance(kernel, type) or missing:
        raise TypeError(
            f"`kernel` is {kernel!r}, in which `{what}` finds nothing to tune (no {', '.join(missing) or 'instance'}): "
            "pass `hmc()`, `random_walk()`, `mala()` or another `TunableKernel`"
        )
