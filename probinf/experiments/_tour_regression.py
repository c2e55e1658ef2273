r"""Disease progression of 442 diabetes patients: Bayesian regression by HMC and in closed form.

$y \mid \beta, \sigma^2 \sim N(X\beta, \sigma^2 I)$, $\beta \mid \sigma^2 \sim N(0, \sigma^2 v I)$,
$\sigma^2 \sim \mathrm{InverseGamma}(a, b)$. The posterior is normal-inverse-gamma. Data: Efron, Hastie, Johnstone,
Tibshirani (2004), "Least angle regression"; thresholds of the diagnostics: Vehtari, Gelman, Simpson, Carpenter,
Bürkner (2021), "Rank-normalization, folding, and localization: an improved R-hat".
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.stats

from probinf import models, samplers
from probinf.core import Draws, Target
from probinf.experiments._claims import Claim, Comparison, below, compare
from probinf.experiments._data import load
from probinf.experiments._figures import BLUE, CHAINS, INK, ORANGE, canvas
from probinf.experiments._page import Figure, Part, Section, Table
from probinf.experiments._workspace import Workspace

PRIOR_VARIANCE, PRIOR_SHAPE, PRIOR_RATE = 100.0, 2.0, 5000.0
NOISE = "noise variance"
BATCHES = 8  # a chain is cut into so many, whose means serve as replicates
LARGEST_R_HAT, SMALLEST_ESS = 1.01, 400.0


class Problem(NamedTuple):
    """Design [442, 11] with standardised predictors and a first column of ones, and the response [442]."""

    names: tuple[str, ...]
    design: np.ndarray
    response: np.ndarray


class Exact(NamedTuple):
    """Posterior means and standard deviations, [12]: coefficients, then the noise variance; and the evidence."""

    mean: np.ndarray
    sd: np.ndarray
    log_evidence: float


def problem() -> Problem:
    """The diabetes data; a predictor has mean 0 and standard deviation 1."""
    data = load("diabetes")
    predictors, response = data.values[:, :-1], data.values[:, -1]
    standardised = (predictors - predictors.mean(axis=0)) / predictors.std(axis=0)
    ones = np.ones((len(response), 1))
    return Problem(("intercept", *data.columns[:-1]), np.concatenate([ones, standardised], axis=1), response)


def model(design: jax.Array, response: jax.Array) -> None:
    """The regression as a NumPyro model."""
    variance = numpyro.sample("variance", dist.InverseGamma(PRIOR_SHAPE, PRIOR_RATE))
    prior = dist.Normal(0.0, jnp.sqrt(PRIOR_VARIANCE * variance)).expand([design.shape[1]]).to_event(1)
    coefficients = numpyro.sample("coefficients", prior)
    numpyro.sample("response", dist.Normal(design @ coefficients, jnp.sqrt(variance)), obs=response)


def run(config: Any, workspace: Workspace) -> Part:
    """Samples, solves, and compares."""
    data = problem()
    exact = solve(data)
    workspace.say(f"regression: {config.num_chains} chains of {config.num_warmup} + {config.num_samples} HMC steps")
    draws = workspace.keep("regression", draw(data, config, workspace))
    columns = stack(draws)
    means, spreads = compare_moments(columns, exact)
    names = (*data.names, NOISE)
    metrics = {
        "names": names,
        "exact": {"mean": exact.mean, "sd": exact.sd, "log_evidence": exact.log_evidence},
        "ours": {"mean": means.mean, "sd": np.sqrt(spreads.mean)},
        "diagnostics": diagnose(draws),
        "means": _brief(means) | {"error": float(np.max(np.abs(means.mean - exact.mean) / exact.sd))},
        "sds": _brief(spreads) | {"error": float(np.max(np.abs(np.sqrt(spreads.mean) / exact.sd - 1)))},
        "num_draws": columns.shape[0] * columns.shape[1],
    }
    section = Section(
        "Diabetes: Hamiltonian Monte Carlo against the closed form",
        (
            "Ten measurements of 442 patients, and how far their disease went in a year. With a normal prior on the "
            "coefficients, scaled by the unknown noise, and an inverse-gamma prior on the noise variance, the "
            "posterior is known in closed form. The sampler is told none of this: it sees a NumPyro model and "
            "its gradients.",
            "Predictors are standardised, so a coefficient is the change in progression for one standard deviation. "
            "The serum measurements s1 to s5 are strongly correlated, which is what makes the posterior long and thin.",
        ),
        (
            _forest(workspace, names, columns, exact),
            _chains(workspace, names, columns),
            _table(names, least_squares(data), exact, means, spreads, draws.summary()["ess_bulk"]),
        ),
    )
    return Part(metrics, section)


def solve(data: Problem) -> Exact:
    """The closed form, in double precision."""
    with jax.enable_x64(True):
        posterior = models.conjugate_regression(
            jnp.asarray(data.design),
            jnp.asarray(data.response),
            prior_cov=PRIOR_VARIANCE,
            prior_shape=PRIOR_SHAPE,
            prior_rate=PRIOR_RATE,
        )
        mean = np.append(np.asarray(posterior.mean), float(posterior.noise_variance_mean))
        sd = np.append(np.asarray(posterior.sd), float(posterior.noise_variance_sd))
        return Exact(mean, sd, float(posterior.log_evidence))


def draw(data: Problem, config: Any, workspace: Workspace) -> Draws:
    """HMC with a dense mass matrix, in JAX's default precision; goes on where a killed run stopped."""
    dtype = jnp.zeros(()).dtype
    target = Target.from_numpyro(model, jnp.asarray(data.design, dtype), jnp.asarray(data.response, dtype))
    return samplers.sample(
        jax.random.fold_in(jax.random.key(config.seed), 0),
        samplers.hmc(num_steps=config.num_leapfrog, dense=True),
        target,
        num_samples=config.num_samples,
        num_warmup=config.num_warmup,
        num_chains=config.num_chains,
        checkpoint=workspace.checkpoint("regression"),
        progress=workspace.progress,
    )


