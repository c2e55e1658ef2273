"""What the experiment on rare events shows: text, figures and tables from its metrics."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from probinf.experiments._figures import BLUE, INK, MUTED, ORANGE, ROSE, TEAL, canvas
from probinf.experiments._page import Figure, Section, Table
from probinf.experiments._workspace import Workspace

COLOURS = {"diffusion-1": BLUE, "diffusion-2": ORANGE, "diffusion-3": TEAL, "acceleration": ROSE}
INTRODUCTION = (
    "Heat a large plate at random and watch one point: how long is it warmer than on average? In logarithmic time the "
    "temperature is a stationary Gaussian process, and the probability that it has not yet changed sign falls like "
    "exp(-θT). Finding θ looks easy and is not: the whole past matters, and only two of the four exponents here are "
    "known exactly (3/16 after twenty years, by way of random polynomials).",
    "Simulating paths and counting those that never crossed is of little help: they die out as fast as the probability "
    "falls. Splitting keeps their number: whoever crosses zero is replaced by a copy of somebody who did not, and the "
    "product of the survival fractions estimates the probability without bias. That is a particle filter whose "
    "potential is 0 or 1.",
    "Physicists had approximated the exponents by taking the intervals between zeros as independent, which turns the "
    "correlation function into an equation for θ: good to a per cent for diffusion, six per cent off for random "
    "acceleration.",
)


def intervals_table(processes: Mapping[str, Any], found: Mapping[str, float]) -> Table:
    """What independent intervals give."""
    rows = tuple(
        (process.title, f"{found[name]:.6f}", f"{process.intervals:.5f}", f"{process.reference:.5g}", process.source)
        for name, process in processes.items()
    )
    columns = ("", "independent intervals", "published", "known θ", "by")
    return Table("The approximation of independent intervals.", columns, rows)


def section_of(workspace: Workspace, name: str, process: Any, found: Mapping[str, Any]) -> Section:
    """The section of one process: where its slope settles, and what the step size does to it."""
    halves = found["halves"]
    rows = (
        (f"points {4 * found['distance']:g} apart", found["coarse"]),
        (f"points {found['distance']:g} apart", found["fine"]),
        ("extrapolated", {"theta": found["theta"], "standard_error": found["standard_error"]}),
        ("extrapolated, first half of the window", halves["first"]),
        ("extrapolated, second half", halves["second"]),
    )
    table = Table(
        f"Slopes from t = {found['burn_in']:g} to {found['time'][-1]:g}. Known: {process.reference:.5g}, "
        f"{process.source}.",
        ("", "θ", "± s.e.", "% off"),
        tuple(
            (
                text,
                f"{row['theta']:.5f}",
                f"{row['standard_error']:.5f}",
                f"{100 * (row['theta'] / process.reference - 1):+.2f}",
            )
            for text, row in rows
        ),
    )
    num_paths = found["num_replicates"] * found["num_particles"]
    survivors = num_paths * np.exp(found["log_survival"][-1])
    paragraphs = (
        f"Paths are looked at every {found['distance']:g} units of time, and in other runs four times less often; dips "
        f"between two points make θ too small by a multiple of their distance to the power {process.order:g}. The "
        f"covariance "
        f"of the simulated paths is wrong by at most {found['covariance_error']:.1g}. Without splitting, "
        f"{survivors:,.{0 if survivors >= 10 else 2}f} of the {num_paths:,} paths would be left at the end.",
    )
    title = process.title[0].upper() + process.title[1:]
    return Section(title, paragraphs, (_settling(workspace, name, process, found), table))


def _settling(workspace: Workspace, name: str, process: Any, found: Mapping[str, Any]) -> Figure:
    local = found["local"]
    with canvas(height=2.7) as (figure, (axes,)):
        axes.axvspan(found["burn_in"], found["time"][-1], color=MUTED, alpha=0.08, linewidth=0)
        axes.axhline(process.reference, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="known")
        low = np.asarray(local["theta"]) - 2 * np.asarray(local["standard_error"])
        high = np.asarray(local["theta"]) + 2 * np.asarray(local["standard_error"])
        axes.vlines(local["time"], low, high, color=COLOURS[name], linewidth=1.4)
        axes.plot(local["time"], local["theta"], "o", color=COLOURS[name], markersize=4, label="over two units of time")
        axes.set(xlabel="t", ylabel="decay rate", xlim=(0, found["time"][-1]))
        axes.margins(y=0.25)
        axes.legend(loc="upper right", ncols=2)
        caption = (
            "Decay rate of the survival probability with two standard errors, points close together, and the known "
            "exponent (dashed). Shaded: where the slope is measured."
        )
        alt = "Points with error bars that settle at a dashed line."
        return workspace.figure(f"rare-{name}", figure, caption=caption, alt=alt)


def survival_figure(
    workspace: Workspace, processes: Mapping[str, Any], metrics: Mapping[str, Any], config: Any
) -> Figure:
    """Log survival against time, with lines of the known slopes."""
    with canvas(height=4.0) as (figure, (axes,)):
        for name, process in processes.items():
            time, logs = np.asarray(metrics[name]["time"]), np.asarray(metrics[name]["log_survival"], float)
            start = np.searchsorted(time, config.burn_in)
            axes.plot(time, logs / np.log(10), color=COLOURS[name], label=process.title)
            line = logs[start] - process.reference * (time[start:] - time[start])
            axes.plot(time[start:], line / np.log(10), color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xlabel="T", ylabel="log₁₀ probability of no zero crossing", xlim=(0, None))
        axes.legend(loc="lower left")
        caption = "Survival of the sign, by splitting. Dashed: the known slopes."
        alt = "Four falling straight lines, each on top of a dashed line of the known slope."
        return workspace.figure("rare-survival", figure, caption=caption, alt=alt)


def exponents_figure(
    workspace: Workspace, processes: Mapping[str, Any], metrics: Mapping[str, Any], intervals: Mapping[str, float]
) -> Figure:
    """Ours and independent intervals, as differences from the known exponents."""
    place = np.arange(len(processes))[::-1].astype(float)
    with canvas(height=2.7) as (figure, (axes,)):
        axes.axvline(0, color=INK, linewidth=0.9)
        for at, (name, process) in zip(place, processes.items(), strict=True):
            theta, error = (_or_nan(metrics[name][key]) for key in ("theta", "standard_error"))
            scale = 100 / process.reference
            first = at == place[0]
            axes.hlines(at, -process.allowance * scale, process.allowance * scale, color=MUTED, alpha=0.4, linewidth=9)
            middle = (theta - process.reference) * scale
            axes.hlines(at, middle - 2 * error * scale, middle + 2 * error * scale, color=BLUE, linewidth=2)
            axes.plot(middle, at, "o", color=BLUE, markersize=5, label="splitting, ± 2 s.e." if first else None)
            miss = (intervals[name] - process.reference) * scale
            axes.plot(miss, at, "D", color=ORANGE, markersize=5, label="independent intervals" if first else None)
        axes.set_yticks(place, [process.title for process in processes.values()])
        axes.set(xlabel="% from the known exponent", ylim=(-0.6, place[0] + 0.6))
        axes.grid(visible=False, axis="y")
        axes.legend(loc="upper right")
        caption = "Differences from the known exponents. Grey: what the published simulations leave open."
        alt = "Relative differences: splitting lies at zero, independent intervals up to six per cent off."
        return workspace.figure("rare-exponents", figure, caption=caption, alt=alt)


def exponents_table(processes: Mapping[str, Any], metrics: Mapping[str, Any], intervals: Mapping[str, float]) -> Table:
    """All exponents side by side."""
    rows = []
    for name, process in processes.items():
        theta, error = (_or_nan(metrics[name][key]) for key in ("theta", "standard_error"))
        rows.append(
            (
                process.title,
                f"{process.reference:.5g}",
                process.source,
                f"{theta:.5f}",
                f"{error:.5f}",
                f"{100 * (theta / process.reference - 1):+.2f}",
                f"{intervals[name]:.5f}",
                f"{100 * (intervals[name] / process.reference - 1):+.2f}",
            )
        )
    columns = ("", "known θ", "by", "splitting", "± s.e.", "% off", "independent intervals", "% off")
    return Table("Persistence exponents.", columns, tuple(rows))


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
