"""`python -m benchmarks scaling`: the sharded bootstrap filter on 1, 2, 4 and 8 simulated devices.

Strong scaling keeps N and weak scaling keeps N a device. Simulated devices share the cores of the machine, so that the
table shows what sharding costs and never a speed-up beyond the cores; what must hold anywhere is that evidence,
ancestors and particles are the same bits on any number of devices.
"""

import argparse
import statistics
from collections.abc import Sequence

from benchmarks._competitors import Entry, competitors
from benchmarks._harness import Case, Row, machine, measure
from benchmarks._report import (
    COMPILE,
    CPU,
    CPU_OVER_OURS,
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
from benchmarks.filters._problems import make_problem

DEVICES = (1, 2, 4, 8)
NUM_PARTICLES, PER_DEVICE = 100_000, 25_000
QUICK_SHARE = 10  # a quick run has this many times fewer particles
ROUNDS, QUICK_ROUNDS = 10, 3
XLA_FLAGS = (("XLA_FLAGS", f"--xla_force_host_platform_device_count={max(DEVICES)}"), ("JAX_PLATFORMS", "cpu"))
NO_MESH = "no mesh"
COLUMNS = (
    WALL,
    CPU,
    WALL_OVER_OURS._replace(title="wall / 1 device"),
    CPU_OVER_OURS._replace(title="CPU / 1 device"),
    Column("log Z error, mean (rmse)", lambda s: f"{s['error_mean']:+.3f} ({s['error_rmse']:.3f})"),
    COMPILE,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes."""
    parser.add_argument("--num-steps", type=int, default=50)


def run(options: argparse.Namespace, *, say=print) -> Outcome:
    """Measures every size with the device counts that strong or weak scaling asks of it, and with one device."""
    share = QUICK_SHARE if options.quick else 1
    strong, per_device = NUM_PARTICLES // share, PER_DEVICE // share
    wanted = {n * per_device: {1, n} for n in DEVICES}
    wanted[strong] = {*wanted.get(strong, ()), *DEVICES}
    exact = make_problem("linear_gaussian", options.num_steps).log_evidence
    rows = []
    for num_particles, counts in sorted(wanted.items()):
        names = [variant(n) for n in sorted(counts)] + ([NO_MESH] if num_particles == strong else [])
        entries = {"sharded": [Entry(name, "ess<.5", "sharded bootstrap") for name in names]}
        listed = [
            one._replace(library="probinf") for one in competitors("benchmarks.filters", entries, environment=XLA_FLAGS)
        ]
        case = Case("linear_gaussian", options.num_steps, num_particles)
        say(f"  {case}: {', '.join(names)}")
        rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
        rows += measure(case, listed, exact, rounds=rounds, say=say)
    cores = machine()["cores"]
    notes = {
        "devices": f"{max(DEVICES)} simulated by one process on {cores} cores, which bound any speed-up: read the CPU "
        "column as the cost of sharding"
    }
    more = [*target_table(target_lines(rows)), *scaling_table(rows, strong, per_device)]
    return Outcome("Scaling of the sharded bootstrap filter", rows, COLUMNS, notes, more)


def variant(num_devices: int) -> str:
    """The adapter's name of a device count."""
    return f"{num_devices} device{'s' * (num_devices > 1)}"


def target_lines(rows: Sequence[Row]) -> list[str]:
    """For each row on a mesh: whether evidence, ancestors and particles of all its runs equal those of one device."""
    lines = []
    for group in groups(rows):
        base = ours_of(group)
        if base is None or base.competitor.variant != variant(1):
            continue
        for row in group:
            if row is not base and row.runs and row.competitor.variant != NO_MESH:
                pairs = list(zip(base.runs, row.runs, strict=False))
                same = sum(a.log_evidence == b.log_evidence and a.details == b.details for a, b in pairs)
                target = f"bit-equal evidence, ancestors and particles, {row.competitor.variant} and 1"
                found = f"{same} of {len(base.runs)} runs"
                lines.append(target_line(group_name(row), target, found, "-", same == len(base.runs)))
    return lines


def scaling_table(rows: Sequence[Row], strong: int, per_device: int) -> list[str]:
    """A Markdown table of strong and weak scaling: seconds on n devices over seconds on one."""
    lines = [
        "",
        "## Scaling",
        "",
        "Strong: N stays. Weak: N grows with the devices, and so does the work of the same cores. CPU seconds are of "
        "all devices: free sharding would show CPU / 1 = 1 in strong scaling and = devices in weak.",
        "",
        "| devices | strong N | wall s | CPU s | wall / 1 | CPU / 1 | weak N | wall s | CPU s | wall / 1 | CPU / 1 |",
        "|" + "---|" * 11,
    ]
    found = {(row.competitor.variant, row.case.num_particles): row for row in rows if row.runs}
    for n in DEVICES:
        cells = [str(n)]
        for size, first in ((strong, strong), (n * per_device, per_device)):
            cells += _cells(size, found.get((variant(n), size)), found.get((variant(1), first)))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cells(size: int, row: Row | None, base: Row | None) -> list[str]:
    if row is None or base is None:
        return [str(size), "-", "-", "-", "-"]
    times = [statistics.median(seconds) for seconds in (row.wall, row.cpu)]
    bases = [statistics.median(seconds) for seconds in (base.wall, base.cpu)]
    return [str(size), *(f"{t:.3g}" for t in times), *(f"{t / b:.2f}" for t, b in zip(times, bases, strict=True))]