def stack(draws: Draws) -> np.ndarray:
    """Coefficients and noise variance as [chains, draws, 12], float64."""
    samples = draws.samples
    columns = [samples["coefficients"], np.asarray(samples["variance"])[..., None]]
    return np.concatenate([np.asarray(column, dtype=np.float64) for column in columns], axis=-1)


def compare_moments(columns: np.ndarray, exact: Exact) -> tuple[Comparison, Comparison]:
    """Means, and mean squares about the exact mean (whose expectation is the exact variance), by batches of draws.

    Batches of a chain are taken as independent: they are far longer than its autocorrelation time.
    """
    squares = (columns - exact.mean) ** 2
    return compare(batch_means(columns), exact.mean), compare(batch_means(squares), exact.sd**2)


def diagnose(draws: Draws) -> dict[str, Any]:
    """The worst R-hat and effective sample size, NaN where ArviZ has none (a stuck chain); divergences."""
    summary = draws.summary()
    return {
        "r_hat_largest": float(np.max(summary["r_hat"])),
        "ess_smallest": float(np.min(np.minimum(summary["ess_bulk"], summary["ess_tail"]))),
        "divergences": int(np.sum(draws.info["divergent"])),
        "acceptance": float(np.mean(draws.info["acceptance_rate"])),
    }


def batch_means(columns: np.ndarray) -> np.ndarray:
    """[chains, draws, k] to [chains * BATCHES, k]; draws that do not fill a batch are left out."""
    chains, num_draws, k = columns.shape
    length = num_draws // BATCHES
    if length < 1:
        raise ValueError(f"`num_samples` must be at least {BATCHES} to be cut into batches, got {num_draws}")
    return columns[:, : length * BATCHES].reshape(chains * BATCHES, length, k).mean(axis=1)


def least_squares(data: Problem) -> np.ndarray:
    """The classical answer, [12], for comparison: coefficients and residual variance."""
    coefficients, residual, *_ = np.linalg.lstsq(data.design, data.response)
    return np.append(coefficients, residual / (len(data.response) - len(coefficients)))


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """The claims about the regression."""
    found = metrics["diagnostics"]

    def rule(name: str) -> str:
        worst, bound = _or_nan(metrics[name]["worst"]), metrics[name]["bound"]
        return (
            f"largest |z| of {len(metrics['names'])}: {worst:.2f} (bound {bound:.2f}); errors from batches of "
            f"{metrics['num_draws']:,} draws"
        )

    return (
        Claim(
            "HMC's posterior means are the exact ones.",
            "exact (normal-inverse-gamma; O'Hagan and Forster 2004, chapter 11)",
            f"all within {100 * _or_nan(metrics['means']['error']):.2g} % of a posterior standard deviation",
            rule("means"),
            metrics["means"]["holds"],
        ),
        Claim(
            "HMC's posterior standard deviations are the exact ones.",
            "exact (same)",
            f"all within {100 * _or_nan(metrics['sds']['error']):.2g} %",
            rule("sds"),
            metrics["sds"]["holds"],
        ),
        Claim(
            "The chains have mixed.",
            "R-hat below 1.01 and effective sample size above 400 (Vehtari et al. 2021)",
            f"largest R-hat {_or_nan(found['r_hat_largest']):.4f}, smallest ESS {_or_nan(found['ess_smallest']):,.0f}, "
            f"{found['divergences']} divergences",
            "rank-normalised split R-hat, bulk and tail ESS (ArviZ), over all quantities",
            below(found["r_hat_largest"], LARGEST_R_HAT)
            and _or_nan(found["ess_smallest"]) >= SMALLEST_ESS
            and found["divergences"] == 0,
        ),
    )


