"""`python -m benchmarks large`: ten million particles in float32, against the Kalman evidence.

The informative linear-Gaussian problem with T = 20. A plain float32 cumulative sum of 1e7 weights loses digits, so
this shows both that the filter runs in the memory of a laptop and that its evidence is right.
"""

import sys
from collections.abc import Sequence

from benchmarks._harness import Case, Competitor, Row, measure
from benchmarks.filters._problems import make_problem

VARIANTS = (("probinf", "ess<.5"), ("probinf", "always"), ("bare", "count/eve/ess<.5"), ("bare", "count/eve/always"))


def run_large(*, num_particles: int = 10_000_000, num_steps: int = 20, rounds: int = 3, say=print) -> list[Row]:
    """Measures us and the bare scan, one after the other so that peak memory is each process's own."""
    exact = make_problem("linear_gaussian", num_steps).log_evidence
    case = Case("linear_gaussian", num_steps, num_particles)
    rows = []
    for library, variant in VARIANTS:
        rule = variant.split("/")[-1]
        one = Competitor(library, variant, rule, f"benchmarks.filters._{library}", sys.executable)
        rows += measure(case, [one], exact, rounds=rounds, warm_up=0, say=say)
    return rows


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
