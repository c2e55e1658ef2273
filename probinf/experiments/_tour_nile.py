r"""The Nile at Aswan, 1871-1970: the local level model by a particle filter and by the Kalman filter.

$x_0 \sim N(0, 10^7)$, $x_t = x_{t-1} + N(0, \sigma_\eta^2)$, $y_t = x_t + N(0, \sigma_\varepsilon^2)$. Durbin and
Koopman (2012), chapter 2; the wide prior is their stand-in for a diffuse one. Missing years and the years to come are
the same thing: observations that are not there.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.optimize
import scipy.stats
from jax.tree_util import Partial

from probinf import models, samplers
from probinf.experiments import _tour_nile_smoothing as smoothing
from probinf.experiments._claims import Claim, Comparison, compare, near
from probinf.experiments._data import load
from probinf.experiments._figures import BLUE, INK, MUTED, ORANGE, canvas
from probinf.experiments._page import Figure, Part, Section, Table
from probinf.experiments._workspace import Workspace

BOOK = "Durbin and Koopman 2012"
PUBLISHED = {"observation": 15099.0, "level": 1469.1}  # variances, section 2.10
INITIAL_VARIANCE = 1e7
DIFFUSE = 1e12  # as good as infinite, and still exact enough in double precision
HORIZON = 10
LEVELS = (0.05, 0.5, 0.95)
GAPS = (slice(20, 40), slice(60, 80))  # observations 21-40 and 61-80, as in figure 2.5 of the book


class Series(NamedTuple):
    """One version of the data with its exact answer and its filters.

    Attributes:
        ys: [T], NaN where missing; the last `HORIZON` are the future.
        mean, sd, log_evidence: exact; [T], [T], scalar.
        found: the filters, leading axis the replicates.
    """

    ys: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    log_evidence: float
    found: samplers.FilterResult

    @property
    def quantiles(self) -> np.ndarray:
        """Exact, [T, len(LEVELS)]."""
        return self.mean[:, None] + self.sd[:, None] * scipy.stats.norm.ppf(LEVELS)

    def compare_means(self, when: slice) -> Comparison:
        """The filtering means at `when`."""
        return compare(np.asarray(self.found.mean)[:, when], self.mean[when])

    def compare_quantiles(self, when: slice) -> Comparison:
        """The quantiles at `when`, side by side."""
        found = np.asarray(self.found.quantiles)[:, when]
        return compare(found.reshape(found.shape[0], -1), self.quantiles[when].ravel())

    def compare_evidence(self) -> Comparison:
        """The estimates of the evidence over the exact one: unbiased, so their mean is 1."""
        found = np.asarray(self.found.replicate_log_evidence, dtype=np.float64)
        return compare(np.exp(found - self.log_evidence)[:, None], np.ones(1))


def run(config: Any, workspace: Workspace) -> Part:
    """Fits the variances, filters the full and the broken series, and compares."""
    years, flow = load("nile").values.T
    workspace.say("nile: maximising the exact likelihood")
    fitted = maximum_likelihood(flow)
    future = np.full(HORIZON, np.nan)
    broken = flow.copy()
    for gap in GAPS:
        broken[gap] = np.nan
    *keys, smoothing_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 3)
    everything = {}
    for name, key, ys in zip(("full", "broken"), keys, (flow, broken), strict=True):
        workspace.say(f"nile: {config.num_replicates} filters of {config.num_particles:,} particles, {name} series")
        everything[name] = filtered(key, np.concatenate([ys, future]), config)
    full, holes = everything["full"], everything["broken"]
    workspace.say(f"nile: paths from {config.num_replicates} filters, backward in time")
    smooth = smoothed(smoothing_key, flow, config)
    axis = np.concatenate([years, years[-1] + 1 + np.arange(HORIZON)])
    metrics = measure(fitted, full, holes) | {"smoothing": smoothing.measure(smooth)}
    section = Section(
        "The flow of the Nile: particle filter against Kalman filter",
        (
            "Every year a river brings a volume of water that scatters around a level, and the level itself wanders. "
            "Both steps are Gaussian, so the Kalman filter knows the answer exactly, and a particle filter, which uses "
            "nothing of that, has to find it. Years without an observation, in the middle or still to come, weight "
            "nothing: the filter just moves on.",
            f"The variances are the published maximum-likelihood estimates ({PUBLISHED['observation']:,.0f} for the "
            f"flow, {PUBLISHED['level']:,.1f} for the level), and the first level has the prior N(0, 10⁷).",
            "Looking back, the later years say more about each level than its past alone: the smoothed level is found "
            "from paths drawn backward through the particles that the filter has kept.",
        ),
        (
            _band(workspace, "nile-filtered", axis, full, _CAPTION_FULL.format(n=config.num_particles)),
            _band(workspace, "nile-missing", axis, holes, _CAPTION_HOLES.format(n=config.num_particles)),
            smoothing.figure_of(workspace, years, flow, smooth),
            _errors(workspace, axis, full, config),
            _numbers(axis, full),
        ),
    )
    return Part(metrics, section)


def exact_model(observation: Any, level: Any, initial: float = INITIAL_VARIANCE) -> models.LinearGaussian:
    """The local level model with these variances, for the Kalman filter."""
    return models.LinearGaussian(0.0, initial, 1.0, level, 1.0, observation)


def maximum_likelihood(flow: np.ndarray) -> dict[str, float]:
    """The variances that maximise the diffuse likelihood, by BFGS on their logarithms in double precision."""
    with jax.enable_x64(True):
        ys = jnp.asarray(flow)

        @jax.jit
        @jax.value_and_grad
        def loss(log_variances: jax.Array, ys: jax.Array) -> jax.Array:
            observation, level = jnp.exp(log_variances)
            terms = models.kalman_filter(exact_model(observation, level, DIFFUSE), ys).log_increments
            # The diffuse likelihood: the first observation only serves to find the level.
            return -jnp.sum(terms[1:])

        def host(log_variances: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = loss(jnp.asarray(log_variances), ys)
            return float(value), np.asarray(gradient)

        start = np.log([np.var(flow), np.var(flow)])
        best = scipy.optimize.minimize(host, start, jac=True, method="BFGS", options={"gtol": 1e-7})
    observation, level = np.exp(best.x)
    return {"observation": float(observation), "level": float(level), "log_likelihood": -float(best.fun)}


def filtered(key: jax.Array, ys: np.ndarray, config: Any) -> Series:
    """The exact answer in double precision, and the filters in JAX's default precision."""
    with jax.enable_x64(True):
        exact = models.kalman_filter(exact_model(PUBLISHED["observation"], PUBLISHED["level"]), jnp.asarray(ys))
        mean, sd = np.asarray(exact.filtered_mean)[:, 0], np.sqrt(np.asarray(exact.filtered_cov)[:, 0, 0])
        log_evidence = float(exact.log_evidence)
    found = samplers.particle_filter(
        key,
        particle_model().bootstrap(ys.astype(jnp.zeros(()).dtype)),
        num_particles=config.num_particles,
        num_replicates=config.num_replicates,
        quantiles=LEVELS,
    )
    return Series(ys, mean, sd, log_evidence, found)


