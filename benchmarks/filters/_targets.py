"""The promises of the filters' speed, each held against what was measured: target, measured, holds or not."""

import statistics
from collections.abc import Sequence

from benchmarks._harness import Row, pair_ratios
from benchmarks._merit import gain
from benchmarks._report import floor_of, group_name, groups, ours_of, target_line, target_table

SLOWER_THAN_FLOOR = {1_000: 1.30, 100_000: 1.10}  # N to the most that ours / floor may be
FASTER_THAN_PEER = {  # N to library to the least that peer / ours may be
    1_000: {"blackjax": 2.0, "cuthbert": 2.0, "particles": 2.0},
    100_000: {"blackjax": 1.3, "cuthbert": 1.3, "particles": 2.0},
}
ERROR_PER_SECOND = 5.0  # the least by which our informed filters must beat our bootstrap filter


def target_lines(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: one line a promise, case and rule; a peer stands by its fastest variant."""
    lines = []
    for group in groups(rows):
        ours, floor = ours_of(group), floor_of(group)
        if ours is None:
            continue
        case, num_particles = group_name(ours), ours.case.num_particles
        limit = SLOWER_THAN_FLOOR.get(num_particles)
        if limit and floor:
            wall, cpu = _medians(floor, ours)
            lines.append(target_line(case, f"ours / floor <= {limit}", wall, cpu, wall <= limit))
        for library, least in FASTER_THAN_PEER.get(num_particles, {}).items():
            theirs = [row for row in group if row.competitor.library == library and row.runs]
            if theirs:
                fastest = min(theirs, key=lambda row: statistics.median(row.wall))
                wall, cpu = _medians(ours, fastest)
                lines.append(target_line(case, f"{library} / ours >= {least}", wall, cpu, wall >= least))
                # Seconds, and no medians: there is one first call a competitor and case.
                wall, cpu = ours.compile_wall - fastest.compile_wall, ours.compile_cpu - fastest.compile_cpu
                lines.append(target_line(case, f"compile s, ours - {library} <= 0", wall, cpu, wall <= 0))
    for base, row in _informed(rows):
        if row.competitor.library == "probinf":
            wall, cpu = gain(base, row), gain(base, row, clock="cpu")
            target = f"error per second, ours / our bootstrap >= {ERROR_PER_SECOND:g}"
            lines.append(target_line(group_name(row), target, wall, cpu, wall.value >= ERROR_PER_SECOND))
    return target_table(lines)


def gain_table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table of what an informed filter gains over our bootstrap filter; empty where none ran."""
    lines = [
        f"| {group_name(row)} | {row.competitor.library} | {row.rmse:.3g} | {base.rmse:.3g} "
        f"| {gain(base, row)} | {gain(base, row, clock='cpu')} | {gain(base, row, power=2)} |"
        for base, row in _informed(rows)
    ]
    if not lines:
        return []
    return [
        "",
        "## Error per second against our bootstrap filter",
        "",
        "rmse of log Z times median seconds, that of our bootstrap filter over that of the row, with its 90 % "
        "bootstrap interval; variance per second squares the rmse.",
        "",
        "| case | library | rmse | rmse of bootstrap | per wall second | per CPU second | variance per wall second |",
        "|---|---|---|---|---|---|---|",
        *lines,
    ]


def _informed(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of algorithms beyond the bootstrap, each with our bootstrap filter of the same case and rule."""
    bases = {
        (row.case, row.competitor.rule): row
        for row in rows
        if row.competitor.library == "probinf" and row.competitor.algorithm == "bootstrap" and row.runs
    }
    found = [
        (bases.get((row.case, row.competitor.rule)), row)
        for row in rows
        if row.runs and row.competitor.algorithm != "bootstrap"
    ]
    return [(base, row) for base, row in found if base is not None]


def _medians(base: Row, other: Row) -> tuple[float, float]:
    wall, cpu = pair_ratios(base.wall, other.wall), pair_ratios(base.cpu, other.cpu)
    return statistics.median(wall), statistics.median(cpu)
