"""`python -m benchmarks large`: ten million particles in float32, against the Kalman evidence.

The informative linear-Gaussian problem with T = 20. A plain float32 cumulative sum of 1e7 weights loses digits, so
this shows both that the filter runs in the memory of a laptop and that its evidence is right.
"""

import argparse
from collections.abc import Sequence

from benchmarks._competitors import Entry, competitors
from benchmarks._harness import Case, Row, measure
from benchmarks._report import COLUMNS, Outcome
from benchmarks.filters._problems import make_problem

ENTRIES = {
    "probinf": [Entry("ess<.5", "ess<.5"), Entry("always", "always")],
    "bare": [Entry("count/eve/ess<.5", "ess<.5"), Entry("count/eve/always", "always")],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes."""
    parser.add_argument("--num-steps", type=int, default=20)


def run(options: argparse.Namespace, *, say=print) -> Outcome:
    """Measures us and the bare scan, one after the other so that peak memory is each process's own."""
    exact = make_problem("linear_gaussian", options.num_steps).log_evidence
    case = Case("linear_gaussian", options.num_steps, 1_000_000 if options.quick else 10_000_000)
    rows = []
    for one in competitors("benchmarks.filters", ENTRIES):
        rows += measure(case, [one], exact, rounds=options.rounds or 3, warm_up=0, say=say)
    say("\n".join(lines_of(rows)))
    return Outcome("Ten million particles in float32", rows, COLUMNS, {})


def lines_of(rows: Sequence[Row]) -> list[str]:
    """One line a row for the terminal: bytes a particle are of the whole process at its peak."""
    return [
        f"{row.competitor.name}: "
        + (
            row.fault
            or f"wall {min(row.wall):.2f} s, peak {max(r.peak_rss_mb for r in row.runs):.0f} MB, log evidence errors "
            + ", ".join(f"{error:+.4f}" for error in row.errors)
        )
        for row in rows
    ]
