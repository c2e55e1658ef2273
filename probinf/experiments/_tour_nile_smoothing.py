r"""The level of the Nile given all its years: backward simulation against the Kalman smoother.

A filter's own genealogy holds paths, but those of early years all descend from a few particles. Backward simulation
draws each earlier state anew (Godsill, Doucet, West 2004); here by rejection (Douc, Garivier, Moulines, Olsson 2011).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from probinf import models, samplers
from probinf.core import FeynmanKac, trace_back
from probinf.experiments._claims import Claim, compare
from probinf.experiments._figures import BLUE, INK, ORANGE, canvas
from probinf.experiments._page import Figure
from probinf.experiments._workspace import Workspace

NUM_PATHS = 200


class Smoothed(NamedTuple):
    """The exact answer, and what paths of independent filters give.

    Attributes:
        mean, sd: exact, [T].
        means: of the paths of each filter, [R, T].
        squares: mean squares about the exact mean, [R, T].
        paths: of the first filter, [T, NUM_PATHS].
        distinct: number of distinct states in them by year, [T]; and in as many paths of its genealogy.
    """

    mean: np.ndarray
    sd: np.ndarray
    means: np.ndarray
    squares: np.ndarray
    paths: np.ndarray
    distinct: tuple[np.ndarray, np.ndarray]


def smooth(key: jax.Array, model: FeynmanKac, exact: models.KalmanSmoothed, log_bound: float, config: Any) -> Smoothed:
    """Filters with their history, then paths backward.

    Args:
        key: PRNG key.
        model: the Feynman-Kac model of the series.
        exact: the Kalman smoother's answer.
        log_bound: of the log density of a transition.
        config: of the tour.
    """
    mean, sd = np.asarray(exact.smoothed_mean)[:, 0], np.sqrt(np.asarray(exact.smoothed_cov)[:, 0, 0])
    runs = [_paths(k, model, log_bound, config.num_particles) for k in jax.random.split(key, config.num_replicates)]
    backward, old = (np.array(paths) for paths in zip(*runs, strict=True))
    means, squares = backward.mean(axis=2), np.mean((backward - mean[:, None]) ** 2, axis=2)
    return Smoothed(mean, sd, means, squares, backward[0], (_distinct(backward[0]), _distinct(old[0])))


def _paths(key: jax.Array, model: FeynmanKac, log_bound: float, num_particles: int) -> tuple[np.ndarray, np.ndarray]:
    """Paths of one filter, drawn backward and by its genealogy: [T, NUM_PATHS] each."""
    filter_key, path_key, genealogy_key = jax.random.split(key, 3)
    out = samplers.particle_filter(filter_key, model, num_particles=num_particles, history=True)
    backward = samplers.backward_sample(path_key, out, NUM_PATHS, "rejection", log_bound=log_bound)
    history: Any = out.history
    old = trace_back(genealogy_key, history.log_weights[-1], history.particles, history.ancestors, NUM_PATHS)
    return np.asarray(backward, np.float64), np.asarray(old, np.float64)


def _distinct(paths: np.ndarray) -> np.ndarray:
    return np.array([np.unique(row).size for row in paths])


def measure(found: Smoothed) -> dict[str, Any]:
    """The numbers that the claim and the report need."""
    means, squares = compare(found.means, found.mean), compare(found.squares, found.sd**2)
    return {
        "num_replicates": found.means.shape[0],
        "num_years": found.mean.size,
        "mean_error": float(np.max(np.abs(means.mean - found.mean) / found.sd)),
        "worst": {"means": means.worst, "variances": squares.worst},
        "bound": means.bound,
        "agrees": means.holds and squares.holds,
        "distinct_least": {"backward": int(found.distinct[0].min()), "genealogy": int(found.distinct[1].min())},
    }


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """The claim about the smoothed level."""
    worst = ", ".join(f"{name} {_or_nan(value):.2f}" for name, value in metrics["worst"].items())
    return (
        Claim(
            "The level given all the years, by backward simulation, is the Kalman smoother's.",
            "exact (Rauch, Tung and Striebel 1965)",
            f"means within {100 * _or_nan(metrics['mean_error']):.2g} % of a standard deviation in all "
            f"{metrics['num_years']} years",
            f"largest |z|: {worst} (bound {metrics['bound']:.2f}); errors from {metrics['num_replicates']} independent "
            f"filters, {NUM_PATHS} paths each",
            metrics["agrees"],
        ),
    )


def figure_of(workspace: Workspace, years: np.ndarray, ys: np.ndarray, found: Smoothed) -> Figure:
    """The smoothed level and its band, and what is left of the paths of a genealogy."""
    low, high = np.quantile(found.paths, (0.05, 0.95), axis=1)
    half = 1.6449 * found.sd
    with canvas(columns=2, height=3.3) as (figure, (left, right)):
        left.fill_between(years, low, high, color=BLUE, alpha=0.18, linewidth=0, label="90 % of paths")
        left.plot(years, found.paths.mean(axis=1), color=BLUE, label="mean of paths")
        for edge in (found.mean, found.mean - half, found.mean + half):
            label = "Kalman smoother (exact)" if edge is found.mean else None
            left.plot(years, edge, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=label)
        left.plot(years, ys, "o", color=ORANGE, markersize=2.5, label="flow")
        left.set(title="The level given all years", xlabel="year", ylabel="10⁸ m³", ylim=(400, 1480))
        left.legend(ncols=2, loc="upper right")
        for values, colour, label in zip(
            found.distinct, (BLUE, ORANGE), ("backward simulation", "genealogy"), strict=True
        ):
            right.plot(years, values, color=colour, label=label)
        right.set(title="Distinct states among the paths", xlabel="year", ylim=(0, NUM_PATHS * 1.02))
        right.legend(loc="lower right")
        caption = (
            f"Left: {NUM_PATHS} paths by backward simulation from one filter, and the exact smoothed mean and 90 % "
            f"band (dashed). Right: how many different states the paths pass through in each year, against as many "
            "paths of the filter's genealogy, which share their early years."
        )
        alt = "Left, a smooth level that coincides with the exact one; right, two curves, the genealogy's falls to few."
        return workspace.figure("nile-smoothed", figure, caption=caption, alt=alt)


def log_bound(scale: float) -> float:
    """The log density of a normal step at its mode, raised by more than float32 rounds."""
    return -math.log(scale) - math.log(2 * math.pi) / 2 + 1e-4


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
