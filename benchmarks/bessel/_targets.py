"""The promises of the log-Bessel functions' speed, and how far the libraries' values are apart."""

import statistics
from collections.abc import Sequence

import numpy as np

from benchmarks._harness import Row, pair_ratios
from benchmarks._report import (
    COMPILE,
    CPU,
    CPU_OVER_OURS,
    WALL,
    WALL_OVER_OURS,
    Column,
    Summary,
    group_name,
    groups,
    ours_of,
    target_line,
    target_table,
)
from benchmarks.bessel._problems import make_problem, pairs

FASTER_THAN_PEER = {("log_iv", "scipy"): 1.5, ("log_iv", "tfp"): 40, ("log_kv", "scipy"): 0.55, ("log_kv", "tfp"): 10}
SINGLE_OVER_DOUBLE = 2.0  # the least that seconds in float64 / float32 may be
ACCELERATOR_OVER_SCIPY = 500.0  # the same for SciPy / ours where ours runs on an accelerator


def _rate(summary: Summary) -> str:
    return f"{summary['num_particles'] / summary['wall']['median']:.3g}"


def _traffic(summary: Summary) -> str:
    """Two arrays in and one out, as if nothing else moved."""
    width = np.dtype(summary["algorithm"]).itemsize
    return f"{3 * width * summary['num_particles'] / summary['wall']['median'] / 1e9:.2f}"


COLUMNS = (
    WALL,
    CPU,
    Column("values / s", _rate),
    Column("GB/s", _traffic),
    WALL_OVER_OURS,
    CPU_OVER_OURS,
    Column("not finite", lambda s: f"{s['details']['non_finite']['mean']:.1%}"),
    Column("largest difference", lambda s: f"{s['details']['difference']['mean']:.1e}"),
    COMPILE,
)


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows, whose lists of values are replaced by their largest difference from ours in float64.

    The difference is over max(1, |value|, sqrt(v^2 + x^2)) and where both are finite; in float32 it is that of the
    rounded arguments, too.
    """
    ours = {
        row.case: row.runs[0].details["values"]
        for row in rows
        if row.runs and (row.competitor.library, row.competitor.algorithm) == ("probinf", "float64")
    }
    found = []
    for row in rows:
        runs = []
        for run in row.runs:
            details = dict(run.details)
            values = np.array(details.pop("values"))
            details["difference"] = _difference(row, values, np.array(ours.get(row.case, values)))
            runs.append(run._replace(details=details))
        firsts = tuple(run._replace(details={}) for run in row.firsts)
        found.append(row._replace(firsts=firsts, runs=tuple(runs)))
    return found


def _difference(row: Row, values: np.ndarray, ours: np.ndarray) -> float:
    v, x = pairs(make_problem(row.case.problem, row.case.size), row.case.num_particles, "float64")
    scale = np.maximum(np.maximum(1, np.abs(ours)), np.hypot(v, x)[: len(ours)])
    both = np.isfinite(values) & np.isfinite(ours)
    return float(np.max(np.abs(values - ours)[both] / scale[both], initial=0))


def target_lines(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: one line a promise."""
    lines = []
    ours_by_case = {}
    for group in groups(rows):
        ours = ours_of(group)
        if ours is None:
            continue
        ours_by_case.setdefault(ours.case, {})[ours.competitor.algorithm] = ours
        for row in group:
            least = FASTER_THAN_PEER.get((row.case.problem, row.competitor.library))
            if least is None or not row.runs or ours.competitor.algorithm != "float64":
                continue
            if row.competitor.library == "scipy" and ours.device != "cpu":
                least = ACCELERATOR_OVER_SCIPY
            wall, cpu = _medians(ours, row)
            lines.append(
                target_line(group_name(ours), f"{row.competitor.name} / ours >= {least:g}", wall, cpu, wall >= least)
            )
    for case, found in ours_by_case.items():
        if {"float32", "float64"} <= found.keys():
            wall, cpu = _medians(found["float32"], found["float64"])
            target = f"ours, float64 / float32 >= {SINGLE_OVER_DOUBLE:g}"
            lines.append(target_line(str(case), target, wall, cpu, wall >= SINGLE_OVER_DOUBLE))
    return target_table(lines)


def _medians(base: Row, other: Row) -> tuple[float, float]:
    wall, cpu = pair_ratios(base.wall, other.wall), pair_ratios(base.cpu, other.cpu)
    return statistics.median(wall), statistics.median(cpu)