def smoothed(key: jax.Array, flow: np.ndarray, config: Any) -> smoothing.Smoothed:
    """The level given all observations, exactly and by paths."""
    with jax.enable_x64(True):
        model = exact_model(PUBLISHED["observation"], PUBLISHED["level"])
        exact = models.kalman_smoother(model, jnp.asarray(flow))
    bound = smoothing.log_bound(PUBLISHED["level"] ** 0.5)
    return smoothing.smooth(key, particle_model().bootstrap(flow.astype(jnp.zeros(()).dtype)), exact, bound, config)


def particle_model() -> models.StateSpaceModel:
    """The same model, as functions that return distributions."""
    level, observation = jnp.sqrt(PUBLISHED["level"]), jnp.sqrt(PUBLISHED["observation"])
    return models.StateSpaceModel(
        Partial(dist.Normal, jnp.zeros(()), jnp.sqrt(INITIAL_VARIANCE)),
        Partial(_around, level),
        Partial(_around, observation),
    )


def _around(scale: jax.Array, t: jax.Array, x: jax.Array) -> dist.Normal:
    """A random walk's step, and an observation's noise."""
    del t
    return dist.Normal(x, scale)


def measure(fitted: Mapping[str, float], full: Series, holes: Series) -> dict[str, Any]:
    """All numbers that the claims and the report need."""
    past, future = slice(0, -HORIZON), slice(-HORIZON, None)
    comparisons = {
        "means": full.compare_means(past),
        "quantiles": full.compare_quantiles(past),
        "evidence": full.compare_evidence(),
        "forecast means": full.compare_means(future),
        "forecast quantiles": full.compare_quantiles(future),
        "missing means": holes.compare_means(past),
        "missing evidence": holes.compare_evidence(),
    }
    last = np.asarray(full.found.quantiles)[:, -1].mean(axis=0)
    return {
        "fitted": fitted,
        "log_evidence": {"exact": full.log_evidence, "found": float(full.found.log_evidence)},
        "log_evidence_missing": {"exact": holes.log_evidence, "found": float(holes.found.log_evidence)},
        "log_evidence_sd": float(np.std(np.asarray(full.found.replicate_log_evidence), ddof=1)),
        "ess_least": float(np.min(np.asarray(full.found.ess))),
        "num_replicates": full.found.ess.shape[0],
        "forecast": {"found": last, "exact": full.quantiles[-1]},
        "mean_error": float(np.max(np.abs(comparisons["means"].mean - full.mean[past]) / full.sd[past])),
        "worst": {name: item.worst for name, item in comparisons.items()},
        "bound": {name: item.bound for name, item in comparisons.items()},
        "agrees": {name: item.holds for name, item in comparisons.items()},
    }


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """The claims about the Nile."""
    fitted, agrees, forecast = metrics["fitted"], metrics["agrees"], metrics["forecast"]
    observation, level = fitted["observation"], fitted["level"]
    replicates = metrics["num_replicates"]

    def rule(*names: str) -> str:
        worst = ", ".join(
            f"{name} {_or_nan(metrics['worst'][name]):.2f} (bound {metrics['bound'][name]:.2f})" for name in names
        )
        return f"largest |z|: {worst}; errors from {replicates} independent filters"

    return (
        Claim(
            "Maximising the exact likelihood of the Nile gives the published variances.",
            f"{PUBLISHED['observation']:,.0f} and {PUBLISHED['level']:,.1f} ({BOOK}, section 2.10)",
            f"{observation:,.1f} and {level:,.1f}",
            "BFGS on the Kalman likelihood given the first observation, float64; both within 0.1 %",
            near(observation, PUBLISHED["observation"], relative=1e-3)
            and near(level, PUBLISHED["level"], relative=1e-3),
        ),
        Claim(
            "The particle filter's means and quantiles are the Kalman filter's in every year.",
            "exact (Kalman 1960)",
            f"means within {100 * _or_nan(metrics['mean_error']):.2g} % of a standard deviation in all 100 years",
            rule("means", "quantiles"),
            agrees["means"] and agrees["quantiles"],
        ),
        Claim(
            "The particle filter's evidence is unbiased.",
            f"log evidence {metrics['log_evidence']['exact']:.3f} (exact)",
            f"{_or_nan(metrics['log_evidence']['found']):.3f} from the mean of {replicates} filters; "
            f"one filter: ± {_or_nan(metrics['log_evidence_sd']):.2g}",
            rule("evidence"),
            agrees["evidence"],
        ),
        Claim(
            "The forecast of ten years stays flat while its band widens.",
            "1980: {1:.1f}, 90 % band {0:.1f} to {2:.1f} (exact)".format(*forecast["exact"]),
            "1980: {1:.1f}, 90 % band {0:.1f} to {2:.1f}".format(*map(_or_nan, forecast["found"])),
            rule("forecast means", "forecast quantiles"),
            agrees["forecast means"] and agrees["forecast quantiles"],
        ),
        Claim(
            "Missing years are skipped, not propagated: with forty years deleted the answers are still exact.",
            f"log evidence {metrics['log_evidence_missing']['exact']:.3f} (exact)",
            f"log evidence {_or_nan(metrics['log_evidence_missing']['found']):.3f}, and all means",
            rule("missing means", "missing evidence"),
            agrees["missing means"] and agrees["missing evidence"],
        ),
    )


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


