r"""`fixed_lag`: smoothing by particles that carry their last states, $E[x_t \mid y_{0:\min(t + L, T - 1)}]$.

Kitagawa, Sato 2001; Olsson, Cappé, Douc, Moulines 2008. The window is copied whenever its particle is, so that the
filter's weights at t + L smooth x_t. Observations after t + L are left out: a bias that falls geometrically in L for
models that forget; the variance grows with L, as fewer and fewer distinct states are left in a window.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from probinf.core import FeynmanKac, PRNGKey, take, whole_number
from probinf.core._feynman_kac import Batched, check_model
from probinf.core._types import Ancestors
from probinf.samplers._filter_result import FilterResult


def fixed_lag(model: FeynmanKac, lag: int) -> "FixedLag":
    """Wraps a model so that a filter on it smooths with a fixed lag.

    Its particles are windows, leaves [N, lag + 1, ...], oldest state first: x_{t-lag} .. x_t, where times before 0
    hold x_0. So `particle_filter(key, fixed_lag(model, 10), ...).mean` holds E[x_{t-lag..t} | y_{0:t}] at each t, and
    `fixed_lag_means` puts these in order of time. The evidence is that of `model`.

    Args:
        model: a `FeynmanKac` in either form; its `look_ahead`, `log_transition`, `log_backward` and `gather` are
            passed on, with the newest state of each window.
        lag: number of later observations L >= 0 that a state is smoothed with.

    Returns:
        A `FeynmanKac` in batch form. Windows cost memory O(N L) and time O(N L) a step.

    Raises:
        ValueError: `lag` is negative.
        TypeError: `lag` is no integer, or `model` no `FeynmanKac`.
    """
    return FixedLag(check_model(model), whole_number("lag", lag))


class FixedLag(FeynmanKac):
    """See `fixed_lag`.

    Attributes:
        model: the model whose states the windows hold.
        lag: number of states a window holds beside the newest.
    """

    batch: ClassVar[bool] = True

    model: FeynmanKac
    lag: int = eqx.field(static=True)

    @property
    def traceable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the model may run under `jit`."""
        return self.model.traceable

    @property
    def num_steps(self) -> int:
        """T."""
        return self.model.num_steps

    @property
    def looks_ahead(self) -> bool:
        """Whether the model does."""
        return self.model.looks_ahead

    def init(self, key: PRNGKey, *num_particles: int) -> PyTree:
        """Draws N windows that hold x_0 throughout."""
        (count,) = num_particles
        x = Batched(self.model).init(key, count)
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], self.lag + 1, axis=1), x)

    def mutate(self, key: PRNGKey, t: int | Array, x: PyTree) -> PyTree:
        """Moves the newest states, and drops the oldest."""
        moved = Batched(self.model).mutate(key, t, newest(x))
        return jax.tree.map(lambda old, new: jnp.concatenate([old[:, 1:], new[:, None]], axis=1), x, moved)

    def log_potential(self, t: int | Array, x_prev: PyTree | None, x: PyTree) -> Array:
        """Log G_t of the newest states."""
        before = None if x_prev is None else newest(x_prev)
        return Batched(self.model).log_potential(t, before, newest(x))

    def log_transition(self, t: int | Array, x_prev: PyTree, x: PyTree) -> Array:
        """The log density of the move of the newest states."""
        return Batched(self.model).log_transition(t, newest(x_prev), newest(x))

    def log_backward(self, t: int | Array, x_prev: PyTree, x: PyTree) -> Array:
        """That of the newest states: for smoothing them, windows are not compared."""
        return Batched(self.model).log_backward(t, newest(x_prev), newest(x))

    def look_ahead(self, t: int | Array, x: PyTree) -> Array:
        """Log psi_t of the newest states."""
        return Batched(self.model).look_ahead(t, newest(x))

    def gather(self, particles: PyTree, ancestors: Ancestors) -> PyTree:
        """Windows[ancestors], by the model's own `gather` if it has one."""
        if type(self.model).gather is FeynmanKac.gather:
            return take(particles, ancestors)
        columns = [
            self.model.gather(jax.tree.map(lambda leaf, i=i: leaf[:, i], particles), ancestors)
            for i in range(self.lag + 1)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *columns)


def newest(windows: PyTree) -> PyTree:
    """The newest state of each window: leaves [N, L + 1, ...] to [N, ...]."""
    return jax.tree.map(lambda leaf: leaf[:, -1], windows)


def fixed_lag_means(out: FilterResult) -> PyTree:
    """The smoothed means of a filter on `fixed_lag(model, lag)`, in order of time.

    Args:
        out: result of `particle_filter(key, fixed_lag(model, lag), ...)`; with `num_replicates` there is an axis R.

    Returns:
        Leaves [T, ...] (or [R, T, ...]): entry t is E[x_t | y_{0:min(t + lag, T - 1)}]; NaN where the filter had no
        weight at time min(t + lag, T - 1).

    Raises:
        TypeError: `out` is no `FilterResult`.
        ValueError: its particles are no windows.
    """
    if not isinstance(out, FilterResult):
        raise TypeError(f"`out` is a {type(out).__name__}; needed what `particle_filter` returns")
    axis = out.ess.ndim - 1
    widths = {leaf.shape[axis + 1] if leaf.ndim > axis + 1 else 0 for leaf in jax.tree.leaves(out.mean)}
    if len(widths) != 1 or 0 in widths:
        raise ValueError("`out` is of a filter without windows: run `particle_filter(key, fixed_lag(model, lag), ...)`")
    lag, num_steps = widths.pop() - 1, out.ess.shape[-1]
    time = jnp.arange(num_steps, dtype=jnp.int32)
    seen = jnp.minimum(time + lag, num_steps - 1)
    place = lag - (seen - time)

    def pick(leaf: Array) -> Array:
        return leaf[:, seen, place] if axis else leaf[seen, place]

    return jax.tree.map(pick, out.mean)
