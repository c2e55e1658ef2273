"""`python -m benchmarks tempered`: adaptive tempered SMC of every library on the target with two modes."""

import argparse
from collections.abc import Sequence

from benchmarks._competitors import Entry, competitors, peer_competitors
from benchmarks._harness import Case, Row, measure
from benchmarks._merit import Gain, gain, price
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
from benchmarks.tempered._problems import make_problem

PACKAGE = "benchmarks.tempered"
OURS = {"probinf": [Entry(name, "", "tempered") for name in ("default", "waste-free")]}
# The step size .3 is the best for both metrics of a scan over .2, .25, .3, .4 and .5.
PEERS = {
    "blackjax": [Entry(name, "", "tempered") for name in ("rwm", "hmc/0.3", "hmc-unit/0.3")],
    "particles": [Entry(name, "", "tempered") for name in ("standard", "waste-free/10 N kept", "waste-free/N kept")],
}
ROUNDS, QUICK_ROUNDS = 100, 10
STARTS = 3  # fresh processes to time the first call of
BETTER_THAN_PEER = 2.0  # the least that rmse x seconds of the best peer / ours may be
COMPILE_CPU = 3.0  # the most CPU seconds that compiling ours may take
COLUMNS = (
    WALL,
    CPU,
    WALL_OVER_OURS,
    CPU_OVER_OURS,
    Column("temperatures", lambda s: f"{s['details']['num_temperatures']['mean']:.1f}"),
    Column("log Z bias (rmse)", lambda s: f"{s['error_mean']:+.3f} ({s['error_rmse']:.3f})"),
    Column("mode-weight rmse", lambda s: f"{s['details']['mode_weight_error']['rms']:.3f}"),
    COMPILE,
    PEAK,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes."""
    parser.add_argument("--num-particles", type=lambda text: int(float(text)), default=2000)
    parser.add_argument("--dimension", type=int, default=10)


def run(options: argparse.Namespace, *, say=print) -> Outcome:
    """Measures all competitors; one row each."""
    listed = competitors(PACKAGE, OURS)
    peers, absent = peer_competitors(PACKAGE, PEERS, options.peers, options.environments, say=say)
    exact = make_problem("bimodal", options.dimension).log_evidence
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    case = Case("bimodal", options.dimension, options.num_particles, unit="d")
    say(f"  {case}: {len(listed) + len(peers)} competitors, {rounds} rounds")
    starts = 1 if options.quick else STARTS
    rows = measure(case, [*listed, *peers], exact, rounds=rounds, starts=starts, say=say)
    more = [*target_table(target_lines(rows)), *merit_table(rows)]
    notes = {**absent, "exact log evidence": f"{exact:.4f}", "rounds": str(rounds)}
    return Outcome("Adaptive tempered SMC on a target with two modes", rows, COLUMNS, notes, more)


def target_lines(rows: Sequence[Row]) -> list[str]:
    """The promises: rmse x time against the best peer, by wall and by CPU each the best, and our compile time."""
    lines = []
    for group in groups(rows):
        ours = ours_of(group)
        if ours is None:
            continue
        case = group_name(ours)
        peers = [row for row in group if row.competitor.library != "probinf" and row.runs]
        if peers:
            wall, cpu = (_gain_over_best(peers, ours, clock) for clock in ("wall", "cpu"))
            target = f"rmse x time, best peer / ours >= {BETTER_THAN_PEER:g}"
            lines.append(target_line(case, target, wall, cpu, wall.value >= BETTER_THAN_PEER))
        holds = ours.compile_cpu < COMPILE_CPU
        target = f"compile CPU s < {COMPILE_CPU:g} (holds by CPU)"
        lines.append(target_line(case, target, ours.compile_wall, ours.compile_cpu, holds))
    return lines


def merit_table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table of error and variance per second against ours; empty where ours did not run."""
    lines = [
        "",
        "## Error per second",
        "",
        "rmse of log Z times median seconds, and that of the row over ours with its 90 % bootstrap interval; above 1 "
        "ours is better. Variance per second squares the rmse: the ratio of times to one and the same accuracy by "
        "averaging runs.",
        "",
        "| competitor | rmse x wall s | rmse x CPU s | / ours, wall | / ours, CPU | variance x wall / ours "
        "| variance x CPU / ours |",
        "|---|---|---|---|---|---|---|",
    ]
    header = len(lines)
    for group in groups(rows):
        ours = ours_of(group)
        for row in group:
            if ours is not None and row.runs:
                prices = [f"{price(row, clock=clock):.3g}" for clock in ("wall", "cpu")]
                own = row is ours
                gains = [
                    "1" if own else str(gain(row, ours, clock=clock, power=power))
                    for power in (1, 2)
                    for clock in ("wall", "cpu")
                ]
                lines.append(f"| {row.competitor.name} | " + " | ".join([*prices, *gains]) + " |")
    return lines if len(lines) > header else []


def _gain_over_best(peers: Sequence[Row], ours: Row, clock: str) -> Gain:
    return gain(min(peers, key=lambda row: price(row, clock=clock)), ours, clock=clock)
