r"""How well do the predictors explain the disease at all? The evidence of the diabetes regression by tempered SMC.

The model of `_tour_regression`, with $\beta = \sqrt{v} \sigma u$, $u \sim N(0, I)$, and $z = \log \sigma^2$ in place of
$\beta$ and $\sigma^2$; the evidence does not depend on the names of the parameters. With $X^T X = R^T R$ and least
squares $\hat\beta$,

$$\log L = -\tfrac n2 \log(2 \pi \sigma^2) - \tfrac12 \lVert R (\sqrt{v} u - \hat\beta / \sigma) \rVert^2
           - \tfrac12 S / \sigma^2, \quad S = \lVert y - X \hat\beta \rVert^2.$$

Tempered SMC: Del Moral, Doucet, Jasra (2006).
"""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probinf import samplers
from probinf.core import Target
from probinf.experiments import _tour_regression as regression
from probinf.experiments._claims import Claim, compare
from probinf.experiments._page import Part, Section, Table
from probinf.experiments._workspace import Workspace

NUM_RUNS, NUM_PARTICLES = 16, 2048


class Likelihood(eqx.Module):
    """Of the regression, from its sufficient statistics.

    Attributes:
        root: R [d, d], upper triangular with R^T R = X^T X.
        centre: least squares [d].
        residual: S.
        count: n.
    """

    root: Float[Array, "d d"]
    centre: Float[Array, " d"]
    residual: Float[Array, ""]
    count: Float[Array, ""]

    def __call__(self, position: Mapping[str, Array]) -> Float[Array, ""]:
        log_variance = position["log_variance"]
        misfit = self.root @ (
            math.sqrt(regression.PRIOR_VARIANCE) * position["scaled"] - self.centre * jnp.exp(-log_variance / 2)
        )
        squares = jnp.sum(misfit * misfit) + self.residual * jnp.exp(-log_variance)
        return -0.5 * (self.count * (math.log(2 * math.pi) + log_variance) + squares)


def log_prior(position: Mapping[str, Array]) -> Float[Array, ""]:
    """Standard normal, and the logarithm of an inverse gamma variable."""
    shape, rate = regression.PRIOR_SHAPE, regression.PRIOR_RATE
    scaled, log_variance = position["scaled"], position["log_variance"]
    variance = shape * math.log(rate) - math.lgamma(shape) - shape * log_variance - rate * jnp.exp(-log_variance)
    return variance - 0.5 * jnp.sum(scaled * scaled + math.log(2 * math.pi))


def target(data: regression.Problem) -> Target:
    """The posterior of the regression, in JAX's default precision."""
    dtype, dimension = jnp.zeros(()).dtype, data.design.shape[1]
    centre, residual, *_ = np.linalg.lstsq(data.design, data.response)
    root = np.linalg.qr(data.design, mode="r")
    numbers = [jnp.asarray(np.asarray(x), dtype) for x in (root, centre, residual.squeeze(), len(data.response))]

    def sample_prior(key: jax.Array) -> dict[str, Array]:
        normal_key, gamma_key = jax.random.split(key)
        gamma = jax.random.gamma(gamma_key, regression.PRIOR_SHAPE, dtype=dtype)
        return {
            "scaled": jax.random.normal(normal_key, (dimension,), dtype),
            "log_variance": math.log(regression.PRIOR_RATE) - jnp.log(gamma),
        }

    return Target(Likelihood(*numbers), log_prior, sample_prior)


def run(config: Any, workspace: Workspace) -> Part:
    """Independent runs of tempered SMC, and the exact evidence."""
    data = regression.problem()
    exact = regression.solve(data).log_evidence
    workspace.say(f"evidence: {NUM_RUNS} runs of tempered SMC with {NUM_PARTICLES:,} particles")
    out = draw(jax.random.fold_in(jax.random.key(config.seed), 2), target(data))
    metrics = measure(np.asarray(out.log_evidence), exact) | {
        "num_temperatures": [int(np.min(out.schedule.num_temperatures)), int(np.max(out.schedule.num_temperatures))],
    }
    section = Section(
        "Diabetes: the evidence by tempered SMC",
        (
            "The probability of the data under the whole model, which compares it with other models, is an integral "
            "over all coefficients that a Markov chain does not give. Particles that start from the prior and move to "
            "the posterior through intermediate temperatures do: the evidence is the product of what the reweightings "
            "leave.",
        ),
        (_table(metrics),),
    )
    return Part(metrics, section)


def draw(key: jax.Array, posterior: Target) -> samplers.SMCResult:
    """Independent runs as one program; a leading axis of `NUM_RUNS` on every leaf."""

    def one(run_key: jax.Array) -> samplers.SMCResult:
        # The predictors are correlated: a dense matrix.
        kernel = samplers.hmc(0.75, num_steps=2, dense=True, jitter=False)
        return samplers.tempered_smc(run_key, posterior, num_particles=NUM_PARTICLES, kernel=kernel, throw=False)

    return jax.jit(jax.vmap(one))(jax.random.split(key, NUM_RUNS))


def measure(log_evidence: np.ndarray, exact: float) -> dict[str, Any]:
    """The ratio of the estimates to the exact evidence, with its error and verdict."""
    log_ratios = log_evidence.astype(np.float64) - exact
    found = compare(np.exp(np.minimum(log_ratios, 50.0))[:, None], np.ones(1))
    return {
        "exact": exact,
        "log_evidence": exact + math.log(found.mean[0]) if found.mean[0] > 0 else math.nan,
        "log_sd": float(log_ratios.std(ddof=1)),
        "ratio": float(found.mean[0]),
        "standard_error": float(found.standard_error[0]),
        "worst": found.worst,
        "bound": found.bound,
        "holds": found.holds,
    }


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """The claim about the evidence."""
    ratio, error = _or_nan(metrics["ratio"]), _or_nan(metrics["standard_error"])
    return (
        Claim(
            "Tempered SMC's evidence of the regression is the exact one.",
            f"log evidence {metrics['exact']:,.2f}, exact (normal-inverse-gamma)",
            f"{_or_nan(metrics['log_evidence']):,.2f}; ratio of the evidences {ratio:.3f} ± {error:.3f}",
            f"mean of {NUM_RUNS} runs with {NUM_PARTICLES:,} particles; |z| = {_or_nan(metrics['worst']):.2f} (bound "
            f"{metrics['bound']:.2f})",
            metrics["holds"],
        ),
    )


def _table(metrics: Mapping[str, Any]) -> Table:
    least, most = metrics["num_temperatures"]
    steps = f"{least}" if least == most else f"{least} to {most}"
    ratio = metrics["ratio"] or math.nan  # all weights zero in all runs
    rows = (
        ("exact", f"{metrics['exact']:,.3f}", "", ""),
        (
            f"tempered SMC, {NUM_RUNS} runs",
            f"{metrics['log_evidence']:,.3f}",
            f"{metrics['standard_error'] / ratio:.3f}",
            f"{metrics['log_sd']:.3f}",
        ),
    )
    caption = f"Log evidence; SMC passed through {steps} temperatures from the prior to the posterior."
    return Table(caption, ("", "log evidence", "± s.e.", "sd of one run"), rows)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
