r"""How rough is the Nile? A Gaussian process whose smoothness is learned with its other parameters.

The flow, standardised, is $y \sim N(0, C + \tau^2 I)$ with a Matérn covariance C; the log likelihood is maximised over
smoothness, length scale, variance and noise. At smoothness 1/2 and 3/2 the process is that of a linear stochastic
differential equation (Hartikainen and Särkkä 2010): with $\lambda = \sqrt{2 \nu} / \ell$ and steps of one year,

$$A_{1/2} = e^{-\lambda}, \qquad
A_{3/2} = e^{-\lambda} \begin{pmatrix} 1 + \lambda & 1 \\ -\lambda^2 & 1 - \lambda \end{pmatrix}, \qquad
P_\infty = \sigma^2\, \mathrm{diag}(1, \lambda^2), \qquad Q = P_\infty - A P_\infty A^T,$$

and the Kalman filter gives the same likelihood without any Bessel function.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from probinf import models
from probinf.distributions import matern
from probinf.experiments._claims import Claim, below
from probinf.experiments._data import load
from probinf.experiments._figures import BLUE, INK, MUTED, ORANGE, canvas
from probinf.experiments._page import Figure, Part, Section, Table
from probinf.experiments._workspace import Workspace

PARAMETERS = ("smoothness", "length scale", "variance", "noise variance")
FIXED = (0.5, 1.5, 2.5)
START = (1.0, 10.0, 1.0, 0.5)
BOUNDS = ((0.05, 20.0), (0.2, 2000.0), (1e-3, 1e3), (1e-3, 10.0))
STEP = 1e-4  # of the central difference in the logarithm of the smoothness
AGREEMENT, SLOPE_AGREEMENT = 1e-9, 1e-5

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


class Fit(NamedTuple):
    """Parameters of a fit, in the order of `PARAMETERS`, and its log likelihood."""

    parameters: np.ndarray
    log_likelihood: float


def log_likelihood(log_parameters: Float[Array, "4"], y: Float[Array, " n"]) -> Float[Array, ""]:
    """The log density of equally spaced data with mean zero, unit spacing."""
    smoothness, length_scale, variance, noise = jnp.exp(log_parameters)
    count = y.shape[0]
    # The covariance depends on the lag alone: n values of a Bessel function, not n^2.
    lags = jnp.arange(count)
    by_lag = matern(lags.astype(y.dtype), smoothness, length_scale, variance)
    covariance = by_lag[jnp.abs(lags[:, None] - lags[None, :])] + noise * jnp.eye(count, dtype=y.dtype)
    root = jnp.linalg.cholesky(covariance)
    white = jax.scipy.linalg.solve_triangular(root, y, lower=True)
    return -0.5 * jnp.sum(white**2) - jnp.sum(jnp.log(jnp.diagonal(root))) - 0.5 * count * math.log(2 * math.pi)


def by_kalman_filter(parameters: np.ndarray, y: np.ndarray) -> float:
    """The same for smoothness 1/2 or 3/2.

    Raises:
        ValueError: another smoothness.
    """
    smoothness, length_scale, variance, noise = parameters
    rate = math.sqrt(2 * smoothness) / length_scale
    if math.isclose(smoothness, 0.5):
        step, stationary = np.array([[1.0]]), np.eye(1)
    elif math.isclose(smoothness, 1.5):
        step, stationary = np.array([[1 + rate, 1], [-(rate**2), 1 - rate]]), np.diag([1, rate**2])
    else:
        raise ValueError(f"`smoothness` is {smoothness}; the state space is written out for 0.5 and 1.5")
    step, stationary = math.exp(-rate) * step, variance * stationary
    spread = stationary - step @ stationary @ step.T
    size = len(stationary)
    model = models.LinearGaussian(np.zeros(size), stationary, step, spread, np.eye(1, size), noise)
    return float(models.kalman_filter(model, y).log_evidence)


def maximise(objective: Objective, start: np.ndarray, smoothness: float | None = None) -> Fit:
    """The best parameters by L-BFGS on their logarithms, with the smoothness fixed or not."""
    bounds = [tuple(np.log(pair)) for pair in BOUNDS]
    first = np.log(start)
    if smoothness is not None:
        first[0] = math.log(smoothness)
        bounds[0] = (first[0], first[0])
    best = scipy.optimize.minimize(
        objective, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12}
    )
    return Fit(np.exp(best.x), -float(best.fun))


def run(config: Any, workspace: Workspace) -> Part:
    """Fits with fixed and with learned smoothness, and the checks; nothing is random."""
    del config
    workspace.say("the Nile: a Gaussian process of learned smoothness")
    data = load("nile").values
    y = (data[:, 1] - data[:, 1].mean()) / data[:, 1].std()
    with jax.enable_x64(True):
        evaluate = jax.jit(jax.value_and_grad(log_likelihood))

        def objective(log_parameters: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = evaluate(jnp.asarray(log_parameters), jnp.asarray(y))
            return -float(value), -np.asarray(slope)

        metrics, profile = measure(objective, y)
    gain = metrics["learned"]["log_likelihood"] - max(row["log_likelihood"] for row in metrics["fixed"])
    section = Section(
        "The Nile: how smooth?",
        (
            "A Gaussian process prior says how smooth a function is: the smoothness of its Matérn covariance is the "
            "order of a Bessel function. Most libraries offer 1/2, 3/2 and 5/2, where the function is elementary, and "
            "leave the choice to the user. With a derivative in the order it is learned like any other parameter.",
            f"Here the data say little: the learned smoothness gains {gain:.2f} nats over the best of the three. A "
            "rough process and noise explain the same scatter, so what one takes the other loses.",
        ),
        (_figure(workspace, metrics, profile), _table(metrics)),
    )
    return Part(metrics, section)


def measure(objective: Objective, y: np.ndarray) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]:
    """All fits, their checks, and the likelihood along the smoothness."""
    fixed = [maximise(objective, np.array(START), smoothness) for smoothness in FIXED]
    best = max(fixed, key=lambda fit: fit.log_likelihood)
    learned = max((maximise(objective, np.array(start)) for start in (START, best.parameters)), key=lambda f: f[1])
    differences = [
        abs(by_kalman_filter(fit.parameters, y) - fit.log_likelihood)
        for smoothness, fit in zip(FIXED, fixed, strict=True)
        if smoothness < 2
    ]
    # Not at the learned smoothness, where the slope is zero.
    middle, step = np.log(START), np.array([STEP, 0, 0, 0])
    slope = -float(objective(middle)[1][0])
    difference = -(objective(middle + step)[0] - objective(middle - step)[0]) / (2 * STEP)
    grid = np.geomspace(0.1, 10, 41)
    rest = np.log(learned.parameters)[1:]
    along = np.array([-objective(np.append(math.log(v), rest))[0] for v in grid])
    metrics = {
        "fixed": [{"parameters": fit.parameters, "log_likelihood": fit.log_likelihood} for fit in fixed],
        "learned": {"parameters": learned.parameters, "log_likelihood": learned.log_likelihood},
        "kalman_difference": max(differences),
        "slope": slope,
        "slope_difference": abs(slope - difference),
        "num_data": y.size,
    }
    return metrics, (grid, along)


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """The likelihood is exact, and the smoothness can be learned."""
    best = max(row["log_likelihood"] for row in metrics["fixed"])
    learned, gap, slope_gap = metrics["learned"], metrics["kalman_difference"], metrics["slope_difference"]
    return (
        Claim(
            "A Gaussian process with a Matérn covariance has the likelihood of its state-space form.",
            "equal at smoothness 1/2 and 3/2, exact (Hartikainen and Särkkä 2010)",
            f"log likelihoods of the Nile differ by {_or_nan(gap):.1e}",
            f"the log-Bessel function against the Kalman filter, at the best parameters of each; at most {AGREEMENT:g}",
            below(gap, AGREEMENT),
        ),
        Claim(
            "Its smoothness is learned with the other parameters, by gradients in the order of the Bessel function.",
            "at least as likely as smoothness 1/2, 3/2 and 5/2",
            f"smoothness {learned['parameters'][0]:.3f}, log likelihood {learned['log_likelihood']:.4f}, the best of "
            f"the three {best:.4f}; gradient off by {_or_nan(slope_gap):.1e}",
            f"L-BFGS in float64; no less likely, and the gradient within {SLOPE_AGREEMENT:g} of a central difference",
            learned["log_likelihood"] >= best - 1e-6 and below(slope_gap, SLOPE_AGREEMENT),
        ),
    )


def _table(metrics: Mapping[str, Any]) -> Table:
    rows = [*((f"{v:g}", row) for v, row in zip(FIXED, metrics["fixed"], strict=True)), ("learned", metrics["learned"])]
    cells = tuple(
        (name, *(f"{x:.4g}" for x in row["parameters"]), f"{row['log_likelihood']:.4f}") for name, row in rows
    )
    caption = f"Fits to {metrics['num_data']} standardised years by maximum likelihood; lengths in years."
    return Table(caption, ("", *PARAMETERS, "log likelihood"), cells)


def _figure(workspace: Workspace, metrics: Mapping[str, Any], profile: tuple[np.ndarray, np.ndarray]) -> Figure:
    grid, along = profile
    smoothness, best = metrics["learned"]["parameters"][0], metrics["learned"]["log_likelihood"]
    with canvas(height=2.7) as (figure, (axes,)):
        axes.semilogx(grid, along, color=BLUE, label="other parameters at their best")
        axes.plot(smoothness, best, "o", color=ORANGE, markersize=6, label="learned")
        for fixed in FIXED:
            axes.axvline(fixed, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set(xlabel="smoothness", ylabel="log likelihood")
        axes.set_xticks([0.1, 0.5, 1.5, 2.5, 10], ["0.1", "0.5", "1.5", "2.5", "10"], color=INK)
        axes.minorticks_off()
        axes.legend(loc="lower center")
        caption = "Log likelihood of the Nile along the smoothness. Dashed: where the covariance is elementary."
        alt = "A curve over the smoothness with its highest point marked."
        return workspace.figure("nile-smoothness", figure, caption=caption, alt=alt)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
