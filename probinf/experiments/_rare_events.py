r"""Rare events: persistence exponents of four Gaussian processes by splitting, against exact and approximate values.

$P(\text{no zero crossing on } [0, T]) \approx e^{-\theta T}$. A particle filter whose potential is the indicator of no
crossing kills paths that crossed and branches those that did not, and its evidence up to T estimates that probability
without bias; $\theta$ is the slope of its logarithm. Exact: 3/16 for the diffusion field in two dimensions (Poplavskyi
and Schehr 2018), 1/4 for random acceleration (Sinai 1992; Burkhardt 1993). Simulated: .1207 and .2380 for d = 1 and 3,
and independent intervals for all (Majumdar, Sire, Bray, Cornell 1996; Bengtsson and Podgorski).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special

from probinf import samplers
from probinf.experiments import _rare_events_page as page
from probinf.experiments._claims import Claim, below, compare
from probinf.experiments._page import Part, Section
from probinf.experiments._persistence import (
    STEP,
    Linear,
    covariance_error,
    diffusion,
    independent_intervals,
    looked_at,
    random_acceleration,
    survival,
)
from probinf.experiments._workspace import Workspace

LARGEST_COVARIANCE_ERROR = 1e-5
RATIO = 4  # between the two step sizes
GROUP = 8  # filters that run as one program
# The published simulations give their values to four digits; their own error is taken as half a unit of the third.
SIMULATION_ERROR = 5e-4


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
        seed: of every random number.
        num_particles: of each filter.
        num_replicates: independent filters, whose spread gives the Monte Carlo errors; a multiple of `GROUP`.
        horizon: T, how long the paths must keep their sign.
        burn_in: when the slope begins to be measured.
        diffusion_points, acceleration_points: how often a path is looked at in each half unit of time, a multiple of
            4; a second run looks at every fourth of these points.
    """

    seed: int = 0
    num_particles: int = 12_000
    num_replicates: int = 32
    horizon: float = 40.0
    burn_in: float = 8.0
    diffusion_points: int = 8
    acceleration_points: int = 8


SCALES: Mapping[str, Config] = {
    "quick": Config(),
    "full": Config(num_particles=50_000, num_replicates=64, horizon=80.0, burn_in=16.0, acceleration_points=16),
}


class Process(NamedTuple):
    """A process, and what is known of it.

    Attributes:
        title: for people.
        correlation: r(t).
        curvature: -r''(0).
        rate: r decays as exp(-rate t).
        order: theta is wrong by a multiple of (distance between points)^order.
        linear: points a step -> `Linear`.
        reference, allowance: the known exponent, and how far off it may be.
        source: who knows it.
        intervals: the published value of independent intervals.
    """

    title: str
    correlation: Callable[[np.ndarray], np.ndarray]
    curvature: float
    rate: float
    order: float
    linear: Callable[[int], Linear]
    reference: float
    allowance: float
    source: str
    intervals: float


def _field(dimension: int, *, reference: float, allowance: float, source: str, intervals: float) -> Process:
    # A smooth path dips below zero between two points at a rate that goes with the square of their distance: zeros
    # repel each other linearly.
    return Process(
        f"diffusion, d = {dimension}",
        functools.partial(_sech, dimension),
        dimension / 8,
        dimension / 4,
        2.0,
        functools.partial(diffusion, dimension),
        reference,
        allowance,
        source,
        intervals,
    )


def _sech(dimension: int, t: np.ndarray) -> np.ndarray:
    return np.asarray(np.cosh(t / 2) ** (-dimension / 2))


def _acceleration(t: np.ndarray) -> np.ndarray:
    return np.asarray(1.5 * np.exp(-np.abs(t) / 2) - 0.5 * np.exp(-1.5 * np.abs(t)))


SIMULATED = "simulation (Majumdar et al. 1996)"
PROCESSES: Mapping[str, Process] = {
    "diffusion-1": _field(1, reference=0.1207, allowance=SIMULATION_ERROR, source=SIMULATED, intervals=0.12033),
    "diffusion-2": _field(
        2, reference=3 / 16, allowance=0.0, source="exact (Poplavskyi and Schehr 2018)", intervals=0.18621
    ),
    "diffusion-3": _field(3, reference=0.2380, allowance=SIMULATION_ERROR, source=SIMULATED, intervals=0.23577),
    # Paths touch zero with a speed as irregular as Brownian motion. In a time w they turn within x ~ w^(3/2); survivors
    # have density x^(1/6) there, and as much hope: w^(1/4 + 1/4) w^2 / w.
    "acceleration": Process(
        "random acceleration",
        _acceleration,
        0.75,
        0.5,
        1.5,
        random_acceleration,
        0.25,
        0.0,
        "exact (Sinai 1992; Burkhardt 1993)",
        0.26467,
    ),
}


def run(config: Config, workspace: Workspace) -> dict[str, Part]:
    """Solves the approximation, measures each process, then puts them side by side."""
    parts = {"intervals": workspace.part("intervals", solve_intervals)}
    for name in PROCESSES:
        parts[name] = workspace.part(name, measure, name, config)
    metrics = {name: part.metrics for name, part in parts.items()}
    return parts | {"exponents": workspace.part("exponents", compare_all, metrics, config)}


