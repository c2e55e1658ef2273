"""`python -m benchmarks llm`: a particle filter on the chains models, against loops on `transformers`."""

import argparse
import math
import statistics
from collections.abc import Sequence

from benchmarks._competitors import Entry, competitors, peer_competitors
from benchmarks._harness import Case, Row, measure, pair_ratios
from benchmarks._report import (
    COMPILE,
    CPU,
    CPU_OVER_OURS,
    PEAK,
    WALL,
    WALL_OVER_OURS,
    Column,
    Outcome,
    group_name,
    groups,
    ours_of,
    target_line,
    target_table,
)

PACKAGE = "benchmarks.llm"
RULE, ALGORITHM = "systematic at every step", "judge's filter"
OURS = {"probinf": [Entry("particle_filter", RULE, ALGORITHM)]}
PEERS = {"transformers": [Entry(name, RULE, ALGORITHM) for name in ("cached", "batched", "one by one")]}
# How many times faster than each way of looping we promise to be.
FASTER = {"cached": 3.0, "batched": 6.0, "one by one": 12.0}
ROUNDS, QUICK_ROUNDS = 20, 3
COLUMNS = (
    WALL,
    CPU,
    WALL_OVER_OURS,
    CPU_OVER_OURS,
    Column("log Z (exact 0)", lambda s: f"{s['error_mean']:+.2f} ({s['error_rmse']:.2f})"),
    COMPILE,
    PEAK,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes."""
    parser.add_argument("--num-particles", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--num-steps", type=int, default=12)


def run(options: argparse.Namespace, *, say=print) -> Outcome:
    """Measures all competitors at each number of particles; one row each."""
    listed = competitors(PACKAGE, OURS)
    peers, absent = peer_competitors(PACKAGE, PEERS, options.peers, options.environments, say=say)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    rows: list[Row] = []
    for count in options.num_particles:
        case = Case("chains", options.num_steps, count)
        say(f"  {case}: {len(listed) + len(peers)} competitors, {rounds} rounds")
        rows += measure(case, [*listed, *peers], 0.0, rounds=rounds, say=say)
    notes = {**absent, "exact log evidence": "0, of every competitor", "rounds": str(rounds)}
    more = [*target_table(target_lines(rows)), *evidence_lines(rows)]
    return Outcome("A particle filter on language models of 10^5 parameters", rows, COLUMNS, notes, more)


def target_lines(rows: Sequence[Row]) -> list[str]:
    """The promises: times faster than each loop."""
    lines = []
    for group in groups(rows):
        ours = ours_of(group)
        for row in group:
            wanted = FASTER.get(row.competitor.variant)
            if ours is None or wanted is None or not row.runs:
                continue
            wall, cpu = (statistics.median(pair_ratios(getattr(ours, c), getattr(row, c))) for c in ("wall", "cpu"))
            target = f"{row.competitor.name} / ours >= {wanted:g}"
            lines.append(target_line(group_name(ours), target, wall, cpu, wall >= wanted))
    return lines


def evidence_lines(rows: Sequence[Row]) -> list[str]:
    """Whether all sample the same thing: the mean of Z-hat, which is 1 whoever runs it, in standard errors."""
    lines = [
        "",
        "## The same task",
        "",
        "| case | competitor | mean of Z-hat (exact 1) | standard error |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if len(row.runs) > 1:
            values = [math.exp(error) for error in row.errors]
            error = statistics.stdev(values) / math.sqrt(len(values))
            fixed = row.runs[-1].details["log_prob"]
            cells = [row.case, row.competitor.name, f"{fixed:.5f}", f"{statistics.fmean(values):.2f}", f"{error:.2f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines
