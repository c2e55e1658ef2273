r"""Linear regressions of posteriordb: $y \sim N(X \beta, \sigma)$ with flat, normal or Student t priors.

The likelihood is written in raw units, as in the reference, so the coefficients can be strongly correlated: sample with
a dense mass matrix. Gelman and Hill (2007), "Data Analysis Using Regression and Multilevel/Hierarchical Models".
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

Column = Float[Array, " n"]


def _regress(response: Column, columns: Sequence[Column], sigma_prior: dist.Distribution) -> None:
    """`response` on a constant and `columns`, with flat coefficients `beta`."""
    design = jnp.stack([jnp.ones_like(response), *columns], axis=1)
    beta = jnp.asarray(numpyro.sample("beta", dist.ImproperUniform(constraints.real, (), design.shape[1:])))
    sigma = numpyro.sample("sigma", sigma_prior)
    numpyro.sample("y", dist.Normal(design @ beta, sigma), obs=response)


def _flat_positive() -> dist.Distribution:
    return dist.ImproperUniform(constraints.positive, (), ())


def kidscore_momiq(*, kid_score: Column, mom_iq: Column) -> None:
    """A child's test score on the mother's IQ; sigma ~ Cauchy+(0, 2.5), beta[2] flat."""
    _regress(kid_score, [mom_iq], dist.HalfCauchy(2.5))


def kidscore_interaction(*, kid_score: Column, mom_hs: Column, mom_iq: Column) -> None:
    """A child's test score on high school, IQ and their product; sigma ~ Cauchy+(0, 2.5), beta[4] flat."""
    _regress(kid_score, [mom_hs, mom_iq, mom_hs * mom_iq], dist.HalfCauchy(2.5))


def logearn_interaction(*, earn: Column, height: Column, male: Column) -> None:
    """The logarithm of earnings on height, sex and their product; beta[4] and sigma > 0 flat."""
    _regress(jnp.log(earn), [height, male, height * male], _flat_positive())


def logmesquite(
    *,
    weight: Column,
    diam1: Column,
    diam2: Column,
    canopy_height: Column,
    total_height: Column,
    density: Column,
    group: Column,
) -> None:
    """The log weight of a mesquite bush on five log sizes and its group; beta[7] and sigma > 0 flat."""
    sizes = [diam1, diam2, canopy_height, total_height, density]
    _regress(jnp.log(weight), [*map(jnp.log, sizes), group], _flat_positive())


def nes(
    *,
    partyid7: Column,
    real_ideo: Column,
    race_adj: Column,
    age_discrete: Column,
    educ1: Column,
    gender: Column,
    income: Column,
) -> None:
    """Party identification on ideology, race, age group (1 is the base), education, sex, income; all flat, beta[9]."""
    ages = [(age_discrete == group).astype(partyid7.dtype) for group in (2, 3, 4)]
    _regress(partyid7, [real_ideo, race_adj, *ages, educ1, gender, income], _flat_positive())


def blr(*, X: Float[Array, "n d"], y: Column) -> None:
    """Bayesian linear regression without a constant: beta[d] ~ N(0, 10), sigma ~ N+(0, 10)."""
    beta = jnp.asarray(numpyro.sample("beta", dist.Normal(0.0, 10.0).expand(X.shape[1:]).to_event(1)))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def diamonds(*, X: Float[Array, "n d"], Y: Column) -> None:
    """Log price of diamonds on centred columns: b[d - 1] ~ N(0, 1), Intercept ~ t_3(8, 10), sigma ~ t+_3(0, 10).

    The first column of `X`, a constant, is left out; `b_Intercept` is the intercept of the columns as given.
    """
    means = jnp.mean(X[:, 1:], axis=0)
    b = jnp.asarray(numpyro.sample("b", dist.Normal(0.0, 1.0).expand(means.shape).to_event(1)))
    intercept = jnp.asarray(numpyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0)))
    sigma = numpyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    numpyro.deterministic("b_Intercept", intercept - means @ b)
    numpyro.sample("y", dist.Normal(intercept + (X[:, 1:] - means[None, :]) @ b, sigma), obs=Y)