def solve_intervals(workspace: Workspace) -> Part:
    """The equation of independent intervals for each process."""
    workspace.say("independent intervals: solving the equation")
    found = {
        name: independent_intervals(process.correlation, math.pi / math.sqrt(process.curvature), process.rate)
        for name, process in PROCESSES.items()
    }
    section = Section(
        "How long does a random signal keep its sign?", page.INTRODUCTION, (page.intervals_table(PROCESSES, found),)
    )
    return Part({"theta": found}, section)


def measure(name: str, config: Config, workspace: Workspace) -> Part:
    """One process: two step sizes, the slope and its error."""
    process = PROCESSES[name]
    points = config.acceleration_points if name == "acceleration" else config.diffusion_points
    num_steps = round(config.horizon / STEP)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1 + list(PROCESSES).index(name)))
    linear = process.linear(points)
    logs = []
    for key, every in zip(keys, (1, RATIO), strict=True):
        workspace.say(
            f"{process.title}: {config.num_replicates} filters of {config.num_particles:,} particles, points "
            f"{every * STEP / points:g} apart"
        )
        logs.append(log_survival(key, looked_at(linear, every), num_steps, config))
    metrics = summarise(process, logs[0], logs[1], config) | {
        "distance": STEP / points,
        "covariance_error": covariance_error(linear, process.correlation, num_steps),
    }
    return Part(metrics, page.section_of(workspace, name, process, metrics))


