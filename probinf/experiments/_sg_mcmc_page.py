"""What the experiment on stochastic gradient samplers shows: text and figures from its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probinf.experiments._figures import BLUE, INK, MUTED, ORANGE, TEAL, canvas
from probinf.experiments._page import Section
from probinf.experiments._workspace import Workspace

COLOURS = (TEAL, ORANGE, BLUE)  # of directions, from slow to stiff
DASHED: Mapping[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": (0, (4, 3))}
DIRECTIONS = ("slowest", "middle", "stiffest")


def _column(rows: Sequence[Mapping[str, Any]], name: str, direction: int) -> np.ndarray:
    return np.array([np.nan if row[name][direction] is None else row[name][direction] for row in rows], float)


def _points(
    axes: Any, x: np.ndarray, rows: Sequence[Mapping[str, Any]], direction: int, *, less: float = 0.0, times: Any = 1.0
) -> None:
    """Measured values with two standard errors, and a line through the exact ones; `less` is taken off both."""
    value, exact = (times * _column(rows, name, direction) - less for name in ("ratio", "exact"))
    error, colour = times * _column(rows, "ratio_error", direction), COLOURS[direction]
    axes.plot(x, exact, color=colour, linewidth=1.1)
    axes.vlines(x, np.maximum(value - 2 * error, 1e-4), value + 2 * error, color=colour, linewidth=1.6)
    axes.plot(x, value, "o", color=colour, markersize=4.5, label=DIRECTIONS[direction])


def steps_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """Bias against the step, with all data."""
    with canvas(columns=2, height=3.2) as (figure, (left, right)):
        for axes, name, title in ((left, "sgld", "SGLD"), (right, "sghmc", "SGHMC")):
            rows = metrics["rows"][name]
            x = np.array([row["step"] for row in rows])
            for direction in range(len(DIRECTIONS)):
                _points(axes, x, rows, direction, less=1.0)
            power = 1 if name == "sgld" else 2
            top = _column(rows, "exact", 2)[-1] - 1
            axes.plot(x, top * (x / x[-1]) ** power, label="step" if power == 1 else "step squared", **DASHED)
            axes.set(xscale="log", yscale="log", xlabel="step size", title=f"{title}: variance / exact - 1")
            axes.set_xticks(x, [f"{value:.3f}" for value in x])
            axes.minorticks_off()
            axes.legend(loc="lower right")
        caption = (
            "Excess variance along the three eigenvectors of the posterior's precision, all data. Points: chains, ± 2 "
            "s.e.; solid lines: the exact stationary variance of the recursion; dashed: a power of the step."
        )
        alt = (
            "Points on curves that rise with the step, in proportion to it on the left and to its square on the right."
        )
        item = workspace.figure("sg-steps", figure, caption=caption, alt=alt)
    text = (
        "Langevin dynamics with a step and without rejection has a stationary law of its own. On a linear regression "
        "it is known exactly: chains are held against it, and it against the posterior. Halving the step halves the "
        "bias of SGLD where it is small, and divides that of SGHMC, with all data and on a Gaussian, by four.",
    )
    return Section("The bias of the step", text, (item,))


def batches_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """Variance against the batch size."""
    with canvas(columns=2, height=3.0) as (figure, axes_pair):
        for axes, (name, rows) in zip(axes_pair, metrics["rows"].items(), strict=True):
            x = np.array([row["batch_size"] for row in rows])
            for direction in range(len(DIRECTIONS)):
                _points(axes, x, rows, direction)
            axes.axhline(1, **DASHED)
            axes.set(xscale="log", xlabel="rows a batch", title=f"Variance / exact, {name}")
            axes.set_xticks(x, [str(value) for value in x])
            axes.minorticks_off()
        axes_pair[1].set_ylim(axes_pair[0].get_ylim())
        axes_pair[0].legend(loc="upper right")
        caption = f"SGLD with batches of {metrics['num_rows']} rows, at one step size. Solid lines: exact."
        alt = "Two panels of falling curves, the left one from well above two, the right one much closer to one."
        item = workspace.figure("sg-batches", figure, caption=caption, alt=alt)
    text = (
        "A batch tells the gradient with noise, and the chain cannot tell it from the noise that it adds itself. How "
        "much wider it gets solves a linear equation, into which goes how rows differ within the stretches that they "
        "are drawn from. Gradients relative to those at the mode have little noise near it.",
    )
    return Section("What batches add", text, (item,))


def cold_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """Variance against temperature."""
    with canvas(columns=2, height=3.0) as (figure, axes_pair):
        for axes, (name, rows) in zip(axes_pair, metrics["rows"].items(), strict=True):
            x = np.array([row["temperature"] for row in rows])
            for direction in range(len(DIRECTIONS)):
                _points(axes, x, rows, direction, times=x)
            axes.plot(x, x, **DASHED, label="T")
            axes.set(
                xscale="log", yscale="log", xlabel="temperature T", title=f"Variance / exact, {name}", ylim=(0.005, 2)
            )
        axes_pair[0].legend(loc="upper left")
        caption = "SGLD whose noise is scaled by the root of T. Dashed: T times the variance of the posterior."
        alt = "Left, points on the diagonal; right, points that leave it and level off as the temperature falls."
        item = workspace.figure("sg-cold", figure, caption=caption, alt=alt)
    text = (
        "A cold posterior, the density to the power 1/T, has T times the variance, and with all data the chain has "
        "too. With batches it does not: their noise is not scaled by T, so that a chain told to be cold stays warm, "
        "and what is found at low T says more of the batches than of the temperature.",
    )
    return Section("Cold posteriors", text, (item,))


def preconditioned_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """Variance of the preconditioned sampler against the step."""
    rows = metrics["rows"]
    x = np.array([row["step"] for row in rows])
    value, error, exact = (_column(rows, name, 0) for name in ("ratio", "ratio_error", "exact"))
    with canvas(height=2.8) as (figure, (axes,)):
        axes.plot(
            np.append(x, 0), np.append(exact, metrics["limit"]), color=BLUE, linewidth=1.1, label="quadrature, limit"
        )
        axes.vlines(x, value - 2 * error, value + 2 * error, color=BLUE, linewidth=1.6)
        axes.plot(x, value, "o", color=BLUE, markersize=4.5, label="chains ± 2 s.e.")
        axes.plot([0], [metrics["limit"]], "D", color=ORANGE, markersize=5)
        axes.axhline(1, **DASHED, label="target")
        axes.axhline(metrics["limit"], color=MUTED, linewidth=0.6)
        axes.set(xlabel="step size", title="Variance on N(0, 1)", ylim=(0.9, None))
        axes.legend(loc="center right")
        caption = "Preconditioned SGLD whose preconditioner follows the last gradient. The diamond is the limit."
        alt = "Points on a line that meets the vertical axis well above one."
        item = workspace.figure("sg-preconditioned", figure, caption=caption, alt=alt)
    text = (
        "A step that depends on the position needs a term in the drift, which the algorithm as published leaves out. "
        "Where the preconditioner follows the last gradient alone the law is then, for small steps, the density times "
        "one over the preconditioner; long averages of the gradient hide this, and do not do away with it.",
    )
    return Section("Preconditioners", text, (item,))
