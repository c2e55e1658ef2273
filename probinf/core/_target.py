r"""`Target`: the measure $\pi(dx) \propto p(x) L(x)^{\lambda} dx$ on an unconstrained pytree."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probinf.core._support import IntegerInterval
from probinf.core._types import Position, PRNGKey


def flat_prior(position: Position) -> Float[Array, ""]:
    """Log density zero everywhere: the prior of a `Target` that was given none."""
    floating = [leaf for leaf in jax.tree.leaves(position) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.zeros((), jnp.result_type(*floating) if floating else float)


def _same(position: Position) -> Position:
    return position


def raised(inverse_temperature: Float[Array, "..."], log_likelihood: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log of the likelihood to a power; 0 at temperature zero, whatever the likelihood is."""
    return jnp.where(inverse_temperature == 0, 0, inverse_temperature * log_likelihood)


def temper(target: "Target", log_prior: Float[Array, ""], log_likelihood: Float[Array, ""]) -> Float[Array, ""]:
    """`log_prior + inverse_temperature * log_likelihood`; at temperature zero a likelihood of zero does not count."""
    beta = target.inverse_temperature.astype(log_likelihood.dtype)
    return log_prior + raised(beta, log_likelihood)


class Target(eqx.Module):
    r"""An unnormalised density, prior times likelihood, on an unconstrained pytree.

    Meaning: the measure with log density `log_prior(x) + inverse_temperature * log_likelihood(x)`. Prior and
    likelihood stay apart so that tempering re-evaluates nothing. Data belongs in array leaves (a Module or
    `jax.tree_util.Partial` as callable), not in closures: then new data of the same shape does not recompile.

    Attributes:
        log_likelihood: position -> scalar.
        log_prior: position -> scalar, log-Jacobian of `constrain` included; zero (flat) when not given.
        sample_prior: key -> position; None where the prior cannot be drawn from.
        constrain: position -> the value users see; the identity when not given.
        inverse_temperature: scalar lambda; 1 is the posterior, 0 the prior.
        supports: the range of each discrete site, by its name in positions that are dicts; what `gibbs`, `marginalise`
            and the drawing of starting points go by. Their leaves are integers and have no bijection.
    """

    log_likelihood: Callable[[Any], Array]
    log_prior: Callable[[Any], Array] = flat_prior
    sample_prior: Callable[[Any], Any] | None = None
    constrain: Callable[[Any], Any] = _same
    inverse_temperature: Array = eqx.field(default=1.0, converter=jnp.asarray)
    supports: dict[str, IntegerInterval] = eqx.field(default_factory=dict)

    def __check_init__(self) -> None:
        """Raises `TypeError` for what cannot be called."""
        for name in ("log_likelihood", "log_prior", "sample_prior", "constrain"):
            value = getattr(self, name)
            if not (callable(value) or (value is None and name == "sample_prior")):
                raise TypeError(f"`{name}` is {value!r}; needed a function")
        if not isinstance(self.supports, dict) or not all(
            isinstance(support, IntegerInterval) for support in self.supports.values()
        ):
            raise TypeError(
                f"`supports` is {self.supports!r}; needed a dict such as `{{'z': IntegerInterval(0, 2, shape=(5,))}}`"
            )

    def log_density(self, position: Position) -> Float[Array, ""]:
        """The log density of the (tempered) target at `position`, up to a constant."""
        return temper(self, jnp.asarray(self.log_prior(position)), jnp.asarray(self.log_likelihood(position)))

    def at_temperature(self, inverse_temperature: Any) -> "Target":
        """The same target at another inverse temperature."""
        return Target(
            self.log_likelihood,
            self.log_prior,
            self.sample_prior,
            self.constrain,
            jnp.asarray(inverse_temperature),
            self.supports,
        )

    @staticmethod
    def from_numpyro(model: Callable[..., Any], *args: Any, **kwargs: Any) -> "Target":
        """The posterior of a NumPyro model given `args` and `kwargs`. See `probinf.core._numpyro`."""
        from probinf.core._numpyro import target_from_numpyro

        return target_from_numpyro(model, *args, **kwargs)

    def draw_prior(self, key: PRNGKey) -> Position:
        """One draw of the prior.

        Raises:
            ValueError: the target has no `sample_prior`.
        """
        if self.sample_prior is None:
            raise ValueError("this `Target` has no `sample_prior`: pass one, or give starting points yourself")
        return self.sample_prior(key)