def _brief(comparison: Comparison) -> dict[str, Any]:
    return {"worst": comparison.worst, "bound": comparison.bound, "holds": comparison.holds}


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _forest(workspace: Workspace, names: tuple[str, ...], columns: np.ndarray, exact: Exact) -> Figure:
    # The intercept and the noise variance live on scales of their own; the table has them.
    shown = slice(1, len(names) - 1)
    place = np.arange(len(names[shown]))[::-1].astype(float)
    low, middle, high = np.quantile(columns.reshape(-1, columns.shape[-1])[:, shown], (0.05, 0.5, 0.95), axis=0)
    # The exact marginals are Student t with so many degrees of freedom that the normal quantile is right to 0.1 %.
    half = scipy.stats.norm.ppf(0.95) * exact.sd[shown]
    with canvas(height=3.9) as (figure, (axes,)):
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.hlines(place + 0.14, low, high, color=BLUE, linewidth=2.4)
        axes.plot(middle, place + 0.14, "o", color=BLUE, markersize=5, label="HMC")
        axes.hlines(place - 0.14, exact.mean[shown] - half, exact.mean[shown] + half, color=ORANGE, linewidth=2.4)
        axes.plot(exact.mean[shown], place - 0.14, "D", color=ORANGE, markersize=4, label="exact")
        axes.set_yticks(place, names[shown])
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="change in disease progression for one standard deviation of the predictor")
        axes.legend(loc="upper right")
        caption = "Posterior medians and central 90 % intervals of the coefficients, by HMC and in closed form."
        alt = "Forest plot of ten coefficients; the intervals of HMC and of the closed form coincide."
        return workspace.figure("regression-forest", figure, caption=caption, alt=alt)


def _chains(workspace: Workspace, names: tuple[str, ...], columns: np.ndarray) -> Figure:
    chosen = names.index("s1")
    values = columns[..., chosen]
    ranks = scipy.stats.rankdata(values, axis=None).reshape(values.shape)
    edges = np.linspace(0.5, values.size + 0.5, 21)
    with canvas(columns=2, height=2.9) as (figure, (left, right)):
        shown = values[:, -400:]
        for chain, row in enumerate(shown):
            left.plot(row, color=CHAINS[chain % len(CHAINS)], linewidth=0.5, alpha=0.9)
        left.set(title=f"Last {shown.shape[1]} draws of s1, the least identified", xlabel="draw", ylabel="coefficient")
        for chain, row in enumerate(ranks):
            counts, _ = np.histogram(row, bins=edges)
            right.stairs(
                counts,
                edges,
                baseline=None,
                color=CHAINS[chain % len(CHAINS)],
                linewidth=1.2,
                label=f"chain {chain + 1}",
            )
        right.axhline(values.shape[1] / 20, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        right.set(title="Ranks of each chain among all draws", xlabel="rank", ylabel="draws", ylim=(0, None))
        right.legend(ncols=4, loc="lower center")
        caption = "Chains that have mixed look alike, and the ranks of each are uniform (dashed: the expected count)."
        alt = "Left, traces of four chains on top of each other; right, flat rank histograms of four chains."
        return workspace.figure("regression-chains", figure, caption=caption, alt=alt)


def _table(
    names: tuple[str, ...],
    classical: np.ndarray,
    exact: Exact,
    means: Comparison,
    spreads: Comparison,
    ess: np.ndarray,
) -> Table:
    rows = tuple(
        (
            name,
            f"{classical[i]:,.2f}",
            f"{exact.mean[i]:,.2f}",
            f"{means.mean[i]:,.2f}",
            f"{means.standard_error[i]:.3f}",
            f"{means.z[i]:+.2f}",
            f"{exact.sd[i]:,.2f}",
            f"{np.sqrt(spreads.mean[i]):,.2f}",
            f"{spreads.z[i]:+.2f}",
            f"{ess[i]:,.0f}",
        )
        for i, name in enumerate(names)
    )
    columns = ("", "least squares", "exact mean", "HMC mean", "± s.e.", "z", "exact sd", "HMC sd", "z", "ESS")
    caption = "z is a difference from the exact value in standard errors; for sds, of the variance."
    return Table(caption, columns, rows)
