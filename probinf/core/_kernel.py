r"""`Kernel`: the protocol of Markov kernels, and the evaluated point that their states carry."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probinf.core._target import Target, temper
from probinf.core._types import Position, PRNGKey


class Point(NamedTuple):
    """A position with what the target said there, prior and likelihood apart (so tempering costs nothing).

    Attributes:
        position: pytree.
        log_prior, log_likelihood: scalars.
        grad_log_prior, grad_log_likelihood: pytrees like `position`, or None for kernels without gradients.
    """

    position: Any
    log_prior: Array
    log_likelihood: Array
    grad_log_prior: Any
    grad_log_likelihood: Any


@runtime_checkable
class Kernel(Protocol):
    r"""A Markov kernel $K$ that leaves the target invariant: $\pi K = \pi$.

    An `equinox.Module` whose tunables (step size, inverse mass matrix) are array leaves, so that tuning never
    recompiles. `init` evaluates a position; `step` is one transition. Both are pure, and work under `jit` and
    `vmap`. A state has at least `position` and `status` (the OR of the bits of all steps so far); `info` is a
    NamedTuple of per-step arrays with at least `acceptance_rate` and `status` (the bits of this step).
    """

    def init(self, key: PRNGKey, target: Target, position: Position) -> Any:
        """The state at `position`."""
        ...

    def step(self, key: PRNGKey, target: Target, state: Any) -> tuple[Any, Any]:
        """One transition: `(state, info)`."""
        ...


def evaluate(target: Target, position: Position, *, gradient: bool) -> Point:
    """Evaluates the target once at `position`, with gradients if asked.

    Raises:
        ValueError: `log_prior` or `log_likelihood` of the target is not a scalar.
    """
    prior, likelihood = _scalar("log_prior", target.log_prior), _scalar("log_likelihood", target.log_likelihood)
    if not gradient:
        return Point(position, prior(position), likelihood(position), None, None)
    log_prior, grad_log_prior = jax.value_and_grad(prior)(position)
    log_likelihood, grad_log_likelihood = jax.value_and_grad(likelihood)(position)
    return Point(position, log_prior, log_likelihood, grad_log_prior, grad_log_likelihood)


def _scalar(name: str, function: Callable[[Any], Array]) -> Callable[[Any], Array]:
    def checked(position: Position) -> Array:
        value = function(position)
        if jnp.shape(value) != ():
            raise ValueError(
                f"`{name}` of the target returned an array of shape {jnp.shape(value)}, but must return a scalar: sum "
                "the log densities of the data with `jnp.sum`"
            )
        return value

    return checked


def point_log_density(target: Target, point: Point) -> Float[Array, ""]:
    """The log density at an evaluated point, at the target's temperature; -inf stays -inf at temperature zero."""
    return temper(target, point.log_prior, point.log_likelihood)


def point_gradient(target: Target, point: Point) -> Position:
    """The gradient of the log density at an evaluated point, at the target's temperature."""
    beta = target.inverse_temperature

    def combine(a: Array, b: Array) -> Array:
        return a + jnp.where(beta == 0, 0, beta.astype(b.dtype) * b)

    return jax.tree.map(combine, point.grad_log_prior, point.grad_log_likelihood)
