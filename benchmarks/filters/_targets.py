"""The promises of the filter's speed, each held against what was measured: target, measured, holds or not."""

import statistics
from collections.abc import Sequence

from benchmarks._harness import Row, pair_ratios
from benchmarks._report import floor_of, groups, ours_of

SLOWER_THAN_FLOOR = {1_000: 1.30, 100_000: 1.10}  # N to the most that ours / floor may be
FASTER_THAN_PEER = {  # N to library to the least that peer / ours may be
    1_000: {"blackjax": 2.0, "cuthbert": 2.0, "particles": 2.0},
    100_000: {"blackjax": 1.3, "cuthbert": 1.3, "particles": 2.0},
}


def target_lines(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: one line a promise, case and rule; a peer stands by its fastest variant."""
    lines = ["", "## Targets", "", "| case | target | wall | CPU | holds (wall)? |", "|---|---|---|---|---|"]
    for group in groups(rows):
        ours, floor = ours_of(group), floor_of(group)
        if ours is None:
            continue
        case = f"{ours.case.problem}, N = {ours.case.num_particles}, {ours.competitor.rule}"
        limit = SLOWER_THAN_FLOOR.get(ours.case.num_particles)
        if limit and floor:
            wall, cpu = _medians(floor, ours)
            lines.append(_line(case, f"ours / floor <= {limit}", wall, cpu, wall <= limit))
        for library, least in FASTER_THAN_PEER.get(ours.case.num_particles, {}).items():
            theirs = [row for row in group if row.competitor.library == library and row.runs]
            if theirs:
                fastest = min(theirs, key=lambda row: statistics.median(row.wall))
                wall, cpu = _medians(ours, fastest)
                lines.append(_line(case, f"{library} / ours >= {least}", wall, cpu, wall >= least))
                # Seconds, and no medians: there is one first call a competitor and case.
                wall, cpu = ours.compile_wall - fastest.compile_wall, ours.compile_cpu - fastest.compile_cpu
                lines.append(_line(case, f"compile s, ours - {library} <= 0", wall, cpu, wall <= 0))
    return lines


def _medians(base: Row, other: Row) -> tuple[float, float]:
    wall, cpu = pair_ratios(base.wall, other.wall), pair_ratios(base.cpu, other.cpu)
    return statistics.median(wall), statistics.median(cpu)


def _line(case: str, target: str, wall: float, cpu: float, holds: bool) -> str:
    return f"| {case} | {target} | {wall:.2f} | {cpu:.2f} | {'yes' if holds else '**no**'} |"
