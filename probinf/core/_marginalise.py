r"""`marginalise`: sums discrete sites out of a target, exactly; `draw_marginalised`: draws them given the rest.

With p the prior and L the likelihood of the whole, $\bar p(x) = \sum_z p(x, z)$ is the prior of what is left, and
$\bar L(x) = \sum_z p(x, z) L(x, z) / \bar p(x)$, the mean of L under $p(z \mid x)$, its likelihood.
"""

import math
from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from probinf.core._arguments import names_of_sites
from probinf.core._choices import categorical
from probinf.core._effects import choose
from probinf.core._kernel import evaluate, point_log_density
from probinf.core._support import IntegerInterval
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey

MAX_COMBINATIONS = 2**16


class _Combinations(eqx.Module):
    """All values of some sites."""

    supports: dict[str, IntegerInterval]

    @property
    def count(self) -> int:
        """How many there are, with those of elements that have fewer values than others of their site."""
        return math.prod(support.num_values ** math.prod(support.shape) for support in self.supports.values())

    def values(self, index: Int[Array, ""]) -> tuple[dict[str, Array], Array]:
        """Combination `index`, and whether it is inside the support."""
        values, inside = {}, jnp.ones((), bool)
        for name, support in self.supports.items():
            size, base = math.prod(support.shape), support.num_values
            powers = jnp.asarray([base**i for i in range(size)], index.dtype)
            steps = (index // powers % base).reshape(support.shape).astype(support.lower.dtype)
            index = index // base**size
            inside &= jnp.all(support.lower + steps <= support.upper)
            # The density need not be defined outside.
            values[name] = jnp.minimum(support.lower + steps, support.upper)
        return values, inside


class _Terms(eqx.Module):
    """The log prior, log likelihood and log density at all combinations; -inf outside the support."""

    target: Target
    combinations: _Combinations

    def __call__(self, position: dict[str, Array]) -> tuple[Array, Array, Array]:
        def term(index: Array) -> tuple[Array, Array, Array]:
            values, inside = self.combinations.values(index)
            point = evaluate(self.target, {**position, **values}, gradient=False)
            log_prior = jnp.where(inside, point.log_prior, -jnp.inf)
            log_density = jnp.where(inside, point_log_density(self.target, point), -jnp.inf)
            return log_prior, jnp.where(inside, point.log_likelihood, 0), log_density

        return jax.vmap(term)(jnp.arange(self.combinations.count, dtype=jnp.int32))


class _MarginalPrior(eqx.Module):
    terms: _Terms

    def __call__(self, position: dict[str, Array]) -> Float[Array, ""]:
        return jax.nn.logsumexp(self.terms(position)[0])


class _MarginalLikelihood(eqx.Module):
    terms: _Terms

    def __call__(self, position: dict[str, Array]) -> Float[Array, ""]:
        log_prior, log_likelihood, _ = self.terms(position)
        total = jax.nn.logsumexp(log_prior)
        # Where no combination is possible the prior is zero, and the likelihood free.
        known = jnp.where(total == -jnp.inf, 0, total)
        return jax.nn.logsumexp(log_prior + log_likelihood) - known


class _Without(eqx.Module):
    """Draws of the prior without some sites."""

    target: Target
    sites: tuple[str, ...] = eqx.field(static=True)

    def __call__(self, key: PRNGKey) -> dict[str, Array]:
        return {name: value for name, value in self.target.draw_prior(key).items() if name not in self.sites}


def marginalise(target: Target, sites: Iterable[str]) -> Target:
    """The target of the other sites, with discrete sites of finite support summed out exactly.

    Its density is the sum of that of `target` over all values of `sites`, so that `nuts` runs on what is left.
    Positions lack the sites, and samples are the (unconstrained) positions: `draw_marginalised` draws the sites for
    each, and `target.constrain` of that is what users see. Prior and likelihood are the marginal ones, so at another
    inverse temperature the marginal likelihood is raised to it, not the joint one. All combinations are evaluated at
    once; the elements of an array count each, so for many independent ones (the assignments of a mixture) sum inside
    the model, as `MixtureSameFamily` does, or use `gibbs`.

    Args:
        target: with `supports` of the sites and positions that are dicts, such as `Target.from_numpyro` gives.
        sites: names of discrete sites.

    Returns:
        The marginal target, of the same inverse temperature, with the supports of the sites that are left.

    Raises:
        ValueError: a site has no known support, `sites` is empty or names one twice, or there are over 65536
            combinations.
        TypeError: `sites` is no sequence of names.
    """
    names = _checked(target, sites)
    terms = _Terms(target, _combinations(target, names))
    return Target(
        log_likelihood=_MarginalLikelihood(terms),
        log_prior=_MarginalPrior(terms),
        sample_prior=None if target.sample_prior is None else _Without(target, names),
        inverse_temperature=target.inverse_temperature,
        supports={name: support for name, support in target.supports.items() if name not in names},
    )


def draw_marginalised(key: PRNGKey, target: Target, sites: Iterable[str], position: Position) -> dict[str, Array]:
    """Draws discrete sites from their exact joint law given the other sites.

    For one position; `jax.vmap` or `jax.lax.map` it over the draws of `sample`. A density of NaN makes the probability
    of its combination zero; where all are, the first combination is given.

    Args:
        key: PRNG key.
        target: the whole target, not the marginal one; the law is that of its inverse temperature.
        sites: as for `marginalise`.
        position: dict of the other sites.

    Returns:
        The whole position; `target.constrain` of it is what users see.

    Raises:
        ValueError: as `marginalise`, or `position` has one of the sites.
        TypeError: `position` is no dict.
    """
    names = _checked(target, sites)
    if not isinstance(position, dict):
        raise TypeError(f"`position` must be a dict of the other sites, but is a {type(position).__name__}")
    given = sorted(set(names) & set(position))
    if given:
        raise ValueError(f"`position` has the sites {given}, which are to be drawn: leave them out")
    combinations = _combinations(target, names)
    log_density = _Terms(target, combinations)(position)[2]
    log_density = jnp.where(jnp.isnan(log_density), -jnp.inf, log_density)
    largest = jnp.max(log_density)
    weights = jnp.exp(log_density - jnp.where(jnp.isfinite(largest), largest, 0))
    first = (jnp.arange(weights.shape[0]) == 0).astype(weights.dtype)
    weights = jnp.where(largest == -jnp.inf, first, weights)
    values, _ = combinations.values(choose(key, categorical, weights[None])[0])
    return {**position, **values}


def _combinations(target: Target, names: tuple[str, ...]) -> _Combinations:
    return _Combinations({name: target.supports[name] for name in names})


def _checked(target: Target, sites: Iterable[str]) -> tuple[str, ...]:
    names = tuple(sorted(names_of_sites(sites, "['z']", "discrete site")))
    unknown = [name for name in names if name not in target.supports]
    if unknown:
        raise ValueError(
            f"`sites` has {unknown}, but the target tells the supports of {sorted(target.supports)} only: name those, "
            "or give `supports` to `Target`"
        )
    count = _combinations(target, names).count
    if count > MAX_COMBINATIONS:
        supports = {name: target.supports[name] for name in names}
        sizes = ", ".join(f"{name}: {s.num_values} values, shape {s.shape}" for name, s in supports.items())
        raise ValueError(
            f"`sites` ({sizes}) have about 10^{math.log10(count):.0f} combinations of values, but at most "
            f"{MAX_COMBINATIONS} are summed: marginalise fewer sites, sum inside the model (e.g. by "
            "`MixtureSameFamily`), or draw them with `gibbs`"
        )
    return names