_CAPTION_FULL = (
    "Annual flow (dots), the filtered level of one particle filter with {n:,} particles (line) with its 90 % band, and "
    "the exact mean and band (dashed). Right of the vertical line: the forecast."
)
_CAPTION_HOLES = (
    "The same with the years 1891-1910 and 1931-1950 deleted (circles, not seen by the filter), as in figure 2.5 of "
    "the book: the level stays, the band widens. {n:,} particles."
)


def _band(workspace: Workspace, name: str, years: np.ndarray, series: Series, caption: str) -> Figure:
    low, _, high = np.asarray(series.found.quantiles)[0].T
    past = np.isfinite(series.ys)
    flow = load("nile").values[:, 1]
    hidden = ~past[: flow.size]
    with canvas(height=3.7) as (figure, (axes,)):
        axes.fill_between(years, low, high, color=BLUE, alpha=0.18, linewidth=0, label="90 % band")
        axes.plot(years, np.asarray(series.found.mean)[0], color=BLUE, label="particle filter")
        for edge in (series.mean, series.quantiles[:, 0], series.quantiles[:, -1]):
            label = "Kalman filter (exact)" if edge is series.mean else None
            axes.plot(years, edge, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=label)
        axes.plot(years[past], series.ys[past], "o", color=ORANGE, markersize=3, label="flow")
        if hidden.any():
            axes.plot(years[: flow.size][hidden], flow[hidden], "o", color=ORANGE, markersize=3, fillstyle="none")
        axes.axvline(years[-HORIZON] - 0.5, color=MUTED, linewidth=0.8)
        axes.set(xlabel="year", ylabel="10⁸ m³", xlim=(years[0] - 1, years[-1] + 1), ylim=(400, 1480))
        axes.legend(ncols=4, loc="upper right")
        alt = "Line chart of the Nile's flow with the filtered level and its band; filter and exact answer coincide."
        return workspace.figure(name, figure, caption=caption, alt=alt)


