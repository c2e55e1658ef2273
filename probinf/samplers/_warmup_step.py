r"""A step of warm-up: tunes the step size and the matrix of a kernel, as Stan does, but pooled over all chains.

All chains share one step size and one matrix: the acceptance rate fed to dual averaging is the mean over the chains
that are healthy (no fatal status), and the moments are of the positions of all of them. So 64 chains learn a matrix in
a sixty-fourth of the steps, and a chain that is stuck at NaN disturbs no other. Formulas: `_adaptation`.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from probinf.core._kernel import Kernel
from probinf.core._status import is_fatal
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._adaptation import (
    LARGEST_LOG_STEP,
    DualAveraging,
    Welford,
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
from probinf.samplers._initial import step_chains

MAX_DOUBLINGS = 100


@runtime_checkable
class TunableKernel(Kernel, Protocol):
    """A kernel that `warmup` can tune; any other is only run.

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


def check_tunable(what: str, kernel: Any) -> None:
    """Raises `TypeError` for what is no `TunableKernel`."""
    names = ("init", "step", "step_size", "factor", "dense", "default_target_accept", "tuned", "short")
    missing = [name for name in names if not hasattr(kernel, name)]
    if isinstance(kernel, type) or missing:
        raise TypeError(
            f"`kernel` is {kernel!r}, in which `{what}` finds nothing to tune (no {', '.join(missing) or 'instance'}): "
            "pass `hmc()`, `random_walk()`, `mala()` or another `TunableKernel`"
        )


class WarmupState(NamedTuple):
    """What warm-up carries.

    Attributes:
        chains: kernel states, leading axis num_chains.
        averaging: of the step size.
        welford: moments of the present window.
        factor: in use.
        search_due: [] bool, whether the step size is searched for before the next step.
    """

    chains: Any
    averaging: DualAveraging
    welford: Welford
    factor: Array
    search_due: Array


class WarmupStep(eqx.Module):
    """One step of warm-up of all chains; `run_steps` runs it."""

    kernel: Any
    target: Target
    windows: Windows
    target_accept: Float[Array, ""]
    mesh: jax.sharding.Mesh | None = eqx.field(static=True)

    def __call__(self, key: PRNGKey, index: Int[Array, ""], state: WarmupState) -> tuple[WarmupState, Array]:
        """The next state, and the pooled acceptance rate."""
        key_search, key_step = jax.random.split(key)
        # In a lambda, since `cond` hashes its branches and a bound method of a module with arrays has no hash.
        averaging = jax.lax.cond(
            state.search_due, lambda k, s: self._restarted(k, s), lambda _, s: s.averaging, key_search, state
        )
        kernel = self.kernel.tuned(jnp.exp(averaging.log_step), state.factor)
        chains, acceptance = self._advance(key_step, kernel, state.chains)
        averaging = update_averaging(averaging, acceptance, self.target_accept)

        learning = (index >= self.windows.start) & (index < self.windows.stop)
        use = gather(~is_fatal(chains.status), self.mesh) & learning
        welford = update_welford(state.welford, gather(as_rows(chains.position), self.mesh), use)
        at_end = jnp.any(index == self.windows.ends)
        factor = jax.lax.cond(at_end, regularised_factor, lambda _, old: old, welford, state.factor)
        welford = jax.tree.map(lambda a: jnp.where(at_end, jnp.zeros_like(a), a), welford)
        return WarmupState(chains, averaging, welford, factor, at_end), acceptance

    def _advance(self, key: PRNGKey, kernel: Any, chains: PyTree) -> tuple[PyTree, Float[Array, ""]]:
        chains, info = step_chains(key, kernel, self.target, chains)
        healthy = gather(~is_fatal(chains.status), self.mesh)
        return chains, _mean(gather(info.acceptance_rate, self.mesh), healthy)

    def _restarted(self, key: PRNGKey, state: WarmupState) -> DualAveraging:
        """Doubles or halves the step size until the acceptance of a short move crosses the target.

        At most 100 times, after which dual averaging goes on from what was reached; so a constant density, where
        nothing is ever rejected, ends the search too.
        """
        bound = jnp.exp(jnp.full_like(state.averaging.log_step, LARGEST_LOG_STEP))

        # The first turn only finds the direction: so the move is compiled once.
        def body(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            number, step_size, upwards, _ = carry
            doubled = jnp.clip(jnp.where(upwards, step_size * 2, step_size * 0.5), 1 / bound, bound)
            step_size = jnp.where(number == 0, step_size, doubled)
            kernel = self.kernel.tuned(step_size, state.factor).short()
            _, rate = self._advance(jax.random.fold_in(key, number), kernel, state.chains)
            high = rate > self.target_accept.astype(rate.dtype)
            upwards = jnp.where(number == 0, high, upwards)
            return number + 1, step_size, upwards, high != upwards

        def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
            return (carry[0] <= MAX_DOUBLINGS) & ~carry[3]

        no = jnp.zeros((), bool)
        start = (jnp.zeros((), jnp.int32), jnp.exp(state.averaging.log_step), no, no)
        return start_averaging(jax.lax.while_loop(unfinished, body, start)[1])


def gather(values: Array, mesh: jax.sharding.Mesh | None) -> Array:
    """The array on every device of the mesh, so that what is computed from it is the same on any number of them."""
    if mesh is None:
        return values
    return jax.lax.with_sharding_constraint(values, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def _mean(values: Float[Array, " n"], use: Bool[Array, " n"]) -> Float[Array, ""]:
    return tree_sum(jnp.where(use, values, 0)) / jnp.maximum(tree_sum(use.astype(values.dtype)), 1)


@eqx.filter_jit
def start_warmup(kernel: Any, chains: PyTree) -> WarmupState:
    """The state of a warm-up that starts from the kernel's own step size and matrix."""
    positions = as_rows(chains.position)
    dimension, dtype = positions.shape[1], positions.dtype
    factor = jnp.ones(dimension, dtype) if kernel.factor is None else kernel.factor.astype(dtype)
    if kernel.dense and factor.ndim == 1:
        factor = jnp.diag(factor)
    averaging = start_averaging(kernel.step_size.astype(dtype))
    welford = start_welford(dimension, dense=kernel.dense, dtype=dtype)
    return WarmupState(chains, averaging, welford, factor, jnp.ones((), bool))


def warmup_step(
    kernel: Any, target: Target, num_steps: int, target_accept: float | None, mesh: jax.sharding.Mesh | None
) -> WarmupStep:
    """The step of a warm-up of `num_steps` steps."""
    accept = kernel.default_target_accept if target_accept is None else target_accept
    return WarmupStep(kernel, target, stan_windows(num_steps), jnp.asarray(accept, float), mesh)


@eqx.filter_jit
def finish_warmup(kernel: Any, state: Any) -> Any:
    """The tuned kernel."""
    return kernel.tuned(jnp.exp(state.averaging.log_average), state.factor)


def check_target_accept(target_accept: float | None) -> None:
    """Raises `ValueError` unless the rate is None or strictly between 0 and 1."""
    if target_accept is not None and not 0 < target_accept < 1:
        raise ValueError(f"`target_accept` must be between 0 and 1, but is {target_accept}: try 0.9")