def log_survival(key: jax.Array, linear: Linear, num_steps: int, config: Config) -> np.ndarray:
    """Log probability of survival up to each step, by independent filters: [replicates, num_steps + 1].

    Raises:
        ValueError: the number of replicates is no multiple of `GROUP`.
    """
    if config.num_replicates % GROUP:
        raise ValueError(f"`num_replicates` is {config.num_replicates}; needed a multiple of {GROUP}")
    # A few filters a call, so that Ctrl-C is heard in between and the particles fit in the memory.
    found = [
        samplers.particle_filter(
            group,
            survival(linear, num_steps),
            num_particles=config.num_particles,
            num_replicates=GROUP,
            ess_threshold=1.0,  # a path that is dead is replaced at once
        )
        for group in jax.random.split(key, config.num_replicates // GROUP)
    ]
    return np.concatenate([np.asarray(filters.log_evidence_path, np.float64) for filters in found])


def slopes(logs: np.ndarray, first: int, last: int) -> np.ndarray:
    """Jackknife pseudo-values, [replicates], of the rate of decay between two steps.

    The rate is that of the mean over replicates, which is unbiased for the probability; the mean of the pseudo-values
    is free of the bias of its logarithm to first order, and their spread gives the error.
    """
    count = logs.shape[0]
    ends = logs[:, [first, last]]
    length = (last - first) * STEP

    def rate(mean: np.ndarray) -> np.ndarray:
        logarithm = np.log(mean) + shift
        return (logarithm[:, 0] - logarithm[:, 1]) / length

    # Where no path survives in any filter there is no slope: NaN, which upholds no claim.
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = ends.max(axis=0)
        mass = np.exp(ends - shift)
        others = (mass.sum(axis=0) - mass) / (count - 1)
        return count * rate(mass.mean(axis=0, keepdims=True)) - (count - 1) * rate(others)


def extrapolate(fine: np.ndarray, coarse: np.ndarray, order: float) -> np.ndarray:
    """The limit of no distance between points, from two distances whose ratio is `RATIO`."""
    return fine + (fine - coarse) / (RATIO**order - 1)


def summarise(process: Process, fine: np.ndarray, coarse: np.ndarray, config: Config) -> dict[str, Any]:
    """The exponent with its errors and verdict, and what the figures show."""
    last, first = fine.shape[1] - 1, round(config.burn_in / STEP)
    middle = (first + last) // 2

    def limit(start: int, end: int) -> np.ndarray:
        return extrapolate(slopes(fine, start, end), slopes(coarse, start, end), process.order)

    whole = compare(limit(first, last)[:, None], np.array([process.reference]))
    halves = compare((limit(first, middle) - limit(middle, last))[:, None], np.zeros(1))
    theta, error = float(whole.mean[0]), float(whole.standard_error[0])
    correction = abs(theta - float(slopes(fine, first, last).mean()))
    allowed = whole.bound * error + correction + process.allowance
    windows = range(0, last - 3, 4)
    return {
        "theta": theta,
        "standard_error": error,
        "reference": process.reference,
        "difference": abs(theta - process.reference),
        "allowed": allowed,
        "bound": whole.bound,
        "correction": correction,
        "agrees": below(abs(theta - process.reference), allowed),
        "fine": _brief(slopes(fine, first, last)),
        "coarse": _brief(slopes(coarse, first, last)),
        "halves": {
            "first": _brief(limit(first, middle)),
            "second": _brief(limit(middle, last)),
            "z": float(halves.z[0]),
            "bound": halves.bound,
            "agree": halves.holds,
        },
        "num_replicates": config.num_replicates,
        "num_particles": config.num_particles,
        "burn_in": config.burn_in,
        "time": np.arange(last + 1) * STEP,
        "log_survival": scipy.special.logsumexp(fine, axis=0) - math.log(fine.shape[0]),
        "local": {
            "time": [(start + 2) * STEP for start in windows],
            **_columns([_brief(slopes(fine, start, start + 4)) for start in windows]),
        },
    }


def _brief(pseudo: np.ndarray) -> dict[str, float]:
    return {"theta": float(pseudo.mean()), "standard_error": float(pseudo.std(ddof=1) / math.sqrt(pseudo.size))}


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def compare_all(metrics: Mapping[str, Any], config: Config, workspace: Workspace) -> Part:
    """All exponents side by side."""
    found = metrics["intervals"]["theta"]
    section = Section(
        "Side by side",
        (),
        (
            page.survival_figure(workspace, PROCESSES, metrics, config),
            page.exponents_figure(workspace, PROCESSES, metrics, found),
            page.exponents_table(PROCESSES, metrics, found),
        ),
    )
    theta = {name: {"splitting": metrics[name]["theta"], "intervals": found[name]} for name in PROCESSES}
    return Part({"theta": theta}, section)


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """An exponent a process, how it was simulated, and what independent intervals are worth."""
    found = {name: metrics[name] for name in PROCESSES}
    return (
        *(_exponent(process, found[name]) for name, process in PROCESSES.items()),
        _exponential(found),
        _covariance(found),
        *_intervals(metrics["intervals"]["theta"], found["acceleration"]),
    )


def _exponent(process: Process, found: Mapping[str, Any]) -> Claim:
    theta, error, correction = (_or_nan(found[name]) for name in ("theta", "standard_error", "correction"))
    digits = f"{process.reference:.4f}"
    slack = f" and {process.allowance:g} for the simulations' own error" if process.allowance else ""
    return Claim(
        f"The persistence exponent of {process.title} is {digits}.",
        f"{digits}, {process.source}",
        f"{theta:.5f} ± {error:.5f}",
        f"slope of the log evidence of {found['num_replicates']} filters of {found['num_particles']:,} particles, two "
        f"step sizes extrapolated; off by {_or_nan(found['difference']):.2g}, allowed {_or_nan(found['allowed']):.2g}: "
        f"{found['bound']:.1f} standard errors, the correction for the step size ({correction:.1g}){slack}",
        bool(found["agrees"]),
    )


def _exponential(found: Mapping[str, Any]) -> Claim:
    halves = [item["halves"] for item in found.values()]
    worst = max((abs(_or_nan(half["z"])) for half in halves), key=lambda z: math.inf if math.isnan(z) else z)
    return Claim(
        "Survival decays exponentially where the slope is measured: both halves of the window have one slope.",
        "P(T) ~ exp(-θT); the rate exists, as correlations are positive (Slepian 1962)",
        "slopes of the halves differ by "
        + ", ".join(f"{_or_nan(h['first']['theta']) - _or_nan(h['second']['theta']):+.5f}" for h in halves),
        f"largest |z|: {worst:.2f} (bound {halves[0]['bound']:.2f} each)",
        all(bool(half["agree"]) for half in halves),
    )


def _covariance(found: Mapping[str, Any]) -> Claim:
    worst = max((_or_nan(item["covariance_error"]) for item in found.values()), key=_nan_last)
    return Claim(
        "The simulated paths have the stated covariance.",
        "r(t) = sech(t/2)^(d/2), and 3/2 exp(-t/2) - 1/2 exp(-3t/2)",
        f"wrong by at most {worst:.1g}",
        "no sampling: all pairs of points, from the matrices that the filters used, in their precision; at most "
        f"{LARGEST_COVARIANCE_ERROR:g}",
        bool(below(worst, LARGEST_COVARIANCE_ERROR)),
    )


def _intervals(found: Mapping[str, Any], acceleration: Mapping[str, Any]) -> tuple[Claim, Claim]:
    values = {name: _or_nan(found[name]) for name in PROCESSES}
    theta, error = _or_nan(acceleration["theta"]), _or_nan(acceleration["standard_error"])
    gap = (values["acceleration"] - theta) / error if error else float("nan")
    return (
        Claim(
            "The equation of independent intervals gives the published exponents.",
            ", ".join(f"{process.intervals:.5f}" for process in PROCESSES.values())
            + " (Majumdar et al. 1996; Bengtsson and Podgorski)",
            ", ".join(f"{value:.5f}" for value in values.values()),
            "root of the equation by quadrature and bracketing, float64; all five digits",
            all(below(abs(values[name] - process.intervals), 5e-6) for name, process in PROCESSES.items()),
        ),
        Claim(
            "Independent intervals are an approximation: for random acceleration they miss.",
            "0.26467 against 1/4, 6 % too large",
            f"{values['acceleration']:.5f} against {theta:.5f} ± {error:.5f}",
            f"{gap:.0f} standard errors apart, needed {acceleration['bound']:.1f} and the step-size correction",
            bool(values["acceleration"] - theta > acceleration["bound"] * error + _or_nan(acceleration["correction"])),
        ),
    )


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