def _errors(workspace: Workspace, years: np.ndarray, series: Series, config: Any) -> Figure:
    means = series.compare_means(slice(None))
    evidence = np.asarray(series.found.replicate_log_evidence) - series.log_evidence
    ess = np.asarray(series.found.ess).mean(axis=0) / config.num_particles
    with canvas(columns=3, height=2.9) as (figure, (left, middle, right)):
        left.vlines(years, 0, means.z, color=BLUE, linewidth=1.2)
        for bound in (-means.bound, means.bound):
            left.axhline(bound, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)))
        left.set(title="Means: difference in standard errors", xlabel="year")
        middle.plot(np.sort(evidence), (np.arange(evidence.size) + 0.5) / evidence.size, "o", color=BLUE, markersize=3)
        middle.axvline(0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        middle.set(title="Log evidence minus exact", xlabel="nats", ylabel="share of filters below", ylim=(0, 1))
        right.plot(years, ess, color=BLUE)
        right.set(title="Effective sample size / N", xlabel="year", ylim=(0, 1.02))
        caption = (
            f"Left: mean of {config.num_replicates} filters minus the exact mean, in standard errors; dashed, the "
            "bound that the largest would exceed once in a million runs. Middle: each filter's log evidence. "
            "Right: what the weights leave of the particles before resampling, mean of all filters."
        )
        alt = "Three panels: standardised errors by year, log evidence errors, and effective sample size by year."
        return workspace.figure("nile-errors", figure, caption=caption, alt=alt)


def _numbers(years: np.ndarray, series: Series) -> Table:
    means = series.compare_means(slice(None))
    low, _, high = np.asarray(series.found.quantiles).mean(axis=0).T
    rows = tuple(
        (
            f"{years[t]:.0f}",
            f"{series.ys[t]:,.0f}" if np.isfinite(series.ys[t]) else "-",
            f"{series.mean[t]:,.2f}",
            f"{means.mean[t]:,.2f}",
            f"{means.standard_error[t]:.2f}",
            f"{series.quantiles[t, 0]:,.1f}",
            f"{low[t]:,.1f}",
            f"{series.quantiles[t, -1]:,.1f}",
            f"{high[t]:,.1f}",
        )
        for t in (0, 1, 9, 27, 28, 42, 99, 100, 104, 109)
    )
    columns = ("year", "flow", "exact mean", "ours", "± s.e.", "exact 5 %", "ours", "exact 95 %", "ours")
    return Table("Some years, the last three of them forecasts. Ours is the mean over all filters.", columns, rows)
